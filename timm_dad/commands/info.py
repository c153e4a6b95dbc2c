"""The command ``timm-dad info``: what a training with these flags would use, counted and measured on this machine."""

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

import train_dad
from timm_dad.commands.info_counts import Passes, count_parts, per_image, watch
from timm_dad.commands.info_text import describe, format_report
from timm_dad.common.errors import user_errors
from timm_dad.common.log import setup_logging
from timm_dad.common.seeds import RUN, seed_all
from timm_dad.common.spread import spread
from timm_dad.flags import kwargs
from timm_dad.flags.data import check_training_data, open_training_data
from timm_dad.flags.pairs import cached_set, open_dad_set, pair_dataset, uses_cache, uses_pairs
from timm_dad.flags.rules import flag_errors
from timm_dad.flags.student import create_student, place_student, prepare_task
from timm_dad.flags.train import learning_rate, parse_args
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.training.batches import Batches
from timm_dad.training.checkpoint import Checkpoints
from timm_dad.training.loaders import create_eval_loader, create_train_loader
from timm_dad.training.meters import Meters, NonFiniteLossError
from timm_dad.training.resume import TrainState
from timm_dad.training.setup import create_accelerator
from timm_dad.training.validate import eval_model

PROGRAM = 'timm-dad info'
WARMUP = 2
Report = dict[str, Any]

# Under these schedules all batches of epoch 0 are of one kind. Those that replay find what the others have made.
_ONE_KIND = {'view': DADSchedule(), 'replayed': DADSchedule(prob=0.0), 'none': DADSchedule(warmup_epochs=1)}


def main(argv: Sequence[str]) -> Report:
    """Measure and print.

    Args:
        argv: Command line without ``info``.

    Returns:
        What ``--json`` prints.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage='%(prog)s [--gpus N] [--images N] [--batches N] [--json] [flags of timm-dad train]',
        description='Print what a training with these flags would use: models, multiply-adds, memory and time.',
        epilog='All other flags are those of timm-dad train (timm-dad train --help).',
        allow_abbrev=False,
    )
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='estimate for N of this device')
    parser.add_argument('--images', type=int, metavar='N', help='training images (default: those of the data set)')
    parser.add_argument('--batches', type=int, default=5, metavar='N', help='optimizer steps to measure, of each kind')
    parser.add_argument('--json', action='store_true', help='print JSON')
    own, rest = parser.parse_known_args(argv)
    for name in ('gpus', 'images', 'batches'):
        value = getattr(own, name)
        if value is not None and value < 1:
            parser.error(f'--{name} must be 1 or more, got {value}')
    args = parse_args(rest)
    setup_logging(logging.WARNING)
    with user_errors(PROGRAM):
        if int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise ValueError('it measures in one process: start it without a launcher, and give --gpus N')
        report = make_report(args, own.gpus, own.images, own.batches)
    sys.stdout.write((json.dumps(report, indent=2) if own.json else format_report(report)) + '\n')
    return report


def make_report(args: argparse.Namespace, gpus: int = 1, images: int | None = None, batches: int = 5) -> Report:
    """Build what the flags ask for as ``train_dad.main`` does, count it, and measure some steps of it.

    Args:
        args: Flags of ``train_dad.py``.
        gpus: Devices to estimate for.
        images: Training images to estimate for; those of the data set by default.
        batches: Optimizer steps to measure, of each kind.

    Returns:
        ``configuration``, ``parts`` (parameters, multiply-adds), ``making`` (with ``--dad-cache``), ``steps`` (each
        kind of step: its share, seconds, passes), ``peak_memory`` in bytes, and ``estimate``, as plain values.
    """
    vars(args).update(log_with='', log_wandb=False, save_images=False, recovery_interval=0)
    accelerator = create_accelerator(Path(), **kwargs.accelerator_kwargs(args))
    seed_all(args.seed, RUN, 0)
    data = open_training_data(args)
    student = create_student(args)
    args.num_classes = student.num_classes
    check_training_data(data, args.num_classes)
    config = resolve_data_config(vars(args), model=student)
    dad_set = open_dad_set(args, tuple(config['input_size'][-2:]))
    student = place_student(args, student, accelerator)
    device = accelerator.device
    task, augment = train_dad.create_task(
        args, student, device, data_config=config, class_names=data.class_names, dad_set=dad_set
    )
    parts = count_parts(task, augment, next(student.parameters()).new_zeros(1, *config['input_size']))
    report: Report = {'configuration': describe(args, task, augment, config), 'parts': parts}
    passes: Passes = Counter()
    if augment is not None:
        watch(augment.vqgan.encoder, 'vqgan', passes)
    if isinstance(task, DADTask) and task.teacher is not None:
        watch(task.teacher, 'teacher', passes)
    with contextlib.ExitStack() as stack:
        dataset = data.train
        if augment is not None and uses_cache(args):
            batch_size = max(args.batch_size, args.validation_batch_size or 0)
            if not isinstance(dataset, IterableDataset):  # for which there is no cache
                dataset = Subset(dataset, spread(len(dataset), batches * batch_size))
            x_pix = torch.zeros(batch_size, *config['input_size'], device=device)
            augment.make_views(x_pix, torch.zeros(batch_size, dtype=torch.long, device=device))  # to warm up
            passes.clear()
            begin = clock(device)
            dad_set = stack.enter_context(cached_set(args, augment, dataset, config, accelerator))
            report['making'] = {
                'images': len(dataset),
                'seconds_per_image': (clock(device) - begin) / len(dataset),
                'bytes_per_image': args.dad_cache * dad_set.index['summary']['bytes_per_view'],
                'per_image': per_image(passes, parts, len(dataset)),
            }
        if uses_pairs(args):
            dataset = pair_dataset(args, dataset, config, dad_set=dad_set)
        with flag_errors('augmentation and loader flags (--aa, --mixup, --workers, ...)'):
            loader = create_train_loader(dataset, accelerator, **kwargs.train_loader_kwargs(args, config))
            train_batches = Batches(loader, accelerator, **kwargs.batches_kwargs(args))
            loader_val = create_eval_loader(data.val, accelerator, **kwargs.eval_loader_kwargs(args, config))
        train, num_epochs = _create_training(args, task, accelerator, len(train_batches))
        watch(task.trainable_module, 'student', passes)
        shares = task.schedule.shares(num_epochs) if isinstance(task, DADTask) else {'training': 1.0}
        report['steps'] = {}
        for kind, share in shares.items():
            if isinstance(task, DADTask):
                task.schedule = _ONE_KIND[kind]
            timed = TimedBatches(train_batches, (WARMUP + batches) * args.grad_accum_steps, device)
            train(timed)
            counts = per_image(passes, parts, len(timed) * args.batch_size)
            report['steps'][kind] = {'share': share, **timed.seconds(args.grad_accum_steps), 'per_image': counts}
        validation = 0.0
        if loader_val is not None:
            model = eval_model(task, use_ema=not args.model_ema_force_cpu)
            validation = _validation_seconds(model, loader_val, device, batches)
    report['peak_memory'] = peak_memory(device)
    num_images = {'images': images or len(data.train), 'val_images': 0 if data.val is None else len(data.val)}
    report['configuration'].update(num_images, gpus=gpus, epochs=num_epochs)
    return {**report, 'estimate': estimate(report, validation)}


def _create_training(
    args: argparse.Namespace, task: TrainingTask, accelerator: Accelerator, num_batches: int
) -> tuple[Callable[[Any], None], int]:
    """The trainer's epoch as a function of its batches, and how many epochs there will be."""
    args.lr = learning_rate(args, 1)
    with flag_errors('--opt, --opt-kwargs'):
        optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    optimizer = prepare_task(args, task, optimizer, accelerator)
    schedule = {**scheduler_kwargs(args, True), 'updates_per_epoch': math.ceil(num_batches / args.grad_accum_steps)}
    scheduler, num_epochs = create_scheduler_v2(optimizer, **schedule)
    saving = kwargs.checkpoint_kwargs(args, 'loss', 1, num_batches)
    checkpoints = Checkpoints(task, optimizer, scheduler, accelerator, Path(), args, **saving)

    def train(batches: Any) -> None:
        state = TrainState(Meters(accelerator))
        try:
            train_dad.train_one_epoch(0, task, batches, optimizer, scheduler, checkpoints, state, args)
        except NonFiniteLossError as error:
            raise ValueError(f'{error}; lower --lr or set --clip-grad') from error

    return train, num_epochs


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's peak on a GPU; on a CPU the largest resident set of the process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class TimedBatches:
    """The first batches of an epoch, over again if it has fewer, with the seconds that they take.

    Args:
        batches: ``Batches`` of the trainer.
        count: How many.
        device: Waited for before the clock is read.
    """

    def __init__(self, batches: Any, count: int, device: torch.device) -> None:
        self.batches, self.count, self.device = batches, count, device
        self.times: list[tuple[float, float]] = []  # seconds that each batch was waited for and worked on

    def __len__(self) -> int:
        """Batches that there will be."""
        return self.count

    def of_epoch(self, epoch: int, _: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield place, input and target of batches, as ``Batches`` does."""
        again = itertools.chain.from_iterable(self.batches.of_epoch(epoch) for _ in itertools.count())
        for place in range(self.count):
            asked = clock(self.device)
            _, input, target = next(again)
            got = clock(self.device)
            yield place, input, target
            self.times.append((got - asked, clock(self.device) - got))

    def seconds(self, accum_steps: int) -> Report:
        """Seconds of an optimizer step of ``accum_steps`` batches, after the warm-up.

        Returns:
            ``work``, the median, and ``wait`` for data, the mean: loading processes deliver in bursts.
        """
        first = range(WARMUP * accum_steps, len(self.times), accum_steps)
        steps = [[sum(part) for part in zip(*self.times[i : i + accum_steps], strict=True)] for i in first]
        return {'work': median(work for _, work in steps), 'wait': mean(wait for wait, _ in steps)}


@torch.inference_mode()
def _validation_seconds(model: nn.Module, loader: Any, device: torch.device, count: int) -> float:
    """Seconds an image, on some batches after the first."""
    model.eval()
    dtype, images, begin = next(model.parameters()).dtype, 0, 0.0
    for index, (input, _) in enumerate(itertools.islice(itertools.chain(loader, loader), 1 + count)):
        model(input.to(device, dtype))
        images += len(input) if index else 0
        begin = begin or clock(device)
    return (clock(device) - begin) / images


def estimate(report: Report, validation: float) -> Report:
    """Estimate an epoch and a training on ``gpus`` devices: linear, which no interconnect quite is.

    Args:
        report: ``configuration``, ``steps`` and, if views are made before training, ``making``.
        validation: Seconds an image.
    """
    values = report['configuration']
    gpus, images = values['gpus'], values['images']
    batches = max(1, images // (values['batch_size'] * gpus))
    step = sum(kind['share'] * (kind['work'] + kind['wait']) for kind in report['steps'].values())
    train = batches * step / values['accum_steps']
    validation *= values['val_images'] / gpus / values['val_interval']
    making = report.get('making', {}).get('seconds_per_image', 0.0) * images / gpus
    return {
        'batches_per_epoch': batches,
        'making_seconds': making,
        'train_seconds_per_epoch': train,
        'validation_seconds_per_epoch': validation,
        'seconds_per_epoch': train + validation,
        'seconds': making + values['epochs'] * (train + validation),
    }
