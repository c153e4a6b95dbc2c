"""What a batch of ``DADTask`` gets beside its images: extra views, and the teacher's answers."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ExtraView:
    """Extra view of a batch ``[B, 3, H, W]``, the teacher's logits on it, and where it predicts the label there."""

    x_norm: Tensor
    logits: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Prepared:
    """Of a batch, the teacher's logits on the clean images ``[B, K]``, and the extra view, if it gets one."""

    logits: Tensor
    extra: ExtraView | None


class StoredAnswers(Protocol):
    """The teacher's answers, made before training; targets say which."""

    def labels(self, coded: Tensor) -> Tensor:
        """Labels of targets: class indices, or soft targets where images are mixed."""

    def read(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher's logits ``[B, K]`` on images and their extra views, given the targets of those and then of these."""
