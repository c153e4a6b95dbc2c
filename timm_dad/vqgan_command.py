"""The command ``timm-dad vqgan train``: a VQGAN of taming's modules for one's own pictures, for ``--dad-vqgan``."""

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from timm.data import create_loader
from timm.utils import random_seed, update_summary
from torch.utils.data import IterableDataset, Subset
from tqdm import tqdm

from timm_dad.data import check_images, create_dataset
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.discretize import VQGAN
from timm_dad.errors import errors_in_one_line
from timm_dad.files import write_file
from timm_dad.loaders import set_epoch
from timm_dad.log import setup_logging
from timm_dad.vqgan_args import FIXED, PROGRAM, check_image_size, create_config, parse_args, train_config
from timm_dad.vqgan_files import load_vqgan
from timm_dad.vqgan_train import (
    VQGANTrainer,
    create_lpips,
    evaluate_vqgan,
    missing_for_lpips,
    save_vqgan,
)

_logger = logging.getLogger(__name__)

STATE = 'resume.pt'
_LOG_INTERVAL = 50
# What a resumed run may have otherwise: where it runs and how often it saves. All else shapes the result.
_FREE = ('resume', 'output', 'workers', 'device', 'recovery_interval', 'data_dir', 'init')


class NonFiniteVQGANLossError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass
class VQGANRun:
    """All that a training run holds."""

    args: argparse.Namespace
    accelerator: Accelerator
    output_dir: Path
    trainer: VQGANTrainer
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


def main(argv: Sequence[str]) -> dict[str, float]:
    """Run ``timm-dad vqgan``.

    Args:
        argv: Command line from ``train`` on.

    Returns:
        ``l1``, ``psnr``, ``usage`` and ``perplexity`` of the trained VQGAN on the validation split.
    """
    parser = argparse.ArgumentParser(
        prog='timm-dad vqgan', description='train: train or fine-tune a VQGAN; train --help tells more'
    )
    parser.add_argument('command', choices=('train',), help='what to do')
    parser.parse_args(argv[:1])
    return train_command(argv[1:])


def train_command(argv: Sequence[str]) -> dict[str, float]:
    """Train as the command line says, without ``train``."""
    import train_dad

    args = parse_args(argv)
    setup_logging()
    output_dir = Path(args.output or f'output/vqgan/{datetime.now().strftime("%Y%m%d-%H%M%S")}')
    with contextlib.ExitStack() as stack:
        with errors_in_one_line(PROGRAM):
            accelerator = train_dad.create_accelerator(args, output_dir)
            _refuse_older_run(args, output_dir, accelerator)
            run = build(args, accelerator, output_dir)
            stack.enter_context(_locked(output_dir, accelerator))
            _refuse_older_run(args, output_dir, accelerator)
            _start(run)
        try:
            return train(run)
        except NonFiniteVQGANLossError as error:
            sys.exit(f'{PROGRAM}: error: {error}')


def _refuse_older_run(args: argparse.Namespace, output_dir: Path, accelerator: Accelerator) -> None:
    found = [accelerator.is_main_process and any((output_dir / name).exists() for name in (STATE, 'summary.csv'))]
    broadcast_object_list(found)
    if found[0] and not args.resume:
        raise ValueError(f'--output: {output_dir} holds an older run; name another folder, or --resume auto')


@contextlib.contextmanager
def _locked(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder, so that no second run writes into it."""
    lock, refusal = FileLock(output_dir / '.lock'), ['']
    if accelerator.is_main_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            refusal = ['is in use by another run; name another folder']
        except OSError as error:
            refusal = [f'cannot be written: {error}']
    broadcast_object_list(refusal)
    if refusal[0]:
        raise ValueError(f'--output: {output_dir} {refusal[0]}')
    try:
        yield
    finally:
        lock.release()


def create_vqgan(args: argparse.Namespace) -> VQGAN:
    """A new VQGAN, or the one of ``--init``; sets ``args.img_size`` where it is not given.

    Raises:
        ValueError: If ``--init`` cannot be loaded or trained, or the image size does not fit.
    """
    if not args.init:
        return VQGAN(create_config(args))
    try:
        vqgan = load_vqgan(DEMO_VQGAN if args.init == 'demo' else args.init)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f'--init: {error}') from error
    if vqgan.config.quantizer != 'nearest':
        raise ValueError(f'--init must be a VQGAN of nearest codes (VQModel), got a Gumbel one: {args.init}')
    args.img_size = args.img_size or int(vqgan.config.ddconfig['resolution'])
    check_image_size(args.img_size, vqgan.config.factor)
    return vqgan


def build(args: argparse.Namespace, accelerator: Accelerator, output_dir: Path) -> VQGANRun:
    """Check the flags against data and VQGAN, and build all that training needs."""
    seed_all(args.seed, 0)
    dataset_train = create_dataset(args, args.train_split, is_training=True)
    dataset_eval = create_dataset(args, args.val_split, is_training=False)
    for flag, dataset in (('--train-split', dataset_train), ('--val-split', dataset_eval)):
        if isinstance(dataset, IterableDataset):
            raise ValueError(f'{flag} needs data with an index, not a stream, got --dataset {args.dataset}')
        check_images(dataset, flag)
    vqgan = create_vqgan(args)
    loader_train = _train_loader(args, accelerator, dataset_train)
    loader_eval = _eval_loader(args, accelerator, dataset_eval)
    steps = args.steps or (args.epochs or 30) * len(loader_train)
    perceptual = None
    if _uses_lpips(args):
        with accelerator.main_process_first():
            perceptual = create_lpips(accelerator.device)
    trainer = VQGANTrainer(vqgan, accelerator, train_config(args, steps), perceptual)
    return VQGANRun(args, accelerator, output_dir, trainer, loader_train, loader_eval)


def _uses_lpips(args: argparse.Namespace) -> bool:
    """Resolve ``--perceptual auto``, and say which loss it is."""
    if args.perceptual == 'auto':
        missing = missing_for_lpips()
        args.perceptual = 'none' if missing else 'lpips'
        if missing:
            _logger.info('The loss is L1 + L2, without LPIPS: %s', missing)
    return bool(args.perceptual == 'lpips')


def _loader(args: argparse.Namespace, dataset: Any, *, is_training: bool) -> Any:
    """Loader of timm's, of pictures in [0, 1]."""
    return create_loader(
        dataset,
        input_size=(3, args.img_size, args.img_size),
        batch_size=args.batch_size,
        is_training=is_training,
        no_aug=args.no_aug,
        scale=args.scale,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=0.0,
        interpolation='bicubic',
        crop_pct=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=args.workers,
        persistent_workers=False,
        use_prefetcher=False,
        pin_memory=args.device.startswith('cuda'),
    )


def _train_loader(args: argparse.Namespace, accelerator: Accelerator, dataset: Any) -> Any:
    loader = accelerator.prepare_data_loader(_loader(args, dataset, is_training=True), device_placement=False)
    if not len(loader):
        images = len(dataset) // accelerator.num_processes
        raise ValueError(f'--batch-size must be at most the {images} training images, got {args.batch_size}')
    return loader


def _eval_loader(args: argparse.Namespace, accelerator: Accelerator, dataset: Any) -> Any:
    """Every process has pictures of its own, none twice."""
    loader = _loader(args, dataset, is_training=False)  # sets the transform
    own = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    return torch.utils.data.DataLoader(own, args.batch_size, num_workers=args.workers, collate_fn=loader.collate_fn)


def seed_all(seed: int, epoch: int, batch: int = 0, rank: int = 0) -> None:
    """Seed torch, numpy and random by all that a draw may depend on."""
    random_seed(int(np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1)[0]))


def _settings(run: VQGANRun) -> dict[str, Any]:
    """What a resumed run must have in common with the one before: flags, length, processes."""
    flags = {name: value for name, value in vars(run.args).items() if name not in (*_FREE, *FIXED)}
    return {**flags, 'steps': run.steps, 'epochs': None, 'processes': run.accelerator.num_processes}


def _start(run: VQGANRun) -> None:
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
        return evaluate_vqgan(run.trainer.vqgan, run.loader_eval, run.accelerator)
    while run.trainer.steps_done < run.steps:
        train_metrics = train_one_epoch(run)
        metrics = evaluate_vqgan(run.trainer.vqgan, run.loader_eval, run.accelerator)
        save_epoch(run, train_metrics, metrics)
    run.accelerator.end_training()
    return metrics


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
                means = _means(run)
                progress.set_postfix(l1=f'{means["l1"]:.4f}', codes_used=trainer.codes_used or '?')
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
    names = ['loss', 'l1', 'perceptual' if run.args.perceptual == 'lpips' else 'l2', 'commitment']
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
    best = metrics['l1'] < run.best
    run.best = min(run.best, metrics['l1'])
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
        temporary = run.output_dir / f'{STATE}.tmp'
        torch.save(state, temporary)
        temporary.replace(run.output_dir / STATE)
