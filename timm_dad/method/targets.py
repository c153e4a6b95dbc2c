"""What the method asks of targets and answers: one class an image, or a set of classes (timm's ``--task multilabel``).

Multi-label classes are independent yes-or-no questions: the softmax of Zhou et al. 2023 (arXiv:2311.01441, section 3.4)
becomes a sigmoid a class, its cross-entropy BCE, and its KL divergence the mean of those of the classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_dad.method.loss import distillation_loss, divergence, hard_labels, teacher_cross_entropy


class Targets(Protocol):
    """Losses and answers of one kind of classification, of logits ``[B, K]``."""

    multi_label: ClassVar[bool]
    needs_clean_logits: ClassVar[bool]  # for ``keeps``

    def check(self, target: Tensor) -> None:
        """Raise ``ValueError`` where targets are of another kind."""

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """What the attack ascends: one loss an image ``[B]``, fp32."""

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """What distillation minimizes, a scalar; no gradient goes into ``teacher_logits``."""

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The same for each image ``[B]``, differentiable in both."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[B, K]`` of the classes, fp32."""

    def answer(self, logits: Tensor) -> Tensor:
        """What logits answer, as a target."""

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None) -> Tensor:
        """Where an answer to a changed image is still right ``[B]``, bool, given those to the image as it was."""

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Where the likeliest class is a label ``[B]``, bool."""

    def labels(self, target: Tensor) -> list[int]:
        """The labels of one target."""

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator; ``kwargs`` are its arguments."""


@dataclass(frozen=True)
class SingleLabel:
    """One class an image: targets are class indices ``[B]`` or soft ``[B, K]``, answers softmaxes."""

    multi_label: ClassVar[bool] = False
    needs_clean_logits: ClassVar[bool] = False

    def check(self, target: Tensor) -> None:
        """Take any target: the losses refuse what they cannot take."""

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy ``[B]``."""
        return teacher_cross_entropy(logits, target)

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """``T^2 KL(teacher || student)`` over softmax(logits / T), mean over images."""
        return distillation_loss(student_logits, teacher_logits, temperature)

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The same for each image ``[B]``."""
        return divergence(student_logits, teacher_logits, temperature, 'none').sum(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax ``[B, K]``."""
        return logits.float().softmax(dim=-1)

    def answer(self, logits: Tensor) -> Tensor:
        """The likeliest class ``[B]``."""
        return hard_labels(logits)

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        """Where the likeliest class is the label ``[B]``, whatever it was on the image."""
        return self.is_right(logits, target)

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Where the likeliest class is the label ``[B]``."""
        return logits.argmax(dim=-1) == hard_labels(target)

    def labels(self, target: Tensor) -> list[int]:
        """The class index, of a target without dimensions."""
        return [int(target)]

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator of top-1 and top-5; from timm 1.0.31 on."""
        from timm.task import ClassificationEvaluator  # which older ones have not

        return ClassificationEvaluator(device=device, **kwargs)


@dataclass(frozen=True)
class MultiLabel:
    """Any number of classes an image: targets are multi-hot ``[B, K]`` in [0, 1], answers sigmoids.

    Losses are means over the classes, as timm's BCE is, so that weights of the loss mean what they mean with one class
    an image: at temperature 1 the gradient of the distillation is that of BCE whose targets are the teacher's sigmoids.

    Args:
        threshold: A class is answered where its sigmoid is at least this.

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
        """Raise ``ValueError`` where targets are not multi-hot, of floating point."""
        if target.ndim != 2 or not target.is_floating_point():
            raise ValueError(
                f'multi-label targets must be multi-hot [B, K] of floating point, got {list(target.shape)} of '
                f'{target.dtype}'
            )

    def attack_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """BCE ``[B]``, mean over the classes."""
        return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction='none').mean(dim=-1)

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """``T^2 KL(teacher || student)`` of sigmoid(logits / T), mean over classes and images."""
        return distillation_loss(_yes_or_no(student_logits), _yes_or_no(teacher_logits), temperature)

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The same for each image ``[B]``."""
        of_classes = divergence(_yes_or_no(student_logits), _yes_or_no(teacher_logits), temperature, 'none').sum(dim=-1)
        return of_classes.view(student_logits.shape).mean(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoids ``[B, K]``."""
        return logits.float().sigmoid()

    def answer(self, logits: Tensor) -> Tensor:
        """The classes from the threshold on, multi-hot ``[B, K]``, fp32."""
        return (self.probabilities(logits) >= self.threshold).float()

    def keeps(self, logits: Tensor, target: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        """Where the set of answered classes is that of the image as it was ``[B]``.

        NOTE: not where it is the set of labels, for a teacher seldom has all of an image's labels and no other.
        """
        assert clean_logits is not None
        return (self.answer(logits) == self.answer(clean_logits)).all(dim=-1)

    def is_right(self, logits: Tensor, target: Tensor) -> Tensor:
        """Where the likeliest class is one of the labels ``[B]``; nowhere where there are none."""
        return target.gather(1, logits.argmax(dim=-1, keepdim=True))[:, 0] >= 0.5

    def labels(self, target: Tensor) -> list[int]:
        """The classes of a multi-hot target ``[K]``."""
        indices: list[int] = (target >= 0.5).nonzero()[:, 0].tolist()
        return indices

    def create_evaluator(self, device: torch.device, **kwargs: Any) -> Any:
        """Create timm's evaluator of mAP and F1; from timm 1.0.31 on."""
        from timm.task import MultiLabelClassificationEvaluator  # which older ones have not

        return MultiLabelClassificationEvaluator(device=device, threshold=self.threshold, **kwargs)


def _yes_or_no(logits: Tensor) -> Tensor:
    """Logits ``[B * K, 2]`` of yes and no of logits ``[B, K]``: a sigmoid is the softmax of its logit and 0."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2)
