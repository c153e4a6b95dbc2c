"""Tables of the second views: on emoji64 (study `latent`) and on PACS, with other augmentations beside them."""

from collections.abc import Sequence
from statistics import correlation, mean

from data import TRAIN_STYLE
from latent_jobs import BEST_ROWS, SECOND_VIEWS
from pacs import STYLES, TRAIN, TUNING, UNSEEN
from readme_tables import markdown
from rows import CONTROL, MIXED
from runs import (
    COLUMNS,
    Figure,
    Result,
    Runs,
    corruption,
    mean_but_noto,
    mean_corruptions,
    mean_unseen,
    row_names,
    style,
)

from timm_dad.demo.data import TUNING_STYLE
from timm_dad.evaluation.corruptions import CORRUPTIONS

LATENT, MIXED_SPACES = 'DAD latent', 'DAD pixels or latent'
LINE_DRAWINGS = ('noto-mono', 'emojione-mono')
# Corruptions by what they take away: fine contours, the shape, or neither.
KINDS = {
    'pixel noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'elastic, pixelate': ('elastic_transform', 'pixelate'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather, light': ('snow', 'frost', 'fog', 'brightness', 'contrast'),
}


def mean_three(result: Result) -> float:
    """Mean top-1 of the three styles of PACS that the student has not seen."""
    return mean(result['styles'][name] for name in UNSEEN)


def mean_tuning(result: Result) -> float:
    """Mean top-1 of what chooses the settings on PACS, and is not reported."""
    return mean(result['styles'][name] for name in TUNING)


EMOJI_AGAINST = {'mean unseen': mean_unseen, 'mean but noto': mean_but_noto, 'corruptions': mean_corruptions}
EMOJI_MIXED = {'noto val': style(TRAIN_STYLE), **EMOJI_AGAINST}
PACS_COLUMNS: dict[str, Figure] = {**{name: style(name) for name in STYLES}, '**mean of the three**': mean_three}
PACS_AGAINST = {TRAIN: style(TRAIN), 'mean of the three': mean_three}
PACS_MIXED = {**{name: style(name) for name in STYLES}, 'mean of the three': mean_three}


def arms_table(runs: Runs, rows: Sequence[str], columns: dict[str, Figure], against: dict[str, Figure]) -> str:
    """The rows that have results, and what they differ from the control by; of a student named before the colon."""
    lines = []
    for row in rows:
        if row in runs.rows:
            student, colon, _ = row.rpartition(': ')
            base = f'{student}{colon}{CONTROL}'
            cells = [runs.cell(row, of) for of in columns.values()]
            lines.append([row, *cells, *(runs.difference(row, base, of) for of in against.values())])
    return markdown(['second view', *columns, *(f'{name} - control' for name in against)], lines)


def mixed_table(runs: Runs, figures: dict[str, Figure]) -> str:
    """The latent attack against other second views and, with another augmentation, two random views with the same one.

    Where the latent attack has it on the clean view alone, the control has it there, too, and on both: whichever it
    likes better.
    """
    pairs = [(LATENT, row) for row in (CONTROL, 'DAD pixels (paper)', 'KD + latent noise')]
    for name in MIXED:
        for ours, theirs in (('both', 'both'), ('clean', 'clean'), ('clean', 'both')):
            pairs.append((f'{LATENT} + {name} on {ours}', f'{CONTROL} + {name} on {theirs}'))
    pairs += [(f'{LATENT} + features', base) for base in (LATENT, f'{CONTROL} + features')]
    lines = [
        [f'{row} - ({base})', *(runs.difference(row, base, of) for of in figures.values())]
        for row, base in pairs
        if row in runs.rows and base in runs.rows
    ]
    return markdown(['difference', *figures], lines)


def pacs_settings_table(results: dict[str, Result]) -> str:
    """Settings on PACS, on the validation pictures that choose them."""
    runs = Runs(results, 'pacs settings')
    figures: dict[str, Figure] = {**{name: style(name) for name in TUNING}, 'mean of the two': mean_tuning}
    rows = [[row, *(runs.cell(row, of) for of in figures.values())] for row in row_names('pacs settings')]
    return markdown(['variant', *figures], rows)


def pacs_models_table(results: dict[str, Result]) -> str:
    """Teacher and VQGAN of PACS, which have seen the training pictures alone."""
    names = (*STYLES, *TUNING)
    lines = []
    for result in results.values():
        if result['study'] == 'pacs models':
            top1 = [f'{result["styles"][name]:.1f}' for name in names]
            vq = 'l1' in result
            loss = f'{result["l1"][TUNING[0]]:.3f}, {result["psnr"][TUNING[0]]:.1f} dB' if vq else ''
            lines.append([result['row'], *top1, loss])
    return markdown(['model', *names, f'L1, PSNR on {TUNING[0]}'], lines)


def ablation_table(results: dict[str, Result]) -> str:
    """One setting of the latent attack changed at a time, against the attack as it is."""
    runs = Runs(results, 'latent', 'latent ablation')
    figures = {TUNING_STYLE: style(TUNING_STYLE), **EMOJI_AGAINST}
    lines = [
        [
            row,
            *(runs.cell(row, of) for of in figures.values()),
            *(runs.difference(row, LATENT, of) for of in figures.values()),
        ]
        for row in (LATENT, *row_names('latent ablation'))
        if row in runs.rows
    ]
    return markdown(['variant', *figures, *(f'{name} - {LATENT}' for name in figures)], lines)


def corruptions_table(runs: Runs) -> str:
    """What each second view differs from the control by, corruption by corruption."""
    rows = [row for row in (*SECOND_VIEWS, MIXED_SPACES) if row in runs.rows and row != CONTROL]
    lines = [[name, *(runs.difference(row, CONTROL, corruption(name)) for row in rows)] for name in CORRUPTIONS]
    return markdown(['corruption', *(f'{row} - control' for row in rows)], lines)


def trade_table(runs: Runs) -> str:
    """Top-1 on line drawings beside that on kinds of corruptions, and how the two go together."""
    figures: dict[str, Figure] = {'line drawings': mean_line_drawings}
    figures |= {name: mean_of(names) for name, names in KINDS.items()}
    rows = [row for row in row_names('latent') if row in runs.rows]
    lines = [[row, *(runs.cell(row, of) for of in figures.values())] for row in rows]
    if len(rows) > 2:
        by_row = [[mean(of(result) for result in runs.rows[row].values()) for row in rows] for of in figures.values()]
        cells = [f'{correlation(by_row[0], values):.2f}' for values in by_row[1:]]
        lines.append(['correlation with line drawings, over the rows', '', *cells])
    return markdown(['second view', *figures], lines)


def mean_line_drawings(result: Result) -> float:
    """Mean top-1 of the two styles without colour."""
    return mean(result['styles'][name] for name in LINE_DRAWINGS)


def mean_of(corruptions: Sequence[str]) -> Figure:
    """Mean top-1 of some corruptions of noto val, over severities."""
    return lambda result: mean(corruption(name)(result) for name in corruptions)


def latent_tables(results: dict[str, Result]) -> dict[str, str]:
    """Tables by name."""
    emoji, pacs, students = (Runs(results, study) for study in ('latent', 'pacs latent', 'pacs students'))
    others = {study: Runs(results, study) for study in ('latent students', 'latent teachers')}
    curve, curve_rows = Runs(results, 'latent curve', 'latent'), [*row_names('latent curve'), *SECOND_VIEWS, *BEST_ROWS]
    return {
        **{study: arms_table(runs, row_names(study), EMOJI_MIXED, EMOJI_AGAINST) for study, runs in others.items()},
        'latent curve': arms_table(curve, curve_rows, EMOJI_MIXED, EMOJI_AGAINST),
        'latent corruptions': corruptions_table(emoji),
        'latent trade': trade_table(emoji),
        'latent ablation': ablation_table(results),
        'latent': arms_table(emoji, row_names('latent'), COLUMNS, EMOJI_AGAINST),
        'latent mixed': mixed_table(emoji, EMOJI_MIXED),
        'pacs models': pacs_models_table(results),
        'pacs settings': pacs_settings_table(results),
        'pacs': arms_table(pacs, row_names('pacs latent'), PACS_COLUMNS, PACS_AGAINST),
        'pacs mixed': mixed_table(pacs, PACS_MIXED),
        'pacs students': arms_table(students, row_names('pacs students'), PACS_COLUMNS, PACS_AGAINST),
    }
