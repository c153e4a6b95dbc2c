"""Tables and plots of the results."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from data import TRAIN_STYLE
from latent_jobs import BEST_ROWS
from latent_tables import latent_tables
from readme_tables import fill, markdown  # found since models.py, which jobs imports, puts benchmarks/ on the path
from rows import CONTROL
from runs import COLUMNS, Result, Runs, corruption, mean_but_noto, mean_corruptions, mean_unseen, row_names, style

from timm_dad.commands.demo import half_width
from timm_dad.common.files import replacing
from timm_dad.demo.data import TUNING_STYLE
from timm_dad.evaluation.corruptions import CORRUPTIONS, SEVERITIES

PROJECT_README = Path(__file__).parents[2] / 'README.md'


def main_table(results: dict[str, Result]) -> str:
    """Rows of the main study, and what they differ from the control by."""
    runs = Runs(results, 'main')
    against = {f'mean unseen - {CONTROL}': mean_unseen, f'corruptions - {CONTROL}': mean_corruptions}
    rows = [
        [
            row,
            *(runs.cell(row, figure) for figure in COLUMNS.values()),
            *(runs.difference(row, CONTROL, figure) for figure in against.values()),
        ]
        for row in row_names('main')
    ]
    return markdown(['row', *COLUMNS, *against], rows)


def short_table(results: dict[str, Result]) -> str:
    """The table of the project's README: the control, DAD and latent DAD, with and without RandAugment."""
    runs = Runs(results, 'latent')
    figures = (mean_unseen, mean_but_noto, mean_corruptions)
    rows = [
        [row, *(runs.cell(row, of) for of in figures), *(runs.difference(row, CONTROL, of) for of in figures)]
        for row in (CONTROL, 'DAD pixels (paper)', 'DAD latent', *BEST_ROWS)
        if row in runs.rows
    ]
    names = ('unseen styles', 'all but noto', 'corruptions')
    return markdown(['top-1', *names, *(f'{name} - control' for name in names)], rows)


def composition_table(results: dict[str, Result]) -> str:
    """DAD with another augmentation against two random views with the same one."""
    runs = Runs(results, 'main')
    rows = []
    for row in row_names('main'):
        if row.startswith('DAD'):
            base = row.replace('DAD', CONTROL)
            figures = (style(TRAIN_STYLE), mean_unseen, mean_but_noto, mean_corruptions)
            rows.append([f'{row} - ({base})', *(runs.difference(row, base, figure) for figure in figures)])
    return markdown(['difference', 'noto val', 'mean unseen', 'mean but noto', 'corruptions'], rows)


def corruption_table(results: dict[str, Result]) -> str:
    """Every corruption."""
    runs = Runs(results, 'main')
    rows = row_names('main')
    lines = [[name, *(runs.cell(row, corruption(name)) for row in rows)] for name in CORRUPTIONS]
    return markdown(['corruption', *rows], lines)


def variant_table(results: dict[str, Result], study: str, field: str, values: Sequence[str], main_value: str) -> str:
    """DAD and the control for other students, teachers or VQGANs; those of the main study are shown beside."""
    runs, main = Runs(results, study), Runs(results, 'main')
    rows = []
    for value in values:
        for row in ('plain', 'KD', CONTROL, 'KD + Q(x)', 'DAD'):
            source, name = (main, row) if value == main_value else (runs, f'{value}: {row}')
            # Plain students and those of two random views know no VQGAN, plain ones no teacher.
            base = CONTROL if value == main_value else f'{value}: {CONTROL}'
            if study == 'vqgans' and value != main_value:
                source, base = Runs(results, study, 'main'), CONTROL
            if name not in source.rows:
                continue
            cells = [source.cell(name, figure) for figure in (style(TRAIN_STYLE), mean_unseen, mean_corruptions)]
            differences = [source.difference(name, base, figure) for figure in (mean_unseen, mean_corruptions)]
            rows.append([value, row, *cells, *differences])
    control = f'- {CONTROL}'
    header = [field, 'row', 'noto val', 'mean unseen', 'corruptions', f'unseen {control}', f'corruptions {control}']
    return markdown(header, rows)


def between_table(results: dict[str, Result]) -> str:
    """Between teachers, between VQGANs, and what distillation gives other students."""
    runs = Runs(results, 'main', 'teachers', 'vqgans', 'students')
    pairs = [(f'medium: {row}', row) for row in ('KD', CONTROL, 'DAD')]
    pairs += [(f'weak: {row}', f'medium: {row}') for row in ('KD', CONTROL, 'DAD')]
    pairs += [('f2: DAD', 'DAD')]
    pairs += [(f'{student}: {row}', f'{student}: plain') for student in ('vit', 'mlp') for row in (CONTROL, 'DAD')]
    figures = (style(TRAIN_STYLE), mean_unseen, mean_corruptions)
    rows = [[f'({row}) - ({base})', *(runs.difference(row, base, of) for of in figures)] for row, base in pairs]
    return markdown(['difference', 'noto val', 'mean unseen', 'corruptions'], rows)


def temperature_table(results: dict[str, Result]) -> str:
    """Each teacher at temperature 4 and at its own: what the latter differs by, on the style that chooses, too."""
    runs = Runs(results, 'temperatures')
    figures = {
        TUNING_STYLE: style(TUNING_STYLE), 'noto val': style(TRAIN_STYLE), 'mean unseen': mean_unseen,
        'corruptions': mean_corruptions,
    }  # fmt: skip
    rows = []
    for row in row_names('temperatures'):
        base = f'{row.split(",")[0]}, T 4'
        if row in runs.rows:
            differences = [runs.difference(row, base, of) for of in figures.values()]
            rows.append([row, *(runs.cell(row, of) for of in figures.values()), *differences])
    return markdown(['teacher', *figures, *(f'{name} - T 4' for name in figures)], rows)


def tuning_table(results: dict[str, Result], study: str, base: str = '') -> str:
    """Variants on the style that chooses, and there alone."""
    runs = Runs(results, study)
    rows = []
    for row in row_names(study):
        cells = [runs.cell(row, style(TUNING_STYLE))]
        rows.append([row, *cells, *([runs.difference(row, base, style(TUNING_STYLE))] if base else [])])
    return markdown(['variant', f'top-1 on {TUNING_STYLE}', *([f'- {base}'] if base else [])], rows)


def cost_table(results: dict[str, Result], study: str) -> str:
    """Views, and answers of the teacher, that cost less, against fresh ones in every step: the study's first row."""
    runs, base = Runs(results, study), row_names(study)[0]
    figures = (style(TRAIN_STYLE), mean_unseen, mean_corruptions)
    rows = [
        [
            row,
            str(len(runs.rows.get(row, {}))),
            *(runs.cell(row, of) for of in figures),
            *(runs.difference(row, base, of) for of in figures[1:]),
        ]
        for row in row_names(study)
    ]
    header = ['views', 'seeds', 'noto val', 'mean unseen', 'corruptions', f'unseen - {base}', f'corruptions - {base}']
    return markdown(header, rows)


def models_table(results: dict[str, Result]) -> str:
    """Teachers and VQGANs themselves."""
    rows = []
    for result in results.values():
        if result['study'] == 'models':
            vq = result.get('l1')
            cells = [f'{figure(result):.1f}' for figure in (style(TRAIN_STYLE), style(TUNING_STYLE), mean_unseen)]
            cells.append(f'{mean_corruptions(result):.1f}' if vq is None else '')
            rows.append([result['row'], *cells, '' if vq is None else f'{vq[TRAIN_STYLE]:.3f}, {vq[TUNING_STYLE]:.3f}'])
    header = ['model', 'noto val', TUNING_STYLE, 'mean unseen', 'corruptions', f'L1 noto val, {TUNING_STYLE}']
    return markdown(header, rows)


def tables(results: dict[str, Result]) -> dict[str, str]:
    """All tables by name."""
    return {
        'main': main_table(results),
        'composition': composition_table(results),
        'corruptions': corruption_table(results),
        'models': models_table(results),
        'students': variant_table(results, 'students', 'student', ('cnn', 'vit', 'mlp'), 'cnn'),
        'teachers': variant_table(results, 'teachers', 'teacher', ('weak', 'medium', 'strong'), 'strong'),
        'temperatures': temperature_table(results),
        'vqgans': variant_table(results, 'vqgans', 'VQGAN', ('f4', 'f2'), 'f4'),
        'between': between_table(results),
        'ablation': tuning_table(results, 'ablation', 'base'),
        'rates': tuning_table(results, 'rates'),
        'speed': cost_table(results, 'speed'),
        'reinforced': cost_table(results, 'reinforced'),
        'latent settings': tuning_table(results, 'latent settings'),
        **latent_tables(results),
    }


def write_tables(results: dict[str, Result], folder: Path) -> None:
    """Put the tables into this folder's ``README.md`` and the project's, and draw the plots."""
    fill(folder / 'README.md', tables(results))
    fill(PROJECT_README, {'evidence': short_table(results)})
    draw(results, folder)


def draw(results: dict[str, Result], folder: Path) -> None:
    """Two plots: figures of the rows with their intervals, and severity curves."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    runs = Runs(results, 'main')
    rows = [row for row in row_names('main') if row in runs.rows]
    figure, axes = plt.subplots(1, 3, figsize=(13, 0.38 * len(rows) + 1.2), sharey=True, layout='constrained')
    figures = {'noto val': style(TRAIN_STYLE), 'mean of unseen styles': mean_unseen, '15 corruptions': mean_corruptions}
    for axis, (title, of) in zip(axes, figures.items(), strict=True):
        for place, row in enumerate(reversed(rows)):
            values = [of(result) for result in runs.rows[row].values()]
            half = half_width(values) if len(values) > 1 else 0
            colour = 'tab:red' if row.startswith('DAD') else 'tab:blue' if row.startswith(CONTROL) else 'tab:gray'
            axis.errorbar(mean(values), place, xerr=half, fmt='o', color=colour, capsize=3)
        axis.set_yticks(range(len(rows)), list(reversed(rows)))
        axis.set_xlabel(f'top-1, {title}')
        axis.grid(axis='x', alpha=0.3)
    _save(figure, folder / 'rows.png')
    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for row in ('plain', 'KD', CONTROL, 'KD + DAT view', 'DAD', 'DAD + RandAugment'):
        found = list(runs.rows.get(row, {}).values())
        if found:
            curve = [mean(mean(by[s - 1] for by in r['corruptions'].values()) for r in found) for s in SEVERITIES]
            clean = mean(style(TRAIN_STYLE)(result) for result in found)
            axis.plot((0, *SEVERITIES), (clean, *curve), marker='o', label=row)
    axis.set_xlabel('severity (0: clean), mean of 15 corruptions of noto val')
    axis.set_ylabel('top-1')
    axis.legend()
    axis.grid(alpha=0.3)
    _save(figure, folder / 'severity.png')


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={'Software': None})
