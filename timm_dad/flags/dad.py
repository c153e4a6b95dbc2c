"""The flags ``--dad ...`` and the task they build."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from timm_dad.common.errors import is_main_process
from timm_dad.dad_sets.match import check_teacher
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source
from timm_dad.flags.fields import add_fields, dad_flags, from_flags
from timm_dad.flags.header import log_models
from timm_dad.flags.kwargs import num_channels, task_loss
from timm_dad.flags.labels import check_training_without_labels
from timm_dad.flags.look import add_look_arg, look_first, look_rule
from timm_dad.flags.pairs import add_pair_args, check_pair_args, makes_views, training_frame, uses_cache, uses_pairs
from timm_dad.flags.recipe import add_recipe_arg, apply_recipe
from timm_dad.flags.reinforce import stored_logits
from timm_dad.flags.rules import check_rules, under_flag, written
from timm_dad.flags.task import create_targets
from timm_dad.flags.teacher import check_teacher_args, create_teacher, teacher_specs
from timm_dad.flags.temperature import AUTO, Images, images_to_fit, take_auto, with_number
from timm_dad.flags.views import (
    NO_VQGAN,
    add_speed_args,
    add_view_args,
    check_view_args,
    create_augment,
    create_vqgan,
    prepare_models,
)
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.preview.first_look import log_look

_logger = logging.getLogger(__name__)

_LOSS = {
    **dad_flags('temperature', 'task_weight', 'kd_weight', 'extra_task_weight', 'feature_weight'),
    'dad_weight': 'dad_weight',
}
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_SCHEDULE = dad_flags('prob', 'every', 'replay', 'warmup_epochs', 'off_epoch', 'eps_sched', 'eps_start')


def add_dad_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags ``--dad ...`` to a parser, in groups; defaults are those of the config dataclasses."""
    group = parser.add_argument_group('DAD: Discrete Adversarial Distillation')
    group.add_argument('--dad', action=argparse.BooleanOptionalAction, default=False, help='train with DAD')
    add_recipe_arg(group)
    add_view_args(parser)
    add_fields(parser.add_argument_group('DAD: loss'), DADLossConfig, _LOSS)
    take_auto(parser)
    add_fields(parser.add_argument_group('DAD: schedule'), DADSchedule, _SCHEDULE)
    add_speed_args(parser)
    group = parser.add_argument_group('DAD: second views and sets of them')
    add_pair_args(group)
    add_look_arg(group)


def loss_config(args: argparse.Namespace) -> DADLossConfig:
    """Return the loss config from the flags; ``ValueError`` names the flag."""
    return from_flags(DADLossConfig, with_number(args), _LOSS, label_free=args.no_labels)


def schedule_config(args: argparse.Namespace) -> DADSchedule:
    """Return the schedule config from the flags; ``ValueError`` names the flag."""
    return from_flags(DADSchedule, args, {**_SCHEDULE, 'epochs': 'epochs'})


def check_dad_args(
    args: argparse.Namespace, given: Mapping[str, Any], configured: Mapping[str, Any] = _NOTHING
) -> None:
    """Apply the recipe, and check the group before anything is built.

    Args:
        args: Flags; defaults from the recipe and the attack are filled in.
        given: Flags from the command line, which must not be ignored.
        configured: Flags from a config file.

    Raises:
        ValueError: If a flag has a bad value, is missing, or would be ignored.
    """
    if not args.dad:
        for name in given:
            if name.startswith('dad_'):
                raise ValueError(f'{written(name)} needs --dad')
        if 'dad' not in {*given, *configured} and any(name.startswith('dad_') for name in configured):
            _logger.warning('--config has flags of DAD but not dad: true, so this is a training without DAD')
        check_training_without_labels(args, given)
        return
    apply_recipe(args, add_dad_args, given, configured)
    check_training_without_labels(args, given)
    check_view_args(args, has_student=True)
    loss_config(args)
    schedule = schedule_config(args)
    check_pair_args(args, given)
    if not args.dad_stored_logits:
        check_teacher_args(args, given)
    channels, constant = num_channels(args), args.dad_eps_sched == 'constant'
    rules = (
        (args.dad_view != 'dad' or args.dad_dir or args.dad_vqgan, NO_VQGAN),
        look_rule(args),
        (not (args.dad_extra_task_weight and task_loss(args) == 'jsd'),
         '--dad-extra-task-weight is a task loss on one view, but --loss jsd one on several: leave one of them out'),
        (not (args.dad_feature_weight and args.dad_stored_logits),
         '--dad-feature-weight needs features from the teacher, but --dad-stored-logits reads only logits from a set: '
         'leave one of them out'),
        (not args.dad_feature_weight or len(teacher_specs(args)) < 2,
         f'--dad-feature-weight is for one teacher, got --dad-teacher {" ".join(teacher_specs(args))}'),
        (not args.kd_model_name, '--kd-model-name is another kind of distillation than --dad: give only one'),
        (channels == 3, f'--dad needs images of 3 channels, got {channels}'),
        (constant or not uses_cache(args),
         '--dad-eps-sched changes the attack by epoch, but cached views are made once: give --dad-cache 0'),
        (not args.dad_replay or args.dad_every > 1 or args.dad_prob < 1,
         '--dad-replay is for batches without fresh DAD views: it needs --dad-every or --dad-prob'),
        (not (args.dad_replay and args.dad_extra_task_weight),
         '--dad-replay keeps views without labels, but --dad-extra-task-weight (set by --dad-recipe released) needs '
         'them: leave one of them out'),
        (not args.dad_replay or makes_views(args),
         '--dad-replay keeps views made during training: leave it out with --dad-dir, --dad-cache and '
         '--dad-view random'),
        (not args.dad_eps_start or not constant, '--dad-eps-start needs --dad-eps-sched linear or cosine'),
        (args.dad_eps_start <= args.dad_eps,
         f'--dad-eps-start must be at most --dad-eps, {args.dad_eps}, got {args.dad_eps_start}'),
        (not args.split_bn or schedule.always,
         '--split-bn needs a DAD view in every batch: leave --dad-prob and --dad-every out, or give --dad-replay '
         'with them, and leave --dad-warmup-epochs and --dad-off-epoch out'),
        *_size_rules(args),
    )  # fmt: skip
    check_rules(rules)


def _size_rules(args: argparse.Namespace) -> Sequence[tuple[Any, str]]:
    """What ``--train-img-sizes`` asks of the other flags; timm's train.py has it from 1.0.29 on."""
    sizes = getattr(args, 'train_img_sizes', None)
    return (
        (not (sizes and uses_pairs(args)),
         '--train-img-sizes needs DAD views made from the batch, but those of --dad-dir, --dad-cache, '
         '--dad-view random and --dad-view-aug base have one size: leave one of them out'),
        (not (sizes and args.dad_replay), '--dad-replay keeps views of one size: leave it out with --train-img-sizes'),
        (not (sizes and args.dad_compile), '--dad-compile is for one image size: leave it out with --train-img-sizes'),
    )  # fmt: skip


def build_task(
    args: argparse.Namespace,
    student: nn.Module,
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None,
    *,
    dataset: Any = None,
    dad_set: DADSet | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device,
    verbose: bool = True,
) -> tuple[DADTask, DADAugment | None]:
    """Create the task from the flags, with the frozen models it needs.

    Args:
        args: Flags.
        student: The model to train.
        data_config: Size and normalization of the batches, from ``timm.data.resolve_data_config``.
        class_names: Names of the data's classes (folders), if it has any.
        dataset: Training data, used by ``--dad-look`` and ``--dad-temperature auto``, which stores the number it finds
            in ``args``; without data the default is used.
        dad_set: The set of ``--dad-dir``: its views need no VQGAN, and its logits no teacher.
        criterion: Task loss.
        device: Device that it runs on.
        verbose: Whether to log what was built.

    Returns:
        The task, and the object that makes DAD views, if any are made.

    Raises:
        ValueError: If teacher, VQGAN, classes, image size and DAD set do not fit together.
    """
    size, mean, std = tuple(data_config['input_size'][-2:]), data_config['mean'], data_config['std']
    teacher = augment = stored = None
    if dad_set is not None and args.dad_stored_logits:
        with under_flag(f'--dad-dir {args.dad_dir}:'):
            stored = stored_logits(args, dad_set, data_config)
    else:
        images = _images_to_fit(args, dataset, data_config)
        teacher = create_teacher(args, args.num_classes, class_names, device, images)
        if dad_set is not None:
            with under_flag(f'--dad-dir {args.dad_dir}:'):
                check_teacher(dad_set, teacher)
        if args.dad_feature_weight:
            with under_flag('--dad-feature-weight:'):
                teacher.with_features()
        vqgan = create_vqgan(args, size) if dad_set is None and args.dad_view == 'dad' else None
        prepare_models(args, teacher, vqgan, size, device, args.batch_size)
        if vqgan is not None:
            augment = create_augment(args, teacher, vqgan, mean, std)
    task = DADTask(
        student,
        teacher,
        augment if makes_views(args) else None,  # with --dad-cache the batches bring its views
        apart=makes_views(args) and uses_pairs(args),
        stored=stored,
        criterion=criterion,
        loss=loss_config(args),
        targets=create_targets(args),
        mean=mean,
        std=std,
        schedule=schedule_config(args),
        num_splits=args.aug_splits or 1,
        micro_batch=args.dad_micro_batch,
        seed=args.seed,
        device=device,
        verbose=False,
    )
    if task.full_attack is not None and augment is not None:
        augment.attack = task.full_attack  # for what is logged: a schedule begins with less
    found = None
    if augment is not None and dataset is not None and is_main_process():
        found = look_first(args, augment, Source(dataset), training_frame(data_config), device)
    if verbose:
        log_models(args, task, augment, found)
    if found is not None:
        log_look(found)
    task.set_epoch(0)
    return task, augment


def _images_to_fit(args: argparse.Namespace, dataset: Any, data_config: Mapping[str, Any]) -> Images | None:
    """Return the images for ``--dad-temperature auto``; without data the default temperature is used."""
    if dataset is None or args.dad_temperature != AUTO:
        args.dad_temperature = with_number(args).dad_temperature
        return None
    return images_to_fit(args, Source(dataset), lambda _: training_frame(data_config))
