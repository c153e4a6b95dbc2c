"""What ``DADTask`` adds to a batch of images: extra views and the teacher's answers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExtraView:
    """Extra view of a batch ``[B, 3, H, W]``, the teacher's logits on it, and where it predicts the label.

    With feature distillation, also the teacher's pooled features of it ``[B, D]``.
    """

    x_norm: Tensor
    logits: Tensor
    kept: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """The teacher's logits on the clean images of a batch ``[B, K]``, and the extra view if the batch gets one.

    With feature distillation, also the teacher's pooled features of the clean images ``[B, D]``.
    """

    logits: Tensor
    extra: ExtraView | None
    features: Tensor | None = None


def like(x: Tensor, other: Tensor) -> Tensor:
    """Images ``[B, 3, H, W]`` in the dtype and memory layout of others."""
    is_last = other.is_contiguous(memory_format=torch.channels_last)
    return x.to(other.dtype).contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


class StoredAnswers(Protocol):
    """The teacher's answers, made before training; the targets encode which answer belongs to an image."""

    def labels(self, coded: Tensor) -> Tensor:
        """Return the labels in targets: class indices, or soft targets if images are mixed."""

    def read(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits ``[B, K]`` on images and then on their extra views, given the targets of both."""
