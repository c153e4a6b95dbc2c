"""A look at some pictures before training: whether teacher, VQGAN and attack can teach anything."""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.functional import to_tensor

from timm_dad.common.pixels import psnr
from timm_dad.common.spread import spread
from timm_dad.data.images import Frame, Source
from timm_dad.method.augment import DADAugment

_logger = logging.getLogger(__name__)

# An attack that changes fewer codes than one of 200 leaves DAD views what reconstructions are.
_LEAST_CHANGED = 0.005


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What teacher, VQGAN and attack make of some pictures.

    Args:
        count: Pictures.
        num_classes: Classes.
        right: On how many of them the teacher predicts the label, for ``x``, ``Q(x)`` and ``x_dad``.
        psnr: Mean PSNR of ``Q(x)`` to ``x``, in dB.
        changed: Share of the codes that the attack changes.
        label_free: Whether the label is what the teacher predicts on ``x``.
        base_rate: Share of the classes that a picture has, where it may have several: right is one of these.
    """

    count: int
    num_classes: int
    right: tuple[int, int, int]
    psnr: float
    changed: float
    label_free: bool = False
    base_rate: float = 0.0

    @property
    def chance(self) -> float:
        """As many as guessing is right on, at most: two standard deviations above its mean."""
        share = self.base_rate or 1 / self.num_classes
        return self.count * share + 2 * math.sqrt(self.count * share * (1 - share))

    def __str__(self) -> str:
        """All numbers in a line."""
        x, x_vq, x_dad = (f'{own / self.count:.0%}' for own in self.right)
        right = f'right on x {x}, Q(x) {x_vq}, x_dad {x_dad}'
        if self.label_free:
            right = f'keeps its answer on Q(x) {x_vq}, x_dad {x_dad}'
        return (
            f'DAD on {self.count} pictures: teacher {right}; PSNR of Q(x) '
            f'{self.psnr:.1f} dB; codes changed by the attack {self.changed:.1%}'
        )

    def problem(self) -> str | None:
        """What to change where DAD cannot work; ``None`` where nothing is seen."""
        x, x_vq, _ = self.right
        if x <= self.chance:
            return (
                f'the teacher is right on {x} of {self.count} pictures, no more than chance: give one that knows these '
                'classes, or see that they are named and ordered as it has them (docs/teachers.md)'
            )
        if x_vq <= self.chance:
            known = f'keeps its answer on {x_vq} of {self.count} reconstructions'
            if not self.label_free:
                known = f'is right on {x} of {self.count} pictures and on {x_vq} of their reconstructions'
            return (
                f'the teacher {known}, no more than chance: the VQGAN loses what is in them; give --dad-vqgan one for '
                'such pictures (docs/vqgan.md)'
            )
        if self.changed < _LEAST_CHANGED:
            return (
                f'the attack changes {self.changed:.1%} of the codes, so DAD views are reconstructions: give '
                '--dad-attack latent, or a larger --dad-eps and --dad-step-size (docs/attacks.md)'
            )
        return None


def first_pictures(source: Source, frame: Frame, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures ``[N, 3, H, W]`` in [0, 1] and labels ``[N]`` or ``[N, K]``, spread over data that stays as it is.

    Args:
        source: Training data with an index: whoever reads a stream here leaves its loaders without their shards.
        frame: What is taken of a picture.
        count: How many, at most; such as do not decode are left out.
        device: Where to put them.
    """
    return read_pictures(source, frame, spread(len(source), count), device)


def read_pictures(source: Source, frame: Frame, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a data set by index, as ``first_pictures`` gives them; ``ValueError`` if none decodes."""
    read, own_transform = [], getattr(source.dataset, 'transform', None)
    try:
        for index in indices:
            with contextlib.suppress(ValueError, OSError):
                read.append(source.read(index, hashed=False))
    finally:
        source.dataset.transform = own_transform
    if not read:
        raise ValueError(f'none of {len(indices)} training images decodes')
    transform = frame.transform()
    x_pix = torch.stack([to_tensor(transform(image.image)) for image in read])
    return x_pix.to(device), default_collate([image.label for image in read]).to(device)


@torch.no_grad()
def look(augment: DADAugment, x_pix: Tensor, target: Tensor, *, seed: int, batch_size: int = 64) -> FirstLook:
    """Make the DAD views of some pictures; torch's global generator stays as it is.

    Args:
        augment: Makes the views.
        x_pix: Pictures ``[N, 3, H, W]`` in [0, 1], on the device of the models.
        target: Class indices ``[N]``, or multi-hot ``[N, K]``.
        seed: Seed of the random starts.
        batch_size: Pictures at a time: those of a training batch, so that nothing is compiled for another shape.
    """
    rows = torch.arange(len(x_pix)).split(batch_size)
    found = [_look_at(augment, x_pix[part], target[part], [seed + int(place) for place in part]) for part in rows]
    right, noise, changed = (torch.cat(parts) for parts in zip(*found, strict=True))
    x, vq, dad = right.sum(dim=0).tolist()
    return FirstLook(
        count=len(x_pix),
        num_classes=augment.teacher.num_classes,
        right=(x, vq, dad),
        psnr=noise.mean().item(),
        changed=changed.float().mean().item() if len(changed) else 0.0,
        label_free=augment.label_free,
        base_rate=target.mean().item() if augment.targets.multi_label else 0.0,
    )


def _look_at(augment: DADAugment, x_pix: Tensor, target: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch, where the teacher is right ``[B, 3]``, PSNR ``[B]``, and where codes are changed ``[B, h, w]``."""
    centre = augment.find_centre(x_pix, target)
    x_vq, _, calm_codes = augment.unattacked(centre)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    views = augment.attack_centre(centre, target, generator=generators)
    changed = views.dad_codes != calm_codes
    if augment.keep_label:  # where the label is lost the view is Q(x), whatever the attack did
        changed = changed[views.kept]
    clean_logits = augment.ask_teacher(x_pix) if centre.logits is None else centre.logits
    answers = (clean_logits, augment.ask_teacher(x_vq), views.dad_logits)
    target = target if centre.label is None else centre.label
    right = torch.stack([augment.targets.is_right(logits, target) for logits in answers], dim=1)
    return right, psnr(x_pix, x_vq, most=100.0), changed


def log_look(found: FirstLook) -> None:
    """Log the numbers, and what to change where DAD cannot work."""
    _logger.info('%s', found)
    problem = found.problem()
    if problem:
        _logger.warning('DAD will teach little: %s', problem)
