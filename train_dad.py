#!/usr/bin/env python3
"""Train a timm model with Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441).

A script on Accelerate and timm's factories that reads downwards. Flags are those of timm's ``train.py`` plus the
group ``--dad ...``; without ``--dad`` it is plain timm training. Without data it trains the embedded demo.
"""

import argparse
import contextlib
import csv
import logging
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from filelock import FileLock, Timeout
from PIL import Image
from timm import utils
from timm.data import Mixup, resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset
from tqdm import tqdm

from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.common.spread import spread
from timm_dad.dad_sets.maker import view_seed
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.datasets import check_images, create_dataset, dataset_class_names
from timm_dad.demo.data import SEEN_STYLES
from timm_dad.evaluation.models import Preprocess
from timm_dad.evaluation.predict import EvalConfig
from timm_dad.evaluation.predictions import Predictions
from timm_dad.evaluation.suite_data import Suite
from timm_dad.flags.dad import build_task
from timm_dad.flags.pairs import open_dad_set, pair_dataset, uses_cache, uses_pairs
from timm_dad.flags.rules import flag_errors
from timm_dad.flags.student import create_student
from timm_dad.flags.timm import parse_args, torch_dtype
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.preview.image import describe_settings, preview_image, shown_names
from timm_dad.preview.sheet import make_sheet, png_bytes
from timm_dad.training.cache import make_dad_images
from timm_dad.training.checkpoint import TaskWithProgress, create_saver, find_newest, load_progress, remove_recovery
from timm_dad.training.loaders import (
    create_eval_loader,
    create_mixup,
    create_train_loader,
    mixes,
    set_epoch,
    stop_mixup,
)
from timm_dad.training.on_pixels import OnPixels, fixed_size
from timm_dad.training.overlap import prepared_ahead
from timm_dad.training.suites import (
    SuiteResults,
    accuracies,
    add_rows,
    evaluate_on_suites,
    match_suite,
    open_eval_suites,
    read_rows,
    write_suite_report,
)

_logger = logging.getLogger('train_dad')

Metrics = OrderedDict[str, float]

NUM_PREVIEW_IMAGES = 6
# Trackers of Accelerate that take arrays of pictures [N, H, W, 3], and what they must be told.
PICTURE_TRACKERS: dict[str, dict[str, str]] = {'tensorboard': {'dataformats': 'NHWC'}, 'wandb': {}, 'swanlab': {}}


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train as the command line says.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.

    Returns:
        ``best_metric``, ``output_dir``, and top-1 by data set in ``student`` and ``teacher`` (with ``--eval-suites``).
    """
    args = parse_args(argv)
    setup_logging()
    with contextlib.ExitStack() as stack:
        with user_errors('train_dad.py'):
            output_dir = output_folder(args)
            run = build(args, create_accelerator(args, output_dir), output_dir)
            stack.enter_context(locked_output(run.output_dir, run.accelerator, resume=bool(args.resume)))
            prepare(run)
            start_output(run)
        try:
            return train(run)
        except NonFiniteLossError as error:
            sys.exit(f'train_dad.py: error: {error}')


@dataclass
class Run:
    """All that a training run holds."""

    args: argparse.Namespace
    accelerator: Accelerator
    output_dir: Path
    data_config: dict[str, Any]
    class_names: Sequence[str] | None
    loader_train: Any
    loader_eval: Any
    suites: Sequence[Suite]
    suite_index: dict[str, list[int] | None]  # the student's output of each class of a suite
    suite_size: tuple[int, int] | None  # what pictures that go in uncut must be resized to
    mixup_fn: Mixup | None
    task: TrainingTask
    augment: DADAugment | None
    optimizer: Any
    start_epoch: int = 0
    start_batch: int = 0
    num_epochs: int = 0
    scheduler: Any = None
    saver: utils.CheckpointSaver | None = None
    meters: dict[str, list[float]] = field(default_factory=dict)  # sum and count of each loss part, in this epoch

    def __post_init__(self) -> None:
        self.task_with_progress = TaskWithProgress(self.task)
        self.eval_metric = self.args.eval_metric if self.loader_eval else 'loss'

    @cached_property
    def preview_images(self) -> list[tuple[torch.Tensor, int, str]]:
        """A few validation images in [0, 1], spread evenly (of a stream, over its first batch), labels and titles."""
        assert self.augment is not None
        dataset, to_pixels = self.loader_eval.dataset, self.augment.norm.to_pixels
        if isinstance(dataset, IterableDataset):
            with torch.random.fork_rng(devices=[]):  # loaders draw seeds for their workers
                input, target = next(iter(self.loader_eval))
            chosen = spread(len(target), NUM_PREVIEW_IMAGES)
            return [(to_pixels(input[i : i + 1])[0], int(target[i]), f'image {i}') for i in chosen]
        shown = []
        for index in spread(len(dataset), NUM_PREVIEW_IMAGES):
            image, label = dataset[index]
            # Where timm's prefetcher is to normalize, the data set gives bytes.
            x_pix = torch.as_tensor(image)
            x_pix = x_pix.float() / 255 if x_pix.dtype == torch.uint8 else to_pixels(x_pix[None])[0]
            shown.append((x_pix, int(label), f'image {index}'))
        return shown

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        num_batches: int = len(self.loader_train)
        return math.ceil(num_batches / int(self.args.grad_accum_steps))


def build(args: argparse.Namespace, accelerator: Accelerator, output_dir: Path) -> Run:
    """Check the flags against data, models and output folder, and build all that training needs."""
    seed_all(args.seed, 0, rank=accelerator.process_index)
    with locked_output(output_dir, accelerator, resume=bool(args.resume), make=False):
        pass
    # Data before models: whatever is wrong with it shows before anything large is built.
    dataset_train = create_dataset(args, args.train_split, is_training=True)
    dataset_eval = create_dataset(args, args.val_split, is_training=False) if args.val_split else None
    suites = open_eval_suites(args.eval_suites)
    class_names = dataset_class_names(dataset_train)
    if args.resume and args.resume != 'auto':
        load_progress(args.resume)
    student = create_student(args)
    args.num_classes = student.num_classes
    flags = {'--data-dir': dataset_train, '--val-split': dataset_eval}
    for flag, dataset in flags.items():
        check_images(dataset, flag)
        check_classes(flag, dataset, args.num_classes, class_names)
    suite_index = {suite.name: match_suite(suite, args.num_classes, class_names) for suite in suites}
    data_config = resolve_data_config(vars(args), model=student)
    dad_set = open_dad_set(args, tuple(data_config['input_size'][-2:]))
    student = prepare_student(args, accelerator, student)
    suite_size = fixed_size(student, suites, tuple(data_config['input_size'][-2:]))
    task, augment = create_training_task(args, accelerator, student, data_config, class_names, dad_set)
    if uses_pairs(args):
        dad_images = (
            cached_dad_images(args, accelerator, augment, data_config) if augment and uses_cache(args) else None
        )
        dataset_train = pair_dataset(args, dataset_train, data_config, dad_set=dad_set, dad_images=dad_images)
    with flag_errors('augmentation and loader flags (--aa, --mixup, --workers, ...)'):
        loader_train = create_train_loader(args, accelerator, dataset_train, data_config)
        loader_eval = create_eval_loader(args, accelerator, dataset_eval, data_config) if dataset_eval else None
        mixup_fn = create_mixup(args)
    args.lr = args.lr or scaled_learning_rate(args, accelerator.num_processes)
    with flag_errors('--opt, --opt-kwargs'):
        optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    return Run(
        args=args,
        accelerator=accelerator,
        output_dir=output_dir,
        data_config=data_config,
        class_names=class_names,
        loader_train=loader_train,
        loader_eval=loader_eval,
        suites=suites,
        suite_index=suite_index,
        suite_size=suite_size,
        mixup_fn=mixup_fn,
        task=task,
        augment=augment,
        optimizer=optimizer,
    )


def train(run: Run) -> dict[str, Any]:
    """Train, validate, save, report."""
    results: dict[str, Any] = {'output_dir': str(run.output_dir)}
    for epoch in range(run.start_epoch, run.num_epochs):
        train_metrics = train_one_epoch(run, epoch)
        if is_suite_epoch(run, epoch):
            log_suites(run, epoch, accuracies(on_suites(run, at_end=False)))
        metric = None
        if epoch + 1 == run.num_epochs or (epoch + 1) % run.args.val_interval == 0:
            eval_metrics = validate(run)
            metric = (eval_metrics or train_metrics)[run.eval_metric]
            results.update(save_epoch(run, epoch, train_metrics, eval_metrics, metric))
        interval = run.args.dad_preview_interval
        if interval and (epoch + 1 == run.num_epochs or (epoch + 1) % interval == 0):
            log_preview(run, epoch)
        step_schedule(run, epoch + 1, metric)
    results.update(evaluate_suites(run))
    if run.augment is not None and run.loader_eval is not None and run.accelerator.is_main_process:
        write_preview(run, max(0, run.num_epochs - 1))
        print(f'Preview: {run.output_dir / "preview.png"}')
    run.accelerator.end_training()
    return results


def set_backends(args: argparse.Namespace) -> None:
    """Set process-wide switches of torch and timm."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.fuser:
        utils.set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()


def create_accelerator(args: argparse.Namespace, output_dir: Path) -> Accelerator:
    """Create the ``Accelerator``: device, processes, precision, trackers.

    Raises:
        ValueError: If the device is missing, or Accelerate is configured for what this trainer does not do.
    """
    set_backends(args)
    for kind in ('FSDP', 'DEEPSPEED', 'MEGATRON_LM', 'PARALLELISM_CONFIG'):
        if os.environ.get(f'ACCELERATE_USE_{kind}', '').lower() in ('1', 'true'):
            raise ValueError(
                f"Accelerate's configuration asks for {kind}, and the student is trained with data parallelism alone: "
                'run `accelerate config` and choose multi-GPU, without it'
            )
    if args.device.startswith('cuda'):
        if not torch.cuda.is_available():
            raise ValueError(f'--device {args.device}: there is no CUDA device; use --device cpu')
        if ':' in args.device:
            torch.cuda.set_device(args.device)
    trackers = [name for name in (*args.log_with.split(','), 'wandb' if args.log_wandb else '') if name]
    try:
        accelerator = Accelerator(
            mixed_precision={'float16': 'fp16', 'bfloat16': 'bf16'}[args.amp_dtype] if args.amp else 'no',
            cpu=args.device == 'cpu',
            log_with=trackers or None,
            project_dir=output_dir,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=not args.no_ddp_bb)],
        )
    except ValueError as error:
        raise ValueError(f'--log-with / --amp: Accelerate says: {error}') from error
    if args.sync_bn and accelerator.device.type == 'cpu':
        raise ValueError('--sync-bn needs GPUs: PyTorch synchronizes batch norm on them alone')
    missing = {name for name in trackers if name not in {tracker.value for tracker in accelerator.log_with}}
    if missing:
        raise ValueError(f'--log-with: {", ".join(sorted(missing))} is not installed, or no tracker of Accelerate')
    accelerator.native_amp = args.amp  # Accelerate leaves fp16 out on a CPU without a word; torch's autocast can do it
    return accelerator


def prepare_student(args: argparse.Namespace, accelerator: Accelerator, student: nn.Module) -> nn.Module:
    """Batch norm by split or over processes, device, precision and memory layout."""
    student.to(device=accelerator.device, dtype=torch_dtype(args.model_dtype))
    if args.channels_last:
        student.to(memory_format=torch.channels_last)
    if args.sync_bn and accelerator.num_processes > 1:
        student = convert_sync_batchnorm(student)
    return student


def create_training_task(
    args: argparse.Namespace,
    accelerator: Accelerator,
    student: nn.Module,
    data_config: dict[str, Any],
    class_names: Sequence[str] | None,
    dad_set: DADSet | None,
) -> tuple[TrainingTask, DADAugment | None]:
    """Plain classification, timm's distillation, or DAD; and what makes DAD views, if they are made."""
    device = accelerator.device
    criterion = create_criterion(args).to(device)
    if args.kd_model_name:
        return create_kd_task(args, student, criterion, device), None
    if not args.dad:
        return ClassificationTask(student, criterion, device=device, verbose=False), None
    return build_task(args, student, data_config, class_names, dad_set=dad_set, criterion=criterion, device=device)


def create_kd_task(
    args: argparse.Namespace, student: nn.Module, criterion: nn.Module, device: torch.device
) -> TrainingTask:
    """Timm's own distillation, the baseline that DAD is compared with."""
    common = {
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


def cached_dad_images(
    args: argparse.Namespace, accelerator: Accelerator, augment: DADAugment, data_config: dict[str, Any]
) -> torch.Tensor:
    """DAD views of every training image, made once; every process makes the same ones."""
    seed_all(args.seed, 0)
    dataset = create_dataset(args, args.train_split, is_training=False)
    if isinstance(dataset, IterableDataset):
        raise ValueError('--dad-cache needs data with an index, not a stream')
    loader = create_eval_loader(args, accelerator, dataset, data_config, distributed=False)
    return make_dad_images(augment, loader, args.dad_cache, progress=accelerator.is_main_process)


def find_resume(run: Run) -> None:
    """``--resume auto`` to the newest checkpoint of the folder, if there is one; the same in every process."""
    args = run.args
    if args.resume == 'auto':
        newest = [find_newest(run.output_dir) if run.accelerator.is_main_process else '']
        broadcast_object_list(newest)
        args.resume = newest[0]
        _logger.info('--resume auto: %s', args.resume or f'no checkpoint in {run.output_dir}, starting')


def resume(run: Run) -> dict[str, Any]:
    """Load model, optimizer and position of ``--resume``; returns the rest of the checkpoint's progress."""
    args = run.args
    progress: dict[str, Any] = {}
    if args.resume:
        progress = load_progress(args.resume)
        optimizer = None if args.no_resume_opt else run.optimizer
        run.start_epoch = resume_task_checkpoint(run.task, args.resume, optimizer=optimizer, log_info=False) or 0
        if progress.get('batches'):
            run.start_epoch, run.start_batch = run.start_epoch - 1, progress['batches']
    if args.start_epoch is not None:
        run.start_epoch, run.start_batch = args.start_epoch, 0
    if run.start_batch and len(progress['meters']) == run.accelerator.num_processes:
        run.meters = progress['meters'][run.accelerator.process_index]
    return progress


def prepare(run: Run) -> None:
    """Resume, EMA, compilation, Accelerate and schedule, in the order of timm's train.py."""
    args, task = run.args, run.task
    find_resume(run)
    with flag_errors(f'--resume {args.resume}'):
        progress = resume(run)
    if args.model_ema:
        device = torch.device('cpu') if args.model_ema_force_cpu else None
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=device)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    task.trainable_module = run.accelerator.prepare_model(task.trainable_module)
    run.optimizer = run.accelerator.prepare_optimizer(run.optimizer)
    run.scheduler, run.num_epochs = create_scheduler_v2(
        run.optimizer,
        **scheduler_kwargs(args, decreasing_metric=run.eval_metric == 'loss'),
        updates_per_epoch=run.updates_per_epoch,
    )
    if progress.get('scaler') and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(progress['scaler'])
    if len(progress.get('buffers', [])) == run.accelerator.num_processes:
        restore_buffers(run, progress['buffers'][run.accelerator.process_index])
    if progress.get('plateau'):
        run.scheduler.lr_scheduler.load_state_dict(progress['plateau'])
    if run.start_epoch or run.start_batch:
        run.scheduler.step_update(run.start_epoch * run.updates_per_epoch + run.start_batch // args.grad_accum_steps)
        step_schedule(run, run.start_epoch, None)


def step_schedule(run: Run, epoch: int, metric: float | None) -> None:
    """Step the schedule to an epoch; plateau waits for a metric once its warm-up is over."""
    if run.args.sched != 'plateau' or metric is not None or epoch <= run.args.warmup_epochs:
        run.scheduler.step(epoch, metric)


def batches(run: Run, epoch: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Batches of an epoch from ``start_batch`` on, on the device and mixed.

    Every batch is drawn, and then trained on, under seeds of its own. So no batch depends on how it was reached, and a
    resumed epoch draws those before it again, without training on them.
    """
    args, rank = run.args, run.accelerator.process_index
    start_batch = run.start_batch if epoch == run.start_epoch else 0
    progress = tqdm(
        total=len(run.loader_train), desc=f'Epoch {epoch}', disable=not run.accelerator.is_main_process, leave=False
    )
    iterator = iter(run.loader_train)
    with progress:
        for batch_idx in range(len(run.loader_train)):
            seed_all(args.seed, epoch + 1, batch_idx, rank)
            batch = next(iterator, None)
            if batch is None:  # a stream may be shorter than it says
                return
            input, target = batch
            if args.no_prefetcher:
                input = input.to(run.accelerator.device, torch_dtype(args.model_dtype), non_blocking=True)
                target = target.to(run.accelerator.device, non_blocking=True)
            if run.mixup_fn is not None:
                input, target = run.mixup_fn(input, target)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            progress.update()
            if batch_idx >= start_batch:
                seed_all(args.seed, epoch + 1, batch_idx, rank, purpose=1)
                yield batch_idx, input, target
                if (batch_idx + 1) % (args.log_interval * args.grad_accum_steps) == 0:
                    progress.set_postfix({name: f'{total / count:.3f}' for name, (total, count) in run.meters.items()})
                    save_images(run, batch_idx, input)


def batches_for_task(run: Run, epoch: int) -> Iterator[tuple[Any, ...]]:
    """Index, input and target of each batch and, with ``--dad-overlap``, what DAD makes of it."""
    if isinstance(run.task, DADTask) and run.args.dad_overlap:
        return prepared_ahead(batches(run, epoch), run.task)
    return batches(run, epoch)


def train_one_epoch(run: Run, epoch: int) -> Metrics:
    """One pass over the training data; returns the mean of every loss part, over all processes."""
    args, accelerator, task = run.args, run.accelerator, run.task
    set_epoch(run.loader_train, epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        stop_mixup(run.loader_train, run.mixup_fn)
    if isinstance(task, DADTask):
        task.set_epoch(epoch, run.start_batch if epoch == run.start_epoch else 0)
    task.train()
    if epoch > run.start_epoch or not run.start_batch:
        run.meters = {}
    num_batches, accum_steps = len(run.loader_train), args.grad_accum_steps
    run.optimizer.zero_grad()
    for batch_idx, input, target, *prepared in batches_for_task(run, epoch):
        first_of_update = batch_idx - batch_idx % accum_steps
        of_update = min(accum_steps, num_batches - first_of_update)
        need_update = batch_idx + 1 == first_of_update + of_update
        with contextlib.nullcontext() if need_update else task.no_sync():
            result = task(input, target, *prepared)
            parts = {name: value.detach().float() for name, value in result.items() if name != 'output'}
            values = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))  # one sync a batch
            check_finite(run, values, epoch, batch_idx)
            accelerator.backward(result['loss'] / of_update)
        for name, value in values.items():
            meter = run.meters.setdefault(name, [0.0, 0])
            meter[0] += value * len(input)
            meter[1] += len(input)
        if need_update:
            update(run, epoch, batch_idx)
    distribute_batch_norm(run)
    sums = torch.tensor(list(run.meters.values()), dtype=torch.float64, device=accelerator.device)
    totals = accelerator.reduce(sums, reduction='sum')
    return OrderedDict(zip(run.meters, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))


def update(run: Run, epoch: int, batch_idx: int) -> None:
    """Clip, step, and what follows a step: EMA, schedule, recovery file."""
    args = run.args
    update_idx = batch_idx // args.grad_accum_steps
    num_updates = epoch * run.updates_per_epoch + update_idx + 1
    if args.clip_grad is not None:
        if run.accelerator.scaler is not None:  # there is none for fp16 on a CPU
            run.accelerator.unscale_gradients(run.optimizer)
        parameters = run.task.get_clip_parameters(exclude_head=args.clip_mode == 'agc')
        utils.dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.task.update_ema(step=num_updates)
    if args.synchronize_step and run.accelerator.device.type == 'cuda':
        torch.cuda.synchronize()
    total, count = run.meters['loss']
    run.scheduler.step_update(num_updates=num_updates, metric=total / count)
    if args.recovery_interval and (update_idx + 1) % args.recovery_interval == 0:
        remember_progress(run, batches=batch_idx + 1)
        if run.saver is not None:
            run.saver.save_recovery(epoch, batch_idx=batch_idx)


def own_buffers(run: Run) -> dict[str, torch.Tensor]:
    """Buffers of student and EMA: statistics of batch norm, of which every process has its own."""
    modules = {'': run.task.get_trainable_module(), 'ema.': run.task.get_trainable_module(ema=True)}
    return {
        prefix + name: buffer.cpu()
        for prefix, module in modules.items()
        if module is not None
        for name, buffer in utils.unwrap_model(module).named_buffers()
    }


def restore_buffers(run: Run, buffers: dict[str, torch.Tensor]) -> None:
    """Give student and EMA what ``own_buffers`` took."""
    modules = {'': run.task.get_trainable_module(), 'ema.': run.task.get_trainable_module(ema=True)}
    for prefix, module in modules.items():
        if module is not None:
            for name, buffer in utils.unwrap_model(module).named_buffers():
                buffer.copy_(buffers[prefix + name])


def remember_progress(run: Run, batches: int = 0) -> None:
    """What the next checkpoint holds for an exact resume beside model, EMA and optimizer; all processes take part."""
    progress = run.task_with_progress.progress
    progress.update(batches=batches, meters=gather_object([run.meters]) if batches else [])
    progress['buffers'] = gather_object([own_buffers(run)]) if run.accelerator.num_processes > 1 else []
    if run.accelerator.scaler is not None:
        progress['scaler'] = run.accelerator.scaler.state_dict()
    if run.args.sched == 'plateau':
        progress['plateau'] = run.scheduler.lr_scheduler.state_dict()


def distribute_batch_norm(run: Run) -> None:
    """Make the running statistics of all processes one, as timm does after every epoch."""
    args, world_size = run.args, run.accelerator.num_processes
    if world_size > 1 and args.dist_bn and not args.sync_bn:
        for ema in (False, True):
            module = run.task.get_trainable_module(ema=ema)
            if module is not None and not (ema and args.model_ema_force_cpu):
                utils.distribute_bn(module, world_size, args.dist_bn == 'reduce')


def save_images(run: Run, batch_idx: int, input: torch.Tensor) -> None:
    """The batch as a picture (``--save-images``), for debugging."""
    if run.args.save_images and run.saver is not None:
        path = run.output_dir / f'train-batch-{batch_idx}.jpg'
        torchvision.utils.save_image(input.float(), path, padding=0, normalize=True)


def eval_model(run: Run) -> nn.Module:
    """What is evaluated: the moving average, if there is one, else the student; without its distributed wrapper."""
    model: nn.Module = run.task.get_eval_model(ema=run.task.has_ema() and not run.args.model_ema_force_cpu)
    return model.module if isinstance(model, DistributedDataParallel) else model


def validate(run: Run) -> Metrics | None:
    """Metrics on the validation data, of the EMA if there is one."""
    if run.loader_eval is None:
        return None
    return evaluate(eval_model(run), run.loader_eval, run.accelerator)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any, accelerator: Accelerator) -> Metrics:
    """Top-1, top-5 and loss over all processes, each image counted once."""
    model.eval()
    dtype = next(model.parameters()).dtype
    # timm's sampler pads the last round, so that all processes have as many images; what is padded is not counted.
    remaining = len(range(accelerator.process_index, len(loader.dataset), accelerator.num_processes))
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for input, target in loader:
        input, target = input.to(accelerator.device, dtype), target.to(accelerator.device)
        count = len(target) if isinstance(loader.dataset, IterableDataset) else min(len(target), max(remaining, 0))
        remaining -= count
        output, target = model(input).float()[:count], target[:count]
        correct = output.topk(min(5, output.shape[1])).indices == target[:, None]
        loss = nn.functional.cross_entropy(output, target, reduction='sum')
        totals += torch.stack([torch.tensor(count).to(loss), correct[:, 0].sum(), correct.sum(), loss]).to(totals)
    count, top1, top5, loss = accelerator.reduce(totals, reduction='sum').tolist()
    return OrderedDict(loss=loss / count, top1=100 * top1 / count, top5=100 * top5 / count)


def check_classes(flag: str, dataset: Any, num_classes: int, class_names: Sequence[str] | None) -> None:
    """A data set that knows its classes must have the student's number of them, and those of the training data."""
    names = dataset_class_names(dataset)
    if names is None:
        return
    if len(names) != num_classes:
        raise ValueError(f'{flag}: data must have as many classes as --num-classes, {num_classes}, got {len(names)}')
    if class_names is not None and list(names) != list(class_names):
        other = sorted(set(names) ^ set(class_names))[:4]
        raise ValueError(f'{flag}: data must have the classes of the training data in their order; {other} differ')


def create_criterion(args: argparse.Namespace) -> nn.Module:
    """The task loss, as timm's train.py chooses it."""
    bce = {'target_threshold': args.bce_target_thresh, 'sum_classes': args.bce_sum, 'pos_weight': args.bce_pos_weight}
    if args.jsd_loss:
        criterion: nn.Module = JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    elif mixes(args):  # the mixed targets are smooth already
        criterion = BinaryCrossEntropy(**bce) if args.bce_loss else SoftTargetCrossEntropy()
    elif args.bce_loss:
        criterion = BinaryCrossEntropy(smoothing=args.smoothing, **bce)
    elif args.smoothing:
        criterion = LabelSmoothingCrossEntropy(smoothing=args.smoothing)
    else:
        criterion = nn.CrossEntropyLoss()
    return criterion


def scaled_learning_rate(args: argparse.Namespace, num_processes: int) -> float:
    """Learning rate from ``--lr-base`` and the global batch size, as timm's train.py scales it."""
    ratio = args.batch_size * num_processes * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
    scale = args.lr_base_scale or ('sqrt' if adaptive else 'linear')
    return float(args.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio))


def seed_all(seed: int, epoch: int, batch: int = 0, rank: int = 0, purpose: int = 0) -> None:
    """Seed torch, numpy and random by all that a draw may depend on."""
    state = np.random.SeedSequence([seed, epoch, batch, rank, purpose]).generate_state(1)
    utils.random_seed(int(state[0]))


def check_finite(run: Run, values: dict[str, float], epoch: int, batch_idx: int) -> None:
    """Stop all processes before a non-finite loss of one reaches the weights."""
    finite = math.isfinite(values['loss'])
    if run.accelerator.num_processes > 1:
        failed = torch.tensor(float(not finite), device=run.accelerator.device)
        if run.accelerator.reduce(failed, reduction='sum').item() and finite:
            sys.exit(2)  # another process says why
    if not finite:
        kept = find_newest(run.output_dir)
        raise NonFiniteLossError(
            f'the loss is not finite in epoch {epoch}, batch {batch_idx}, process {run.accelerator.process_index} '
            f'({", ".join(f"{name} {value:g}" for name, value in values.items())}); lower --lr or set --clip-grad, and '
            + (f'go on from {kept} with --resume auto' if kept else 'start again (there is no checkpoint yet)')
        )


def output_folder(args: argparse.Namespace) -> Path:
    """Where the run writes: ``--output``/``--experiment``, named as timm names them."""
    name: str = args.experiment
    if not name:
        cfg = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
        size = args.img_size or (args.input_size or (cfg.input_size if cfg else (224,)))[-1]
        name = f'{datetime.now().strftime("%Y%m%d-%H%M%S")}-{safe_model_name(args.model)}-{size}'
    return Path(args.output or './output/train') / name


@contextlib.contextmanager
def locked_output(output_dir: Path, accelerator: Accelerator, *, resume: bool, make: bool = True) -> Iterator[None]:
    """Hold the folder: a second run on the same folder is refused, as is one over an older run.

    Args:
        output_dir: The folder.
        accelerator: The main process holds it; all stop if it cannot.
        resume: An older run is welcome.
        make: Make the folder. ``False`` only asks, and leaves a folder that does not exist alone.
    """
    lock, refusal = FileLock(output_dir / '.lock'), ['']
    if accelerator.is_main_process and (make or output_dir.is_dir()):
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            if find_newest(output_dir) and not resume:
                lock.release()
                refusal = ['holds an older run; name another folder, or --resume auto']
        except Timeout:
            refusal = ['is in use by another run; name another folder']
        except OSError as error:
            refusal = [f'cannot be written: {error}']
    broadcast_object_list(refusal)  # no process waits for one that stopped
    if refusal[0]:
        raise ValueError(f'--output/--experiment: {output_dir} {refusal[0]}')
    try:
        yield
    finally:
        lock.release()


def start_output(run: Run) -> None:
    """Write the flags, cut the summary where a resumed run begins, and set up saver and trackers."""
    args, accelerator, output_dir = run.args, run.accelerator, run.output_dir
    if accelerator.log_with:
        values = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in vars(args).items()
        }
        wandb = {'name': output_dir.name, 'tags': args.wandb_tags}
        if args.wandb_resume_id:
            wandb.update(id=args.wandb_resume_id, resume='must')
        accelerator.init_trackers(args.wandb_project or 'timm-dad', values, {'wandb': wandb})
        blind = [tracker.name for tracker in accelerator.trackers if tracker.name not in PICTURE_TRACKERS]
        if args.dad_preview_interval and blind:
            _logger.warning('--dad-preview-interval: %s takes no pictures, see the output folder', ', '.join(blind))
    if not accelerator.is_main_process:
        return
    write_file(output_dir / 'args.yaml', yaml.safe_dump(vars(args), default_flow_style=False))
    for name in ('summary.csv', 'suites.csv'):
        cut_summary(output_dir / name, run.start_epoch)
    run.saver = create_saver(run)
    _logger.info('%s: %d epochs of %d updates, to %s', args.model, run.num_epochs, run.updates_per_epoch, output_dir)


def cut_summary(path: Path, start_epoch: int) -> None:
    """Drop the rows of epochs that will be trained again."""
    if path.exists():
        lines = path.read_bytes().decode().splitlines(keepends=True)
        rows = list(csv.DictReader(lines))
        kept = [line for line, row in zip(lines[1:], rows, strict=True) if int(row['epoch']) < start_epoch]
        write_file(path, ''.join([lines[0], *kept]))


def save_epoch(
    run: Run, epoch: int, train_metrics: Metrics, eval_metrics: Metrics | None, metric: float
) -> dict[str, float | None]:
    """One line on the terminal, one in ``summary.csv`` and the trackers, and a checkpoint."""
    values = {**train_metrics, **{f'val_{name}': value for name, value in (eval_metrics or {}).items()}}
    rates = [group['lr'] for group in run.optimizer.param_groups]
    run.accelerator.log({**values, 'lr': sum(rates) / len(rates)}, step=epoch)
    remember_progress(run)
    if run.saver is None:
        return {}
    _logger.info('Epoch %d: %s', epoch, '  '.join(f'{name} {value:.3f}' for name, value in values.items()))
    summary = run.output_dir / 'summary.csv'
    utils.update_summary(
        epoch,
        train_metrics,
        eval_metrics,
        filename=str(summary),
        lr=sum(rates) / len(rates),
        write_header=not summary.exists(),
    )
    best_metric, best_epoch = run.saver.save_checkpoint(epoch, metric=metric)
    remove_recovery(run.output_dir)
    return {'best_metric': best_metric, 'best_epoch': best_epoch}


def is_suite_epoch(run: Run, epoch: int) -> bool:
    """Whether the suites are due after this epoch; after the last one they come at the end."""
    interval = run.args.eval_suites_interval
    return bool(interval) and (epoch + 1) % interval == 0 and epoch + 1 < run.num_epochs


def on_suites(run: Run, *, at_end: bool) -> dict[str, dict[str, dict[str, Predictions]]]:
    """Student, at the end teacher too, on the suites of ``--eval-suites``, cut as validation images are."""
    args, config = run.args, run.data_config
    student = OnPixels(eval_model(run), config['mean'], config['std'], run.suite_size, config['interpolation'])
    models: dict[str, nn.Module] = {'student': student}
    if at_end and isinstance(run.task, DADTask) and run.task.teacher is not None:
        models['teacher'] = run.task.teacher
    device = run.accelerator.device
    return evaluate_on_suites(
        {label: model.to(device) for label, model in models.items()},
        run.suites,
        run.suite_index,
        Preprocess(
            input_size=config['input_size'][-2:], interpolation=config['interpolation'], crop_pct=config['crop_pct']
        ),
        EvalConfig(batch_size=args.validation_batch_size or args.batch_size, workers=args.workers),
        device,
        all_parts=at_end,
    )


def log_suites(run: Run, epoch: int, results: SuiteResults) -> None:
    """Figures on the suites into ``suites.csv``, the trackers and the log."""
    figures = {
        f'suites/{name}/{label}_{figure}': value
        for label, named in results.items()
        for name, values in named.items()
        for figure, value in zip(('top1', 'top5'), values, strict=True)
    }
    run.accelerator.log(figures, step=epoch)
    if run.accelerator.is_main_process:
        path = run.output_dir / 'suites.csv'
        write_file(path, add_rows(read_rows(path), epoch, results))
        student = '  '.join(f'{name} {values[0]:.1f}' for name, values in results['student'].items())
        _logger.info('Epoch %d: top-1 on suites: %s', epoch, student)


def evaluate_suites(run: Run) -> dict[str, dict[str, float]]:
    """Top-1 of student and teacher on every suite of ``--eval-suites``, at the end; and their report."""
    if not run.suites:
        return {}
    predictions = on_suites(run, at_end=True)
    found = accuracies(predictions)
    log_suites(run, max(0, run.num_epochs - 1), found)
    results = {label: {name: top1 for name, (top1, _) in named.items()} for label, named in found.items()}
    if run.accelerator.is_main_process:
        print(format_suites(results, seen=SEEN_STYLES if run.args.dad_teacher == 'demo' else ()))
        write_suite_report(predictions, run.suites, run.output_dir, run.suite_size)
        print(f'Report: {run.output_dir / "report.md"}')
    return results


def format_suites(results: dict[str, dict[str, float]], seen: Sequence[str] = ()) -> str:
    """Table of top-1 by data set, for student and teacher; ``seen`` are those that the teacher was trained on."""
    lines = [f'{"top-1":<34}' + ''.join(f'{label:>10}' for label in results)]
    for name in results['student']:
        mark = ' (seen by the teacher)' if name in seen and 'teacher' in results else ''
        lines.append(f'{name + mark:<34}' + ''.join(f'{top1[name]:>10.1f}' for top1 in results.values()))
    return '\n'.join(lines)


def write_preview(run: Run, epoch: int, name: str = 'preview.png') -> Image.Image:
    """Write the preview sheet of a few validation images, with the attack of an epoch and random starts of its own."""
    augment, path = run.augment, run.output_dir / name
    assert augment is not None
    assert isinstance(run.task, DADTask)
    run.task.set_epoch(epoch)
    images = [
        preview_image(augment, x_pix, label, title=title, seed=view_seed(run.args.seed, place, epoch))
        for place, (x_pix, label, title) in enumerate(run.preview_images)
    ]
    names = shown_names(run.class_names, augment.teacher.num_classes)
    sheet = make_sheet(images, names, f'epoch {epoch}; {describe_settings(augment)}')
    write_file(path, png_bytes(sheet))
    return sheet


def log_preview(run: Run, epoch: int) -> None:
    """The sheet of an epoch (``--dad-preview-interval``), in the folder and in the trackers that take pictures."""
    if not run.accelerator.is_main_process:
        return
    pixels = np.asarray(write_preview(run, epoch, f'preview-{epoch}.png'))
    for tracker in run.accelerator.trackers:
        if tracker.name in PICTURE_TRACKERS:
            tracker.log_images({'preview': pixels[None]}, step=epoch, **PICTURE_TRACKERS[tracker.name])


if __name__ == '__main__':
    main()
