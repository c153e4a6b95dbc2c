"""``--task multilabel``: any number of classes per image, as in timm's train.py since 1.0.31 (docs/multilabel.md)."""

import argparse
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import timm.data
from torch import Tensor

from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.flags.rules import check_rules, written
from timm_dad.method.targets import MultiLabel, SingleLabel, Targets
from timm_dad.teachers.spec import members
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.wise import are_zero_shot

MULTILABEL = 'multilabel'
METRICS = ('map', 'micro_f1', 'macro_f1', 'sample_f1')
_KINDS = ('hfds', 'hfids', 'tfds', 'wds')  # kinds of data whose samples may have several labels
_FLAGS = ('target_format', 'multilabel_threshold')
# Flags that need one class per image, and why; they are off if empty, 0 or left out.
_REFUSED = {
    'kd_model_name': "is timm's distillation with one class per image: --dad distils several",
    'eval_suites': 'measures top-1',
    'no_labels': 'needs one class per image',
    'dad_stored_logits': 'uses stored answers, which have one class per image',
    'dad_store_logits': 'stores answers with one class per image',
    'reinforce': 'stores answers with one class per image',
}


def add_task_args(group: Any) -> None:
    """Add the flags to a group of a parser."""
    group.add_argument(
        '--task', choices=('classification', MULTILABEL), default='classification',
        help='one class per image, or any number of them (multilabel: BCE, mAP and F1; needs timm 1.0.31)',
    )  # fmt: skip
    group.add_argument(
        '--target-format', choices=('indices', 'multihot'), default='indices',
        help='targets of --task multilabel: lists of class indices, or vectors with one entry per class; '
        '--target-key a,b,c takes one field per class',
    )  # fmt: skip
    group.add_argument(
        '--multilabel-threshold', type=float, default=MultiLabel.threshold, metavar='P',
        help='minimum probability of a predicted class, for F1 and --dad-keep-label (default: %(default)s)',
    )  # fmt: skip


def is_multilabel(args: argparse.Namespace) -> bool:
    """Return whether images may have several classes; older versions of timm's train.py lack the flag."""
    return getattr(args, 'task', '') == MULTILABEL


def check_task_args(args: argparse.Namespace, given: Collection[str], configured: Collection[str] = ()) -> None:
    """Check the flags, and set timm's defaults for multi-label training: no label smoothing, and mAP.

    Args:
        args: Flags.
        given: Flags of the command line, which must not be ignored.
        configured: Flags of a config file.

    Raises:
        ValueError: If timm is too old, or a flag does not fit the task.
    """
    metric = getattr(args, 'eval_metric', '')
    if not is_multilabel(args):
        unused = [written(name) for name in _FLAGS if name in given]
        rules: Sequence[tuple[Any, str]] = (
            (not unused, f'{"".join(unused[:1])} needs --task multilabel'),
            (metric not in METRICS, f'--eval-metric {metric} needs --task multilabel'),
        )
        check_rules(rules)
        return
    for name, value in {'eval_metric': METRICS[0], 'smoothing': 0.0}.items():
        unset = name not in given and (name not in configured or getattr(args, name) is None)
        if hasattr(args, name) and unset:
            setattr(args, name, value)
    refused = [name for name in _REFUSED if getattr(args, name, None)]
    metric, kind = getattr(args, 'eval_metric', METRICS[0]), args.dataset.split('/')[0]
    rules = (
        (not refused,
         f'--task multilabel: {"".join(f"{written(name)} {_REFUSED[name]}" for name in refused[:1])}; leave it out'),
        (kind in _KINDS and '/' in args.dataset,
         f'--task multilabel needs data with several labels per image, --dataset {"/, ".join(_KINDS)}/, got '
         f'{args.dataset or "a folder of one class each"} (a folder with metadata.jsonl is --dataset hfds/FOLDER)'),
        (getattr(args, 'dad_temperature', None) != 'auto',
         '--task multilabel: --dad-temperature auto uses the entropy of softmaxes; give a number'),
        (0 < args.multilabel_threshold < 1,
         f'--multilabel-threshold must be between 0 and 1, got {args.multilabel_threshold}'),
        (metric in (*METRICS, 'loss'),
         f'--eval-metric must be one of {", ".join(METRICS)} and loss with --task multilabel, got {metric}'),
        (NEW_TIMM, needs_new_timm('--task multilabel')),
    )  # fmt: skip
    check_rules(rules)


def set_facts(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a DAD set records about the task: nothing with one class per image, as in earlier sets."""
    if not is_multilabel(args):
        return {}
    return {'multi_label': {'target_format': args.target_format, 'threshold': args.multilabel_threshold}}


def create_targets(args: argparse.Namespace) -> Targets:
    """Create the kind of targets for the method."""
    return MultiLabel(args.multilabel_threshold) if is_multilabel(args) else SingleLabel()


def label_encoder(args: argparse.Namespace) -> Callable[[int], Callable[[Any], Tensor]] | None:
    """Return a factory of timm's multi-hot encoder by number of classes; ``None`` with one class per image."""
    if not is_multilabel(args):
        return None
    return partial(timm.data.MultiLabelTarget, dense=args.target_format == 'multihot')


def check_multilabel_teachers(specs: Sequence[str], teachers: Sequence[Teacher]) -> None:
    """Raise ``ValueError`` if the logits of a teacher are known to be only for softmaxes."""
    for spec, teacher in zip(specs, teachers, strict=True):
        if any(are_zero_shot(teacher)) or any(part.startswith('probe:') for part in members(spec)):
            raise ValueError(
                f'--task multilabel needs a teacher whose sigmoids are probabilities, and {spec} was trained to choose '
                'one class: give timm:MODEL/FILE or run:FOLDER of a multi-label training'
            )
