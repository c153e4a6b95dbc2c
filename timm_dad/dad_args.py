"""The flags ``--dad ...``, and what they build: attack, loss, teacher, VQGAN and task."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_dad.attack import NORMS, AttackConfig
from timm_dad.augment import DADAugment
from timm_dad.demo.data import DEMO_TEACHER, DEMO_VQGAN, TEMPLATES
from timm_dad.discretize import VQGAN, load_vqgan
from timm_dad.frozen import PRECISIONS
from timm_dad.loss import DADLossConfig
from timm_dad.task import DADTask
from timm_dad.teacher import DEFAULT_TEMPLATES, Teacher, create_open_clip_teacher, create_timm_teacher

# Flags that shape the DAD view alone: useless when the second view is a random one.
_VIEW_FLAGS = ('vqgan', 'eps', 'step_size', 'num_steps', 'norm', 'random_start', 'keep_label', 'same_crop', 'cache')


def add_dad_args(parser: argparse.ArgumentParser) -> None:
    """Add the group ``--dad ...`` to a parser; defaults are those of the config dataclasses."""
    attack, loss = AttackConfig(), DADLossConfig()
    group = parser.add_argument_group('Discrete Adversarial Distillation')
    group.add_argument('--dad', action=argparse.BooleanOptionalAction, default=False, help='train with DAD')
    group.add_argument(
        '--dad-teacher', metavar='SPEC',
        help='timm:MODEL, open_clip:MODEL/PRETRAINED (a tag or a file), open_clip:local-dir:DIR, or demo',
    )  # fmt: skip
    group.add_argument('--dad-teacher-checkpoint', metavar='PATH', help='weights of the teacher')
    group.add_argument('--dad-classnames', metavar='FILE', help='class names for a zero-shot teacher, one a line')
    group.add_argument('--dad-templates', metavar='FILE', help='prompts for a zero-shot teacher, one a line, with {}')
    group.add_argument('--dad-vqgan', metavar='PATH', help='VQGAN weights (.safetensors, .yaml beside), or demo')
    group.add_argument(
        '--dad-view', choices=('dad', 'random'), default='dad',
        help='second view that is distilled: DAD, or another random view (plain distillation at equal compute)',
    )  # fmt: skip
    group.add_argument(
        '--dad-same-crop',
        action='store_true',
        help='make the DAD view from the clean view, not from a second random one',
    )
    group.add_argument(
        '--dad-cache', type=int, default=0, metavar='K',
        help='make K DAD views of every image once, in memory, and draw from them (default: a fresh view each step)',
    )  # fmt: skip
    group.add_argument('--dad-norm', choices=NORMS, default=attack.norm, help='norm of the attack')
    group.add_argument('--dad-eps', type=float, default=attack.eps, help='radius of the attack, in [0, 1] pixel units')
    group.add_argument('--dad-step-size', type=float, default=attack.step_size, help='its step size, same units')
    group.add_argument('--dad-num-steps', type=int, default=attack.num_steps, help='its number of steps')
    group.add_argument(
        '--dad-random-start', type=float, default=attack.random_start, help='probability of a random start'
    )
    group.add_argument('--dad-keep-label', action='store_true', help='take Q(x) where the teacher loses the label')
    group.add_argument('--dad-temperature', type=float, default=loss.temperature, help='distillation temperature')
    group.add_argument('--dad-task-weight', type=float, default=loss.task_weight, help='weight of the task loss')
    group.add_argument('--dad-kd-weight', type=float, default=loss.kd_weight, help='weight of KD on the clean view')
    group.add_argument('--dad-weight', type=float, default=loss.dad_weight, help='weight of KD on the second view')
    group.add_argument(
        '--dad-precision', choices=tuple(PRECISIONS), default='fp32', help='precision of teacher and VQGAN'
    )


def attack_config(args: argparse.Namespace) -> AttackConfig:
    """The attack that the flags ask for; ``ValueError`` names the flag."""
    names = ('norm', 'eps', 'step_size', 'num_steps', 'random_start')
    config: AttackConfig = _config(AttackConfig, args, {name: f'dad_{name}' for name in names})
    return config


def loss_config(args: argparse.Namespace) -> DADLossConfig:
    """The loss that the flags ask for; ``ValueError`` names the flag."""
    names = ('temperature', 'task_weight', 'kd_weight')
    flags = {'dad_weight': 'dad_weight', **{name: f'dad_{name}' for name in names}}
    config: DADLossConfig = _config(DADLossConfig, args, flags)
    return config


def _config(config: Any, args: argparse.Namespace, flags: dict[str, str]) -> Any:
    try:
        return config(**{name: getattr(args, dest) for name, dest in flags.items()})
    except ValueError as error:
        field = str(error).split()[0]
        raise ValueError(f'--{flags[field].replace("_", "-")}: {error}') from error


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
    attack_config(args)
    loss_config(args)
    if args.dad_cache < 0 or (args.dad_cache and args.dad_same_crop):
        raise ValueError(f'--dad-cache must be 0 or more, and has no --dad-same-crop, got {args.dad_cache}')
    ignored = [name for name in dad_flags if name.removeprefix('dad_') in _VIEW_FLAGS]
    if args.dad_view == 'random' and ignored:
        raise ValueError(f'{flag[ignored[0]]} shapes the DAD view and needs --dad-view dad')
    if not args.dad_teacher or args.dad_teacher.split(':')[0] not in ('timm', 'open_clip', 'demo'):
        raise ValueError(
            f'--dad-teacher must be timm:MODEL, open_clip:MODEL/PRETRAINED or demo, got {args.dad_teacher!r} '
            '(such as open_clip:ViT-L-14/openai)'
        )
    if args.dad_view == 'dad' and not args.dad_vqgan:
        raise ValueError('--dad-vqgan must name the weights of a VQGAN (.safetensors with a .yaml beside), or demo')
    _check_dad_files(args, given)


def _check_dad_files(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    for name in ('dad_classnames', 'dad_templates', 'dad_teacher_checkpoint'):
        path, flag = getattr(args, name), f'--{name.replace("_", "-")}'
        if path and not Path(path).is_file():
            raise ValueError(f'{flag} must be a file, got {path!r}, which does not exist')
        if name in given and name != 'dad_teacher_checkpoint' and args.dad_teacher.startswith('timm:'):
            raise ValueError(f'{flag} is for zero-shot teachers, got --dad-teacher {args.dad_teacher}')


def uses_two_views(args: argparse.Namespace) -> bool:
    """Whether the batches of the task hold two views of every image."""
    return bool(args.dad and not (args.dad_view == 'dad' and args.dad_same_crop))


def uses_cache(args: argparse.Namespace) -> bool:
    """Whether the second views are DAD views made once, before training."""
    return bool(args.dad and args.dad_view == 'dad' and args.dad_cache)


def create_teacher(args: argparse.Namespace, num_classes: int, class_names: Sequence[str] | None) -> Teacher:
    """Create the teacher of ``--dad-teacher``.

    Args:
        args: Flags.
        num_classes: Classes of the student.
        class_names: Names of the data's classes, if it has any.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: If the teacher is unknown, or its classes are not the student's.
    """
    source, _, name = args.dad_teacher.partition(':')
    checkpoint = args.dad_teacher_checkpoint
    try:
        if source == 'timm':
            return create_timm_teacher(name, num_classes, checkpoint)
        names = _read_lines(args.dad_classnames) if args.dad_classnames else class_names
        if names is None:
            raise ValueError('a zero-shot teacher needs class names and the data has none: give --dad-classnames FILE')
        if len(names) != num_classes:
            raise ValueError(f'there are {len(names)} class names and --num-classes is {num_classes}; give one a class')
        templates: Sequence[str] = DEFAULT_TEMPLATES if source == 'open_clip' else TEMPLATES
        if args.dad_templates:
            templates = _read_lines(args.dad_templates)
        if source == 'demo':
            name = f'local-dir:{DEMO_TEACHER}'
        return create_open_clip_teacher(name, names, templates, checkpoint)
    except ValueError as error:
        raise ValueError(f'--dad-teacher {args.dad_teacher}: {error}') from error


def _read_lines(path: str) -> list[str]:
    return [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]


def create_vqgan(args: argparse.Namespace, image_size: tuple[int, int]) -> VQGAN | None:
    """Load the VQGAN of ``--dad-vqgan``, if the second view needs one, and check that it takes the image size.

    Raises:
        ValueError: If it is missing or broken, or its factor does not divide the size.
    """
    if args.dad_view != 'dad':
        return None
    try:
        vqgan = load_vqgan(DEMO_VQGAN if args.dad_vqgan == 'demo' else args.dad_vqgan)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f'--dad-vqgan: {error}') from error
    try:
        vqgan.check_size(*image_size)
    except ValueError as error:
        raise ValueError(f'--img-size: {error}') from error
    return vqgan


def create_augment(
    args: argparse.Namespace, teacher: Teacher, vqgan: VQGAN | None, mean: Sequence[float], std: Sequence[float]
) -> DADAugment | None:
    """The augmentation that makes DAD views, if the second view is one (there is a VQGAN then)."""
    if vqgan is None:
        return None
    return DADAugment(teacher, vqgan, mean=mean, std=std, attack=attack_config(args), keep_label=args.dad_keep_label)


def create_task(
    args: argparse.Namespace,
    student: nn.Module,
    teacher: Teacher,
    augment: DADAugment | None,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    verbose: bool = True,
) -> DADTask:
    """Create the task that the flags ask for.

    Args:
        args: Flags.
        student: The model to train.
        teacher: From ``create_teacher``, prepared.
        augment: From ``create_augment``; with ``--dad-cache`` the batches bring its views, and the task needs none.
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
        None if uses_cache(args) else augment,
        criterion=criterion,
        loss=loss_config(args),
        mean=mean,
        std=std,
        two_views=uses_two_views(args),
        device=device,
        verbose=verbose,
    )
