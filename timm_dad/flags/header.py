"""Describe a training before it begins: data, student, teacher, VQGAN, attack, and how it trains."""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from timm_dad.flags.data import TrainingData, data_flag
from timm_dad.flags.hints import hints
from timm_dad.flags.pairs import makes_views, uses_cache
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.preview.first_look import FirstLook
from timm_dad.preview.image import describe_attack
from timm_dad.teachers.spec import DEFAULT_TEACHER

_logger = logging.getLogger(__name__)


def log_student(args: argparse.Namespace, data: TrainingData, student: nn.Module, size: tuple[int, int]) -> None:
    """Log a line about the data and one about the student, which takes images of ``size``; warn about odd flags."""
    for hint in hints(args):
        _logger.warning('%s', hint)
    name = data_flag(args).split(maxsplit=1)[1]
    val = 'none to validate' if data.val is None else f'{_count(data.val)} to validate'
    _logger.info('Data: %s, %s images of %d classes, %s', name, _count(data.train), args.num_classes, val)
    parameters = sum(value.numel() for value in student.parameters())
    weights = ''
    if args.initial_checkpoint or args.pretrained:
        weights = f', from {args.initial_checkpoint or args.pretrained_path or "pretrained weights"}'
    _logger.info('Student: %s at %dx%d, %s parameters%s', args.model, *size, _millions(parameters), weights)


def log_models(args: argparse.Namespace, task: DADTask, augment: DADAugment | None, found: FirstLook | None) -> None:
    """Log a line each about teacher, VQGAN and attack, with the results of a first look at some pictures.

    ``augment`` makes DAD views, in the training step or before it.
    """
    if task.teacher is not None:
        size = 'x'.join(map(str, task.teacher.input_size))
        right = ''
        if found and not found.label_free:
            right = f', right on {found.right[0] / found.count:.0%} of {found.count} pictures'
        specs = args.dad_teacher or DEFAULT_TEACHER
        spec = specs if isinstance(specs, str) else ' + '.join(specs)
        _logger.info('Teacher: %s at %s%s', spec, size, right)
    if augment is None:
        origin = f'DAD views of {args.dad_dir}' if args.dad_dir else f'the extra view is {args.dad_view}'
        _logger.info('Attack: none here, %s', origin)
        return
    config = augment.vqgan.config
    noise = f', Q(x) at {found.psnr:.1f} dB' if found else ''
    codes = f'{config.n_embed} codes of {config.factor}x{config.factor} pixels'
    made = augment.vqgan.origin
    source = f'; {made.describe(12)}' if made and made.licence else ''
    _logger.info('VQGAN: %s, %s%s%s', args.dad_vqgan, codes, noise, source)
    before = f'; {args.dad_cache} views of every image, made before training' if args.dad_cache else ''
    _logger.info('Attack: %s%s', describe_attack(augment), before)


def log_training(
    args: argparse.Namespace, accelerator: Accelerator, done: int, epochs: int, updates: int, folder: Path
) -> None:
    """Log how long, where and how precisely it trains, or that all epochs are ``done``."""
    if done >= epochs:
        _logger.info(
            'Already finished: all %d epochs are done, in %s; to continue, give more %s',
            epochs,
            folder,
            'epochs with a later --stop-epoch' if args.stop_epoch else '--epochs',
        )
        return
    device, processes = accelerator.device, accelerator.num_processes
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {_threads(torch.get_num_threads())}'
    where = f'{processes} processes on {name}' if processes > 1 else name
    precision = args.amp_dtype if args.amp else args.model_dtype or 'float32'
    models = 'teacher and VQGAN' if makes_views(args) or uses_cache(args) else 'teacher'
    frozen = f', {models} in {args.dad_precision}' if args.dad and not args.dad_stored_logits else ''
    images = args.batch_size * args.grad_accum_steps * processes
    _logger.info(
        'Training: %d epochs of %d updates of %d images, learning rate %.3g, on %s, in %s%s, to %s',
        epochs, updates, images, args.lr, where, precision, frozen, folder,
    )  # fmt: skip


def _count(dataset: Any) -> str:
    try:
        return str(len(dataset))
    except TypeError:
        return 'a stream of'


def _millions(count: int) -> str:
    return f'{count / 1e6:.3g} M' if count >= 1e5 else str(count)


def _threads(count: int) -> str:
    return f'{count} thread{"" if count == 1 else "s"}'
