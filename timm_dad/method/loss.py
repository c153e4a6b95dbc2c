"""The DAD loss: cross-entropy plus distillation on the clean and the DAD view (Zhou et al. 2023, section 3.4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.common.options import check_types, option
from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DADLossConfig:
    """Weights of ``task CE(x) + extra_task CE(x_dad) + kd T^2 KL(t(x) || s(x)) + dad T^2 KL(t(x_dad) || s(x_dad))``.

    ``feature_weight`` adds ``feature (kd (1 - cos(x)) + dad (1 - cos(x_dad)))``: the cosine between the teacher's
    pooled features and the student's, the latter through a linear adapter.

    Raises:
        ValueError: If the temperature is not positive, a weight is negative or not finite, ``label_free`` is combined
            with a task-loss weight, or ``feature_weight`` is set without the weight of a view.
        TypeError: If a numeric value is not a number.

    Source: ``calculate_kd_loss`` of lapisrocks/DiscreteAdversarialDistillation: T 4 and weights 1, 1/2, 1/2.
    NOTE: nothing released runs it; the released trainer's loss is ``--dad-recipe released`` (docs/paper.md).
    """

    temperature: float = option(4.0, 'distillation temperature T: both softmaxes are over logits / T')
    task_weight: float = option(1.0, 'weight of the task loss')
    kd_weight: float = option(0.5, 'weight of the distillation on the clean view')
    dad_weight: float = option(0.5, 'weight of the distillation on the extra view')
    extra_task_weight: float = option(0.0, 'weight of the task loss on the extra view, with the label of its image')
    feature_weight: float = option(
        0.0, 'weight of an added 1 - cosine of pooled features, multiplied by the weight of each view'
    )
    label_free: bool = option(False, 'learn from the teacher only, without a task loss')

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.temperature < float('inf'):
            raise ValueError(f'temperature must be positive, got {self.temperature}')
        for name in ('task_weight', 'kd_weight', 'dad_weight', 'extra_task_weight', 'feature_weight'):
            if not 0 <= getattr(self, name) < float('inf'):
                raise ValueError(f'{name} must be 0 or more and finite, got {getattr(self, name)}')
        if self.label_free and (self.task_weight or self.extra_task_weight):
            raise ValueError('label_free removes the task loss: task_weight and extra_task_weight must be 0 with it')
        if self.feature_weight and not (self.kd_weight or self.dad_weight):
            raise ValueError('feature_weight is a factor of kd_weight and dad_weight: set one of them above 0')


def create_criterion(
    criterion: Criterion | None, criterion_kwargs: Mapping[str, Any] | None, *, multi_label: bool = False
) -> Criterion:
    """Create the task loss as timm's tasks do, unless one is given; cross-entropy or BCE by default.

    Args:
        criterion: Task loss of ``(student_logits, target)``.
        criterion_kwargs: Arguments of ``timm.loss.create_classification_loss``, in place of a ``criterion``.
        multi_label: Whether an image may have several classes.

    Raises:
        ValueError: If both are given, or timm is too old for this function or rejects the arguments.
    """
    if not criterion_kwargs:
        return criterion or (nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss())
    if criterion is not None:
        raise ValueError(f'pass criterion or criterion_kwargs, not both: got {sorted(criterion_kwargs)}')
    if not NEW_TIMM:
        raise ValueError(needs_new_timm('criterion_kwargs'))
    made: nn.Module = timm.loss.create_classification_loss(multi_label=multi_label, **criterion_kwargs)
    return made


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute ``T^2 KL(teacher || student)`` over softmax(logits / T), mean over images, in fp32.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``; no gradient flows into them.
        temperature: ``T``.

    Returns:
        The loss, a scalar of 0 or more.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    return divergence(student_logits, teacher_logits.detach(), temperature, 'batchmean')


def divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str) -> Tensor:
    """Compute ``T^2 KL(teacher || student)`` of ``[B, K]`` logits, differentiable in both, with a ``reduction``."""
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction=reduction, log_target=True) * temperature**2


def feature_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute ``1 - cos`` of features ``[B, D]``, mean over images, in fp32; no gradient flows into the teacher's."""
    cosine = F.cosine_similarity(student_features.float(), teacher_features.detach().float(), dim=-1)
    return 1 - cosine.mean()


class DADLoss(nn.Module):
    """Task loss and distillation on both views.

    Args:
        config: Temperature and weights.
        criterion: Task loss of ``(student_logits, target)``; ``nn.CrossEntropyLoss()`` by default, which takes
            class indices ``[B]`` and soft targets ``[B, K]``.
        distil: Distillation loss of ``(student_logits, teacher_logits, temperature)``, a scalar.
    """

    def __init__(
        self,
        config: DADLossConfig | None = None,
        criterion: Criterion | None = None,
        distil: Callable[[Tensor, Tensor, float], Tensor] = distillation_loss,
    ) -> None:
        super().__init__()
        self.config = config or DADLossConfig()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.distil = distil

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_dad_logits: Tensor | None,
        teacher_dad_logits: Tensor | None,
        target: Tensor,
        dad_scale: float = 1.0,
        dad_target: Tensor | None = None,
        features: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> dict[str, Tensor]:
        """Compute the loss and its parts.

        Args:
            student_logits: Student on the clean view ``[B, K]`` or, with ``V`` splits, ``[V * B, K]``, clean first.
            teacher_logits: Teacher on the clean view ``[B, K]``.
            student_dad_logits: Student on the DAD view ``[B, K]``; ``None`` without one.
            teacher_dad_logits: Teacher on the DAD view ``[B, K]``; ``None`` without one.
            target: What the criterion takes beside ``student_logits``: class indices or soft targets; not read with
                ``label_free``.
            dad_scale: Factor of the weights of the DAD view, for a warm-up.
            dad_target: Targets of the DAD view, like ``target``; needed with ``extra_task_weight``.
            features: Features ``[B, D]`` of student and teacher on the clean view and, if there is one, on the DAD
                view; needed with ``feature_weight``.

        Returns:
            Scalars ``loss`` (weighted sum), ``task_loss`` (not with ``label_free``), ``kd_loss`` and ``dad_loss`` (each
            before its weight); also ``extra_task_loss`` with ``extra_task_weight``, and ``kd_feature_loss`` and
            ``dad_feature_loss`` with ``feature_weight``.

        Raises:
            ValueError: If the logits of student and teacher differ in shape.
        """
        config = self.config
        clean_logits = student_logits[: len(teacher_logits)]
        pairs = [(clean_logits, teacher_logits)]
        if student_dad_logits is not None and teacher_dad_logits is not None:
            pairs.append((student_dad_logits, teacher_dad_logits))
        shapes = [tuple(logits.shape) for pair in pairs for logits in pair]
        if len(set(shapes)) > 1:
            raise ValueError(f'student and teacher logits of both views must have the same shape [B, K], got {shapes}')
        kd_loss, *dad_losses = (self.distil(student, teacher, config.temperature) for student, teacher in pairs)
        dad_loss = dad_losses[0] if dad_losses else torch.zeros_like(kd_loss)
        loss = config.kd_weight * kd_loss
        parts = {'kd_loss': kd_loss, 'dad_loss': dad_loss}
        if not config.label_free:
            task_loss = self.criterion(student_logits, target)
            loss = config.task_weight * task_loss + loss
            parts = {'task_loss': task_loss, **parts}
        loss = loss + dad_scale * config.dad_weight * dad_loss
        if config.extra_task_weight:
            extra = torch.zeros_like(kd_loss)
            if student_dad_logits is not None and dad_target is not None:
                extra = self.criterion(student_dad_logits, dad_target)
            parts['extra_task_loss'] = extra
            loss = loss + dad_scale * config.extra_task_weight * extra
        if config.feature_weight:
            of_clean, of_dad = (*(feature_loss(*pair) for pair in features), torch.zeros_like(kd_loss))[:2]
            parts.update(kd_feature_loss=of_clean, dad_feature_loss=of_dad)
            weighted = config.kd_weight * of_clean + dad_scale * config.dad_weight * of_dad
            loss = loss + config.feature_weight * weighted
        return {'loss': loss, **parts}


def teacher_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute one cross-entropy per image, for the attack.

    Args:
        logits: ``[B, K]``.
        target: Class indices ``[B]`` or soft targets ``[B, K]``.

    Returns:
        Losses ``[B]``, fp32.
    """
    return F.cross_entropy(logits.float(), target, reduction='none')


def hard_labels(target: Tensor) -> Tensor:
    """Return the class indices ``[B]`` of class indices ``[B]`` or soft targets ``[B, K]``."""
    return target if target.ndim == 1 else torch.argmax(target, dim=-1)
