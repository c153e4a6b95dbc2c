"""Check on a few pictures, before training, whether teacher, VQGAN and attack can teach anything."""

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

# If an attack changes fewer than one code in 200, DAD views hardly differ from reconstructions.
_LEAST_CHANGED = 0.005


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """Measurements of teacher, VQGAN and attack on some pictures.

    Args:
        count: Number of pictures.
        num_classes: Number of classes.
        right: Number of pictures on which the teacher predicts the label, for ``x``, ``Q(x)`` and ``x_dad``.
        psnr: Mean PSNR of ``Q(x)`` to ``x``, in dB.
        changed: Fraction of the codes that the attack changes, in pictures whose view is not replaced by ``Q(x)``.
        kept: Number of such pictures, if the label filter replaces the others.
        label_free: Whether the label is what the teacher predicts on ``x``.
        base_rate: Mean fraction of the classes that a picture has, if it may have several; each of them is right.
    """

    count: int
    num_classes: int
    right: tuple[int, int, int]
    psnr: float
    changed: float
    kept: int | None = None
    label_free: bool = False
    base_rate: float = 0.0

    @property
    def chance(self) -> float:
        """Upper limit for guessing: two standard deviations above the mean number of right guesses."""
        share = self.base_rate or 1 / self.num_classes
        return self.count * share + 2 * math.sqrt(self.count * share * (1 - share))

    def __str__(self) -> str:
        """Return all numbers in one line."""
        x, x_vq, x_dad = (f'{own / self.count:.0%}' for own in self.right)
        right = f'right on x {x}, Q(x) {x_vq}, x_dad {x_dad}'
        if self.label_free:
            right = f'keeps its answer on Q(x) {x_vq}, x_dad {x_dad}'
        filtered = '' if self.kept is None else f', in the {self.kept} views that --dad-keep-label leaves'
        return (
            f'DAD on {self.count} pictures: teacher {right}; PSNR of Q(x) '
            f'{self.psnr:.1f} dB; codes changed by the attack {self.changed:.1%}{filtered}'
        )

    def problem(self) -> str | None:
        """Return what to change if DAD cannot work; ``None`` if no problem was found."""
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
        if self.kept == 0:
            return (
                'the teacher loses the label on every DAD view, so all are reconstructions: give a smaller --dad-eps, '
                'or leave --dad-keep-label out (docs/attacks.md)'
            )
        if self.changed < _LEAST_CHANGED:
            return (
                f'the attack changes {self.changed:.1%} of the codes, so DAD views are reconstructions: give '
                '--dad-attack latent, or a larger --dad-eps and --dad-step-size (docs/attacks.md)'
            )
        return None


def first_pictures(source: Source, frame: Frame, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read pictures ``[N, 3, H, W]`` in [0, 1] and labels ``[N]`` or ``[N, K]``, spread evenly over the data.

    The data set is left unchanged.

    Args:
        source: Training data with an index; reading a stream here would take shards away from its loaders.
        frame: Resize and crop of each picture.
        count: Maximum number; pictures that do not decode are left out.
        device: Device of the result.
    """
    return read_pictures(source, frame, spread(len(source), count), device)


def read_pictures(source: Source, frame: Frame, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Read pictures and labels by index, in the form of ``first_pictures``; ``ValueError`` if none decodes."""
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
    """Make the DAD views of some pictures and measure them, without using torch's global generator.

    Args:
        augment: Makes the views.
        x_pix: Pictures ``[N, 3, H, W]`` in [0, 1], on the device of the models.
        target: Class indices ``[N]``, or multi-hot ``[N, K]``.
        seed: Seed of the random starts.
        batch_size: Pictures at a time; use the training batch size, so that nothing is compiled for another shape.
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
        kept=len(changed) if augment.keep_label else None,
        label_free=augment.label_free,
        base_rate=target.mean().item() if augment.targets.multi_label else 0.0,
    )


def _look_at(augment: DADAugment, x_pix: Tensor, target: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return for a batch where the teacher is right ``[B, 3]``, PSNR ``[B]`` and where codes change ``[B, h, w]``."""
    centre = augment.find_centre(x_pix, target)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    views = augment.attack_centre(centre, target, generator=generators)
    x_vq, _, calm_codes = augment.unattacked(centre, views)
    changed = views.dad_codes != calm_codes
    if augment.keep_label:  # if the label is lost, the view is Q(x), whatever the attack did
        changed = changed[views.kept]
    clean_logits = augment.ask_teacher(x_pix) if centre.logits is None else centre.logits
    answers = (clean_logits, augment.ask_teacher(x_vq), views.dad_logits)
    target = target if centre.label is None else centre.label
    right = torch.stack([augment.targets.is_right(logits, target) for logits in answers], dim=1)
    return right, psnr(x_pix, x_vq, most=100.0), changed


def log_look(found: FirstLook) -> None:
    """Log the numbers and, if DAD cannot work, what to change."""
    _logger.info('%s', found)
    problem = found.problem()
    if problem:
        _logger.warning('DAD will teach little: %s', problem)
