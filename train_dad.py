#!/usr/bin/env python3
"""Train a timm model with Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441).

A recipe on Accelerate and timm's factories, to be read from top to bottom. Flags are those of timm's ``train.py`` plus
the group ``--dad ...``; without ``--dad`` it is plain timm training. Without data it trains the embedded demo.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from timm import utils
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.task import TrainingTask
from torch import nn

from timm_dad.common.errors import run_command, user_errors
from timm_dad.common.log import setup_logging
from timm_dad.common.progress import progress, tell
from timm_dad.common.seeds import RUN, seed_all
from timm_dad.data.pairs import ExtraViews
from timm_dad.flags import kwargs
from timm_dad.flags.dad import build_task
from timm_dad.flags.data import check_training_data, open_training_data
from timm_dad.flags.header import log_student, log_training
from timm_dad.flags.losses import create_criterion
from timm_dad.flags.objective import create_kd_task, create_plain_task
from timm_dad.flags.pairs import cached_set, open_dad_set, pair_dataset, uses_cache, uses_pairs
from timm_dad.flags.rules import flag_errors, under_flag
from timm_dad.flags.student import create_student, place_student, prepare_task
from timm_dad.flags.train import PROGRAM, create_parser, init_trackers, learning_rate, parse_args, run_path
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.training.announce import epoch_notes, log_best
from timm_dad.training.batches import Batches, save_batch
from timm_dad.training.checkpoint import Checkpoints
from timm_dad.training.loaders import create_eval_loader, create_train_loader
from timm_dad.training.meters import Meters, Metrics
from timm_dad.training.preview import PreviewHook
from timm_dad.training.resume import TrainState, find_newest, open_checkpoint, resume_training
from timm_dad.training.run_folder import RunFolder, take_over_flags
from timm_dad.training.schedule import create_schedule, fast_forward, is_due, step_schedule
from timm_dad.training.setup import create_accelerator
from timm_dad.training.suites import StudentSuites, open_eval_suites
from timm_dad.training.suites_hook import SuitesHook, format_results
from timm_dad.training.validate import distribute_batch_norm, validate_task


def create_task(
    args: argparse.Namespace, student: nn.Module, device: torch.device, **dad: Any
) -> tuple[TrainingTask, DADAugment | None]:
    """Create plain classification, timm's distillation, or DAD, and the object that makes DAD views, if any."""
    criterion = create_criterion(args).to(device)
    if args.dad:
        return build_task(args, student, criterion=criterion, device=device, **dad)
    if args.kd_model_name:
        return create_kd_task(args, student, criterion, device), None
    return create_plain_task(args, student, criterion, device), None


def main(
    argv: Sequence[str] | None = None,
    *,
    program: str = PROGRAM,
    extra_views: ExtraViews | None = None,
    create_task: Callable[..., tuple[TrainingTask, DADAugment | None]] = create_task,
    hooks: Sequence[Callable[[int], None]] = (),
) -> dict[str, Any]:
    """Train as specified by the command line.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.
        program: Start of error lines.
        extra_views: Returns the extra view of each image, with ``--dad-view random``; the image itself by default.
        create_task: Creates the task, like ``create_task`` of this module.
        hooks: Called with each epoch, from 0, after it is trained and before it is saved.

    Returns:
        ``best_metric``, ``output_dir``, and top-1 by data set in ``student`` and ``teacher`` (with ``--eval-suites``).
    """
    setup_logging()
    args = parse_args(argv, create_parser=partial(create_parser, program))
    with user_errors(program), contextlib.ExitStack() as stack:
        path = run_path(args)
        accelerator = create_accelerator(path, **kwargs.accelerator_kwargs(args))
        world_size = accelerator.num_processes
        seed_all(args.seed, RUN, 0, accelerator.process_index, 0)
        folder = stack.enter_context(RunFolder(path, accelerator, find_newest, resume=bool(args.resume)))
        path, resumed = folder.path, open_checkpoint(folder.resolve(args.resume))
        take_over_flags(args, resumed.flags if resumed else {})

        # Data before models: whatever is wrong with it shows before anything large is built.
        data = open_training_data(args)
        suites = open_eval_suites(args.eval_suites)
        student = create_student(args)
        args.num_classes = student.num_classes
        check_training_data(data, args.num_classes)
        config = resolve_data_config(vars(args), model=student)
        dad_set = open_dad_set(args, tuple(config['input_size'][-2:]))
        log_student(args, data, student, tuple(config['input_size'][-2:]))
        student = place_student(args, student, accelerator)
        student_suites = StudentSuites(suites, student, config, args.num_classes, data.class_names)
        task, augment = create_task(
            args, student, accelerator.device, data_config=config, class_names=data.class_names,
            dataset=data.train, dad_set=dad_set,
        )  # fmt: skip
        if augment is not None and uses_cache(args):
            dad_set = stack.enter_context(cached_set(args, augment, data.train, config, accelerator))
        dataset = data.train
        if uses_pairs(args) or extra_views is not None:
            dataset = pair_dataset(args, dataset, config, dad_set=dad_set, extra_views=extra_views)
        with flag_errors('augmentation and loader flags (--aa, --mixup, --workers, ...)'):
            loader = create_train_loader(dataset, accelerator, **kwargs.train_loader_kwargs(args, config))
            batches = Batches(loader, accelerator, **kwargs.batches_kwargs(args))
            loader_val = create_eval_loader(data.val, accelerator, **kwargs.eval_loader_kwargs(args, config))

        args.lr = learning_rate(args, world_size)
        with flag_errors('--opt, --opt-kwargs'):
            model = task.get_trainable_module()
            optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
        state = TrainState(Meters(accelerator))
        with flag_errors('--resume'):
            resume_training(task, optimizer, state, resumed, **kwargs.resume_kwargs(args, world_size))
        optimizer = prepare_task(args, task, optimizer, accelerator, resumed.path if resumed else '')
        metric_name = args.eval_metric if loader_val is not None else 'loss'
        updates_per_epoch = math.ceil(len(batches) / args.grad_accum_steps)
        schedule = kwargs.schedule_kwargs(args, metric_name, updates_per_epoch)
        scheduler, num_epochs = create_schedule(optimizer, **schedule)
        fast_forward(scheduler, state, resumed, updates_per_epoch, args.grad_accum_steps)
        saving = kwargs.checkpoint_kwargs(args, metric_name, world_size, len(batches))
        checkpoints = Checkpoints(task, optimizer, scheduler, accelerator, path, args, **saving)
        checkpoints.restore(resumed, state)

        folder.start(vars(args), state.epoch)
        stack.enter_context(folder.advising_where_to_go_on())
        init_trackers(args, accelerator, path.name)
        own_hooks: list[SuitesHook | PreviewHook] = []
        run = (task, accelerator, path, num_epochs)
        if suites:
            own_hooks.append(SuitesHook(student_suites, *run, **kwargs.suites_kwargs(args)))
        if augment is not None and loader_val is not None:
            showing = {'seed': args.seed, 'interval': args.dad_preview_interval, 'class_names': data.class_names}
            own_hooks.append(PreviewHook(augment, loader_val, *run, **showing))
        log_training(args, accelerator, state.epoch, num_epochs, updates_per_epoch, path)

        results: dict[str, Any] = {'output_dir': str(path)}
        use_ema, hidden = not args.model_ema_force_cpu, ('top5',) if args.num_classes < 6 else ()
        for epoch in range(state.epoch, num_epochs):
            train_metrics = train_one_epoch(epoch, task, batches, optimizer, scheduler, checkpoints, state, args)
            distribute_batch_norm(task, world_size, '' if args.sync_bn else args.dist_bn, ema=use_ema)
            for hook in (*own_hooks, *hooks):
                hook(epoch)
            metric = None
            if is_due(epoch, args.val_interval, num_epochs, args.save_epochs):
                with under_flag('--val-split:'):
                    val_metrics, plain = validate_task(task, loader_val, accelerator, use_ema=use_ema)
                metric = (val_metrics or train_metrics)[metric_name]
                notes = epoch_notes(batches, checkpoints, epoch, metric, metric_name)
                folder.log_epoch(epoch, train_metrics, val_metrics, optimizer, plain=plain, notes=notes, hidden=hidden)
                results.update(checkpoints.save_epoch(epoch, metric))
            step_schedule(scheduler, epoch + 1, metric)
        for hook in own_hooks:
            results.update(hook.at_end())
        accelerator.end_training()
        if own_hooks:
            accelerator.print(format_results(results))
        log_best(args, path, results, metric_name)
        return results


def train_one_epoch(
    epoch: int,
    task: TrainingTask,
    batches: Batches,
    optimizer: Any,
    scheduler: Any,
    checkpoints: Checkpoints,
    state: TrainState,
    args: argparse.Namespace,
) -> Metrics:
    """Train for one pass over the data, from ``state.batch`` on; return the means of all parts of the loss."""
    accelerator, meters = checkpoints.accelerator, state.meters
    if isinstance(task, DADTask):
        task.set_epoch(epoch, state.batch)
    task.train()
    optimizer.zero_grad()
    second_order = getattr(getattr(optimizer, 'optimizer', optimizer), 'is_second_order', False)
    num_batches, updates_per_epoch = len(batches), math.ceil(len(batches) / args.grad_accum_steps)
    shown = {'desc': f'Epoch {epoch}', 'total': num_batches, 'initial': state.batch, 'leave': False}
    bar = progress(batches.of_epoch(epoch, state.batch), show=accelerator.is_main_process, **shown)
    for batch_idx, input, target in bar:
        first_of_update = batch_idx - batch_idx % args.grad_accum_steps
        of_update = min(args.grad_accum_steps, num_batches - first_of_update)
        need_update = batch_idx + 1 == first_of_update + of_update
        with contextlib.nullcontext() if need_update else task.no_sync():
            result = task(input, target)
            accelerator.backward(result['loss'] / of_update, create_graph=second_order)
        meters.add(result, len(input), f'epoch {epoch}, batch {batch_idx}')
        if not need_update:
            continue
        meters.read()  # once an update, and before a loss that is not finite reaches the weights
        num_updates = epoch * updates_per_epoch + batch_idx // args.grad_accum_steps + 1
        update(task, optimizer, scheduler, accelerator, num_updates, meters.means['loss'], args)
        checkpoints.save_recovery(epoch, batch_idx, meters)
        if (batch_idx + 1) % (args.log_interval * args.grad_accum_steps) == 0:
            tell(bar, f'epoch {epoch}, batch {batch_idx + 1} of {num_batches}', meters.means)
            if args.save_images and accelerator.is_main_process:
                save_batch(input, checkpoints.folder / f'train-batch-{batch_idx}.jpg')
    meters.read()
    metrics = meters.reduce()
    meters.reset()
    state.epoch, state.batch = epoch + 1, 0
    return metrics


def update(
    task: TrainingTask,
    optimizer: Any,
    scheduler: Any,
    accelerator: Accelerator,
    num_updates: int,
    loss: float,
    args: argparse.Namespace,
) -> None:
    """Clip, step, and update moving average and schedule."""
    if args.clip_grad is not None:
        if accelerator.scaler is not None:  # there is none for fp16 on a CPU
            accelerator.unscale_gradients(optimizer)
        parameters = task.get_clip_parameters(exclude_head=args.clip_mode == 'agc')
        utils.dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
    optimizer.step()
    optimizer.zero_grad()
    task.update_ema(step=num_updates)
    if args.synchronize_step and accelerator.device.type == 'cuda':
        torch.cuda.synchronize()
    scheduler.step_update(num_updates=num_updates, metric=loss)


if __name__ == '__main__':
    run_command(partial(main, program='train_dad.py'), ['python', *sys.argv])
