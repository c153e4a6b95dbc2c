"""What a training minimizes: timm's task losses and its own distillation, the baselines of DAD."""

import argparse
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import nn

from timm_dad.flags.kwargs import mixes, torch_dtype
from timm_dad.flags.task import is_multilabel


def create_criterion(args: argparse.Namespace) -> nn.Module:
    """Create the task loss as timm's train.py chooses it."""
    bce: dict[str, Any] = {
        'target_threshold': args.bce_target_thresh,
        'sum_classes': args.bce_sum,
        'pos_weight': args.bce_pos_weight,
    }
    if is_multilabel(args):  # of soft targets, mixing has smoothed them
        criterion: nn.Module = BinaryCrossEntropy(
            smoothing=0.0 if mixes(args) else args.smoothing, smooth_dense=True, **bce
        )
    elif args.jsd_loss:
        criterion = JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    elif mixes(args):  # targets are soft, and smoothed already
        criterion = BinaryCrossEntropy(**bce) if args.bce_loss else SoftTargetCrossEntropy()
    elif args.bce_loss:
        criterion = BinaryCrossEntropy(smoothing=args.smoothing, **bce)
    elif args.smoothing:
        criterion = LabelSmoothingCrossEntropy(smoothing=args.smoothing)
    else:
        criterion = nn.CrossEntropyLoss()
    return criterion


def create_plain_task(
    args: argparse.Namespace, student: nn.Module, criterion: nn.Module, device: torch.device
) -> TrainingTask:
    """Create timm's classification, of one class an image or of several."""
    if not is_multilabel(args):
        return ClassificationTask(student, criterion, device=device, verbose=False)
    from timm.task import MultiLabelClassificationTask  # which timm before 1.0.31 has not

    return MultiLabelClassificationTask(
        student, criterion, threshold=args.multilabel_threshold, device=device, verbose=False
    )


def create_kd_task(
    args: argparse.Namespace, student: nn.Module, criterion: nn.Module, device: torch.device
) -> TrainingTask:
    """Create timm's own distillation, the baseline that DAD is compared with."""
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
