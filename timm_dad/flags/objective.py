"""timm's own distillation, a baseline for DAD."""

import argparse
from typing import Any

import torch
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import nn

from timm_dad.flags.kwargs import torch_dtype
from timm_dad.flags.task import is_multilabel


def create_plain_task(
    args: argparse.Namespace, student: nn.Module, criterion: nn.Module, device: torch.device
) -> TrainingTask:
    """Create timm's classification task, single-label or multi-label."""
    if not is_multilabel(args):
        return ClassificationTask(student, criterion, device=device, verbose=False)
    from timm.task import MultiLabelClassificationTask  # which timm before 1.0.31 has not

    return MultiLabelClassificationTask(
        student, criterion, threshold=args.multilabel_threshold, device=device, verbose=False
    )


def create_kd_task(
    args: argparse.Namespace, student: nn.Module, criterion: nn.Module, device: torch.device
) -> TrainingTask:
    """Create timm's own distillation task, the baseline for DAD."""
    common: dict[str, Any] = {
        'student_model': student,
        'teacher_model': args.kd_model_name,
        'criterion': criterion,
        'distill_loss_weight': args.distill_loss_weight,
        'task_loss_weight': args.task_loss_weight,
        'device': device,
        'dtype': torch_dtype(args.model_dtype),
        'verbose': False,
    }
    if args.kd_distill_type == 'logit':
        return LogitDistillationTask(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)
    if args.kd_distill_type == 'feature':
        return FeatureDistillationTask(
            student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim, **common
        )
    return TokenDistillationTask(distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
