"""The flags ``--dad ...``, and what they build: attack, loss, teacher, VQGAN and task."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timm_dad.dad_sets.logits import StoredLogits
from timm_dad.dad_sets.match import check_teacher
from timm_dad.dad_sets.read import DADSet
from timm_dad.flags.pairs import add_pair_args, check_pair_args, uses_cache, uses_pairs
from timm_dad.flags.rules import check_rules, naming_flag
from timm_dad.flags.teacher import check_teacher_args, create_teacher
from timm_dad.flags.views import add_view_args, check_view_args, create_augment, create_vqgan, prepare_models
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import EPS_SCHEDULES, DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.presets import PRESETS


def add_dad_args(parser: argparse.ArgumentParser) -> None:
    """Add the group ``--dad ...`` to a parser; defaults are those of the config dataclasses."""
    loss, schedule = DADLossConfig(), DADSchedule()
    group = parser.add_argument_group('Discrete Adversarial Distillation')
    group.add_argument('--dad', action=argparse.BooleanOptionalAction, default=False, help='train with DAD')
    add_view_args(group)
    add_pair_args(group)
    group.add_argument('--dad-prob', type=float, default=schedule.prob, help='probability of a DAD view, a batch')
    group.add_argument(
        '--dad-every', type=int, default=schedule.every, metavar='N', help='make fresh DAD views for every N-th batch'
    )
    group.add_argument(
        '--dad-replay', type=int, default=schedule.replay, metavar='N',
        help='batches without fresh DAD views (--dad-every, --dad-prob) see some of the last N again',
    )  # fmt: skip
    group.add_argument(
        '--dad-warmup-epochs', type=int, default=schedule.warmup_epochs, metavar='N',
        help='epochs over which the weight of the second view rises linearly from 0',
    )  # fmt: skip
    group.add_argument(
        '--dad-off-epoch', type=int, default=schedule.off_epoch, metavar='N', help='no DAD view from this epoch on'
    )
    group.add_argument(
        '--dad-eps-sched', choices=EPS_SCHEDULES, default=schedule.eps_sched,
        help='how radius and step of the attack rise to their values over --epochs',
    )  # fmt: skip
    group.add_argument('--dad-eps-start', type=float, default=schedule.eps_start, help='radius that they rise from')
    group.add_argument('--dad-temperature', type=float, default=loss.temperature, help='distillation temperature')
    group.add_argument('--dad-task-weight', type=float, default=loss.task_weight, help='weight of the task loss')
    group.add_argument('--dad-kd-weight', type=float, default=loss.kd_weight, help='weight of KD on the clean view')
    group.add_argument('--dad-weight', type=float, default=loss.dad_weight, help='weight of KD on the second view')


def loss_config(args: argparse.Namespace) -> DADLossConfig:
    """The loss that the flags ask for; ``ValueError`` names the flag."""
    names = ('temperature', 'task_weight', 'kd_weight')
    flags = {'dad_weight': 'dad_weight', **{name: f'dad_{name}' for name in names}}
    config: DADLossConfig = _config(DADLossConfig, args, flags)
    return config


def schedule_config(args: argparse.Namespace) -> DADSchedule:
    """The schedule that the flags ask for; ``ValueError`` names the flag."""
    names = ('prob', 'every', 'replay', 'warmup_epochs', 'off_epoch', 'eps_sched', 'eps_start')
    config: DADSchedule = _config(DADSchedule, args, {**{name: f'dad_{name}' for name in names}, 'epochs': 'epochs'})
    return config


def _config(config: Any, args: argparse.Namespace, flags: dict[str, str]) -> Any:
    with naming_flag(flags, unknown='dad'):
        return config(**{name: getattr(args, dest) for name, dest in flags.items()})


def check_dad_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the group before anything is built.

    Args:
        args: All flags.
        given: The flags of the command line alone, which must not be ignored.

    Raises:
        ValueError: If a flag has a bad value, is missing, or would be ignored.
    """
    flag = {name: f'--{name.replace("_", "-")}' for name in given}
    dad_flags = [name for name in given if name.startswith('dad_')]
    if not args.dad:
        if dad_flags:
            raise ValueError(f'{flag[dad_flags[0]]} needs --dad')
        return
    check_view_args(args)
    loss_config(args)
    schedule_config(args)
    check_pair_args(args, given)
    if not args.dad_stored_logits:
        check_teacher_args(args, given)
    if args.dad_view == 'dad' and not args.dad_dir and not args.dad_vqgan:
        raise ValueError(f'--dad-vqgan must name the weights of a VQGAN, demo, or one of {", ".join(PRESETS)}')
    _check_composition(args)


def _check_composition(args: argparse.Namespace) -> None:
    """What DAD does not go together with; the rest of timm's flags composes."""
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    rules = (
        (not args.kd_model_name, '--kd-model-name is another distillation than --dad: give one of them'),
        (channels == 3, f'--dad needs images of 3 channels, got {channels}'),
        (
            not (uses_cache(args) and args.dad_eps_sched != 'constant'),
            '--dad-eps-sched changes the attack by epoch, and cached views are made once: leave --dad-cache out',
        ),
        (
            not args.dad_replay or args.dad_every > 1 or args.dad_prob < 1,
            '--dad-replay is for batches without fresh DAD views: it needs --dad-every or --dad-prob',
        ),
        (
            not (args.dad_replay and uses_pairs(args)),
            '--dad-replay keeps views that are made while training: leave it out with --dad-dir, --dad-cache and '
            '--dad-view random',
        ),
        (
            not args.dad_eps_start or args.dad_eps_sched != 'constant',
            '--dad-eps-start needs --dad-eps-sched linear or cosine',
        ),
        (
            args.dad_eps_start <= args.dad_eps,
            f'--dad-eps-start must be at most --dad-eps, {args.dad_eps}, got {args.dad_eps_start}',
        ),
        (
            not args.split_bn or schedule_config(args).always,
            '--split-bn needs a DAD view in every batch: leave --dad-prob and --dad-every out, or give --dad-replay '
            'with them, and leave --dad-warmup-epochs and --dad-off-epoch out',
        ),
    )
    check_rules(rules)


def create_task(
    args: argparse.Namespace,
    student: nn.Module,
    teacher: Teacher | None,
    augment: DADAugment | None,
    *,
    stored: StoredLogits | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    verbose: bool = True,
) -> DADTask:
    """Create the task that the flags ask for, of what is built already.

    Args:
        args: Flags.
        student: The model to train.
        teacher: From ``create_teacher``, prepared.
        augment: From ``create_augment``; with ``--dad-cache`` the batches bring its views, and the task needs none.
        stored: The teacher's logits, in place of the teacher.
        criterion: Task loss.
        mean: Normalization of the batches.
        std: Normalization of the batches.
        device: Where it runs.
        verbose: Log what was built.

    Returns:
        The task.
    """
    return DADTask(
        student,
        teacher,
        None if uses_pairs(args) else augment,
        stored=stored,
        criterion=criterion,
        loss=loss_config(args),
        mean=mean,
        std=std,
        schedule=schedule_config(args),
        num_splits=args.aug_splits or 1,
        micro_batch=args.dad_micro_batch,
        device=device,
        verbose=verbose,
    )


def build_task(
    args: argparse.Namespace,
    student: nn.Module,
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None,
    *,
    dad_set: DADSet | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device,
    verbose: bool = True,
) -> tuple[DADTask, DADAugment | None]:
    """Create the task that the flags ask for, with the frozen models that it needs.

    Args:
        args: Flags.
        student: The model to train.
        data_config: Size and normalization of the batches, of ``timm.data.resolve_data_config``.
        class_names: Names of the data's classes (folders), if it has any.
        dad_set: The set of ``--dad-dir``: its views need no VQGAN, and its logits no teacher.
        criterion: Task loss.
        device: Where it runs.
        verbose: Log what was built.

    Returns:
        The task, and what makes DAD views, if any are made.

    Raises:
        ValueError: If teacher, VQGAN, classes, image size and DAD set do not fit together.
    """
    common: dict[str, Any] = {'mean': data_config['mean'], 'std': data_config['std']}
    built = {**common, 'criterion': criterion, 'device': device, 'verbose': verbose}
    if dad_set is not None and args.dad_stored_logits:
        return create_task(args, student, None, None, stored=StoredLogits(dad_set), **built), None
    teacher = create_teacher(args, args.num_classes, class_names, device)
    if dad_set is not None:
        try:
            check_teacher(dad_set, teacher)
        except ValueError as error:
            raise ValueError(f'--dad-dir {args.dad_dir}: {error}') from error
    vqgan = None if dad_set is not None else create_vqgan(args, tuple(data_config['input_size'][-2:]))
    prepare_models(args, teacher, vqgan, data_config['input_size'][-2:], device)
    augment = create_augment(args, teacher, vqgan, **common)
    return create_task(args, student, teacher, augment, **built), augment
