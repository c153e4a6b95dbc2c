"""The report of ``timm-dad diagnose``: Markdown that is also readable as plain text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_dad.common.files import write_file
from timm_dad.common.markdown import format_table
from timm_dad.diagnosis.data import CLEAN, DAD, RECONSTRUCTED
from timm_dad.diagnosis.limiting_term import ADVICE

TITLE = '# Diagnosis\n\n'
_RISKS = {
    'teacher_error': 'teacher error',
    'teacher_loss': 'teacher loss',
    'student_error': 'student error',
    'student_loss': 'student loss',
    'disagreement': 'disagreement',
    'divergence': 'T² KL',
}
_IN_PERCENT = ('teacher_error', 'student_error', 'disagreement')
# Increase of the teacher's error at and above which the VQGAN is the first thing to improve.
_MUCH = 0.05
_WITHOUT_STUDENT = (
    "Without --student there is no limiting term to report; the teacher's error on the OOD data is the error of a "
    'student that follows it everywhere.'
)


def format_report(report: Mapping[str, Any]) -> str:
    """Format the results of ``diagnose`` as Markdown; the last paragraph interprets them."""
    parts = [
        _risks(report),
        *(_distances(role, found, report['config']) for role, found in report['distances'].items()),
    ]
    if report['codebook'] is not None:
        parts.append(_codebook(report['codebook']))
    if report['vqgan_cost'] is not None:
        parts.append(f'## What the VQGAN costs\n\n{_vqgan(report)}')
    parts.append(_terms(report['terms'], report) if report['terms'] else _WITHOUT_STUDENT)
    return TITLE + '\n\n'.join(parts) + '\n'


def _risks(report: Mapping[str, Any]) -> str:
    risks: Mapping[str, Mapping[str, float]] = report['risks']
    columns = [name for name in _RISKS if name in next(iter(risks.values()))]
    rows = [['set', 'images', *(f'{_RISKS[name]}{", %" if name in _IN_PERCENT else ""}' for name in columns)]]
    for name, found in risks.items():
        numbers = [f'{100 * found[key]:.1f}' if key in _IN_PERCENT else f'{found[key]:.3f}' for key in columns]
        rows.append([name, str(report['images'][name]), *numbers])
    notes = [
        f'The teacher predicts one class for {100 * share:.0f} % of the images of {name}: it cannot tell them apart. '
        'Check its size, normalization and class names, and look at the images (timm-dad preview).'
        for name, share in report['one_class'].items()
    ]
    return '\n\n'.join(['## Risks', format_table(rows), *notes])


def _vqgan(report: Mapping[str, Any]) -> str:
    """Describe the fourth measurement: the effect of reconstruction alone on the teacher."""
    clean, reconstructed = (100 * report['risks'][name]['teacher_error'] for name in (CLEAN, RECONSTRUCTED))
    text = (
        f"The teacher's error is {clean:.1f} % on clean images and {reconstructed:.1f} % on Q(x): reconstruction alone "
        f'costs {100 * report["vqgan_cost"]:.1f} points.'
    )
    if report['vqgan_cost'] < _MUCH:
        return text
    return (
        f'{text} DAD views go through the same VQGAN, so **the VQGAN comes first**, regardless of the terms: use '
        'another one, one trained on such images (timm-dad vqgan train), or larger images.'
    )


def _distances(role: str, found: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    rows = [['from', 'to', 'distance', 'excess', 'nearer than clean']]
    for name, floor in found['noise_floors'].items():
        rows.append([name, 'itself', _plus_minus(floor), '', ''])
    for pair in found['pairs']:
        nearer = pair['nearer_than_clean']
        numbers = [_plus_minus(pair['distance']), _plus_minus(pair['excess'])]
        rows.append([pair['from'], pair['to'], *numbers, _plus_minus(nearer) if nearer else ''])
    title = f'## Wasserstein distances, features of the {role}'
    how = f'{config["distance"]}, mean ± standard deviation over {config["num_splits"]} splits'
    return f'{title}\n\n{how}\n\n{format_table(rows, 2)}'


def _plus_minus(moments: Mapping[str, float]) -> str:
    return f'{moments["mean"]:.4g} ± {moments["std"]:.2g}'


def _codebook(codes: Mapping[str, Any]) -> str:
    rows = [['set', f'codes used of {codes["size"]}', 'perplexity']]
    rows += [[name, str(codes[name]['used']), f'{codes[name]["perplexity"]:.1f}'] for name in (CLEAN, DAD)]
    return (
        f'## Codebook\n\n{format_table(rows)}\n\n'
        f'{codes["new"]} codes occur only in DAD views. Codes that differ from those of the image: '
        f'{100 * codes["changed"]:.1f} % in DAD views, {100 * codes["changed_without_attack"]:.1f} % in views made '
        'likewise without an attack.'
    )


def _terms(terms: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    columns = ('student_error', 'bound', 'teacher', 'fit', 'shift')
    rows = [['OOD data', 'student error', '≤ sum', 'teacher', 'fit', 'shift', 'largest', 'in resamples']]
    for name, found in terms.items():
        numbers = [f'{100 * found[key]:.1f}' for key in columns]
        rows.append([name, *numbers, found['limiting'], f'{100 * found["certainty"]:.0f}'])
    return (
        f'## What limits the student (all in %)\n\n{format_table(rows)}\n\n'
        'teacher: its error on the OOD data. fit: disagreement of student and teacher on DAD views. shift: their '
        'disagreement on the OOD data minus that on DAD views.\n\n'
        f'{_reading(terms["mean"], report)}'
    )


def _reading(mean: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    limiting, risks = mean['limiting'], report['risks']
    sure = f'the largest in {100 * mean["certainty"]:.0f} % of the resamples'
    facts = {
        'teacher': f'On DAD views its error is {100 * risks[DAD]["teacher_error"]:.1f} %, on clean images '
        f'{100 * risks[CLEAN]["teacher_error"]:.1f} %.',
        'fit': f'On clean images they disagree on {100 * risks[CLEAN]["disagreement"]:.1f} %, on DAD views on '
        f'{100 * risks[DAD]["disagreement"]:.1f} %.',
        'shift': _coverage(report),
    }
    first = ' Before that, improve the VQGAN (see above).' if (report['vqgan_cost'] or 0) >= _MUCH else ''
    return (
        f'The term that limits this student is **{limiting}**: {100 * mean[limiting]:.1f} of {100 * mean["bound"]:.1f} '
        f'points, on the mean of the OOD sets ({sure}). {ADVICE[limiting]} {facts[limiting]}{first} This '
        'interprets measured numbers and proves nothing: train and measure again.'
    )


def _coverage(report: Mapping[str, Any]) -> str:
    if not report['distances']:
        return 'How near DAD views are to the OOD data was not measured.'
    pairs = [pair for pair in report['distances']['teacher']['pairs'] if pair['from'] == DAD]
    nearer = [pair['to'] for pair in pairs if pair['nearer_than_clean']['mean'] > pair['nearer_than_clean']['std']]
    where = f'to {", ".join(nearer)}' if nearer else 'to none of the OOD sets'
    return f"In the teacher's features DAD views are nearer than clean images {where}."


def write_report(folder: Path, report: Mapping[str, Any], text: str) -> list[Path]:
    """Write ``diagnose.json`` and ``.md``; ``ValueError`` if the folder cannot be written to."""
    files = {'diagnose.json': json.dumps(report, indent=2, allow_nan=False) + '\n', 'diagnose.md': text}
    try:
        for name, content in files.items():
            write_file(folder / name, content)
    except OSError as error:
        raise ValueError(f'--output {folder} cannot be written: {error}') from error
    return [folder / name for name in files]
