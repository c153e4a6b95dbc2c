"""The flags about making a DAD view, and what they build: VQGAN, attack, and the models in their precision."""

import argparse
from collections.abc import Sequence

import torch

from timm_dad.flags.attack import DISAGREEMENT, add_attack_args, attack_config, fill_in_attack
from timm_dad.flags.labels import add_labels_arg
from timm_dad.flags.pairs import load_vqgan_by_spec
from timm_dad.flags.rules import naming_flag, under_flag
from timm_dad.flags.task import create_targets
from timm_dad.flags.teacher import add_teacher_args
from timm_dad.frozen.precision import fastest_precision
from timm_dad.frozen.prepare import PRECISIONS, prepare_frozen
from timm_dad.method.augment import DADAugment
from timm_dad.method.chunked import Chunked
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.presets import PRESETS

NO_VQGAN = f'--dad-vqgan must name the weights of a VQGAN, demo, or one of {", ".join(PRESETS)}'


def add_view_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags about making a DAD view, in groups: teacher and VQGAN, and the attack."""
    group = parser.add_argument_group('DAD: teacher and VQGAN')
    add_teacher_args(group)
    group.add_argument(
        '--dad-vqgan', metavar='SPEC',
        help='weights of a VQGAN of taming, latent-diffusion, MoVQGAN, LlamaGen or SEED-Voken (.safetensors, .ckpt, '
        '.pth or .pt, with the .yaml beside it), a folder of a diffusers VQModel, either of them on the hub '
        f'(hf://USER/NAME[@REVISION][/PATH]), demo, or one of {", ".join(PRESETS)}',
    )  # fmt: skip
    group.add_argument(
        '--dad-strict-size', action='store_true',
        help='reject image sizes that the factor of the VQGAN does not divide (default: pad them by reflection)',
    )  # fmt: skip
    group = parser.add_argument_group('DAD: attack')
    add_attack_args(group)
    group.add_argument(
        '--dad-keep-label',
        action='store_true',
        help='use Q(x) if the teacher loses the label or, with --no-labels, its own answer; with --task multilabel, '
        'if it predicts another set of classes than on the image',
    )
    add_labels_arg(group)


def add_speed_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags about running teacher and VQGAN, in a group."""
    group = parser.add_argument_group('DAD: speed')
    group.add_argument(
        '--dad-precision', choices=(*PRECISIONS, 'auto'), default='fp32',
        help='precision of teacher and VQGAN; auto: the faster of fp32 and bf16, measured at the start',
    )  # fmt: skip
    group.add_argument(
        '--dad-compile', action='store_true', help='torch.compile teacher and VQGAN (faster on GPUs; slow to start)'
    )
    group.add_argument(
        '--dad-micro-batch', type=int, default=0, metavar='N',
        help='images per forward of teacher and VQGAN (default: as many as fit in memory)',
    )  # fmt: skip


def check_view_args(args: argparse.Namespace, *, has_student: bool = False) -> None:
    """Check the flags that need no model, and fill in the attack's defaults; ``ValueError`` names the flag."""
    if args.dad_attack == DISAGREEMENT and not has_student:
        raise ValueError('--dad-attack disagreement needs the student: it is only for the training step')
    fill_in_attack(args)
    with naming_flag({'micro_batch': 'dad_micro_batch'}):
        Chunked(args.dad_micro_batch)


def create_vqgan(args: argparse.Namespace, image_size: tuple[int, int]) -> VQGAN:
    """Load the VQGAN of ``--dad-vqgan``, and check that it accepts the image size and those of ``--train-img-sizes``.

    Raises:
        ValueError: If it is missing or broken, or a size is too small or, with ``--dad-strict-size``, not a multiple
            of its factor.
    """
    vqgan = load_vqgan_by_spec(args.dad_vqgan, args.dad_strict_size)
    with under_flag('--img-size:'):
        vqgan.check_size(*image_size)
    for side in getattr(args, 'train_img_sizes', None) or ():
        with under_flag('--train-img-sizes:'):
            vqgan.check_size(side, side)
    return vqgan


def prepare_models(
    args: argparse.Namespace,
    teacher: Teacher,
    vqgan: VQGAN | None,
    image_size: tuple[int, int],
    device: torch.device,
    batch_size: int,
) -> None:
    """Freeze teacher and VQGAN in the precision of the flags; ``auto`` is resolved by measuring in the main process.

    Raises:
        ValueError: If they cannot be compiled.
    """
    if args.dad_precision == 'auto':
        # Two images are a batch on a CPU; a GPU is not busy with less than 32.
        batch_size = min(args.dad_micro_batch or batch_size, 2 if device.type == 'cpu' else 32)
        found = [fastest_precision(teacher, vqgan, image_size, device, batch_size)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found)
        args.dad_precision = found[0]
    with under_flag('--dad-compile:'):
        prepare_frozen(teacher, vqgan, args.dad_precision, device, compile=args.dad_compile)


def create_gradient_vqgan(args: argparse.Namespace) -> VQGAN | None:
    """Load the VQGAN of ``--dad-gradient-vqgan``, if given."""
    spec = args.dad_gradient_vqgan
    return load_vqgan_by_spec(spec, flag='--dad-gradient-vqgan') if spec else None


def create_augment(
    args: argparse.Namespace,
    teacher: Teacher,
    vqgan: VQGAN,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    gradient_vqgan: VQGAN | None = None,
) -> DADAugment:
    """Create the augmentation that makes DAD views, from [0, 1] pixels by default; its models are prepared.

    ``gradient_vqgan`` is the result of ``create_gradient_vqgan``, if it was called before.

    Raises:
        ValueError: If the VQGANs do not fit the attack.
    """
    gradient_vqgan = gradient_vqgan or create_gradient_vqgan(args)
    if gradient_vqgan is not None:
        prepare_frozen(teacher, gradient_vqgan, args.dad_precision, vqgan.codebook.device, compile=args.dad_compile)
    with naming_flag({name: f'dad_{name}' for name in ('neighbours', 'gradient_vqgan')}, other='dad_attack'):
        return DADAugment(
            teacher,
            vqgan,
            mean=mean,
            std=std,
            attack=attack_config(args),
            keep_label=args.dad_keep_label,
            attack_from=args.dad_attack_from,
            gradient_vqgan=gradient_vqgan,
            micro_batch=args.dad_micro_batch,
            label_free=args.no_labels,
            targets=create_targets(args),
        )
