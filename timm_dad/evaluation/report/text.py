"""A report as text: Markdown for terminal and README, CSV in long format."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timm_dad.common.markdown import format_table
from timm_dad.evaluation.report.figures import HEADLINE_PARTS, MEAN_OOD, WHOLE

LABELS = {
    'top1': 'top-1',
    'top5': 'top-5',
    'ece': 'ECE',
    'mce': 'mCE',
    'relative_mce': 'relative mCE',
    'mce_unnormalized': 'mCE, unnormalized',
    'mean_error': 'mean error',
    'effective_robustness': 'effective robustness',
    'ce': 'CE',
    'relative_ce': 'relative CE',
}
_KEY = '{} % bootstrap intervals in brackets ({} resamples of the images).'
_MARK = 'Differences marked * have an interval that excludes 0.'

Table = list[list[str]]  # rows of cells, the head first
_TOP5_CLASSES = 6  # with fewer classes, top-5 is always right


def _number(value: float, sign: str = '') -> str:
    return f'{round(value, 2) + 0.0:{sign}.2f}'  # no -0.00


def _cell(figure: Mapping[str, Any] | None, difference: bool = False) -> str:
    if figure is None:
        return '-'
    sign = '+' if difference else ''
    if figure['low'] is None:
        return _number(figure['value'], sign)
    mark = (' *' if figure['low'] > 0 or figure['high'] < 0 else '  ') if difference else ''
    interval = f'[{_number(figure["low"], sign)}, {_number(figure["high"], sign)}]'
    return f'{_number(figure["value"], sign)} {interval}{mark}'


def _wholes(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield label, suite and part of the rows: whole suites, and the parts of suites without corruptions."""
    for suite, facts in report['suites'].items():
        headline = HEADLINE_PARTS.get(suite)
        named = f'{suite} ({headline})' if headline in facts['parts'] else suite
        yield named, suite, WHOLE
        if facts['kind'] != 'corruption' and len(facts['parts']) > 1:
            yield from ((f'{suite}/{part}', suite, part) for part in facts['parts'] if part != headline)
    if sum(facts['kind'] == 'ood' for facts in report['suites'].values()) > 1:
        yield 'mean OOD', MEAN_OOD, WHOLE


def _corruptions(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for suite, facts in report['suites'].items():
        if facts['kind'] == 'corruption':
            for corruption in dict.fromkeys(part.rpartition('/')[0] for part in facts['parts']):
                yield f'{suite}: {corruption}', suite, f'{corruption}/{WHOLE}'


def _table(
    report: Mapping[str, Any],
    places: Iterator[tuple[str, str, str]],
    names: Sequence[str] = tuple(LABELS),
    difference: bool = False,
) -> Table:
    """Build a table with one row per figure of a suite and one column per model."""
    figures = report['differences' if difference else 'figures']
    table = [['suite', 'figure', 'images', *figures]]
    few = [suite for suite, facts in report['suites'].items() if facts['classes'] < _TOP5_CLASSES]
    for label, suite, part in places:
        of_part = [of_model[suite][part] for of_model in figures.values()]
        for name in names if suite not in few else [name for name in names if name != 'top5']:
            found = [named[name] for named in of_part if name in named]
            if found:
                cells = [_cell(named.get(name), difference) for named in of_part]
                table.append([label, LABELS[name], f'{found[0]["images"]:,}', *cells])
    return table


def _published(report: Mapping[str, Any]) -> Table:
    published = report['published']
    table = [['suite', 'figure', *published]]
    for suite in report['suites']:
        for name in ('top1', 'top5'):
            found = [of_model.get(suite, {}).get(name) for of_model in published.values()]
            if any(found):
                cells = [
                    f'{_number(one["value"])} ({_number(one["difference"], "+")})' if one else '-' for one in found
                ]
                table.append([suite, LABELS[name], *cells])
    return table


def _legend(report: Mapping[str, Any]) -> list[str]:
    bootstrap = report['bootstrap']
    lines = [_KEY.format(bootstrap['level'], f'{bootstrap["resamples"]:,}')] if bootstrap['resamples'] else []
    return [*lines, _MARK] if lines and report['differences'] else lines


def format_csv(report: Mapping[str, Any]) -> str:
    """Write one row per figure: ``model,suite,part,figure,value,low,high,images``; part ``*`` is the whole suite."""
    columns = ('model', 'suite', 'part', 'figure', 'value', 'low', 'high', 'images')
    rows = [
        {'model': model, 'suite': suite, 'part': part, 'figure': name, **figure}
        for model, suites in report['figures'].items()
        for suite, parts in suites.items()
        for part, figures in parts.items()
        for name, figure in figures.items()
    ]
    with io.StringIO() as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()


def format_markdown(report: Mapping[str, Any]) -> str:
    """Build the tables for terminal and README: figures, differences, published figures and corruptions; then notes."""
    differences = [name for name in LABELS if name != 'top5']
    tables = {
        'Figures in percent': _table(report, _wholes(report)),
        f'Minus {report["reference"]}': _table(report, _wholes(report), differences, difference=True),
        "Published by timm (ours minus timm's)": _published(report),
        'Corruptions, mean over severities': _table(report, _corruptions(report), ('top1', 'ce')),
    }
    blocks = [f'**{title}**\n\n{format_table(rows, 2)}' for title, rows in tables.items() if len(rows) > 1]
    blocks.append('\n'.join(f'- {note}' for note in (*_legend(report), *report['notes'])))
    return '\n\n'.join(block for block in blocks if block) + '\n'
