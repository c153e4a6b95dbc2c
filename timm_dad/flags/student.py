"""The student that the flags describe: to train it, or to load a checkpoint of its run later."""

import argparse
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.models import create_model
from timm.task import TrainingTask, load_task_ema_checkpoint
from torch import nn

from timm_dad.flags.kwargs import num_channels, torch_dtype
from timm_dad.flags.rules import check_file_args, flag_errors, under_flag
from timm_dad.method.splits import add_splits
from timm_dad.teachers.hub import load_error
from timm_dad.teachers.trained import read_trained


def create_student(args: argparse.Namespace) -> nn.Module:
    """Create the student of a training on the CPU, with split batch norm if the flags ask for it.

    Raises:
        ValueError: If timm does not know the model, its weights or arguments do not fit, or it rejects the image size.
    """
    check_file_args(args, 'initial_checkpoint', 'pretrained_path', what='a checkpoint')
    if not args.model.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(args.model.split('.')[0]):
        raise ValueError(f'--model must be a timm model, got {args.model!r} (timm.list_models() names them)')
    overlay = {'file': args.pretrained_path, 'num_classes': -1} if args.pretrained_path else {}  # -1: adapt the head
    overlay.update(args.pretrained_cfg_overlay)
    of_jax = args.initial_checkpoint.endswith(('.npz', '.npy'))  # timm knows how to read them
    with flag_errors('--model, --model-kwargs, --gp, --pretrained, --initial-checkpoint'):
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
            checkpoint_path=args.initial_checkpoint if of_jax else '',
            **({'pretrained_cfg_overlay': overlay} if overlay else {}),
            **args.model_kwargs,
        )
    if args.initial_checkpoint and not of_jax:
        _load_weights(student, args.initial_checkpoint)
    _check_size(args, student)
    _scale_head(student, args.head_init_scale, args.head_init_bias)
    if args.grad_checkpointing:
        student.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    if args.split_bn:
        student = convert_splitbn_model(student, max(args.aug_splits, 2))
        if args.dad:
            add_splits(student, (args.aug_splits or 1) + 1)
    return student


def _load_weights(student: nn.Module, path: str) -> None:
    with under_flag('--initial-checkpoint:'):
        state = read_trained(path).state
        try:
            student.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f'the weights in {path} belong to another network ({load_error(error)})') from error


def _check_size(args: argparse.Namespace, student: nn.Module) -> None:
    """Run an empty picture of each size through the student: timm's networks reject a size only then."""
    height, width = resolve_data_config(vars(args), model=student)['input_size'][-2:]
    _try_size(args, student, '--img-size', height, width)
    for side in getattr(args, 'train_img_sizes', None) or ():
        _try_size(args, student, '--train-img-sizes', side, side)


def _try_size(args: argparse.Namespace, student: nn.Module, flag: str, height: int, width: int) -> None:
    shape, training = (num_channels(args), height, width), student.training
    try:
        with torch.no_grad():
            student.eval()(torch.zeros(1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        size, cfg = 'x'.join(map(str, shape)), getattr(student, 'pretrained_cfg', {})
        fix = 'choose another size'
        if cfg.get('fixed_input_size') and 'dynamic_img_size' not in args.model_kwargs:
            if flag == '--train-img-sizes':
                fix = 'add --model-kwargs dynamic_img_size=True, where the model has that argument'
            elif 'img_size' not in args.model_kwargs:
                fix = f'add --model-kwargs img_size={height if height == width else (height, width)}'
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{flag}: {args.model} does not take pictures of {size} ({reason}); {fix}') from error
    finally:
        student.train(training)


def place_student(args: argparse.Namespace, student: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Move the student to its device, precision and memory layout, with synchronized batch norm if requested."""
    student.to(device=accelerator.device, dtype=torch_dtype(args.model_dtype))
    if args.channels_last:
        student.to(memory_format=torch.channels_last)
    if args.sync_bn and accelerator.num_processes > 1:
        student = convert_sync_batchnorm(student)
    return student


def prepare_task(
    args: argparse.Namespace, task: TrainingTask, optimizer: Any, accelerator: Accelerator, resumed: str = ''
) -> Any:
    """Track a moving average and compile the student if requested, and pass student and optimizer to Accelerate.

    Args:
        args: Flags.
        task: The training task.
        optimizer: The student's optimizer.
        accelerator: Device, processes and precision.
        resumed: The checkpoint whose moving average is continued, if there is one.

    Returns:
        The optimizer, prepared.
    """
    if args.model_ema:
        place: dict[str, Any] = {'device': torch.device('cpu')} if args.model_ema_force_cpu else {}
        if args.model_ema_force_fp32:
            place['dtype'] = torch.float32
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, **place)
        if resumed:
            load_task_ema_checkpoint(task, resumed)
    if args.torchcompile:
        compiling = {'backend': args.torchcompile, 'mode': args.torchcompile_mode}
        task.compile(**compiling)
        if task.has_ema():
            task.compile_ema(**compiling)
    task.trainable_module = accelerator.prepare_model(task.trainable_module)
    return accelerator.prepare_optimizer(optimizer)


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
