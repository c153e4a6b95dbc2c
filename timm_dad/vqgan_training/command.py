"""The commands ``timm-dad vqgan``: ``train`` a VQGAN of taming's modules, or ``distill`` one into a tiny one."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from timm.data import create_loader
from torch.utils.data import IterableDataset, Subset

from timm_dad.common.errors import user_errors
from timm_dad.common.log import setup_logging
from timm_dad.data.datasets import check_images, create_dataset
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan_training import args as vqgan_args
from timm_dad.vqgan_training import distill_args as vqgan_distill_args
from timm_dad.vqgan_training.args import check_image_size, create_config, optimizer_config, train_config
from timm_dad.vqgan_training.distill import Distiller, create_tiny
from timm_dad.vqgan_training.optimize import Trainer
from timm_dad.vqgan_training.perceptual import Perceptual, create_lpips, missing_for_lpips
from timm_dad.vqgan_training.reconstruction import VQGANTrainer
from timm_dad.vqgan_training.run import STATE, NonFiniteVQGANLossError, VQGANRun, seed_all, start, train

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the commands do not have in common.

    Args:
        program: What errors begin with.
        parse_args: Parses and checks the flags.
        load: The VQGAN that training begins with, or imitates; sets ``args.img_size``.
        create_trainer: Of flags, processes, that VQGAN, the number of steps, and LPIPS or ``None``.
    """

    program: str
    parse_args: Callable[[Sequence[str]], argparse.Namespace]
    load: Callable[[argparse.Namespace], VQGAN]
    create_trainer: Callable[[argparse.Namespace, Accelerator, VQGAN, int, Perceptual | None], Trainer]


def main(argv: Sequence[str]) -> dict[str, float]:
    """Run ``timm-dad vqgan``.

    Args:
        argv: Command line from ``train`` or ``distill`` on.

    Returns:
        Metrics of the trained VQGAN on the validation split.
    """
    parser = argparse.ArgumentParser(
        prog='timm-dad vqgan',
        description='train: train or fine-tune a VQGAN; distill: train a tiny one that imitates another; '
        'COMMAND --help tells more',
    )
    parser.add_argument('command', choices=tuple(COMMANDS), help='what to do')
    return run_command(COMMANDS[parser.parse_args(argv[:1]).command], argv[1:])


def run_command(command: Command, argv: Sequence[str]) -> dict[str, float]:
    """Train as the command line says, without the command's name."""
    import train_dad

    args = command.parse_args(argv)
    setup_logging()
    output_dir = Path(args.output or f'output/vqgan/{datetime.now().strftime("%Y%m%d-%H%M%S")}')
    with contextlib.ExitStack() as stack:
        with user_errors(command.program):
            accelerator = train_dad.create_accelerator(args, output_dir)
            _refuse_older_run(args, output_dir, accelerator)
            run = build(command, args, accelerator, output_dir)
            stack.enter_context(_locked(output_dir, accelerator))
            _refuse_older_run(args, output_dir, accelerator)
            start(run)
        try:
            return train(run)
        except NonFiniteVQGANLossError as error:
            sys.exit(f'{command.program}: error: {error}')


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
    vqgan = _load('--init', args.init)
    if vqgan.config.quantizer != 'nearest':
        raise ValueError(f'--init must be a VQGAN of nearest codes (VQModel), got a Gumbel one: {args.init}')
    args.img_size = args.img_size or int(vqgan.config.ddconfig['resolution'])
    check_image_size(args.img_size, vqgan.config.factor)
    return vqgan


def load_original(args: argparse.Namespace) -> VQGAN:
    """The VQGAN of ``--vqgan``; sets ``args.img_size`` where it is not given.

    Raises:
        ValueError: If it cannot be loaded, is tiny already, or the image size does not fit.
    """
    vqgan = _load('--vqgan', args.vqgan)
    if vqgan.config.networks == 'tiny':
        raise ValueError(
            f'--vqgan must be a VQGAN that is not tiny yet, got {args.vqgan} (give the one that it imitates)'
        )
    args.img_size = args.img_size or int(vqgan.config.ddconfig['resolution'])
    check_image_size(args.img_size, vqgan.config.factor)
    return vqgan


def _load(flag: str, path: str) -> VQGAN:
    try:
        return load_vqgan(DEMO_VQGAN if path == 'demo' else path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f'{flag}: {error}') from error


def _vqgan_trainer(
    args: argparse.Namespace, accelerator: Accelerator, vqgan: VQGAN, steps: int, perceptual: Perceptual | None
) -> Trainer:
    return VQGANTrainer(vqgan, accelerator, train_config(args, steps), perceptual)


def _distiller(
    args: argparse.Namespace, accelerator: Accelerator, original: VQGAN, steps: int, perceptual: Perceptual | None
) -> Trainer:
    tiny = create_tiny(original, args.img_size, args.ch)
    return Distiller(tiny, original, accelerator, optimizer_config(args, steps), perceptual)


COMMANDS = {
    'train': Command(
        program=vqgan_args.PROGRAM, parse_args=vqgan_args.parse_args, load=create_vqgan, create_trainer=_vqgan_trainer
    ),
    'distill': Command(
        program=vqgan_distill_args.PROGRAM,
        parse_args=vqgan_distill_args.parse_args,
        load=load_original,
        create_trainer=_distiller,
    ),
}


def build(command: Command, args: argparse.Namespace, accelerator: Accelerator, output_dir: Path) -> VQGANRun:
    """Check the flags against data and VQGAN, and build all that training needs."""
    seed_all(args.seed, 0)
    dataset_train = create_dataset(args, args.train_split, is_training=True)
    dataset_eval = create_dataset(args, args.val_split, is_training=False)
    for flag, dataset in (('--train-split', dataset_train), ('--val-split', dataset_eval)):
        if isinstance(dataset, IterableDataset):
            raise ValueError(f'{flag} needs data with an index, not a stream, got --dataset {args.dataset}')
        check_images(dataset, flag)
    vqgan = command.load(args)
    loader_train = _train_loader(args, accelerator, dataset_train)
    loader_eval = _eval_loader(args, accelerator, dataset_eval)
    steps = args.steps or (args.epochs or 30) * len(loader_train)
    perceptual = None
    if _uses_lpips(args):
        with accelerator.main_process_first():
            perceptual = create_lpips(accelerator.device)
    trainer = command.create_trainer(args, accelerator, vqgan, steps, perceptual)
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
