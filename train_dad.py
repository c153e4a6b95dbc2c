#!/usr/bin/env python3
"""Train a timm model with Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441).

A script on Accelerate and timm's factories that reads downwards. Flags are those of timm's ``train.py`` plus the
group ``--dad ...``; without ``--dad`` it is plain timm training. Without data it trains the embedded demo.
"""

import argparse
import contextlib
import logging
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from timm import utils
from timm.data import Mixup, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from torch import nn
from tqdm import tqdm

from timm_dad.augment import DADAugment
from timm_dad.cache import DADPairs, make_dad_images
from timm_dad.dad_args import create_augment, create_task, create_teacher, create_vqgan, uses_cache, uses_two_views
from timm_dad.data import TwoViews, check_images, create_dataset, dataset_class_names, open_dataset
from timm_dad.frozen import prepare_frozen
from timm_dad.preview import save_preview
from timm_dad.task import DADTask
from timm_dad.train_args import parse_args

_logger = logging.getLogger('train_dad')

Metrics = OrderedDict[str, float]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train as the command line says.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.

    Returns:
        ``best_metric``, ``output_dir``, and top-1 by data set in ``student`` and ``teacher`` (with ``--eval-suites``).
    """
    setup_logging()
    args = parse_args(argv)
    precision = {'float16': 'fp16', 'bfloat16': 'bf16'}[args.amp_dtype] if args.amp else 'no'
    accelerator = Accelerator(mixed_precision=precision)
    accelerator.native_amp = args.amp  # Accelerate leaves fp16 out on a CPU without a word; torch's autocast can do it
    if not accelerator.is_main_process:
        _logger.setLevel(logging.WARNING)
    try:
        return train(args, accelerator)
    except (ValueError, ImportError, NonFiniteLossError) as error:
        if accelerator.is_main_process:
            sys.exit(f'train_dad.py: error: {error}')
        sys.exit(2)


@dataclass
class Run:
    """All that a training run holds."""

    args: argparse.Namespace
    accelerator: Accelerator
    data_config: dict[str, Any]
    loader_train: Any
    loader_eval: Any
    mixup_fn: Mixup | None
    task: TrainingTask
    optimizer: Any
    start_epoch: int = 0
    num_epochs: int = 0
    scheduler: Any = None
    saver: utils.CheckpointSaver | None = None

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        num_batches: int = len(self.loader_train)
        return math.ceil(num_batches / int(self.args.grad_accum_steps))


def train(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """Build everything, train, validate, save, report."""
    seed_all(args.seed, 0, accelerator.process_index)

    # Data first: whatever is wrong with it shows before anything large is built.
    dataset_train = create_dataset(args, args.train_split, is_training=True)
    dataset_eval = create_dataset(args, args.val_split, is_training=False)
    suites = {name: open_dataset(data, root, 'validation') for name, data, root in map(parse_suite, args.eval_suites)}
    check_images(dataset_train)
    check_images(dataset_eval)
    class_names = dataset_class_names(dataset_train)

    student = create_student(args)
    check_classes('--data-dir', dataset_train, args.num_classes)
    for name, data in suites.items():
        check_classes(f'--eval-suites {name}', data, args.num_classes)
    data_config = resolve_data_config(vars(args), model=student)
    task, augment = build_task(args, accelerator, student, data_config, class_names)
    if augment is not None and uses_cache(args):
        dataset_train = DADPairs(dataset_train, cached_dad_images(args, accelerator, augment, data_config))
    loader_train = create_train_loader(args, accelerator, dataset_train, data_config)
    loader_eval = create_eval_loader(args, accelerator, dataset_eval, data_config)
    args.lr = args.lr or scaled_learning_rate(args, accelerator.num_processes)
    optimizer = create_optimizer_v2(student, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    run = Run(args, accelerator, data_config, loader_train, loader_eval, create_mixup(args), task, optimizer)
    prepare(run)

    output_dir = output_folder(args, data_config)
    results: dict[str, Any] = {'output_dir': str(output_dir)}
    with locked_output(output_dir, resume=bool(args.resume), is_main_process=accelerator.is_main_process):
        start_output(run, output_dir)
        for epoch in range(run.start_epoch, run.num_epochs):
            train_metrics = train_one_epoch(run, epoch)
            metric = None
            if epoch + 1 == run.num_epochs or (epoch + 1) % args.val_interval == 0:
                eval_metrics = evaluate(task.get_eval_model(ema=task.has_ema()), loader_eval, accelerator)
                metric = eval_metrics[args.eval_metric]
                results.update(save_epoch(run, epoch, train_metrics, eval_metrics, output_dir))
            run.scheduler.step(epoch + 1, metric)
        results.update(evaluate_suites(run, suites))
        if accelerator.is_main_process:
            if suites:
                print(format_suites(results))
            if augment is not None:
                write_preview(output_dir / 'preview.png', augment, loader_eval, class_names)
                print(f'Preview: {output_dir / "preview.png"}')
    return results


def build_task(
    args: argparse.Namespace,
    accelerator: Accelerator,
    student: nn.Module,
    data_config: dict[str, Any],
    class_names: Sequence[str] | None,
) -> tuple[TrainingTask, DADAugment | None]:
    """Plain classification, or DAD with its frozen teacher and VQGAN; and what makes the DAD views."""
    device = accelerator.device
    student.to(device)
    if args.channels_last:
        student.to(memory_format=torch.channels_last)
    criterion = create_criterion(args).to(device)
    if not args.dad:
        return ClassificationTask(student, criterion, device=device, verbose=False), None
    teacher = create_teacher(args, args.num_classes, class_names)
    vqgan = create_vqgan(args, tuple(data_config['input_size'][-2:]))
    prepare_frozen(teacher, vqgan, args.dad_precision, device)
    mean, std = data_config['mean'], data_config['std']
    augment = create_augment(args, teacher, vqgan, mean, std)
    task = create_task(args, student, teacher, augment, criterion=criterion, mean=mean, std=std, device=device)
    return task, augment


def cached_dad_images(
    args: argparse.Namespace, accelerator: Accelerator, augment: DADAugment, data_config: dict[str, Any]
) -> torch.Tensor:
    """DAD views of every training image, made once; every process makes the same ones."""
    seed_all(args.seed, 0, 0)
    dataset = create_dataset(args, args.train_split, is_training=False)
    loader = create_eval_loader(args, accelerator, dataset, data_config, distributed=False)
    return make_dad_images(augment, loader, args.dad_cache, progress=accelerator.is_main_process)


def prepare(run: Run) -> None:
    """Resume, EMA, compilation, Accelerate and schedule, in the order of timm's train.py."""
    args, task = run.args, run.task
    if args.resume:
        optimizer = None if args.no_resume_opt else run.optimizer
        run.start_epoch = resume_task_checkpoint(task, args.resume, optimizer=optimizer, log_info=False) or 0
    if args.start_epoch is not None:
        run.start_epoch = args.start_epoch
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    task.trainable_module = run.accelerator.prepare_model(task.trainable_module)
    run.optimizer = run.accelerator.prepare_optimizer(run.optimizer)
    run.scheduler, run.num_epochs = create_scheduler_v2(
        run.optimizer,
        **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
        updates_per_epoch=run.updates_per_epoch,
    )
    if run.start_epoch and args.sched_on_updates:
        run.scheduler.step_update(run.start_epoch * run.updates_per_epoch)
    elif run.start_epoch:
        run.scheduler.step(run.start_epoch)


def train_one_epoch(run: Run, epoch: int) -> Metrics:
    """One pass over the training data; returns the mean of every loss part, over all processes."""
    args, accelerator, task, loader = run.args, run.accelerator, run.task, run.loader_train
    seed_all(args.seed, epoch + 1, accelerator.process_index)
    if hasattr(loader.sampler, 'set_epoch'):
        loader.sampler.set_epoch(epoch)
    if run.mixup_fn is not None and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        run.mixup_fn.mixup_enabled = False
    task.train()
    meters: dict[str, utils.AverageMeter] = {}
    num_updates = epoch * run.updates_per_epoch
    run.optimizer.zero_grad()
    progress = tqdm(loader, desc=f'Epoch {epoch}', disable=not accelerator.is_main_process, leave=False)
    for batch_idx, (input, target) in enumerate(progress):
        if run.mixup_fn is not None:
            input, target = run.mixup_fn(input, target)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        first_of_update = batch_idx - batch_idx % args.grad_accum_steps
        accum_steps = min(args.grad_accum_steps, len(loader) - first_of_update)
        need_update = batch_idx + 1 == first_of_update + accum_steps
        with contextlib.nullcontext() if need_update else task.no_sync():
            result = task(input, target)
            check_finite(result, epoch, batch_idx, num_updates)
            accelerator.backward(result['loss'] / accum_steps)
        for name, value in result.items():
            if name != 'output':
                meters.setdefault(name, utils.AverageMeter()).update(value.item(), len(result['output']))
        if need_update:
            num_updates += 1
            update(run, num_updates, meters['loss'].avg)
            if num_updates % args.log_interval == 0:
                progress.set_postfix({name: f'{meter.avg:.3f}' for name, meter in meters.items()})
    averages = torch.tensor([meter.avg for meter in meters.values()], device=accelerator.device)
    averages = accelerator.reduce(averages, reduction='mean')
    return OrderedDict(zip(meters, averages.tolist(), strict=True))


def update(run: Run, num_updates: int, loss: float) -> None:
    """Clip, step, and what follows a step: EMA and schedule."""
    if run.args.clip_grad is not None:
        run.accelerator.unscale_gradients(run.optimizer)
        parameters = run.task.get_clip_parameters(exclude_head=run.args.clip_mode == 'agc')
        utils.dispatch_clip_grad(parameters, value=run.args.clip_grad, mode=run.args.clip_mode)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.task.update_ema(step=num_updates)
    run.scheduler.step_update(num_updates=num_updates, metric=loss)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any, accelerator: Accelerator) -> Metrics:
    """Top-1, top-5 and loss over all processes, each image counted once."""
    model.eval()
    remaining = len(range(accelerator.process_index, len(loader.dataset), accelerator.num_processes))
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for input, target in loader:
        output, target = model(input).float()[:remaining], target[:remaining]
        remaining -= len(target)
        correct = output.topk(min(5, output.shape[1])).indices == target[:, None]
        loss = nn.functional.cross_entropy(output, target, reduction='sum')
        totals += torch.stack([torch.tensor(len(target)), correct[:, 0].sum(), correct.sum(), loss]).to(totals)
    count, top1, top5, loss = accelerator.reduce(totals, reduction='sum').tolist()
    return OrderedDict(loss=loss / count, top1=100 * top1 / count, top5=100 * top5 / count)


class PixelModel(nn.Module):
    """A task's teacher on the student's normalized tensors."""

    def __init__(self, task: DADTask) -> None:
        super().__init__()
        self.norm, self.teacher = task.norm, task.teacher

    def forward(self, x_norm: torch.Tensor) -> torch.Tensor:
        """Teacher's logits ``[B, K]`` of student-normalized images ``[B, 3, H, W]``."""
        logits: torch.Tensor = self.teacher(self.norm.to_pixels(x_norm))
        return logits


def check_classes(flag: str, dataset: Any, num_classes: int) -> None:
    """A data set that knows its classes must have as many as the student."""
    names = dataset_class_names(dataset)
    if names is not None and len(names) != num_classes:
        raise ValueError(f'{flag} must have as many classes as --num-classes, {num_classes}, got {len(names)}')


def create_student(args: argparse.Namespace) -> nn.Module:
    """Create the student; sets ``args.num_classes`` where the model chose."""
    for flag, path in (('--resume', args.resume), ('--initial-checkpoint', args.initial_checkpoint)):
        if path and not Path(path).is_file():
            raise ValueError(f'{flag} must be a checkpoint, got {path!r}, which does not exist')
    if not args.model.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(args.model.split('.')[0]):
        raise ValueError(f'--model must be a timm model, got {args.model!r} (timm.list_models() names them)')
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        checkpoint_path=args.initial_checkpoint,
        **args.model_kwargs,
    )
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    args.num_classes = model.num_classes
    student: nn.Module = model
    return student


def create_train_loader(args: argparse.Namespace, accelerator: Accelerator, dataset: Any, data_config: Any) -> Any:
    """Create timm's training loader; with two random views of every image where DAD asks for them."""
    interpolation = data_config['interpolation'] if args.no_aug else args.train_interpolation
    loader = create_loader(
        dataset,
        input_size=data_config['input_size'],
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        interpolation=interpolation,
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=args.workers,
        distributed=accelerator.num_processes > 1,
        pin_memory=args.pin_mem,
        device=accelerator.device,
        persistent_workers=False,  # workers start anew, seeded, in every epoch: a resumed run equals an undisturbed one
    )
    if not len(loader):
        raise ValueError(f'--batch-size must be at most the {len(dataset)} training images, got {args.batch_size}')
    if uses_two_views(args) and not uses_cache(args):
        dataset.transform = TwoViews(dataset.transform)
    return loader


def create_eval_loader(
    args: argparse.Namespace, accelerator: Accelerator, dataset: Any, data_config: Any, distributed: bool = True
) -> Any:
    """Create timm's evaluation loader."""
    return create_loader(
        dataset,
        input_size=data_config['input_size'],
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=args.workers,
        distributed=distributed and accelerator.num_processes > 1,
        pin_memory=args.pin_mem,
        device=accelerator.device,
        persistent_workers=False,
    )


def create_mixup(args: argparse.Namespace) -> Mixup | None:
    """Create timm's Mixup / CutMix; with two views both views of an image get the same partner and weight."""
    if not args.mixup and not args.cutmix:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
    )


def create_criterion(args: argparse.Namespace) -> nn.Module:
    """The task loss, as timm's train.py chooses it."""
    if args.mixup or args.cutmix:
        criterion: nn.Module = SoftTargetCrossEntropy()
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


def setup_logging() -> None:
    """Log in timm's format: this script and timm_dad from INFO on, libraries from WARNING on."""
    if not logging.getLogger().handlers:  # once, also where several runs share a process
        utils.setup_default_logging(default_level=logging.WARNING)
    for name in ('train_dad', 'timm_dad'):
        logging.getLogger(name).setLevel(logging.INFO)


def seed_all(seed: int, epoch: int, rank: int) -> None:
    """Seed torch, numpy and random for one epoch, so that an epoch does not depend on how it was reached."""
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(1)
    utils.random_seed(int(state[0]))


def check_finite(result: dict[str, torch.Tensor], epoch: int, batch_idx: int, num_updates: int) -> None:
    """Stop before a non-finite loss reaches the weights."""
    if not torch.isfinite(result['loss']):
        parts = ', '.join(f'{name} {value.item():g}' for name, value in result.items() if name != 'output')
        raise NonFiniteLossError(
            f'the loss is not finite in epoch {epoch}, batch {batch_idx}, after {num_updates} updates ({parts}); '
            'the checkpoints before it are kept: resume from last.pth.tar with a lower --lr or with --clip-grad'
        )


def output_folder(args: argparse.Namespace, data_config: dict[str, Any]) -> Path:
    """Where the run writes: ``--output``/``--experiment``, named as timm names them."""
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = args.experiment or f'{stamp}-{safe_model_name(args.model)}-{data_config["input_size"][-1]}'
    return Path(args.output or './output/train') / name


@contextlib.contextmanager
def locked_output(output_dir: Path, *, resume: bool, is_main_process: bool) -> Iterator[None]:
    """Make the folder and hold it: a second run on the same folder is refused, as is one over an older run."""
    if not is_main_process:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / '.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f'--output/--experiment: {output_dir} is in use by another run; name another folder') from None
    with lock:
        if (output_dir / 'args.yaml').exists() and not resume:
            raise ValueError(
                f'--output/--experiment: {output_dir} holds an older run; name another folder, or --resume it'
            )
        yield


def parse_suite(suite: str) -> tuple[str, str, str | None]:
    """``NAME=DIR`` or ``demo/STYLE`` to (name, data set, root)."""
    if suite.startswith('demo/'):
        return suite.removeprefix('demo/'), suite, None
    name, separator, root = suite.partition('=')
    if not separator or not root:
        raise ValueError(f'--eval-suites takes NAME=DIR or demo/STYLE, got {suite!r}')
    return name, '', root


def start_output(run: Run, output_dir: Path) -> None:
    """Write the flags and set up the saver, on the main process."""
    if not run.accelerator.is_main_process:
        return
    args = run.args
    (output_dir / 'args.yaml').write_text(yaml.safe_dump(vars(args), default_flow_style=False))
    run.saver = utils.CheckpointSaver(
        model=run.task.trainable_module,
        optimizer=run.optimizer,
        args=args,
        task=run.task,
        checkpoint_dir=str(output_dir),
        recovery_dir=str(output_dir),
        decreasing=args.eval_metric == 'loss',
        max_history=args.checkpoint_hist,
    )
    if args.resume and hasattr(run.saver, 'load_state_dict_from_checkpoint'):  # not in timm 1.0.28
        run.saver.load_state_dict_from_checkpoint(args.resume)
    _logger.info('%s: %d epochs of %d updates, to %s', args.model, run.num_epochs, run.updates_per_epoch, output_dir)


def save_epoch(
    run: Run, epoch: int, train_metrics: Metrics, eval_metrics: Metrics, output_dir: Path
) -> dict[str, float | None]:
    """One line on the terminal, one in ``summary.csv``, and a checkpoint, on the main process."""
    if run.saver is None:
        return {}
    values = {**train_metrics, **{f'val_{name}': value for name, value in eval_metrics.items()}}
    _logger.info('Epoch %d: %s', epoch, '  '.join(f'{name} {value:.3f}' for name, value in values.items()))
    rates = [group['lr'] for group in run.optimizer.param_groups]
    summary = output_dir / 'summary.csv'
    utils.update_summary(
        epoch,
        train_metrics,
        eval_metrics,
        filename=str(summary),
        lr=sum(rates) / len(rates),
        write_header=not summary.exists(),
    )
    best_metric, best_epoch = run.saver.save_checkpoint(epoch, metric=eval_metrics[run.args.eval_metric])
    return {'best_metric': best_metric, 'best_epoch': best_epoch}


def evaluate_suites(run: Run, suites: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Top-1 of student and teacher on every data set of ``--eval-suites``."""
    if not suites:
        return {}
    models = {'student': run.task.get_eval_model(ema=run.task.has_ema())}
    if isinstance(run.task, DADTask):
        models['teacher'] = PixelModel(run.task).to(run.accelerator.device)
    loaders = {
        name: create_eval_loader(run.args, run.accelerator, data, run.data_config) for name, data in suites.items()
    }
    return {
        label: {name: evaluate(model, loader, run.accelerator)['top1'] for name, loader in loaders.items()}
        for label, model in models.items()
    }


def format_suites(results: dict[str, Any]) -> str:
    """Table of top-1 by data set, for student and teacher."""
    columns = [label for label in ('student', 'teacher') if label in results]
    lines = [f'{"top-1":<16}' + ''.join(f'{label:>10}' for label in columns)]
    for name in results['student']:
        lines.append(f'{name:<16}' + ''.join(f'{results[label][name]:>10.1f}' for label in columns))
    return '\n'.join(lines)


def write_preview(
    path: Path, augment: DADAugment, loader: Any, class_names: Sequence[str] | None, count: int = 6
) -> None:
    """The preview sheet of a few validation images, spread over the first batch."""
    input, target = next(iter(loader))
    chosen = torch.linspace(0, len(input) - 1, min(count, len(input))).long()
    save_preview(path, augment, augment.norm.to_pixels(input[chosen]), target[chosen], class_names)


if __name__ == '__main__':
    main()
