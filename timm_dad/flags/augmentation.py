"""timm's flags for augmenting one image and mixing two, for trainings and reinforced sets."""

import argparse
from typing import Any

from timm.data import create_transform

from timm_dad.flags.rules import check_values, flag_errors

INTERPOLATIONS = ('random', 'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
_CROP_MODES = ('rrc', 'rkrc', 'rkrr')
_FRACTIONS = """hflip vflip reprob mixup_prob mixup_switch_prob color_jitter_prob grayscale_prob
    gaussian_blur_prob""".split()


def add_transform_args(group: Any) -> None:
    """Add the flags for augmenting one image to a group of a parser."""
    group.add_argument('--train-crop-mode', metavar='NAME', help='rrc (random resized crop), rkrc or rkrr')
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', help='area range of crops')
    group.add_argument('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3], metavar='RATIO', help='aspect ratio')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='PCT', help='color jitter')
    group.add_argument('--color-jitter-prob', type=float, metavar='PCT', help='probability of color jitter')
    group.add_argument('--grayscale-prob', type=float, metavar='PCT', help='probability of grayscale')
    group.add_argument('--gaussian-blur-prob', type=float, metavar='PCT', help='probability of blur')
    group.add_argument('--aa', metavar='NAME', help='AutoAugment, RandAugment or AugMix policy (rand-m9-mstd0.5-inc1)')
    group.add_argument('--reprob', type=float, default=0.0, metavar='PCT', help='probability of random erasing')
    group.add_argument('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='fill of erased regions')
    group.add_argument('--recount', type=int, default=1, help='number of erased regions')
    group.add_argument('--train-interpolation', default='random', help='random, bilinear, bicubic')


def add_mixing_args(group: Any) -> None:
    """Add the flags for mixing two images to a group of a parser."""
    group.add_argument('--mixup', type=float, default=0.0, help='mixup alpha')
    group.add_argument('--cutmix', type=float, default=0.0, help='cutmix alpha')
    group.add_argument('--cutmix-minmax', type=float, nargs='+', help='minimum and maximum cutmix ratio, not alpha')
    group.add_argument('--mixup-prob', type=float, default=1.0, help='probability of mixup or cutmix')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, help='probability of cutmix if both are on')


def check_augmentation_args(args: argparse.Namespace) -> None:
    """Check the flags and ``--std``; ``ValueError`` names flag, rule and value."""
    rules = (
        (['mixup', 'cutmix', 'color_jitter'], '0 or more', lambda value: value >= 0),
        (_FRACTIONS, 'from 0 to 1', lambda value: 0 <= value <= 1),
        (['recount'], '1 or more', lambda value: value >= 1),
        (['std'], 'positive', lambda value: min(value) > 0),
        (['scale', 'ratio'], 'two positive numbers, the smaller one first',
         lambda value: len(value) == 2 and 0 < value[0] <= value[1]),
        (['cutmix_minmax'], 'two numbers from 0 to 1, the smaller one first',
         lambda value: len(value) == 2 and 0 <= value[0] < value[1] <= 1),
        (['train_crop_mode'], f'one of {_CROP_MODES}', lambda value: value in _CROP_MODES),
        (['train_interpolation'], f'one of {INTERPOLATIONS}', lambda value: value in INTERPOLATIONS),
    )  # fmt: skip
    check_values(args, rules)
    if args.aa:
        _check_policy(args.aa)


def _check_policy(policy: str) -> None:
    """Check the policy of ``--aa``; timm itself ignores parts without a number."""
    hint = f'--aa must be a policy such as rand-m9-mstd0.5-inc1, augmix-m5-w4 or original, got {policy!r}'
    _, *parts = str(policy).split('-')
    if any(not any(letter.isdigit() for letter in part) for part in parts if not part.startswith('t')):
        raise ValueError(hint)
    with flag_errors(hint):
        create_transform(32, is_training=True, auto_augment=policy)
