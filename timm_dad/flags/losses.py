"""``--loss`` and its settings: timm's task losses, for one label per image or several."""

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
from timm_dad.flags.task import is_multilabel

_OF_ONE_LABEL = ('ce', 'bce', 'asl', 'poly', 'jsd')
_OF_SEVERAL_LABELS = ('bce', 'asl', 'poly', 'twoway', 'zlpr', 'db')
_OF_BINARY_TARGETS = ('twoway', 'zlpr')
# Settings by the one loss that they are of; timm's factory has arguments of their names.
_SETTINGS = {
    **dict.fromkeys(('bce_sum', 'bce_target_thresh'), 'bce'),
    **dict.fromkeys(('asl_gamma_pos', 'asl_gamma_neg'), 'asl'),
    'poly_epsilon': 'poly',
}
_MULTILABEL_SETTINGS = {
    **dict.fromkeys(('asl_clip', 'asl_reduction'), 'asl'),
    **dict.fromkeys(('poly_gamma', 'poly_alpha'), 'poly'),
    **dict.fromkeys(('twoway_tp', 'twoway_tn'), 'twoway'),
    **dict.fromkeys(('db_neg_scale', 'db_init_bias', 'db_focal_gamma'), 'db'),
}
_ALL_SETTINGS = {**_SETTINGS, **_MULTILABEL_SETTINGS}
_WEIGHTS = ('bce_pos_weight', 'loss_pos_weight', 'loss_class_weight')
_BY_STATS = {'neg_pos', 'inv_freq', 'effective_num'}
_OF_WEIGHTS = ('class_stats', 'loss_weight_power', 'loss_weight_beta', 'loss_weight_max')
OF_TASK_LOSS = ('loss', 'jsd_loss', 'bce_loss', *_ALL_SETTINGS, *_WEIGHTS, *_OF_WEIGHTS)


def add_loss_args(group: Any) -> None:
    """Add the flags to a group of a parser, with the names, defaults and meanings of timm's ``train.py``."""
    group.add_argument(
        '--loss', choices=('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db'),
        help='task loss: ce (default), bce, asl (asymmetric), poly (Poly-1; timm 1.0.31), jsd (with --aug-splits); '
        'with --task multilabel bce (default), asl, poly, twoway, zlpr or db (distribution-balanced)',
    )  # fmt: skip
    group.add_argument('--class-stats', metavar='FILE', help="class counts from timm's class_weights.py, for weights")
    for kind, method in (('pos', 'neg_pos'), ('class', 'inv_freq, effective_num')):
        group.add_argument(
            f'--loss-{kind}-weight', metavar='WEIGHTS',
            help=f'{"weight of positives" if kind == "pos" else "weights of classes"} of bce: a number, numbers with '
            f'commas, a file, or with --class-stats {method}',
        )  # fmt: skip
    group.add_argument('--loss-weight-power', type=float, default=1.0, help='exponent of neg_pos and inv_freq')
    group.add_argument('--loss-weight-beta', type=float, default=0.999, help='beta of effective_num')
    group.add_argument('--loss-weight-max', type=float, help='upper limit of the weights from --class-stats')
    group.add_argument('--bce-sum', action='store_true', help='sum bce over classes')
    group.add_argument('--bce-target-thresh', type=float, help='bce threshold for softened targets')
    group.add_argument('--asl-gamma-pos', type=float, default=1.0, help='focus of asl on the label')
    group.add_argument('--asl-gamma-neg', type=float, default=4.0, help='focus of asl on the other classes')
    group.add_argument('--poly-epsilon', type=float, default=2.0, help='coefficient of poly; with 0 it is ce')
    group.add_argument('--asl-clip', type=float, default=0.05, help='margin of asl on negatives; multilabel')
    group.add_argument(
        '--asl-reduction', default='batchmean', choices=('batchmean', 'sum', 'mean'), help='of asl; multilabel'
    )
    group.add_argument('--poly-gamma', type=float, default=0.0, help='focus of poly; multilabel')
    group.add_argument('--poly-alpha', type=float, help='balance of poly between positives and negatives; multilabel')
    group.add_argument('--twoway-tp', type=float, default=4.0, help='temperature of positives of twoway')
    group.add_argument('--twoway-tn', type=float, default=1.0, help='temperature of negatives of twoway')
    group.add_argument('--db-neg-scale', type=float, default=2.0, help='scale of negative logits of db')
    group.add_argument('--db-init-bias', type=float, default=0.05, help="shift of logits of db by the classes' counts")
    group.add_argument('--db-focal-gamma', type=float, default=2.0, help='focus of db')
    group.add_argument('--jsd-loss', action='store_true', help='older name of --loss jsd')
    group.add_argument('--bce-loss', action='store_true', help='older name of --loss bce')
    group.add_argument('--bce-pos-weight', type=float, help='older name of --loss-pos-weight')


def check_loss_args(args: argparse.Namespace, chosen: set[str]) -> None:
    """Check the flags before anything is built; ``chosen`` are those that differ from their defaults.

    Raises:
        ValueError: If the loss does not fit the data, a setting belongs to another loss, or timm is too old.
    """
    loss, splits, multilabel = task_loss(args), args.aug_splits, is_multilabel(args)
    flag = written(f'{loss}_loss') if getattr(args, f'{loss}_loss', False) else f'--loss {loss}'
    older = [written(name) for name in ('jsd_loss', 'bce_loss') if getattr(args, name)]
    strange = [(name, of) for name, of in _ALL_SETTINGS.items() if name in chosen and of != loss]
    several = [] if multilabel else [written(name) for name in _MULTILABEL_SETTINGS if name in chosen]
    weights = [name for name in _WEIGHTS if getattr(args, name) is not None]
    idle = [name for name in _OF_WEIGHTS if name in chosen and (name, loss) != ('class_stats', 'db')]
    weighted = ('bce', 'asl') if multilabel else ('bce',)
    allowed, task = (_OF_SEVERAL_LABELS, 'multilabel') if multilabel else (_OF_ONE_LABEL, 'classification')
    rules = (
        (len(older) < 2, '--jsd-loss and --bce-loss exclude each other: leave one out'),
        (not older or flag in older, f'{"".join(older)} and --loss {args.loss} exclude each other: leave one out'),
        (loss in allowed, f'{flag} does not support --task {task}: use {", ".join(allowed[:-1])} or {allowed[-1]}'),
        (loss != 'jsd' or splits, f'{flag} needs --aug-splits 2 or more, got --aug-splits {splits}'),
        (loss != 'asl' or multilabel or not mixes(args),
         '--loss asl takes one class per image, but mixed images have two: leave --mixup and --cutmix out'),
        (loss not in _OF_BINARY_TARGETS or not (mixes(args) or args.smoothing),
         f'{flag} takes only targets of 0 and 1: leave --mixup, --cutmix and --smoothing out'),
        (loss != 'db' or args.class_stats, f"{flag} needs --class-stats, the counts from timm's class_weights.py"),
        (loss != 'poly' or NEW_TIMM, needs_new_timm('--loss poly')),
        *((False, f'{written(name)} is for --loss {of}, got {flag}: leave it out') for name, of in strange),
        (not several, f'{"".join(several[:1])} needs --task multilabel: leave it out'),
        (not weights or loss in weighted,
         f'{written((*weights, "")[0])} is for --loss {" or ".join(weighted)}, got {flag}: leave it out'),
        (not idle or {args.loss_pos_weight, args.loss_class_weight} & _BY_STATS,
         f'{written((*idle, "")[0])} needs --loss-pos-weight or --loss-class-weight computed from --class-stats: '
         f'{", ".join(sorted(_BY_STATS))}'),
        (args.loss_pos_weight is None or args.bce_pos_weight is None,
         '--bce-pos-weight is the older name of --loss-pos-weight: leave one out'),
        (NEW_TIMM or not set(weights) - {'bce_pos_weight'}, needs_new_timm(written((*weights, '')[0]))),
    )  # fmt: skip
    check_rules(rules)
    check_file_args(args, 'class_stats', what="a file of timm's class_weights.py")
    _weights(args)


def _weights(args: argparse.Namespace) -> dict[str, Any]:
    """Return weights of positives and of classes for bce; timm computes those from --class-stats."""
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
    """Create the task loss as timm's train.py does.

    Raises:
        ValueError: If weights are given for another number of classes.
    """
    if is_multilabel(args):
        return _multilabel_criterion(args)
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


def _multilabel_criterion(args: argparse.Namespace) -> nn.Module:
    loss, weights = task_loss(args), _checked_weights(args)
    settings = {name: getattr(args, name) for name, of in _ALL_SETTINGS.items() if of == loss}
    if loss == 'db':
        with flag_errors('--class-stats'):
            counts, settings['num_samples'] = timm.loss.load_class_stats(args.class_stats)
        if len(counts) != args.num_classes:
            raise ValueError(
                f'--class-stats {args.class_stats} must have a count for each of {args.num_classes} classes, got '
                f'{len(counts)}'
            )
        settings['class_counts'] = counts
    criterion: nn.Module = timm.loss.create_classification_loss(
        loss, multi_label=True, smoothing=args.smoothing, soft_targets=mixes(args), class_weight=weights['weight'],
        pos_weight=weights['pos_weight'], **settings,
    )  # fmt: skip
    return criterion


def _bce_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    weights = _checked_weights(args)
    if isinstance(weights['weight'], float):
        weights['weight'] = torch.tensor(weights['weight'])
    return {'target_threshold': args.bce_target_thresh, 'sum_classes': args.bce_sum, **weights}


def _checked_weights(args: argparse.Namespace) -> dict[str, Any]:
    weights = _weights(args)
    for name, weight in weights.items():
        if getattr(weight, 'ndim', 0) and len(weight) != args.num_classes:
            flag = '--loss-pos-weight' if name == 'pos_weight' else '--loss-class-weight'
            raise ValueError(f'{flag} must have a number for each of {args.num_classes} classes, got {len(weight)}')
    return weights
