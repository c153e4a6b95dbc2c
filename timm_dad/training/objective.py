"""What a training minimizes: timm's task losses and its own distillation, the baselines of DAD."""

from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask, TrainingTask
from torch import nn


def create_criterion(
    *,
    smoothing: float,
    mixed: bool,
    jsd_splits: int,
    bce: bool,
    bce_target_threshold: float | None,
    bce_sum: bool,
    bce_pos_weight: float | None,
) -> nn.Module:
    """Create the task loss as timm's train.py chooses it.

    Args:
        smoothing: Label smoothing, for targets that are not mixed.
        mixed: Whether targets are mixed, and so soft already.
        jsd_splits: Augmentation splits of the JSD loss; 0 for another loss.
        bce: Binary cross-entropy in place of cross-entropy.
        bce_target_threshold: Its threshold for soft targets.
        bce_sum: Sum it over classes.
        bce_pos_weight: Its weight of positives.
    """
    options: dict[str, Any] = {
        'target_threshold': bce_target_threshold,
        'sum_classes': bce_sum,
        'pos_weight': bce_pos_weight,
    }
    if jsd_splits:
        criterion: nn.Module = JsdCrossEntropy(num_splits=jsd_splits, smoothing=smoothing)
    elif mixed:
        criterion = BinaryCrossEntropy(**options) if bce else SoftTargetCrossEntropy()
    elif bce:
        criterion = BinaryCrossEntropy(smoothing=smoothing, **options)
    elif smoothing:
        criterion = LabelSmoothingCrossEntropy(smoothing=smoothing)
    else:
        criterion = nn.CrossEntropyLoss()
    return criterion


def create_kd_task(
    student: nn.Module,
    criterion: nn.Module,
    device: torch.device,
    *,
    kind: str,
    loss_type: str,
    temperature: float,
    student_feature_dim: int | None,
    teacher_feature_dim: int | None,
    token_distill_type: str,
    **common: Any,
) -> TrainingTask:
    """Create timm's own distillation, the baseline that DAD is compared with.

    Args:
        student: The model to train.
        criterion: Task loss.
        device: Where it runs.
        kind: What is distilled: ``logit``, ``feature`` or ``token``.
        loss_type: Loss of logits.
        temperature: Distillation temperature, of logits and tokens.
        student_feature_dim: Width of the student's features; the model says by default.
        teacher_feature_dim: Width of the teacher's features; the model says by default.
        token_distill_type: ``soft`` or ``hard``.
        **common: Passed on to timm's task: teacher, weights and dtype.
    """
    common = {
        **common, 'student_model': student, 'criterion': criterion, 'device': device, 'verbose': False,
    }  # fmt: skip
    if kind == 'logit':
        return LogitDistillationTask(loss_type=loss_type, temperature=temperature, **common)
    if kind == 'feature':
        return FeatureDistillationTask(
            student_feature_dim=student_feature_dim, teacher_feature_dim=teacher_feature_dim, **common
        )
    return TokenDistillationTask(distill_type=token_distill_type, temperature=temperature, **common)
