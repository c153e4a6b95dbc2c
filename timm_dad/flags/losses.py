"""``--loss`` and its settings: the task losses of timm for one label an image."""

import argparse
from typing import Any

import timm.loss
import torch
from timm.loss import (
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import nn

from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.flags.kwargs import mixes, task_loss
from timm_dad.flags.rules import check_file_args, check_rules, flag_errors, written

_OF_SEVERAL_LABELS = ('twoway', 'zlpr', 'db')
# Settings by the one loss that they are of.
_SETTINGS = {
    **dict.fromkeys(('bce_sum', 'bce_target_thresh', 'bce_pos_weight', 'loss_pos_weight', 'loss_class_weight'), 'bce'),
    **dict.fromkeys(('asl_gamma_pos', 'asl_gamma_neg'), 'asl'),
    'poly_epsilon': 'poly',
}
_WEIGHTS = ('loss_pos_weight', 'loss_class_weight')
_OF_WEIGHTS = ('class_stats', 'loss_weight_power', 'loss_weight_beta', 'loss_weight_max')
OF_TASK_LOSS = ('loss', 'jsd_loss', 'bce_loss', *_SETTINGS, *_OF_WEIGHTS)


def add_loss_args(group: Any) -> None:
    """Add the flags to a group of a parser, by name, default and meaning those of timm's ``train.py``."""
    group.add_argument(
        '--loss', choices=('ce', 'bce', 'asl', 'poly', 'jsd', *_OF_SEVERAL_LABELS),
        help='task loss: ce, bce, asl (asymmetric), poly (Poly-1; timm 1.0.31) or jsd, with --aug-splits (default: ce)',
    )  # fmt: skip
    group.add_argument('--class-stats', metavar='FILE', help="counts by class, of timm's class_weights.py, for weights")
    for kind, method in (('pos', 'neg_pos'), ('class', 'inv_freq, effective_num')):
        group.add_argument(
            f'--loss-{kind}-weight', metavar='WEIGHTS',
            help=f'{"weight of positives" if kind == "pos" else "weights of classes"} of bce: a number, numbers with '
            f'commas between, a file, or of --class-stats {method}',
        )  # fmt: skip
    group.add_argument('--loss-weight-power', type=float, default=1.0, help='exponent of neg_pos and inv_freq')
    group.add_argument('--loss-weight-beta', type=float, default=0.999, help='beta of effective_num')
    group.add_argument('--loss-weight-max', type=float, help='largest of the weights of --class-stats')
    group.add_argument('--bce-sum', action='store_true', help='sum of bce over classes')
    group.add_argument('--bce-target-thresh', type=float, help='threshold of bce for softened targets')
    group.add_argument('--asl-gamma-pos', type=float, default=1.0, help='focus of asl on the label')
    group.add_argument('--asl-gamma-neg', type=float, default=4.0, help='focus of asl on the other classes')
    group.add_argument('--poly-epsilon', type=float, default=2.0, help='coefficient of poly; with 0 it is ce')
    group.add_argument('--jsd-loss', action='store_true', help='older name of --loss jsd')
    group.add_argument('--bce-loss', action='store_true', help='older name of --loss bce')
    group.add_argument('--bce-pos-weight', type=float, help='older name of --loss-pos-weight')


def check_loss_args(args: argparse.Namespace, chosen: set[str]) -> None:
    """Check the flags before anything is built; ``chosen`` are those that differ from their default.

    Raises:
        ValueError: If the loss does not go with the data, a setting is of another loss, or timm is too old.
    """
    loss, splits = task_loss(args), args.aug_splits
    flag = written(f'{loss}_loss') if getattr(args, f'{loss}_loss', False) else f'--loss {loss}'
    older = [written(name) for name in ('jsd_loss', 'bce_loss') if getattr(args, name)]
    strange = [(name, of) for name, of in _SETTINGS.items() if name in chosen and of != loss]
    weights = [name for name in _WEIGHTS if getattr(args, name) is not None]
    idle = [name for name in _OF_WEIGHTS if name in chosen]
    rules = (
        (len(older) < 2, '--jsd-loss and --bce-loss exclude each other: leave one out'),
        (not older or flag in older, f'{"".join(older)} and --loss {args.loss} exclude each other: leave one out'),
        (loss not in _OF_SEVERAL_LABELS,
         f'--loss {loss} is for several labels an image, and the data here gives one: use ce, bce, asl or poly'),
        (loss != 'jsd' or splits, f'{flag} needs --aug-splits 2 or more, got --aug-splits {splits}'),
        (loss != 'asl' or not mixes(args),
         '--loss asl takes one class an image, and mixed images have two: leave --mixup and --cutmix out'),
        (loss != 'poly' or NEW_TIMM, needs_new_timm('--loss poly')),
        *((False, f'{written(name)} is of --loss {of}, got {flag}: leave it out') for name, of in strange),
        (NEW_TIMM or not (weights or idle), needs_new_timm(f'{written((*weights, *idle, "")[0])}')),
        (args.loss_pos_weight is None or args.bce_pos_weight is None,
         '--bce-pos-weight is the older name of --loss-pos-weight: leave one out'),
        (weights or not idle, f'{written((*idle, "")[0])} needs --loss-pos-weight or --loss-class-weight'),
    )  # fmt: skip
    check_rules(rules)
    check_file_args(args, 'class_stats', what="a file of timm's class_weights.py")
    _weights(args)


def _weights(args: argparse.Namespace) -> dict[str, Any]:
    """Weights of positives and of classes for bce; those of --class-stats are computed by timm."""
    weights: dict[str, Any] = {'pos_weight': args.bce_pos_weight, 'weight': None}
    if args.loss_pos_weight is None and args.loss_class_weight is None:
        return weights
    with flag_errors('--loss-pos-weight, --loss-class-weight, --class-stats'):
        how = {
            'class_stats': timm.loss.load_class_stats(args.class_stats),
            'power': args.loss_weight_power,
            'beta': args.loss_weight_beta,
            'max_weight': args.loss_weight_max,
        }
        resolve = timm.loss.resolve_class_weights
        if args.loss_pos_weight is not None:
            weights['pos_weight'] = resolve(args.loss_pos_weight, 'pos_weight', **how)
        weights['weight'] = resolve(args.loss_class_weight, 'class_weight', **how)
    return weights


def create_criterion(args: argparse.Namespace) -> nn.Module:
    """Create the task loss as timm's train.py chooses it.

    Raises:
        ValueError: If there are weights for another number of classes.
    """
    loss, smoothing = task_loss(args), 0.0 if mixes(args) else args.smoothing  # mixed targets are smoothed already
    criterion: nn.Module
    if loss == 'jsd':
        criterion = JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    elif loss == 'asl':
        criterion = AsymmetricLossSingleLabel(gamma_pos=args.asl_gamma_pos, gamma_neg=args.asl_gamma_neg, eps=smoothing)
    elif loss == 'poly':
        criterion = timm.loss.PolyCrossEntropy(epsilon=args.poly_epsilon, smoothing=smoothing)
    elif loss == 'bce':
        criterion = BinaryCrossEntropy(smoothing=smoothing, **_bce_kwargs(args))
    elif mixes(args):
        criterion = SoftTargetCrossEntropy()
    else:
        criterion = LabelSmoothingCrossEntropy(smoothing=smoothing) if smoothing else nn.CrossEntropyLoss()
    return criterion


def _bce_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    weights = _weights(args)
    for name, weight in weights.items():
        if getattr(weight, 'ndim', 0) and len(weight) != args.num_classes:
            flag = '--loss-pos-weight' if name == 'pos_weight' else '--loss-class-weight'
            raise ValueError(f'{flag} must have a number for each of {args.num_classes} classes, got {len(weight)}')
    if isinstance(weights['weight'], float):
        weights['weight'] = torch.tensor(weights['weight'])
    return {'target_threshold': args.bce_target_thresh, 'sum_classes': args.bce_sum, **weights}
