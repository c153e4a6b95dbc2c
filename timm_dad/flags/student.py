"""The student that the flags ask for: to train it, or to load a checkpoint of its run later."""

import argparse

import timm
import torch
from timm.layers import convert_splitbn_model
from timm.models import create_model
from torch import nn

from timm_dad.flags.kwargs import num_channels
from timm_dad.flags.rules import check_file_args, flag_errors
from timm_dad.method.splits import add_splits


def create_student(args: argparse.Namespace) -> nn.Module:
    """Create the student of a training on the CPU, with split batch norm where the flags ask for it.

    Raises:
        ValueError: If timm does not know the model, or its weights or arguments do not fit.
    """
    check_file_args(args, 'initial_checkpoint', 'pretrained_path', what='a checkpoint')
    if not args.model.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(args.model.split('.')[0]):
        raise ValueError(f'--model must be a timm model, got {args.model!r} (timm.list_models() names them)')
    overlay = {'pretrained_cfg_overlay': {'file': args.pretrained_path, 'num_classes': -1}}  # -1: adapt the head
    with flag_errors('--model, --model-kwargs, --pretrained, --initial-checkpoint'):
        student: nn.Module = create_model(
            args.model,
            pretrained=args.pretrained,
            in_chans=num_channels(args),
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            drop_block_rate=args.drop_block,
            global_pool=args.gp,
            bn_momentum=args.bn_momentum,
            bn_eps=args.bn_eps,
            checkpoint_path=args.initial_checkpoint,
            **(overlay if args.pretrained_path else {}),
            **args.model_kwargs,
        )
    _scale_head(student, args.head_init_scale, args.head_init_bias)
    if args.grad_checkpointing:
        student.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    if args.split_bn:
        student = convert_splitbn_model(student, max(args.aug_splits, 2))
        if args.dad:
            add_splits(student, (args.aug_splits or 1) + 1)
    return student


def create_untrained_student(args: argparse.Namespace) -> nn.Module:
    """Create the student of a run without any weights, to load a checkpoint of the run into it."""
    weights = {'pretrained': False, 'pretrained_path': None, 'initial_checkpoint': ''}
    return create_student(argparse.Namespace(**{**vars(args), **weights}))


def _scale_head(student: nn.Module, scale: float | None, bias: float | None) -> None:
    if scale is None and bias is None:
        return
    with torch.no_grad():
        head = student.get_classifier()  # type: ignore[operator]
        if scale is not None:
            head.weight.mul_(scale)
            head.bias.mul_(scale)
        if bias is not None:
            nn.init.constant_(head.bias, bias)
