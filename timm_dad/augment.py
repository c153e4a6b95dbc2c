"""``DADAugment``: a batch augmentation that adds the DAD view (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_dad.attack import AttackConfig, Generators, ascend
from timm_dad.discretize import VQGAN
from timm_dad.loss import hard_labels, teacher_cross_entropy
from timm_dad.teacher import Teacher


@dataclass(frozen=True)
class DADViews:
    """A batch on its way from the image to its DAD view; pixels ``[B, 3, H, W]`` in [0, 1].

    Args:
        x_vq: Reconstructions ``Q(x)``, the start of the attack.
        x_adv: Perturbed reconstructions, before they are discretized.
        x_dad: The DAD view.
        dad_codes: Codes of the DAD view ``[B, h, w]``.
        dad_logits: Teacher's logits ``[B, K]`` on ``x_dad``.
        kept: Where the teacher predicts the label on ``Q(x_adv)`` ``[B]``, bool.
    """

    x_vq: Tensor
    x_adv: Tensor
    x_dad: Tensor
    dad_codes: Tensor
    dad_logits: Tensor
    kept: Tensor


class PixelNorm:
    """Between the student's normalized tensors and [0, 1] pixels.

    Args:
        mean: The student's mean, per channel, in [0, 1] pixel units.
        std: The student's standard deviation, per channel, in [0, 1] pixel units.

    Raises:
        ValueError: If a ``std`` is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if min(std) <= 0:
            raise ValueError(f'std must be positive, got {tuple(std)}')
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)

    def _moved(self, like: Tensor) -> tuple[Tensor, Tensor]:
        self.mean, self.std = self.mean.to(like.device), self.std.to(like.device)
        return self.mean, self.std

    def equals(self, other: 'PixelNorm') -> bool:
        """Whether both normalize alike."""
        return torch.equal(self.mean.cpu(), other.mean.cpu()) and torch.equal(self.std.cpu(), other.std.cpu())

    def to_pixels(self, x_norm: Tensor) -> Tensor:
        """Normalized ``[B, 3, H, W]`` to [0, 1] pixels, fp32, clipped (random erasing leaves the range)."""
        mean, std = self._moved(x_norm)
        return (x_norm.float() * std + mean).clamp(0, 1)

    def normalize(self, x_pix: Tensor) -> Tensor:
        """[0, 1] pixels ``[B, 3, H, W]`` to normalized, fp32."""
        mean, std = self._moved(x_pix)
        return (x_pix - mean) / std


class DADAugment:
    """Make DAD views of a batch, and use them like ``timm.data.Mixup``.

    Args:
        teacher: Frozen teacher.
        vqgan: Frozen VQGAN.
        mean: Normalization of the batches, per channel, in [0, 1] pixel units.
        std: Normalization of the batches, per channel, in [0, 1] pixel units.
        attack: Attack settings.
        keep_label: Keep ``Q(x_adv)`` only where the teacher still predicts the label, else take ``Q(x)``.

    Example:
        >>> dad = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> views, targets = dad(input, target)   # [2B, 3, H, W]: all clean images, then all DAD views
    """

    def __init__(
        self,
        teacher: Teacher,
        vqgan: VQGAN,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        attack: AttackConfig | None = None,
        keep_label: bool = False,
    ) -> None:
        self.teacher = teacher
        self.vqgan = vqgan
        self.norm = PixelNorm(mean, std)
        self.attack = attack or AttackConfig()
        self.keep_label = keep_label

    def make_views(self, x_pix: Tensor, target: Tensor, eps: Tensor | None = None) -> DADViews:
        """Reconstruct, attack, discretize.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]`` or soft targets ``[B, K]``.
            eps: One radius per image ``[B]``, in place of the configured one.

        Returns:
            The DAD view and what was on the way to it, all detached.

        Raises:
            ValueError: If the VQGAN does not take the size (with its ``strict_size``), or the values.
        """
        return self.attack_reconstruction(*self.vqgan.reconstruct(x_pix), target, eps)

    @torch.no_grad()
    def attack_reconstruction(
        self, x_vq: Tensor, vq_codes: Tensor, target: Tensor, eps: Tensor | None = None, generator: Generators = None
    ) -> DADViews:
        """Attack and discretize; several views of one image share its reconstruction.

        Args:
            x_vq: Reconstructions ``Q(x)`` ``[B, 3, H, W]``, range [0, 1].
            vq_codes: Their codes ``[B, h, w]``.
            target: Class indices ``[B]`` or soft targets ``[B, K]``.
            eps: One radius per image ``[B]``, in place of the configured one.
            generator: Source of randomness, as ``ascend`` takes it.

        Returns:
            The DAD view and what was on the way to it, all detached.
        """
        with torch.autocast(x_vq.device.type, enabled=False):
            x_adv = ascend(
                lambda x: teacher_cross_entropy(self.teacher(x), target),
                x_vq,
                self.attack,
                eps=eps,
                generator=generator,
            )
            x_dad, dad_codes = self.vqgan.reconstruct(x_adv)
            dad_logits = self.teacher(x_dad)
            kept = dad_logits.argmax(dim=-1) == hard_labels(target)
            if self.keep_label:
                x_dad = torch.where(kept.view(-1, 1, 1, 1), x_dad, x_vq)
                dad_codes = torch.where(kept.view(-1, 1, 1), dad_codes, vq_codes)
                dad_logits = torch.where(kept.view(-1, 1), dad_logits, self.teacher(x_vq))
        return DADViews(x_vq=x_vq, x_adv=x_adv, x_dad=x_dad, dad_codes=dad_codes, dad_logits=dad_logits, kept=kept)

    def __call__(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Append the DAD view of every image, in the layout of timm's augmentation splits.

        Args:
            input: Normalized images ``[B, 3, H, W]``.
            target: Class indices ``[B]`` or soft targets ``[B, K]``.

        Returns:
            ``[2B, 3, H, W]``, normalized: all clean images, then all DAD views; and the targets, twice.
        """
        views = self.make_views(self.norm.to_pixels(input), target)
        x_dad = self.norm.normalize(views.x_dad).to(input.dtype)
        return torch.cat([input, x_dad]), torch.cat([target, target])
