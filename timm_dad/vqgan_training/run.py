"""A run of ``timm-dad vqgan``: epochs, metrics, files, and an exact resume."""

import argparse
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils import random_seed, update_summary
from tqdm import tqdm

from timm_dad.common.files import replacing, write_file
from timm_dad.training.loaders import set_epoch
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.args import FIXED
from timm_dad.vqgan_training.optimize import Trainer

_logger = logging.getLogger(__name__)

STATE = 'resume.pt'
_LOG_INTERVAL = 50
# What a resumed run may have otherwise: where it runs and how often it saves. All else shapes the result.
_FREE = ('resume', 'output', 'workers', 'device', 'recovery_interval', 'data_dir', 'init', 'vqgan')


class NonFiniteVQGANLossError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass
class VQGANRun:
    """All that a training run holds."""

    args: argparse.Namespace
    accelerator: Accelerator
    output_dir: Path
    trainer: Trainer
    loader_train: Any
    loader_eval: Any
    epoch: int = 0
    start_batch: int = 0
    best: float = math.inf
    meters: dict[str, list[float]] = field(default_factory=dict)  # sum and number of images, of this process

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.trainer.config.steps


def seed_all(seed: int, epoch: int, batch: int = 0, rank: int = 0) -> None:
    """Seed torch, numpy and random by all that a draw may depend on."""
    random_seed(int(np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1)[0]))


def _settings(run: VQGANRun) -> dict[str, Any]:
    """What a resumed run must have in common with the one before: flags, length, processes."""
    flags = {name: value for name, value in vars(run.args).items() if name not in (*_FREE, *FIXED)}
    length = {'steps': run.steps, 'epochs': None, 'processes': run.accelerator.num_processes}
    return {**flags, **length, **run.trainer.facts()}


def start(run: VQGANRun) -> None:
    """Resume, or begin the folder."""
    import train_dad

    found = [(run.output_dir / STATE).is_file()]
    broadcast_object_list(found)
    if run.args.resume and found[0]:
        _resume(run, _read_state(run.output_dir / STATE))
    elif run.args.resume:
        _logger.info('--resume auto: no run in %s, starting', run.output_dir)
    if run.accelerator.is_main_process:
        text = yaml.safe_dump({name: value for name, value in vars(run.args).items() if name not in FIXED})
        write_file(run.output_dir / 'args.yaml', text)
        train_dad.cut_summary(run.output_dir / 'summary.csv', run.epoch)
    parameters = sum(parameter.numel() for parameter in run.trainer.vqgan.parameters())
    config = run.trainer.vqgan.config
    _logger.info(
        'VQGAN: factor %d, %d codes of %d channels, %.1f M parameters; %d px, steps %d to %d, %s; to %s',
        *(config.factor, config.n_embed, config.embed_dim, parameters / 1e6, run.args.img_size),
        *(run.trainer.steps_done, run.steps, 'L1 + LPIPS' if run.args.perceptual == 'lpips' else 'L1 + L2'),
        run.output_dir,
    )


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises what it likes on a broken file
        raise ValueError(f'--resume auto: {path} cannot be read: {error}') from error
    return state


def _resume(run: VQGANRun, state: dict[str, Any]) -> None:
    now, before = _settings(run), state['settings']
    for name, value in now.items():
        if before.get(name) != value:
            flag = f'--{name.replace("_", "-")}'
            raise ValueError(
                f'{flag} must be what the run in --output has, {before.get(name)}, got {value}; name another folder'
            )
    run.trainer.load_state_dict(state['trainer'])
    run.epoch, run.start_batch, run.best = state['epoch'], state['batch'], state['best']
    if run.accelerator.is_main_process:  # sums over all processes: one of them has them
        run.meters = state['meters']


def train(run: VQGANRun) -> dict[str, float]:
    """Train, validate, save."""
    metrics: dict[str, float] = {}
    if run.trainer.steps_done >= run.steps:
        _logger.info('%s is trained: all %d steps are done', run.output_dir, run.steps)
        metrics = run.trainer.evaluate(run.loader_eval)
        summarize(run, metrics)
        return metrics
    while run.trainer.steps_done < run.steps:
        train_metrics = train_one_epoch(run)
        metrics = run.trainer.evaluate(run.loader_eval)
        save_epoch(run, train_metrics, metrics)
    run.accelerator.end_training()
    summarize(run, metrics)
    return metrics


def summarize(run: VQGANRun, metrics: dict[str, float]) -> None:
    """Say what was made, if the trainer has something to say."""
    text = run.trainer.summary(metrics, run.args.img_size)
    if text and run.accelerator.is_main_process:
        _logger.info('%s: %s', run.output_dir / 'last.safetensors', text)


def train_one_epoch(run: VQGANRun) -> dict[str, float]:
    """One pass over the training pictures, or what is left of it; returns the mean of loss and parts."""
    args, trainer, accelerator = run.args, run.trainer, run.accelerator
    set_epoch(run.loader_train, run.epoch)
    iterator = iter(run.loader_train)
    total = len(run.loader_train)
    with tqdm(total=total, desc=f'Epoch {run.epoch}', disable=not accelerator.is_main_process, leave=False) as progress:
        for batch_idx in range(total):
            # Every batch is drawn and trained on under a seed of its own; those before the position are drawn alone.
            seed_all(args.seed, run.epoch + 1, batch_idx, accelerator.process_index)
            x_pix, _ = next(iterator)
            progress.update()
            if batch_idx < run.start_batch:
                continue
            _add_to_meters(run, trainer.step(x_pix.to(accelerator.device)), len(x_pix))
            done = trainer.steps_done
            if done % _LOG_INTERVAL == 0 or done == run.steps:
                progress.set_postfix(trainer.progress(_means(run)))
            if args.recovery_interval and done % args.recovery_interval == 0 and batch_idx + 1 < total:
                save_state(run, batch=batch_idx + 1)
            if done == run.steps:
                break
    means = _means(run)
    run.meters, run.start_batch = {}, 0
    run.epoch += 1
    return means


def _add_to_meters(run: VQGANRun, parts: dict[str, torch.Tensor], count: int) -> None:
    for name, value in zip(parts, torch.stack(list(parts.values())).tolist(), strict=True):  # one sync a step
        meter = run.meters.setdefault(name, [0.0, 0])
        meter[0] += value * count
        meter[1] += count


def _reduced_meters(run: VQGANRun) -> dict[str, list[float]]:
    names = run.trainer.parts
    sums = torch.tensor(
        [run.meters.get(name, [0.0, 0]) for name in names], dtype=torch.float64, device=run.accelerator.device
    )
    return dict(zip(names, run.accelerator.reduce(sums, reduction='sum').tolist(), strict=True))


def _means(run: VQGANRun) -> dict[str, float]:
    """Means of this epoch over all processes.

    Raises:
        NonFiniteVQGANLossError: If one is not finite; the last checkpoint is from before.
    """
    means = {name: total / max(count, 1) for name, (total, count) in _reduced_meters(run).items()}
    if not math.isfinite(means['loss']):
        raise NonFiniteVQGANLossError(
            f'the loss is not finite by step {run.trainer.steps_done} '
            f'({", ".join(f"{name} {value:g}" for name, value in means.items())}); lower --lr'
        )
    return means


def save_epoch(run: VQGANRun, train_metrics: dict[str, float], metrics: dict[str, float]) -> None:
    """One line on the terminal and in ``summary.csv``, ``last`` and ``best``, and what a resume needs."""
    error = run.trainer.error(metrics)
    best = error < run.best
    run.best = min(run.best, error)
    if run.accelerator.is_main_process:
        values = {**train_metrics, **{f'val_{name}': value for name, value in metrics.items()}}
        line = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
        _logger.info('Epoch %d, step %d: %s', run.epoch - 1, run.trainer.steps_done, line)
        summary = run.output_dir / 'summary.csv'
        update_summary(
            run.epoch - 1,
            {'step': run.trainer.steps_done, **train_metrics},
            metrics,
            filename=str(summary),
            lr=run.trainer.schedule.get_last_lr()[0],
            write_header=not summary.exists(),
        )
        for name in ('last', *(['best'] if best else [])):
            save_vqgan(run.trainer.vqgan, run.output_dir / f'{name}.safetensors')
    save_state(run)


def save_state(run: VQGANRun, batch: int = 0) -> None:
    """Write what an exact resume needs, as one file that is whole or not there; every process takes part."""
    state = {
        'trainer': run.trainer.state_dict(),
        'settings': _settings(run),
        'epoch': run.epoch,
        'batch': batch,
        'best': run.best,
        'meters': _reduced_meters(run) if batch else {},
    }
    if run.accelerator.is_main_process:
        with replacing(run.output_dir / STATE) as temporary, temporary.open('wb') as file:
            torch.save(state, file)
