"""What timm's own ``train.py`` calls for DAD: the lines of ``patches/`` and ``timm-dad run`` share it."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.data import AugMixDataset
from torch import Tensor, nn

from timm_dad.dad_args import (
    add_dad_args,
    check_dad_args,
    create_augment,
    create_teacher,
    create_vqgan,
    uses_pairs,
)
from timm_dad.dad_args import create_task as create_dad_task
from timm_dad.data import TwoViews, collate_views, dataset_class_names
from timm_dad.errors import errors_in_one_line, is_main_process
from timm_dad.frozen import prepare_frozen
from timm_dad.loaders import mixes
from timm_dad.task import DADTask

__all__ = ['add_dad_args', 'check_args', 'create_task', 'set_views']


def check_args(args: argparse.Namespace) -> None:
    """Check ``--dad ...`` before anything is built.

    Args:
        args: All flags of ``train.py``.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    with errors_in_one_line(os.path.basename(sys.argv[0])):
        check_dad_args(args, _given_dad_args())
        if args.dad:
            _check_train_script(args)


def _given_dad_args() -> dict[str, Any]:
    """The flags ``--dad ...`` of the command line alone."""
    parser = argparse.ArgumentParser(add_help=False)
    add_dad_args(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_known_args()[0])


def _check_train_script(args: argparse.Namespace) -> None:
    """What timm's ``train.py`` cannot do with DAD, though ``train_dad.py`` may."""
    random_view = args.dad_view == 'random'
    rules = (
        (
            not args.dad_cache,
            '--dad-cache needs `timm-dad train`: train.py makes a fresh DAD view of every image; leave it out',
        ),
        (
            not args.naflex_loader,
            '--dad does not go with --naflex-loader: its batches are patches, and the DAD view is made from images',
        ),
        (
            not getattr(args, 'train_img_sizes', None),  # v1.0.28 has no such flag
            '--dad does not go with --train-img-sizes: the size of the DAD view is fixed; use --img-size',
        ),
        (
            not (random_view and mixes(args) and not args.no_prefetcher),
            '--dad-view random with --mixup or --cutmix needs --no-prefetcher: the prefetcher mixes single images',
        ),
        (
            not (random_view and args.use_multi_epochs_loader),
            '--dad-view random does not go with --use-multi-epochs-loader: it starts before there are two views',
        ),
    )
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def set_views(args: argparse.Namespace, dataset: Any, loader: Any) -> None:
    """Let the training loader give two random views of every image where ``--dad-view random`` asks for them.

    Args:
        args: Flags.
        dataset: Training data, with the transform that timm's ``create_loader`` has set.
        loader: Its loader, not yet iterated.
    """
    if uses_pairs(args):
        dataset.transform = TwoViews(dataset.transform)
        if args.no_prefetcher:
            loader.collate_fn = collate_views


def create_task(
    args: argparse.Namespace,
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    dataset: Any,
    data_config: Mapping[str, Any],
    device: torch.device,
) -> DADTask:
    """Create the task of ``--dad`` with its frozen teacher and VQGAN.

    Args:
        args: Flags.
        model: The student, on its device.
        criterion: Task loss.
        dataset: Training data, asked for class names.
        data_config: Size and normalization of the batches, of ``timm.data.resolve_data_config``.
        device: Where it runs.

    Returns:
        The task. Its ``set_epoch`` is to be called at every epoch.

    Raises:
        SystemExit: If teacher, VQGAN, classes and image size do not fit together; one line says why.
    """
    if isinstance(dataset, AugMixDataset):
        dataset = dataset.dataset
    mean, std = data_config['mean'], data_config['std']
    with errors_in_one_line(os.path.basename(sys.argv[0])):
        teacher = create_teacher(args, args.num_classes, dataset_class_names(dataset), device)
        vqgan = create_vqgan(args, tuple(data_config['input_size'][-2:]))
        prepare_frozen(teacher, vqgan, args.dad_precision, device)
        augment = create_augment(args, teacher, vqgan, mean, std)
        return create_dad_task(
            args,
            model,
            teacher,
            augment,
            criterion=criterion,
            mean=mean,
            std=std,
            device=device,
            verbose=is_main_process(),
        )
