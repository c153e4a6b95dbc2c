"""Log lines of a training while it runs, and at its end."""

import argparse
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_dad.dad_sets.store_cache import data_folder
from timm_dad.demo.data import PREFIX
from timm_dad.flags.data import split_folder
from timm_dad.flags.task import is_multilabel
from timm_dad.teachers.trained import BEST
from timm_dad.training.batches import Batches
from timm_dad.training.checkpoint import Checkpoints

_logger = logging.getLogger(__name__)


def epoch_notes(batches: Batches, checkpoints: Checkpoints, epoch: int, metric: float, name: str) -> list[str]:
    """Return the duration and images per second of the last pass, and the best metric so far."""
    best_metric, best_epoch = checkpoints.best_with(epoch, metric)
    speed = batches.passed * checkpoints.images_per_batch / max(batches.seconds, 1e-9)
    return [f'{batches.seconds:.3g} s', f'{speed:.3g} images/s', f'best {name} {best_metric:.4g} (epoch {best_epoch})']


def log_best(args: argparse.Namespace, folder: Path, results: Mapping[str, Any], name: str) -> None:
    """Log the path of the best checkpoint, and the command that evaluates it on the validation data."""
    if results.get('best_metric') is None:
        return
    words = ['timm-dad', 'evaluate', '--model', f'run:{folder}', '--suite', validation_suite(args)]
    words += ['--output', str(folder / 'evaluate')]
    following = '' if is_multilabel(args) else f'; next: {shlex.join(words)}'  # which measures one class an image
    _logger.info(
        'Best: %s %.4g (epoch %d), %s%s',
        name.replace('top', 'top-'), results['best_metric'], results['best_epoch'], folder / BEST, following,
    )  # fmt: skip


def validation_suite(args: argparse.Namespace) -> str:
    """Return a training's validation data as ``--suite`` of ``timm-dad evaluate`` takes it, or ``NAME=FOLDER``."""
    kind, split = args.dataset.split('/')[0], args.val_split
    if args.dataset.startswith(PREFIX):
        return str(args.dataset)
    if kind in ('hfds', 'torch'):
        return f'val={args.dataset}{f",root={args.data_dir}" if args.data_dir else ""},split={split}'
    root = data_folder(args.data_dir)
    folder = split_folder(Path(root), split) if root and split and not args.dataset else None
    return f'val={folder}' if folder is not None else 'NAME=FOLDER'
