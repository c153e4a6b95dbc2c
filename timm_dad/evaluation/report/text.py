"""A report as text: aligned for the terminal, CSV in long format, Markdown for a README."""

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
_MAX_HEAD, _MAX_LABEL, _GAP = 28, 40, 2
_KEY = '{} % bootstrap intervals in brackets ({} resamples of the images).'
_MARK = '* marks differences whose interval leaves out 0.'


@dataclass(frozen=True)
class Section:
    """One table: rows are figures of suites (suite, figure, number of images), columns are models."""

    title: str
    models: Sequence[str]
    rows: Sequence[tuple[str, str, str]]
    cells: Sequence[Sequence[str]]


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
    """Label, suite and part of the rows: whole suites, and the parts of those that are no corruptions."""
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


def _section(
    title: str,
    figures: Mapping[str, Any],
    places: Iterator[tuple[str, str, str]],
    names: Sequence[str] = tuple(LABELS),
    difference: bool = False,
) -> Section:
    rows, cells = [], []
    for label, suite, part in places:
        named = {model: of_model.get(suite, {}).get(part, {}) for model, of_model in figures.items()}
        for name in names:
            found = [of_model[name] for of_model in named.values() if name in of_model]
            if found:
                rows.append((label, LABELS[name], f'{found[0]["images"]:,}'))
                cells.append([_cell(of_model.get(name), difference) for of_model in named.values()])
    return Section(title, list(figures), rows, cells)


def _published(report: Mapping[str, Any]) -> Section:
    published = report['published']
    suites = [suite for suite in report['suites'] if any(suite in of_model for of_model in published.values())]
    places = [(suite, name) for suite in suites for name in ('top1', 'top5')]
    cells = [
        [
            f'{_number(one["value"])} ({_number(one["difference"], "+")})' if one else '-'
            for one in (of_model.get(suite, {}).get(name) for of_model in published.values())
        ]
        for suite, name in places
    ]
    rows = [(suite, LABELS[name], '') for suite, name in places]
    return Section("Published by timm (ours minus timm's)", list(published), rows, cells)


def _sections(report: Mapping[str, Any]) -> list[Section]:
    differences = [name for name in LABELS if name != 'top5']
    sections = [
        _section('Figures in percent', report['figures'], _wholes(report)),
        _section(f'Minus {report["reference"]}', report['differences'], _wholes(report), differences, difference=True),
        _published(report),
    ]
    return [section for section in sections if section.rows]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LABEL else f'{text[: _MAX_LABEL - 1]}…'


def _lines(section: Section, heads: Sequence[str], width: int) -> Iterator[str]:
    labels = [('', '', 'images'), *((_cut(suite), figure, images) for suite, figure, images in section.rows)]
    widths = [max(len(label[column]) for label in labels) for column in range(3)]
    left = [
        f'{suite:{widths[0]}}  {figure:{widths[1]}}  {images:>{widths[2]}}' if any(widths) else ''
        for suite, figure, images in labels
    ]
    columns = [[head, *(cells[place] for cells in section.cells)] for place, head in enumerate(heads)]
    while columns:
        block: list[list[str]] = []
        used = len(left[0])
        while columns and (not block or used + _GAP + max(map(len, columns[0])) <= width):
            block.append(columns.pop(0))
            used += _GAP + max(map(len, block[-1]))
        yield ''
        for row, label in enumerate(left):
            repeated = row > 1 and labels[row][0] == labels[row - 1][0]
            start = ' ' * widths[0] + label[widths[0] :] if repeated else label
            yield (start + ''.join(f'{"":{_GAP}}{column[row]:>{max(map(len, column))}}' for column in block)).rstrip()


def format_table(report: Mapping[str, Any], width: int = 120) -> str:
    """The report for a terminal of ``width`` columns: one row a figure, one column a model, further models below.

    Models with long names are numbered.
    """
    models = report['models']
    short = all(len(model) <= _MAX_HEAD for model in models)
    heads = {model: model if short else f'[{place}]' for place, model in enumerate(models, 1)}
    lines = [] if short else [f'{heads[model]} {model}' for model in models]
    for section in _sections(report):
        lines += ['', f'{section.title}:', *_lines(section, [heads[model] for model in section.models], width)]
    lines.append('')
    for note in (*_legend(report), *report['notes']):
        lines += textwrap.wrap(note, width, subsequent_indent='  ', break_on_hyphens=False)
    return '\n'.join(lines).lstrip('\n') + '\n'


def _legend(report: Mapping[str, Any]) -> list[str]:
    bootstrap = report['bootstrap']
    lines = [_KEY.format(bootstrap['level'], f'{bootstrap["resamples"]:,}')] if bootstrap['resamples'] else []
    return [*lines, _MARK] if lines and report['differences'] else lines


def format_csv(report: Mapping[str, Any]) -> str:
    """One row a number: ``model,suite,part,figure,value,low,high,images,reference``.

    Differences are figures called ``top1_difference`` and so on, with their reference; what timm publishes is
    ``top1_published``, and ours minus that ``top1_minus_published``. Part ``*`` is the whole suite.
    """
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['model', 'suite', 'part', 'figure', 'value', 'low', 'high', 'images', 'reference'])
        for key, suffix, reference in (('figures', '', ''), ('differences', '_difference', report['reference'])):
            for model, suites in report[key].items():
                for suite, part, name, figure in _flat(suites):
                    numbers = [figure[column] for column in ('value', 'low', 'high', 'images')]
                    writer.writerow([model, suite, part, f'{name}{suffix}', *numbers, reference])
        for model, suites in report['published'].items():
            for suite, figures in suites.items():
                part = HEADLINE_PARTS.get(suite, WHOLE)
                for name, figure in figures.items():
                    for suffix, column in (('published', 'value'), ('minus_published', 'difference')):
                        writer.writerow([model, suite, part, f'{name}_{suffix}', figure[column], '', '', '', 'timm'])
        return file.getvalue()


def _flat(suites: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for suite, parts in suites.items():
        for part, figures in parts.items():
            for name, figure in figures.items():
                yield suite, part, name, figure


def format_markdown(report: Mapping[str, Any]) -> str:
    """Tables for a README: figures, differences to the reference, corruptions, published figures, notes."""
    blocks = []
    corruptions = _section('Corruptions, mean over severities', report['figures'], _corruptions(report), ('top1', 'ce'))
    for section in (*_sections(report), corruptions):
        if not section.rows:
            continue
        head = ['suite', 'figure', 'images', *section.models]
        table = [head, ['---', '---', *['---:'] * (len(head) - 2)]]
        table += [[*row, *map(str.strip, cells)] for row, cells in zip(section.rows, section.cells, strict=True)]
        lines = [f'| {" | ".join(_escape(cell) for cell in row)} |' for row in table]
        blocks.append('\n'.join([f'**{section.title}**', '', *lines]))
    blocks.append('\n'.join(f'- {_escape(note)}' for note in (*_legend(report), *report['notes'])))
    return '\n\n'.join(block for block in blocks if block) + '\n'


def _escape(text: str) -> str:
    return text.replace('|', '\\|').replace('*', '\\*')
