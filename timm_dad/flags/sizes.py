"""``--train-img-sizes``: batches of several image sizes, with the schedules of timm's train.py since 1.0.29."""

import argparse
from collections.abc import Collection
from typing import Any

from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.flags.rules import check_rules, check_values, written

PROGRESSIVE = 'progressive'
_OF_SIZES = ('train_size_probs', 'train_size_schedule', 'train_size_schedule_spread', 'train_size_random_mix')


def add_size_args(group: Any) -> None:
    """Add the flags to a group of a parser, with name, default and meaning as in timm's ``train.py``."""
    group.add_argument(
        '--train-img-sizes', type=int, nargs='+', metavar='N',
        help='image sizes; each training batch gets one of them; validation uses --img-size',
    )  # fmt: skip
    group.add_argument(
        '--train-size-probs',
        type=float,
        nargs='+',
        metavar='P',
        help='probability of each size (default: equal)',
    )
    group.add_argument(
        '--train-size-schedule', default='constant', choices=('constant', PROGRESSIVE),
        help='progressive: move from the first size to the last during training',
    )  # fmt: skip
    group.add_argument(
        '--train-size-schedule-spread', type=float, default=0.65, metavar='STD',
        help='standard deviation of the progressive schedule, in positions of --train-img-sizes',
    )  # fmt: skip
    group.add_argument(
        '--train-size-random-mix',
        type=float,
        default=0.1,
        metavar='P',
        help='fraction of sizes that the progressive schedule draws at random',
    )


def check_size_args(args: argparse.Namespace, chosen: Collection[str]) -> None:
    """Check the flags before anything is built; ``chosen`` are those that differ from their default.

    Raises:
        ValueError: If one has a bad value, would be ignored, or timm is too old.
    """
    check_values(args, (
        (['train_img_sizes'], '1 or more each', lambda value: min(value) >= 1),
        (['train_size_probs'], '0 or more each', lambda value: min(value) >= 0),
        (['train_size_schedule_spread'], '0 or more', lambda value: value >= 0),
        (['train_size_random_mix'], 'from 0 to 1', lambda value: 0 <= value <= 1),
    ))  # fmt: skip
    sizes, probs = args.train_img_sizes or [], args.train_size_probs or []
    progressive = args.train_size_schedule == PROGRESSIVE
    alone = [written(name) for name in _OF_SIZES if name in chosen and not sizes]
    useless = [written(name) for name in _OF_SIZES[2:] if name in chosen and not progressive]
    rules = (
        (not alone, f'{"".join(alone[:1])} needs --train-img-sizes'),
        (not useless, f'{"".join(useless[:1])} needs --train-size-schedule {PROGRESSIVE}'),
        (not progressive or len(sizes) > 1,
         f'--train-size-schedule {PROGRESSIVE} needs two --train-img-sizes or more, got {sizes}'),
        (not probs or len(probs) == len(sizes),
         f'--train-size-probs must be one for each of --train-img-sizes {sizes}, got {probs}'),
        (not probs or sum(probs) > 0, f'--train-size-probs must not all be 0, got {probs}'),
        (not (sizes and args.aug_splits), '--train-img-sizes does not go with --aug-splits: leave one of them out'),
        (not (sizes and args.aug_repeats), '--train-img-sizes does not go with --aug-repeats: leave one of them out'),
        (not sizes or NEW_TIMM, needs_new_timm('--train-img-sizes')),
    )  # fmt: skip
    check_rules(rules)
