"""``--no-labels``: data without labels, and a student that learns only from the teacher."""

import argparse
from collections.abc import Collection, Sequence
from typing import Any

from timm_dad.flags.losses import OF_TASK_LOSS, add_loss_args
from timm_dad.flags.rules import check_rules, under_flag, written
from timm_dad.teachers.classes import read_class_file

_KINDS = ('', 'demo', 'wds')
_OF_LABELS = ('class_map', 'target_key')
_OF_TASK_LOSS = ('smoothing', *OF_TASK_LOSS)
_TASK_WEIGHTS = ('dad_task_weight', 'dad_extra_task_weight')


def add_labels_arg(group: Any) -> None:
    """Add the flag to a group of a parser."""
    group.add_argument(
        '--no-labels', action='store_true',
        help="the data has no labels (or they are not read): the attack ascends the loss of the teacher's top-1 class "
        'on the image, and a student learns only from the teacher',
    )  # fmt: skip


def check_labels_args(args: argparse.Namespace, given: Collection[str]) -> None:
    """Check the flags of data without labels; ``ValueError`` if one of ``given`` would be ignored."""
    if not args.no_labels:
        return
    kind = args.dataset.partition('/')[0] if '/' in args.dataset else ''
    unread = [written(name) for name in _OF_LABELS if name in given and not getattr(args, 'val_split', '')]
    rules = (
        (kind in _KINDS,
         f'--no-labels is for folders and tars of pictures, wds/ and demo/, got --dataset {args.dataset}'),
        (not unread, f'{"".join(unread[:1])} is about labels, but --no-labels reads none: leave it out'),
    )  # fmt: skip
    check_rules(rules)


def check_training_without_labels(args: argparse.Namespace, given: Collection[str]) -> None:
    """Check the flags of the loss with ``--no-labels``, and set the weights of the task loss to 0.

    Raises:
        ValueError: If there would be nothing to learn, or a flag is about the task loss.
    """
    if not args.no_labels:
        return
    # Flags that are off by default must not be on, even from a config file; flags that always have a value must only
    # not be given on the command line.
    asked = [name for name in _OF_TASK_LOSS if name in given or (name in _off() and getattr(args, name, False))]
    asked += [name for name in _TASK_WEIGHTS if name in given and getattr(args, name)]
    rules = (
        (args.dad, '--no-labels needs --dad: without labels the student learns from the teacher'),
        (not asked,
         f'{"".join(map(written, asked[:1]))} is about the task loss, but --no-labels leaves none: leave it out'),
        (not args.aug_splits,
         '--aug-splits makes views only for the task loss, but --no-labels leaves none: leave it out'),
        (args.dad_kd_weight or args.dad_weight,
         '--no-labels leaves only the teacher to learn from: --dad-kd-weight or --dad-weight must be more than 0'),
    )  # fmt: skip
    check_rules(rules)
    check_labels_args(args, given)
    for name in _TASK_WEIGHTS:
        setattr(args, name, 0.0)


def _off() -> set[str]:
    """Return the flags of the task loss that are off by default."""
    parser = argparse.ArgumentParser(add_help=False)
    add_loss_args(parser)
    return {action.dest for action in parser._actions if action.default is None or action.default is False}


def find_class_names(args: argparse.Namespace, of_data: Sequence[str] | None) -> Sequence[str] | None:
    """Return the class names of the data or, with ``--no-labels``, of ``--dad-classnames``.

    Args:
        args: Flags.
        of_data: Class names of the data.

    Raises:
        ValueError: If neither they nor ``--num-classes`` give the number of classes.
    """
    if not args.no_labels or of_data is not None:
        return of_data
    if args.dad_classnames:
        with under_flag('--dad-classnames:'):
            names = list(read_class_file(args.dad_classnames, 'name'))
            if len(names) < 2:
                raise ValueError(f'{args.dad_classnames} must name two or more classes, got {names}')
            return names
    if args.num_classes is None:
        raise ValueError(
            '--no-labels leaves the classes open: name them in a file for --dad-classnames (a zero-shot teacher needs '
            'it), or give --num-classes'
        )
    return None
