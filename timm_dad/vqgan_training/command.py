"""The commands ``timm-dad vqgan``: ``train`` a VQGAN of taming's modules, or ``distill`` one to a tiny one."""

import argparse
import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.data import create_loader
from torch.utils.data import DataLoader, IterableDataset, Subset

from timm_dad.common.errors import user_errors
from timm_dad.common.log import setup_logging
from timm_dad.common.seeds import RUN, seed_all
from timm_dad.data.datasets import check_images
from timm_dad.flags.data import create_dataset
from timm_dad.flags.kwargs import amp_precision
from timm_dad.flags.pairs import load_vqgan_by_spec
from timm_dad.training.batches import Batches
from timm_dad.training.loaders import create_train_loader
from timm_dad.training.run_folder import RunFolder
from timm_dad.training.setup import create_accelerator
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan_training.args import PROGRAM, check_image_size, create_config, parse_args, training_config
from timm_dad.vqgan_training.distill import Distiller, create_tiny, describe
from timm_dad.vqgan_training.optimize import OptimizerConfig, Trainer
from timm_dad.vqgan_training.perceptual import create_lpips
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig, VQGANTrainer
from timm_dad.vqgan_training.run import VQGANRun, find_state

_logger = logging.getLogger(__name__)

# Flags that may change when a run is resumed: where it runs, and how often it saves. All others shape the result.
_INCIDENTAL = {'resume', 'output', 'config', 'workers', 'device', 'recovery_interval', 'data_dir', 'init'}


def main(argv: Sequence[str]) -> dict[str, float]:
    """Run ``timm-dad vqgan``.

    Args:
        argv: Command line starting with ``train`` or ``distill``.

    Returns:
        Metrics of the trained VQGAN on the validation split.
    """
    args = parse_args(argv)
    program = f'{PROGRAM} {args.command}'
    setup_logging()
    path = Path(args.output or f'output/vqgan/{datetime.now().strftime("%Y%m%d-%H%M%S")}')
    with user_errors(program), contextlib.ExitStack() as stack:
        accelerator = create_accelerator(path, device=args.device, precision=amp_precision(args), seed=args.seed)
        folder = stack.enter_context(
            RunFolder(path, accelerator, find_state, resume=bool(args.resume), flag='--output')
        )
        seed_all(args.seed, RUN)  # alike in all processes, which begin with the same weights
        dataset, dataset_val = open_images(args, '--train-split'), open_images(args, '--val-split')
        vqgan = create_vqgan(args)
        batches = create_batches(args, dataset, accelerator)
        loader_val = create_own_loader(args, dataset_val, accelerator)
        steps = args.steps or (args.epochs or 30) * len(batches)
        if steps < 2:
            raise ValueError(f'--epochs must give 2 steps or more, got {steps}: give more, or a smaller --batch-size')
        settings = create_settings(args, vqgan, steps, accelerator.num_processes)
        trainer = create_trainer(args, vqgan, accelerator, steps)
        run = VQGANRun(trainer, batches, loader_val, folder, settings, args.recovery_interval)
        run.resume(folder.resolve(args.resume))
        folder.start({name: value for name, value in vars(args).items() if name != 'command'}, run.epoch)
        size = describe(trainer.vqgan, args.img_size)
        _logger.info('VQGAN of %s; steps %d to %d, to %s', size, trainer.steps_done, steps, path)
        stack.enter_context(folder.advising_where_to_go_on())
        metrics = run.train()
        accelerator.end_training()
        return metrics


def create_vqgan(args: argparse.Namespace) -> VQGAN:
    """Create the VQGAN to train, or load that of ``--init`` or ``--vqgan``; set ``args.img_size`` by default.

    Raises:
        ValueError: If it cannot be loaded, trained or imitated, or the image size does not fit.
    """
    if args.command == 'train' and not args.init:
        return VQGAN(create_config(args))
    if args.command == 'train':
        vqgan = load_vqgan_by_spec(args.init, flag='--init')
        if vqgan.config.quantizer != 'nearest':
            kind = vqgan.config.quantizer.replace('_', ' ')
            raise ValueError(f'--init must be a VQGAN of nearest codes (VQModel, MOVQ), got one of {kind}: {args.init}')
    else:
        vqgan = load_vqgan_by_spec(args.vqgan, flag='--vqgan')
        if vqgan.config.networks == 'tiny':
            raise ValueError(f'--vqgan must be a VQGAN that is not tiny, got {args.vqgan} (give the one it imitates)')
    args.img_size = args.img_size or int(vqgan.config.ddconfig['resolution'])
    check_image_size(args.img_size, vqgan.config.factor)
    return vqgan


def create_trainer(args: argparse.Namespace, vqgan: VQGAN, accelerator: Accelerator, steps: int) -> Trainer:
    """Create the trainer of the VQGAN, or of a tiny one that imitates it."""
    perceptual = None
    if args.perceptual == 'lpips':
        with accelerator.main_process_first():  # it may download weights
            perceptual = create_lpips(accelerator.device)
    if args.command == 'train':
        return VQGANTrainer(vqgan, accelerator, training_config(VQGANTrainConfig, args, steps), perceptual)
    _logger.info('Imitating a VQGAN of %s', describe(vqgan, args.img_size))
    tiny = create_tiny(vqgan, args.img_size, args.ch)
    return Distiller(tiny, vqgan, accelerator, training_config(OptimizerConfig, args, steps), perceptual)


def open_images(args: argparse.Namespace, flag: str) -> Any:
    """Open the data set of ``--train-split`` or ``--val-split``, checking that its images decode."""
    training = flag == '--train-split'
    split = args.train_split if training else args.val_split
    dataset = create_dataset(args, split, split_flag=flag, is_training=training, input_img_mode='RGB')
    if isinstance(dataset, IterableDataset):
        raise ValueError(f'{flag} needs data with an index, not a stream, got --dataset {args.dataset}')
    check_images(dataset, flag)
    return dataset


def _loader_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of timm's ``create_loader``, for images in [0, 1]."""
    return {
        'input_size': (3, args.img_size, args.img_size),
        'batch_size': args.batch_size,
        'interpolation': 'bicubic',
        'mean': (0.0, 0.0, 0.0),
        'std': (1.0, 1.0, 1.0),
        'num_workers': args.workers,
        'persistent_workers': False,
        'use_prefetcher': False,
        'pin_memory': args.device.startswith('cuda'),
    }


def create_batches(args: argparse.Namespace, dataset: Any, accelerator: Accelerator) -> Batches:
    """Create the training batches, with samples seeded by (seed, epoch, index)."""
    augmentation = {name: getattr(args, name) for name in ('no_aug', 'scale', 'hflip', 'vflip')}
    loader = create_train_loader(
        dataset, accelerator, seed=args.seed, color_jitter=0.0, **augmentation, **_loader_kwargs(args)
    )
    return Batches(loader, accelerator, seed=args.seed)


def create_own_loader(args: argparse.Namespace, dataset: Any, accelerator: Accelerator) -> Any:
    """Create a loader of every ``num_processes``-th image: each process has its own, none is repeated."""
    loader = create_loader(dataset, crop_pct=1.0, **_loader_kwargs(args))  # sets the transform
    own = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    return DataLoader(own, args.batch_size, num_workers=args.workers, collate_fn=loader.collate_fn)


def create_settings(args: argparse.Namespace, vqgan: VQGAN, steps: int, num_processes: int) -> dict[str, Any]:
    """Return what a resumed run must share with the previous one, by flag: flags, length, the imitated VQGAN."""
    settings = {name: value for name, value in vars(args).items() if name not in _INCIDENTAL}
    if 'vqgan' in settings:
        settings['vqgan'] = vqgan.fingerprint()
    else:
        settings['init'] = 'a VQGAN' if args.init else 'none'  # which one does not matter: the state has its weights
    return {**settings, 'steps': steps, 'epochs': None, 'processes': num_processes}
