"""The command ``timm-dad info``: measure what a training with the given flags would use on this machine."""

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

import train_dad
from timm_dad.commands.info_text import format_report
from timm_dad.common.errors import user_errors
from timm_dad.common.log import setup_logging
from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.common.seeds import RUN, seed_all
from timm_dad.common.spread import spread
from timm_dad.common.timing import clock
from timm_dad.flags import kwargs
from timm_dad.flags.data import check_training_data, open_training_data
from timm_dad.flags.pairs import cached_set, open_dad_set, pair_dataset, uses_cache, uses_pairs
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_values, flag_errors
from timm_dad.flags.student import create_student, place_student, prepare_task
from timm_dad.flags.train import create_parser as create_train_parser
from timm_dad.flags.train import learning_rate, parse_args
from timm_dad.method.augment import DADAugment
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.preview.image import describe_attack
from timm_dad.training.batches import Batches
from timm_dad.training.checkpoint import Checkpoints
from timm_dad.training.loaders import create_train_loader
from timm_dad.training.meters import Meters, NonFiniteLossError
from timm_dad.training.resume import TrainState
from timm_dad.training.schedule import create_schedule
from timm_dad.training.setup import create_accelerator

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
        The content that ``--json`` prints.
    """
    args = parse_args(argv, create_parser=create_parser)
    setup_logging(logging.WARNING)
    with user_errors(PROGRAM):
        check_values(args, ((('gpus', 'images', 'batches'), '1 or more', lambda value: value >= 1),))
        if args.train_img_sizes:
            raise ValueError('--train-img-sizes: one size is measured; leave it out, and give each size as --img-size')
        if int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise ValueError('it measures in one process: start it without a launcher, and give --gpus N')
        report = make_report(args, args.gpus, args.images, args.batches)
    sys.stdout.write((json.dumps(report, indent=2) if args.json else format_report(report)) + '\n')
    return report


def create_parser() -> Parser:
    """Create the parser of ``timm-dad info``: that of ``timm-dad train``, with its own flags."""
    parser = create_train_parser(PROGRAM)
    parser.usage = '%(prog)s [--gpus N] [--images N] [--batches N] [--json] [flags of timm-dad train]'
    parser.description = (
        'Print what a training with these flags would use: models, multiply-adds, memory and time. --help estimate '
        'shows the flags that timm-dad train lacks.'
    )
    group = parser.add_argument_group('Estimate')
    group.add_argument('--gpus', type=int, default=1, metavar='N', help='estimate for N devices of this kind')
    group.add_argument('--images', type=int, metavar='N', help='training images (default: those of the data set)')
    group.add_argument('--batches', type=int, default=5, metavar='N', help='optimizer steps to measure, of each kind')
    group.add_argument('--json', action='store_true', help='print JSON')
    return parser


def make_report(args: argparse.Namespace, gpus: int = 1, images: int | None = None, batches: int = 5) -> Report:
    """Build what the flags describe like ``train_dad.main``, count it, and measure some steps of it.

    Args:
        args: Flags of ``train_dad.py``.
        gpus: Number of devices to estimate for.
        images: Number of training images to estimate for; that of the data set by default.
        batches: Number of optimizer steps to measure, of each kind.

    Returns:
        ``configuration``, ``parts`` (parameters, multiply-adds), ``making`` (with ``--dad-cache``), ``batches``
        (share and seconds of each kind of batch), ``peak_memory`` in bytes, and ``estimate``, as plain values.
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
    report: Report = {
        'parts': count_parts(task, augment, next(student.parameters()).new_zeros(1, *config['input_size']))
    }
    with contextlib.ExitStack() as stack:
        dataset = data.train
        if augment is not None and uses_cache(args):
            batch_size = args.validation_batch_size or args.batch_size
            if not isinstance(dataset, IterableDataset):  # for which there is no cache
                count = batches * max(args.batch_size, batch_size)
                dataset = Subset(dataset, spread(len(dataset), count))
            x_pix = torch.zeros(batch_size, *config['input_size'], device=device)
            augment.make_views(x_pix, some_target(augment, x_pix))  # to warm up
            begin = clock(device)
            dad_set = stack.enter_context(cached_set(args, augment, dataset, config, accelerator))
            report['making'] = {
                'seconds_per_image': (clock(device) - begin) / len(dataset),
                'bytes_per_image': args.dad_cache * dad_set.index['summary']['bytes_per_view'],
            }
        if uses_pairs(args):
            dataset = pair_dataset(args, dataset, config, dad_set=dad_set)
        with flag_errors('augmentation and loader flags (--aa, --mixup, --workers, ...)'):
            loader = create_train_loader(dataset, accelerator, **kwargs.train_loader_kwargs(args, config))
            train_batches = Batches(loader, accelerator, **kwargs.batches_kwargs(args))
        train, num_epochs = _create_training(args, task, accelerator, len(train_batches))
        shares = task.schedule.shares(num_epochs) if isinstance(task, DADTask) else {'training': 1.0}
        report['batches'] = {}
        for kind, share in shares.items():
            if isinstance(task, DADTask):
                task.schedule = _ONE_KIND[kind]
            timed = TimedBatches(train_batches, (WARMUP + batches) * args.grad_accum_steps, device)
            train(timed)
            report['batches'][kind] = {'share': share, **timed.means(WARMUP * args.grad_accum_steps)}
    report['peak_memory'] = peak_memory(device)
    report['configuration'] = {
        'student': args.model,
        'input_size': list(config['input_size']),
        'attack': None if augment is None else describe_attack(augment),
        'vqgan': augment.vqgan.origin.describe() if augment is not None and augment.vqgan.origin else None,
        'dad_precision': args.dad_precision if 'teacher' in report['parts'] and args.dad else None,
        'batch_size': args.batch_size,
        'images': images or len(data.train),
        'epochs': num_epochs,
        'gpus': gpus,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU',
    }
    return {**report, 'estimate': estimate(report)}


def count_parts(task: TrainingTask, augment: DADAugment | None, x_norm: Tensor) -> Report:
    """Count the parameters of each network, and its multiply-adds for one image forward and backward.

    Args:
        task: The training task, before its student is compiled.
        augment: Makes DAD views, if any are made; the teacher's backward is then its gradient at the input, and
            ``DAD view`` covers everything computed for one view, with the gradients of its attack.
        x_norm: An image ``[1, C, H, W]`` as input of the student.
    """
    networks = {
        'student': task.get_eval_model(),
        'teacher': getattr(task, 'teacher', None),
        'vqgan': None if augment is None else augment.vqgan,
        'gradient vqgan': None if augment is None else augment.gradient_vqgan,
    }
    parts: Report = {
        name: {'parameters': sum(value.numel() for value in network.parameters())}
        for name, network in networks.items()
        if isinstance(network, nn.Module)
    }
    parts['student'].update(count_model_macs(networks['student'], x_norm, backward='parameters'))
    if isinstance(task, DADTask) and task.teacher is not None:
        backward = 'none' if augment is None else 'input'
        parts['teacher'].update(count_model_macs(task.teacher, task.norm.to_pixels(x_norm), backward=backward))
    if augment is not None:
        x_pix = augment.norm.to_pixels(x_norm)
        with torch.no_grad():
            parts['vqgan']['forward'] = count_macs(lambda: augment.vqgan.reconstruct(x_pix))
        target = some_target(augment, x_pix)
        parts['DAD view'] = {'forward': count_macs(lambda: augment.make_views(x_pix, target))}
    return parts


def some_target(augment: DADAugment, x_pix: Tensor) -> Tensor:
    """Return arbitrary targets for images ``[B, 3, H, W]``, single-label or multi-label."""
    return augment.targets.answer(x_pix.new_zeros(len(x_pix), augment.teacher.num_classes))


def _create_training(
    args: argparse.Namespace, task: TrainingTask, accelerator: Accelerator, num_batches: int
) -> tuple[Callable[[Any], None], int]:
    """Return the trainer's epoch as a function of its batches, and the number of epochs."""
    args.lr = learning_rate(args, 1)
    with flag_errors('--opt, --opt-kwargs'):
        optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    optimizer = prepare_task(args, task, optimizer, accelerator)
    schedule = kwargs.schedule_kwargs(args, 'loss', math.ceil(num_batches / args.grad_accum_steps))
    scheduler, num_epochs = create_schedule(optimizer, **schedule)
    saving = kwargs.checkpoint_kwargs(args, 'loss', 1, num_batches)
    checkpoints = Checkpoints(task, optimizer, scheduler, accelerator, Path(), args, **saving)

    def train(batches: Any) -> None:
        state = TrainState(Meters(accelerator))
        try:
            train_dad.train_one_epoch(0, task, batches, optimizer, scheduler, checkpoints, state, args)
        except NonFiniteLossError as error:
            raise ValueError(f'{error}; lower --lr or set --clip-grad') from error

    return train, num_epochs


def peak_memory(device: torch.device) -> int:
    """Return bytes: torch's peak on a GPU; on a CPU, the largest resident set of the process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class TimedBatches:
    """The first batches of an epoch, repeated if it has fewer, with the seconds they take.

    Args:
        batches: The trainer's ``Batches``.
        count: Number of batches.
        device: Device to wait for before the clock is read.
    """

    def __init__(self, batches: Any, count: int, device: torch.device) -> None:
        self.batches, self.count, self.device = batches, count, device
        self.times: list[tuple[float, float]] = []  # seconds that each batch was worked on and waited for

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.count

    def of_epoch(self, epoch: int, _: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield place, input and target of batches, like ``Batches``."""
        again = itertools.chain.from_iterable(self.batches.of_epoch(epoch) for _ in itertools.count())
        for place in range(self.count):
            asked = clock(self.device)
            _, input, target = next(again)
            got = clock(self.device)
            yield place, input, target
            self.times.append((clock(self.device) - got, got - asked))

    def means(self, skipped: int) -> dict[str, float]:
        """Return the mean seconds of ``work`` and ``wait`` for data per batch, except the first ``skipped`` ones."""
        work, wait = (mean(seconds) for seconds in zip(*self.times[skipped:], strict=True))
        return {'work': work, 'wait': wait}


def estimate(report: Report) -> Report:
    """Estimate an epoch and a training on ``gpus`` devices with linear scaling, which no interconnect fully reaches.

    Args:
        report: ``configuration``, ``batches`` and, if views are made before training, ``making``.
    """
    values = report['configuration']
    gpus, images = values['gpus'], values['images']
    batches = max(1, images // (values['batch_size'] * gpus))
    epoch = batches * sum(kind['share'] * (kind['work'] + kind['wait']) for kind in report['batches'].values())
    making = report.get('making', {}).get('seconds_per_image', 0.0) * images / gpus
    return {
        'batches_per_epoch': batches,
        'making_seconds': making,
        'seconds_per_epoch': epoch,
        'seconds': making + values['epochs'] * epoch,
    }
