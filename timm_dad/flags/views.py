"""The flags about how a DAD view is made, and what they build: VQGAN, attack, and the models in their precision."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from timm_dad.flags.pairs import load_vqgan_by_spec
from timm_dad.flags.rules import naming_flag
from timm_dad.flags.teacher import add_teacher_args
from timm_dad.frozen.precision import fastest_precision
from timm_dad.frozen.prepare import PRECISIONS, prepare_frozen
from timm_dad.method.attack import NORMS, AttackConfig
from timm_dad.method.augment import ATTACK_FROM, DADAugment
from timm_dad.method.micro_batch import MicroBatches
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.presets import PRESETS


def add_view_args(group: Any) -> None:
    """Add what makes a DAD view: teacher, VQGAN, their precision, and the attack."""
    attack = AttackConfig()
    add_teacher_args(group)
    group.add_argument(
        '--dad-vqgan', metavar='SPEC',
        help='weights of a VQGAN of taming or latent-diffusion (.safetensors, .ckpt, .pth or .pt, with the .yaml '
        f'beside), a folder of a diffusers VQModel, demo, or one of {", ".join(PRESETS)}',
    )  # fmt: skip
    group.add_argument(
        '--dad-strict-size', action='store_true',
        help='refuse image sizes that the factor of the VQGAN does not divide (default: pad them by reflection)',
    )  # fmt: skip
    group.add_argument(
        '--dad-precision', choices=(*PRECISIONS, 'auto'), default='fp32',
        help='precision of teacher and VQGAN; auto: the faster one of fp32 and bf16, measured at the start',
    )  # fmt: skip
    group.add_argument(
        '--dad-compile', action='store_true', help='torch.compile teacher and VQGAN (faster on GPUs; minutes to begin)'
    )
    group.add_argument(
        '--dad-micro-batch', type=int, default=0, metavar='N',
        help='images that teacher and VQGAN take at a time (default: what fits in memory)',
    )  # fmt: skip
    group.add_argument('--dad-norm', choices=NORMS, default=attack.norm, help='norm of the attack')
    group.add_argument('--dad-eps', type=float, default=attack.eps, help='radius of the attack, in [0, 1] pixel units')
    group.add_argument('--dad-step-size', type=float, default=attack.step_size, help='its step size, same units')
    group.add_argument('--dad-num-steps', type=int, default=attack.num_steps, help='its number of steps')
    group.add_argument(
        '--dad-random-start', type=float, default=attack.random_start, help='probability of a random start'
    )
    group.add_argument(
        '--dad-attack-from', choices=ATTACK_FROM, default=ATTACK_FROM[0],
        help="attack Q(x), as the paper, or the input itself: one pass of the VQGAN and one of the teacher less",
    )  # fmt: skip
    group.add_argument('--dad-keep-label', action='store_true', help='take Q(x) where the teacher loses the label')


def attack_config(args: argparse.Namespace) -> AttackConfig:
    """The attack that the flags ask for; ``ValueError`` names the flag."""
    names = ('norm', 'eps', 'step_size', 'num_steps', 'random_start')
    with naming_flag({name: f'dad_{name}' for name in names}):
        return AttackConfig(**{name: getattr(args, f'dad_{name}') for name in names})


def check_view_args(args: argparse.Namespace) -> None:
    """Check the flags that need no model.

    Raises:
        ValueError: If a flag has a bad value.
    """
    attack_config(args)
    with naming_flag({'micro_batch': 'dad_micro_batch'}):
        MicroBatches(args.dad_micro_batch)


def create_vqgan(args: argparse.Namespace, image_size: tuple[int, int]) -> VQGAN | None:
    """Load the VQGAN of ``--dad-vqgan``, if the second view needs one, and check that it takes the image size.

    Raises:
        ValueError: If it is missing or broken, or the size is too small or, with ``--dad-strict-size``, not a multiple
            of its factor.
    """
    if args.dad_view != 'dad':
        return None
    vqgan = load_vqgan_by_spec(args.dad_vqgan, args.dad_strict_size)
    try:
        vqgan.check_size(*image_size)
    except ValueError as error:
        raise ValueError(f'--img-size: {error}') from error
    return vqgan


def prepare_models(
    args: argparse.Namespace, teacher: Teacher, vqgan: VQGAN | None, image_size: tuple[int, int], device: torch.device
) -> None:
    """Freeze teacher and VQGAN, in the precision of the flags; ``auto`` becomes what the main process measures.

    Raises:
        ValueError: If they cannot be compiled.
    """
    if args.dad_precision == 'auto':
        asked = args.dad_micro_batch or args.batch_size
        batch_size = min(asked, 2 if device.type == 'cpu' else 32)  # a GPU is not busy with less
        found = [fastest_precision(teacher, vqgan, image_size, device, batch_size)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found)
        args.dad_precision = found[0]
    with naming_flag({}, unknown='dad_compile'):
        prepare_frozen(teacher, vqgan, args.dad_precision, device, compile=args.dad_compile)


def create_augment(
    args: argparse.Namespace, teacher: Teacher, vqgan: VQGAN | None, mean: Sequence[float], std: Sequence[float]
) -> DADAugment | None:
    """The augmentation that makes DAD views, if the second view is one (there is a VQGAN then)."""
    if vqgan is None:
        return None
    return DADAugment(
        teacher,
        vqgan,
        mean=mean,
        std=std,
        attack=attack_config(args),
        keep_label=args.dad_keep_label,
        attack_from=args.dad_attack_from,
        micro_batch=args.dad_micro_batch,
    )
