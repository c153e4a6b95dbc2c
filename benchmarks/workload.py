"""The models and images of the benchmarks: public architectures, random weights, and the variants that are compared."""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from released import Released
from torch import Tensor, nn

from timm_dad import VQGAN, AttackConfig, DADAugment, LatentAttackConfig, Teacher, VQGANConfig, prepare_frozen
from timm_dad.frozen.prepare import PRECISIONS
from timm_dad.method.augment import DADViews
from timm_dad.vqgan.presets import PRESETS
from timm_dad.vqgan_training.distill import create_tiny

# The three ways to make the DAD views of a batch.
FAITHFUL, FROM_INPUT, RELEASED = 'attack from Q(x)', 'attack from x', 'released'
ATTACK_FROM = {FAITHFUL: 'reconstruction', FROM_INPUT: 'input'}
# More ways of ours: another space of the attack, and an untrained VQGAN of a tenth of the cost.
LATENT, TINY = 'attack on latents', 'attack from Q(x), tiny VQGAN'
TINY_CH = 64  # its width: what `timm-dad vqgan distill` takes for the paper's VQGAN at 224 px
NUM_CLASSES = 1000

Variant = Callable[[Tensor, Tensor], Any]


def add_flags(
    parser: argparse.ArgumentParser,
    batch_size: int,
    *,
    student: bool = False,
    released: bool = False,
    compile: bool = True,
) -> None:
    """Flags of the models and images; those of what a benchmark does not have are left out."""
    parser.set_defaults(student='resnet50', quantizer='lookup', compile=False)
    parser.add_argument('--batch-size', type=int, default=batch_size, help='images of a batch')
    parser.add_argument('--img-size', type=int, default=224, help='side of the images')
    parser.add_argument('--teacher', default='vit_large_patch14_clip_224', help="timm's name of the teacher")
    if student or released:
        parser.add_argument('--student', default='resnet50', help="timm's name of the student")
    taming = [name for name, preset in PRESETS.items() if is_tamings(preset.config)]
    parser.add_argument(
        '--vqgan', default='openimages-f8-16384', choices=(*taming, 'tiny'), help='preset whose architecture it has'
    )
    if released:
        parser.add_argument('--quantizer', choices=('lookup', 'one-hot'), default='lookup', help='of released.py')
    if compile:
        parser.add_argument('--compile', action='store_true', help='compile our frozen networks')


def shrink(args: argparse.Namespace) -> None:
    """The tiny sizes of ``--quick``."""
    if args.quick:
        args.batch_size, args.img_size = min(args.batch_size, 2), 32
        args.teacher, args.student, args.vqgan = 'test_vit3', 'test_resnet', 'tiny'


def is_tamings(config: VQGANConfig) -> bool:
    """Whether released.py, which is taming's networks and nearest codes, can be compared."""
    return config.networks == 'taming' and config.quantizer == 'nearest'


def vqgan_config(name: str, n_embed: int | None = None) -> VQGANConfig:
    """Architecture of a preset or ``tiny``, with another number of codes if asked for."""
    config = PRESETS['openimages-f8-16384' if name == 'tiny' else name].config
    ddconfig = dict(config.ddconfig)
    if name == 'tiny':
        ddconfig.update(ch=32, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], resolution=32)
        n_embed = n_embed or 64
    return VQGANConfig(ddconfig=ddconfig, n_embed=n_embed or config.n_embed, embed_dim=config.embed_dim)


@torch.no_grad()
def build_vqgan(name: str, n_embed: int | None = None, device: str = 'cpu') -> VQGAN:
    """A VQGAN of random weights, drawn on its device; its codes lie where its latents do, so that many are used."""
    torch.manual_seed(0)
    with torch.device(device):
        vqgan = VQGAN(vqgan_config(name, n_embed)).eval()
        z = vqgan.encode(torch.rand(1, 3, 64, 64))
    std, mean = torch.std_mean(z, dim=(0, 2, 3))
    vqgan.codebook.normal_().mul_(std).add_(mean)
    return vqgan


def build_teacher(name: str, device: str = 'cpu') -> Teacher:
    """A timm model of random weights, drawn on its device, as teacher."""
    torch.manual_seed(1)
    with torch.device(device):
        model = timm.create_model(name, num_classes=NUM_CLASSES)
    cfg = model.pretrained_cfg
    norm = {'mean': cfg['mean'], 'std': cfg['std']}
    return Teacher(model, **norm, input_size=tuple(cfg['input_size'][-2:]), num_classes=NUM_CLASSES)


def build_student(name: str) -> nn.Module:
    """A timm model of random weights, in training mode."""
    torch.manual_seed(2)
    return timm.create_model(name, num_classes=NUM_CLASSES).train()  # type: ignore[no-any-return]


def images(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``[count, 3, size, size]`` in [0, 1] with structure at several scales, and class indices."""
    generator = torch.Generator().manual_seed(3)
    x_pix = torch.rand(count, 3, size, size, generator=generator) * 0.2
    for side in (4, 16):
        coarse = torch.rand(count, 3, side, side, generator=generator)
        x_pix += 0.4 * nn.functional.interpolate(coarse, (size, size), mode='bilinear')
    target = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return x_pix.clamp(0, 1).to(device), target.to(device)


def make_released(args: argparse.Namespace, vqgan: VQGAN, teacher: Teacher, random_start: float = 0.8) -> Released:
    """The re-write of the released generator; shares the weights of what it is given, unless that is changed later."""
    student = build_student(args.student)
    return Released(vqgan, teacher, student, quantizer=args.quantizer, random_start=random_start).to(args.device)


def make_ours(
    args: argparse.Namespace, vqgan: VQGAN, teacher: Teacher, names: list[str], precision: str, random_start: float
) -> dict[str, DADAugment]:
    """Our variants of those names; freezes VQGAN and teacher in place, in that precision."""
    options: dict[str, Any] = {'compile': True} if args.compile else {}
    prepare_frozen(teacher, vqgan, precision, torch.device(args.device), **options)
    attack, norm = AttackConfig(random_start=random_start), {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    ours = {
        name: DADAugment(teacher, vqgan, **norm, attack=attack, attack_from=ATTACK_FROM[name])
        for name in ATTACK_FROM
        if name in names
    }
    if LATENT in names:
        ours[LATENT] = DADAugment(teacher, vqgan, **norm, attack=LatentAttackConfig(random_start=random_start))
    if TINY in names:
        tiny = create_tiny(vqgan, args.img_size, TINY_CH)
        prepare_frozen(teacher, tiny, precision, torch.device(args.device), **options)
        ours[TINY] = DADAugment(teacher, tiny, **norm, attack=attack)
    return ours


def make_variants(
    args: argparse.Namespace,
    precision: str,
    *,
    vqgan: VQGAN | None = None,
    teacher: Teacher | None = None,
    names: tuple[str, ...] = (RELEASED, FAITHFUL, FROM_INPUT),
    random_start: float = 0.8,
) -> dict[str, Variant]:
    """Functions of ``(x_pix, target)`` that make DAD views, all with the same weights.

    Args:
        args: Flags of ``add_flags``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        vqgan: Frozen in place; of ``args`` by default.
        teacher: Frozen in place; of ``args`` by default.
        names: Which ones.
        random_start: Probability of a random start of the attack.
    """
    vqgan = vqgan or build_vqgan(args.vqgan, device=args.device)
    teacher = teacher or build_teacher(args.teacher, device=args.device)
    variants: dict[str, Variant] = {}
    if RELEASED in names:
        alone = set(names) == {RELEASED}
        released = make_released(args, vqgan, teacher if alone else copy.deepcopy(teacher), random_start)
        variants[RELEASED] = in_precision(released, precision, args.device)
    ours = make_ours(args, vqgan, teacher, list(names), precision, random_start) if set(names) - {RELEASED} else {}
    return {**variants, **{name: augment.make_views for name, augment in ours.items()}}


def autocast(precision: str, device: str) -> torch.autocast:
    """Autocast to a precision of ``harness.PRECISIONS``; none in fp32, with TF32 or without."""
    lower = PRECISIONS[precision] if precision in ('bf16', 'fp16') else None
    return torch.autocast(torch.device(device).type, lower, enabled=lower is not None)


def in_precision(released: Released, precision: str, device: str) -> Variant:
    """The released generator, all of it in one precision."""

    def generate(x_pix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(precision, device):
            return released(x_pix, target)

    return generate


def view_and_codes(made: DADViews | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The DAD view and its codes of what a variant returned."""
    return (made.x_dad, made.dad_codes) if isinstance(made, DADViews) else made
