"""``timm-dad demo``: plain training, distillation and DAD side by side, with the same trainer."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import train_dad
from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.demo.data import STYLES, UNSEEN_STYLES
from timm_dad.flags.config import add_config_arg, config_flags, read_config
from timm_dad.flags.pairs import VIEW_FLAGS
from timm_dad.flags.parser import Parser
from timm_dad.flags.train import create_parser, parse_args

PROGRAM = 'timm-dad demo'

# KD sees a second random view, so that both it and DAD train on the same number of images.
ARMS = {
    'plain': ['--no-dad'],
    'kd': ['--dad', '--dad-view', 'random', '--dad-view-aug', 'full'],
    'dad': ['--dad', '--dad-view', 'dad'],
}
_OWN_FLAGS = (
    '--eval-suites',
    '--experiment',
    '--data-dir',
    '--dataset',
    '--resume',
    '--seed',
    '--dad',
    '--no-dad',
    '--dad-view',
)
_DAD_ALONE = (*VIEW_FLAGS, 'dad_view_aug', 'dad_look', 'dad_same_crop', 'dad_replay', 'dad_preview_interval')
MEANS = {'mean unseen': UNSEEN_STYLES, 'mean but noto': tuple(style for style in STYLES if style != 'noto')}

# Two-sided 95 % quantiles of Student's t, by number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}

Top1 = dict[str, float]


def run_arms(output: Path, seed: int, extra: Sequence[str]) -> dict[str, Top1]:
    """Train every arm with one seed.

    Args:
        output: Folder of the runs.
        seed: Random seed of all arms.
        extra: More flags for ``train_dad.py``.

    Returns:
        ``{arm: {style: top1}}`` with the arms ``teacher``, ``plain``, ``kd`` and ``dad``; top-1 in percent.
    """
    results: dict[str, Top1] = {'teacher': {}}
    for arm in ARMS:
        print(f'--- {arm}, seed {seed}', flush=True)
        names = ['--seed', str(seed), '--output', str(output), '--experiment', f'{arm}-seed{seed}']
        run = train_dad.main([*names, *arm_flags(arm, extra)], program=PROGRAM)
        results[arm] = run['student']
        results['teacher'] = run.get('teacher', results['teacher'])
    return results


def arm_flags(arm: str, extra: Sequence[str]) -> list[str]:
    """Return the flags of an arm: its own, and the extra ones that it can use, with their values."""
    kept = []
    skipping = False
    for flag in extra:
        if flag.startswith('-') and not re.match(r'-\.?\d', flag):  # a negative number is a value
            name = flag.split('=')[0].removeprefix('--').replace('-', '_')
            skipping = (arm == 'plain' and name.startswith('dad_')) or (arm == 'kd' and name in _DAD_ALONE)
        if not skipping:
            kept.append(flag)
    return [*kept, *ARMS[arm]]


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % t-interval of the mean, for 2 to 10 values."""
    return _T95[len(values)] * stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> str:
    """Format the mean, with the half width of its 95 % t-interval for several values."""
    if len(values) < 2:
        return f'{values[0]:.1f}'
    return f'{mean(values):.1f} ± {half_width(values):.1f}'


def format_table(by_seed: dict[int, dict[str, Top1]]) -> str:
    """Format a table: styles down, arms across; the last two columns are paired differences."""
    runs = list(by_seed.values())
    rows: dict[str, tuple[str, ...]] = {**{style: (style,) for style in STYLES}, **MEANS}
    marks = {style: '' if style in UNSEEN_STYLES else ' (seen by the teacher)' for style in STYLES}

    def top1(run: dict[str, Top1], arm: str, styles: Sequence[str]) -> float:
        return mean(run[arm][style] for style in styles)

    arms = ['teacher', *ARMS]
    lines = [f'{"top-1":<34}' + ''.join(f'{title:>13}' for title in (*arms, 'kd - plain', 'dad - kd'))]
    for name, styles in rows.items():
        cells = [interval([top1(run, arm, styles) for run in runs]) for arm in arms]
        for better, worse in (('kd', 'plain'), ('dad', 'kd')):
            cells.append(interval([top1(run, better, styles) - top1(run, worse, styles) for run in runs]))
        lines.append(f'{name + marks.get(name, ""):<34}' + ''.join(f'{cell:>13}' for cell in cells))
    return '\n'.join(lines)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=2) + '\n')


def _parse_own(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split the demo's own flags from those of the arms, which start with the ones of ``--config``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s [--output DIR] [--seeds S ...] [flags of timm-dad train]',
        description='Plain training, distillation and DAD side by side on the embedded pictures, by the same trainer.',
        epilog='Other flags are those of timm-dad train: --dad-... go to the arms that distil, except those that '
        'shape the DAD view, which go only to dad; the rest go to all.',
    )
    add_config_arg(parser)
    parser.add_argument('--output', metavar='DIR', help='folder to write (default: output/demo/TIME)')
    _add_seeds_arg(parser)
    args, extra = parser.parse_known_args(argv)
    if not args.config:
        return args, extra
    of_arms = create_parser(PROGRAM)
    _add_seeds_arg(of_arms)
    with user_errors(PROGRAM):
        configured = read_config(of_arms, args.config)
    parser.set_defaults(**{name: configured.pop(name) for name in ('output', 'seeds') if name in configured})
    args, extra = parser.parse_known_args(argv)
    for name in ('config', 'dad'):  # every arm has its own
        configured.pop(name, None)
    return args, [*config_flags(of_arms, configured), *extra]


def _add_seeds_arg(parser: Parser) -> None:
    parser.add_argument(
        '--seeds', type=int, nargs='+', metavar='S', default=[42], help='random seeds; several yield 95 %% intervals'
    )


def _fail(message: str) -> None:
    with user_errors(PROGRAM):
        raise ValueError(message)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms for every seed, print the table, write ``results.json``."""
    args, extra = _parse_own(argv)
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > max(_T95):
        _fail(f'--seeds takes up to {max(_T95)} different seeds, got {args.seeds}')
    own = [flag for flag in extra if flag.split('=')[0] in _OWN_FLAGS]
    if own:
        _fail(f'{own[0]} is set by the demo itself; use timm-dad train for your own run')
    for arm in ARMS:  # ends on a bad flag, before the first training
        parsed = parse_args(arm_flags(arm, extra), create_parser=partial(create_parser, PROGRAM))
        if parsed.data_dir:
            _fail(f'the demo has pictures of its own, got {parsed.data_dir}; use timm-dad train for your own run')
    output = Path(args.output or f'output/demo/{datetime.now().strftime("%Y%m%d-%H%M%S")}')
    by_seed = {}
    for seed in args.seeds:
        by_seed[seed] = run_arms(output, seed, extra)
        write_json(output / 'results-by-seed.json', by_seed)
    runs = list(by_seed.values())
    means = {arm: {style: mean(run[arm][style] for run in runs) for style in styles} for arm, styles in runs[0].items()}
    write_json(output / 'results.json', means)
    print(format_table(by_seed))
    print(f'Results: {output / "results.json"}')
