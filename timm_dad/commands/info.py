"""The command ``timm-dad info``: what a training with these flags would use, counted and measured on this machine."""

import argparse
import contextlib
import copy
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from timm_dad.commands.info_text import format_report
from timm_dad.commands.measure import MeasuredLoader, Spread, Stopwatch, peak_memory, reset_peak_memory
from timm_dad.common.errors import user_errors
from timm_dad.common.log import setup_logging
from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.data.datasets import create_dataset
from timm_dad.flags.dad import check_dad_args, create_task
from timm_dad.flags.pairs import pair_dataset, uses_cache
from timm_dad.flags.timm import parse_args, torch_dtype
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.teachers.spec import DEFAULT_TEACHER
from timm_dad.training.cache import make_dad_images
from timm_dad.training.loaders import create_eval_loader, create_mixup, create_train_loader

PROGRAM = 'timm-dad info'
WARMUP = 2
Report = dict[str, Any]


def create_parser() -> argparse.ArgumentParser:
    """The flags of ``timm-dad info`` itself."""
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
    return parser


def main(argv: Sequence[str]) -> Report:
    """Measure and print.

    Args:
        argv: Command line without ``info``.

    Returns:
        What ``--json`` prints.
    """
    parser = create_parser()
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
    """Build what the flags ask for, count and measure it.

    Args:
        args: Flags of ``train_dad.py``.
        gpus: Devices to estimate for.
        images: Training images to estimate for; those of the data set by default.
        batches: Optimizer steps to measure.

    Returns:
        ``configuration``, ``parts`` (parameters, multiply-adds), ``modes`` (time, memory and estimate of each way to
        train), as plain values.
    """
    import train_dad

    own = copy.deepcopy(args)
    own.resume, own.log_with, own.log_wandb, own.eval_suites = '', '', False, []
    own.save_images, own.recovery_interval = False, 0
    if uses_cache(args):
        own.dad_cache = 0  # online first; views made once are measured after it
    with tempfile.TemporaryDirectory() as folder:  # nothing is written there
        path = Path(folder) / 'none'
        run = train_dad.build(own, train_dad.create_accelerator(own, path), path)
        images = images or len(run.loader_train.dataset)
        parts = count_parts(run)
        watch = _instrument(run)
        train_dad.prepare(run)
        scale = {'gpus': gpus, 'images': images, 'val_images': len(run.loader_eval.dataset) if run.loader_eval else 0}
        is_dad = run.augment is not None
        modes = {'online' if is_dad else 'training': _measure(run, watch, parts, batches, scale)}
        if is_dad:
            modes['cached'] = _measure_cached(args, run, watch, parts, batches, scale)
    return {
        'configuration': _configuration(args, run, scale),
        'parts': parts,
        'modes': modes,
        'chosen': 'cached' if uses_cache(args) else next(iter(modes)),
    }


def _names(teacher: Sequence[str] | str | None) -> str:
    specs = [teacher] if isinstance(teacher, str) else teacher or [DEFAULT_TEACHER]
    return ' + '.join(specs)


def _teacher_name(args: argparse.Namespace) -> str:
    if not args.dad:
        return str(args.kd_model_name)
    return f'stored logits of {args.dad_dir}' if args.dad_stored_logits else _names(args.dad_teacher)


def _configuration(args: argparse.Namespace, run: Any, scale: dict[str, int]) -> Report:
    device = run.accelerator.device
    on_gpu = device.type == 'cuda'
    names = {'student': args.model}
    if args.dad or args.kd_model_name:
        names['teacher'] = _teacher_name(run.args)
    if run.augment is not None:
        config = run.augment.vqgan.config
        names['vqgan'] = str(args.dad_vqgan)
        names['vqgan_codes'] = f'factor {config.factor}, {config.n_embed} codes of {config.embed_dim} channels'
    input_size = getattr(getattr(run.task, 'teacher', None), 'input_size', None)
    if isinstance(run.task, DADTask) and input_size is not None:
        names['teacher_size'] = 'x'.join(str(side) for side in input_size)
    return {
        **names,
        'data': args.dataset or args.data_dir,
        'input_size': list(run.data_config['input_size']),
        'batch_size': args.batch_size,
        'epochs': run.num_epochs,
        'device': torch.cuda.get_device_name(device) if on_gpu else f'CPU, {torch.get_num_threads()} threads',
        'student_precision': args.amp_dtype if args.amp else args.model_dtype or 'float32',
        'dad_precision': run.args.dad_precision if args.dad and not args.dad_stored_logits else None,
        **scale,
    }  # fmt: skip


def _size(module: nn.Module) -> dict[str, float]:
    parameters = list(module.parameters())
    return {
        'parameters': sum(value.numel() for value in parameters),
        'bytes': sum(value.numel() * value.element_size() for value in parameters),
    }


def count_parts(run: Any) -> Report:
    """Parameters, and multiply-adds of one image forward and backward, of each network."""
    device, channels_last = run.accelerator.device, run.args.channels_last
    x_norm = torch.zeros(1, *run.data_config['input_size'], device=device, dtype=torch_dtype(run.args.model_dtype))
    x_norm = x_norm.contiguous(memory_format=torch.channels_last) if channels_last else x_norm
    student = run.task.trainable_module
    parts: Report = {'student': {**_size(student), **count_model_macs(student, x_norm, backward='parameters')}}
    if not isinstance(run.task, DADTask):
        teacher = getattr(run.task, 'teacher', None)
        return {**parts, **({'teacher': _size(teacher)} if isinstance(teacher, nn.Module) else {})}
    x_pix, backward = run.task.norm.to_pixels(x_norm), 'input' if run.augment is not None else 'none'
    teacher = run.task.teacher
    if teacher is not None:
        parts['teacher'] = {**_size(teacher), **count_model_macs(teacher, x_pix, backward=backward)}
    if run.augment is not None:
        vqgan = run.augment.vqgan
        with torch.no_grad():
            codes = vqgan.encode_to_codes(x_pix)
            halves = {
                'encode': count_macs(lambda: vqgan.encode_to_codes(x_pix)),
                'decode': count_macs(lambda: vqgan.decode_codes(codes)),
            }
        parts['vqgan'] = {**_size(vqgan), 'forward': sum(halves.values()), **halves}
    return parts


def _instrument(run: Any) -> Stopwatch:
    """Put the stopwatch to networks, attack, backward and optimizer, before they are compiled."""
    watch, task = Stopwatch(run.accelerator.device), run.task
    watch.hook(task.trainable_module, 'student forward')
    if isinstance(getattr(task, 'teacher', None), nn.Module):
        watch.hook(task.teacher, 'teacher forward')
    if run.augment is not None:
        vqgan = run.augment.vqgan
        vqgan.reconstruct = watch.wrap(vqgan.reconstruct, 'vqgan', factor=1)
        # Without VQGAN and teacher forward, which are parts of their own, the attack is the teacher's backward.
        shared = int(run.augment.attack_from == 'input' and run.augment.attack.num_steps > 0)
        for name, steps in (('find_centre', shared), ('attack_centre', run.augment.attack.num_steps - shared)):
            setattr(run.augment, name, watch.wrap(getattr(run.augment, name), 'teacher backward', steps))
    run.accelerator.backward = watch.wrap(run.accelerator.backward, 'student backward')
    step = run.optimizer.step
    run.optimizer.step = watch.wrap(step, 'optimizer')
    return watch


def _macs_per_image(parts: Report, images: dict[str, float]) -> dict[str, float]:
    """Multiply-adds for each image of a batch, by part of a step."""
    macs = {
        'student forward': parts['student']['forward'],
        'student backward': parts['student']['backward'],
        'teacher forward': parts.get('teacher', {}).get('forward', 0),
        'teacher backward': parts.get('teacher', {}).get('backward', 0),
        'vqgan': parts.get('vqgan', {}).get('forward', 0),
    }
    through = {**images, 'student backward': images.get('student forward', 0.0)}
    return {name: value * through.get(name, 0.0) for name, value in macs.items() if value and through.get(name)}


def _rows(measured: MeasuredLoader, parts: Report, batch_size: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Per image of a batch: seconds, multiply-adds and passes of each part; and their totals."""
    images = measured.images(batch_size)
    macs = _macs_per_image(parts, images)
    rows = {
        name: {'seconds': value / batch_size, 'macs': macs.get(name, 0.0), 'passes': images.get(name, 0.0)}
        for name, value in measured.parts().items()
    }
    totals = {key: sum(row[key] for row in rows.values()) for key in ('seconds', 'macs')}
    return rows, totals


def _measure_steps(run: Any, watch: Stopwatch, batches: int) -> MeasuredLoader:
    """Train for a few batches."""
    import train_dad

    watch.seconds.clear()
    watch.images.clear()
    loader, accum = run.loader_train, run.args.grad_accum_steps
    measured = MeasuredLoader(loader, watch, batches, WARMUP * accum, accum)
    run.loader_train = measured
    try:
        train_dad.train_one_epoch(run, 0)
    except train_dad.NonFiniteLossError as error:
        raise ValueError(f'--lr: {error}') from error
    finally:
        run.loader_train = loader
    return measured


def _measure(run: Any, watch: Stopwatch, parts: Report, batches: int, scale: dict[str, int]) -> Report:
    """Time and memory of training steps and validation, and the estimate for all of it."""
    batch_size, device = run.args.batch_size, run.accelerator.device
    reset_peak_memory(device)
    schedule = getattr(run.task, 'schedule', DADSchedule())
    with _schedule(run, DADSchedule()):
        measured = _measure_steps(run, watch, batches)
    rows, totals = _rows(measured, parts, batch_size)
    memory = peak_memory(device)
    seconds, share = totals['seconds'], _share_of_batches(schedule, run.num_epochs)
    report: Report = {'per_image': rows, 'total': totals, 'peak_memory': memory}
    if share < 1:
        with _schedule(run, DADSchedule(prob=0.0)):
            without = _rows(_measure_steps(run, watch, batches), parts, batch_size)[1]
        report.update(share_of_batches=share, total_without_view=without)
        seconds = share * seconds + (1 - share) * without['seconds']
    validation = _measure_validation(run, watch, batches)
    report['estimate'] = _estimate(run, seconds, measured.start, validation, scale)
    return report


@contextlib.contextmanager
def _schedule(run: Any, schedule: DADSchedule) -> Iterator[None]:
    """Another schedule for a while, where there is one."""
    if not isinstance(run.task, DADTask):
        yield
        return
    before, run.task.schedule = run.task.schedule, schedule
    try:
        yield
    finally:
        run.task.schedule = before


def _share_of_batches(schedule: DADSchedule, epochs: int) -> float:
    """Fraction of the batches of a training that have a DAD view."""
    with_view = sum(schedule.weight(epoch) > 0 for epoch in range(epochs))
    return schedule.prob / schedule.every * with_view / max(epochs, 1)


def _measure_validation(run: Any, watch: Stopwatch, batches: int) -> float:
    """Seconds an image."""
    import train_dad

    if run.loader_eval is None:
        return 0.0
    model = train_dad.eval_model(run)
    measured = MeasuredLoader(run.loader_eval, watch, batches, warmup=1)
    train_dad.evaluate(model, measured, run.accelerator)
    works = [*measured.works[False], *measured.works[True]]
    size = min(run.args.validation_batch_size or run.args.batch_size, len(run.loader_eval.dataset))
    seconds = sum(works) / len(works) + measured.wait
    return float(seconds / size)


def _estimate(run: Any, seconds: float, start: float, validation: float, scale: dict[str, int]) -> Report:
    """An epoch and a training, on this device and on several. More devices: linear, which no interconnect quite is."""
    gpus, args = scale['gpus'], run.args
    batches = max(1, scale['images'] // (args.batch_size * gpus))
    train = start + batches * args.batch_size * seconds
    valid = validation * scale['val_images'] / gpus / args.val_interval
    return {
        'batches_per_epoch': batches,
        'train_seconds_per_epoch': train,
        'validation_seconds_per_epoch': valid,
        'seconds_per_epoch': train + valid,
        'epochs': run.num_epochs,
        'seconds': run.num_epochs * (train + valid),
    }


def _measure_cached(
    args: argparse.Namespace, run: Any, watch: Stopwatch, parts: Report, batches: int, scale: dict[str, int]
) -> Report:
    """Views made once, and training on them; or why these flags exclude it."""
    own = copy.deepcopy(run.args)
    own.dad_cache = args.dad_cache or 1
    try:
        check_dad_args(own, {})
        if isinstance(run.loader_train.dataset, IterableDataset):
            raise ValueError('--dad-cache needs data with an index, not a stream')
    except ValueError as error:
        return {'excluded': str(error)}
    making = _measure_making(own, run, watch, parts, batches)
    views = own.dad_cache
    count = min(scale['images'], (WARMUP + 2 * batches + 1) * own.batch_size * own.grad_accum_steps)
    dataset = Spread(create_dataset(own, own.train_split, is_training=True), max(count, own.batch_size))
    height, width = run.data_config['input_size'][-2:]
    pictures = torch.zeros(len(dataset), views, height, width, 3, dtype=torch.uint8)
    task = create_task(
        own,
        run.task.trainable_module,
        run.task.teacher,
        run.augment,
        criterion=run.task.loss.criterion,
        mean=run.data_config['mean'],
        std=run.data_config['std'],
        device=run.accelerator.device,
        verbose=False,
    )
    if own.model_ema:
        task.setup_ema(decay=own.model_ema_decay, use_warmup=own.model_ema_warmup)
    pairs = pair_dataset(own, dataset, run.data_config, dad_images=pictures)
    loader = create_train_loader(own, run.accelerator, pairs, run.data_config)
    cached = replace(run, args=own, task=task, loader_train=loader, mixup_fn=create_mixup(own))
    report = _measure(cached, watch, parts, batches, scale)
    seconds = making['total']['seconds'] * scale['images']  # every process makes all of them
    making.update(views=views, seconds=seconds, view_bytes=scale['images'] * views * height * width * 3)
    report['making'] = making
    report['estimate']['seconds'] += seconds
    return report


def _measure_making(args: argparse.Namespace, run: Any, watch: Stopwatch, parts: Report, batches: int) -> Report:
    """Make views of a few batches."""
    batch_size = args.validation_batch_size or args.batch_size
    dataset = create_dataset(args, args.train_split, is_training=False)
    watch.seconds.clear()
    watch.images.clear()
    spread = Spread(dataset, (1 + 2 * batches + 1) * batch_size)
    loader = create_eval_loader(args, run.accelerator, spread, run.data_config, distributed=False)
    measured = MeasuredLoader(loader, watch, batches, warmup=1)
    reset_peak_memory(run.accelerator.device)
    make_dad_images(run.augment, measured, args.dad_cache, progress=False)
    rows, totals = _rows(measured, parts, batch_size)
    return {'per_image': rows, 'total': totals, 'peak_memory': peak_memory(run.accelerator.device)}
