"""What the method requires of targets and answers: one class per image, or a set (timm's ``--task multilabel``).

Multi-label classes are independent yes-or-no questions: the softmax of Zhou et al. 2023 (arXiv:2311.01441, section 3.4)
becomes one sigmoid per class, its cross-entropy BCE, and its KL divergence the mean over the classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_dad.method.loss import distillation_loss, divergence, hard_labels, teacher_cross_entropy


class Targets(Protocol):
    """Losses and answers of one kind of classification, from logits ``[B, K]``."""

    multi_label: ClassVar[bool]
    needs_clean_logits: ClassVar[bool]  # for ``keeps``

    def check(self, target: Tensor) -> None:
        """Raise ``ValueError`` if targets are of another kind."""

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute what the attack ascends: one loss per image ``[B]``, fp32."""

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute what distillation minimizes, a scalar; no gradient flows into ``teacher_logits``."""

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute the same per image ``[B]``, differentiable in both."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the class probabilities ``[B, K]``, fp32."""

    def answer(self, logits: Tensor) -> Tensor:
        """Return the answer that logits give, as a target."""

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None) -> Tensor:
        """Return where an answer on a changed image is still right ``[B]``, bool, given those on the original."""

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return where the top-1 class is a label ``[B]``, bool."""

    def labels(self, target: Tensor) -> list[int]:
        """Return the labels of one target."""

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator with the arguments ``kwargs``."""


@dataclass(frozen=True)
class SingleLabel:
    """One class per image: targets are class indices ``[B]`` or soft ``[B, K]``, answers softmaxes."""

    multi_label: ClassVar[bool] = False
    needs_clean_logits: ClassVar[bool] = False

    def check(self, target: Tensor) -> None:
        """Accept any target: the losses reject what they cannot take."""

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the cross-entropy ``[B]``."""
        return teacher_cross_entropy(logits, target)

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute ``T^2 KL(teacher || student)`` over softmax(logits / T), mean over images."""
        return distillation_loss(student_logits, teacher_logits, temperature)

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute the same per image ``[B]``."""
        return divergence(student_logits, teacher_logits, temperature, 'none').sum(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax ``[B, K]``."""
        return logits.float().softmax(dim=-1)

    def answer(self, logits: Tensor) -> Tensor:
        """Return the top-1 class ``[B]``."""
        return hard_labels(logits)

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        """Return where the top-1 class is the label ``[B]``, whatever it was on the image."""
        return self.is_right(logits, target)

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return where the top-1 class is the label ``[B]``."""
        return logits.argmax(dim=-1) == hard_labels(target)

    def labels(self, target: Tensor) -> list[int]:
        """Return the class index of a zero-dimensional target."""
        return [int(target)]

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator of top-1 and top-5; needs timm 1.0.31 or later."""
        from timm.task import ClassificationEvaluator  # which older ones have not

        return ClassificationEvaluator(device=device, **kwargs)


@dataclass(frozen=True)
class MultiLabel:
    """Any number of classes per image: targets are multi-hot ``[B, K]`` in [0, 1], answers sigmoids.

    Losses are means over the classes, as timm's BCE is, so that the loss weights mean the same as with one class per
    image: at temperature 1 the gradient of the distillation is that of BCE with the teacher's sigmoids as targets.

    Args:
        threshold: A class is in the answer if its sigmoid is at least this.

    Raises:
        ValueError: If the threshold is not between 0 and 1.
    """

    threshold: float = 0.5

    multi_label: ClassVar[bool] = True
    needs_clean_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f'threshold must be between 0 and 1, got {self.threshold}')

    def check(self, target: Tensor) -> None:
        """Raise ``ValueError`` if targets are not floating-point multi-hot vectors."""
        if target.ndim != 2 or not target.is_floating_point():
            raise ValueError(
                f'multi-label targets must be floating-point multi-hot [B, K], got {list(target.shape)} of '
                f'{target.dtype}'
            )

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute BCE ``[B]``, mean over the classes."""
        return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction='none').mean(dim=-1)

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute ``T^2 KL(teacher || student)`` of sigmoid(logits / T), mean over classes and images."""
        return distillation_loss(_yes_or_no(student_logits), _yes_or_no(teacher_logits), temperature)

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Compute the same per image ``[B]``."""
        of_classes = divergence(_yes_or_no(student_logits), _yes_or_no(teacher_logits), temperature, 'none').sum(dim=-1)
        return of_classes.view(student_logits.shape).mean(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoids ``[B, K]``."""
        return logits.float().sigmoid()

    def answer(self, logits: Tensor) -> Tensor:
        """Return the classes at or above the threshold, multi-hot ``[B, K]``, fp32."""
        return (self.probabilities(logits) >= self.threshold).float()

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        """Return where the set of answered classes equals that of the original image ``[B]``.

        NOTE: it is not compared with the labels, because a teacher seldom finds exactly an image's labels.
        """
        assert clean_logits is not None
        return (self.answer(logits) == self.answer(clean_logits)).all(dim=-1)

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return where the top-1 class is one of the labels ``[B]``; never for an image without labels."""
        return target.gather(1, logits.argmax(dim=-1, keepdim=True))[:, 0] >= 0.5

    def labels(self, target: Tensor) -> list[int]:
        """Return the classes of a multi-hot target ``[K]``."""
        indices: list[int] = (target >= 0.5).nonzero()[:, 0].tolist()
        return indices

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator of mAP and F1; needs timm 1.0.31 or later."""
        from timm.task import MultiLabelClassificationEvaluator  # which older ones have not

        return MultiLabelClassificationEvaluator(device=device, threshold=self.threshold, **kwargs)


def _yes_or_no(logits: Tensor) -> Tensor:
    """Return yes-and-no logits ``[B * K, 2]`` of logits ``[B, K]``: a sigmoid is the softmax of its logit and 0."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2)
