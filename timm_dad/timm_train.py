"""The functions that timm's own ``train.py`` calls for DAD, shared by ``patches/`` and ``timm-dad run``."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.data import AugMixDataset
from timm.task import TrainingTask
from torch import nn

from timm_dad.common.errors import is_main_process, user_errors
from timm_dad.common.text_files import read_yaml
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.data.datasets import dataset_class_names
from timm_dad.data.pairs import DADPairs, PairStream
from timm_dad.flags.attack import of_another_attack
from timm_dad.flags.dad import add_dad_args, build_task, check_dad_args
from timm_dad.flags.kwargs import mixes, mixup_kwargs
from timm_dad.flags.pairs import open_dad_set, pair_dataset, uses_pairs
from timm_dad.flags.rules import check_rules, without_defaults
from timm_dad.flags.temperature import AUTO, keep_temperature
from timm_dad.method.loss import Criterion, create_criterion
from timm_dad.method.task import DADTask
from timm_dad.training.loaders import create_collate

__all__ = ['add_dad_args', 'check_args', 'choose_task', 'create_task', 'pair_views', 'set_epoch']


def check_args(args: argparse.Namespace) -> None:
    """Check ``--dad ...`` before anything is built.

    Args:
        args: All flags of ``train.py``.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    with user_errors(os.path.basename(sys.argv[0])):
        given, configured = vars(without_defaults(_dad_parser()).parse_known_args()[0]), _read_config()
        defaults = _dad_parser()
        for name in of_another_attack(given, configured):
            setattr(args, name, defaults.get_default(name))
        check_dad_args(args, given, configured)
        if args.dad:
            _check_train_script(args)


def _dad_parser() -> argparse.ArgumentParser:
    """Create a parser of only the flags ``--dad ...``."""
    parser = argparse.ArgumentParser(add_help=False)
    add_dad_args(parser)
    return parser


def _read_config() -> dict[str, Any]:
    """Return the flags of the file of timm's ``--config``, which has made them defaults; empty without one."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-c', '--config')
    path = parser.parse_known_args()[0].config
    return read_yaml(path) or {} if path else {}


def _check_train_script(args: argparse.Namespace) -> None:
    """Check what timm's ``train.py`` cannot do with DAD, although ``train_dad.py`` may."""
    rules = (
        (
            getattr(args, 'task', 'classification') == 'classification',  # v1.0.28 has no such flag
            "--dad does not go with --task multilabel in timm's own train.py: leave one of them out",
        ),
        (not args.no_labels, "--no-labels needs `timm-dad train`: timm's own data sets have labels; leave it out"),
        (
            not args.dad_cache or args.dad_dir,
            '--dad-cache needs `timm-dad train`; here, make DAD views with timm-dad generate first, for --dad-dir',
        ),
        (
            not args.naflex_loader,
            '--dad does not go with --naflex-loader: its batches are patches, but the DAD view is made from images',
        ),
        (
            not (uses_pairs(args) and mixes(args) and args.no_prefetcher),
            '--mixup or --cutmix needs the prefetcher with --dad-dir, --dad-view random and --dad-view-aug base: '
            'without it images would be mixed with extra views of others; leave --no-prefetcher out',
        ),
        (
            not (args.dad_view_aug == 'base' and args.reprob and not args.no_prefetcher),
            '--dad-view-aug base with --reprob needs --no-prefetcher: the prefetcher of timm erases in all views',
        ),
    )
    check_rules(rules)


def pair_views(
    args: argparse.Namespace, dataset: Any, data_config: Mapping[str, Any], collate_fn: Any
) -> tuple[Any, Any]:
    """Make the training data return a second picture of every image, if a flag asks for it.

    ``--dad-dir`` and ``--dad-view random`` do, and ``--dad-view-aug base``, for the source picture of a DAD view.

    Args:
        args: Flags.
        dataset: Training data for timm's ``create_loader``, possibly in its ``AugMixDataset``.
        data_config: Size and crop of the student, from ``timm.data.resolve_data_config``.
        collate_fn: The collate for ``create_loader``.

    Returns:
        Data and collate to pass to ``create_loader`` instead.

    Raises:
        SystemExit: If the DAD set does not match the data or student, with one line that says why.
    """
    if not uses_pairs(args):
        return dataset, collate_fn
    if isinstance(dataset, AugMixDataset):
        dataset = dataset.dataset
    with user_errors(os.path.basename(sys.argv[0])):
        dad_set = open_dad_set(args, tuple(data_config['input_size'][-2:]))
        pairs = pair_dataset(args, dataset, data_config, dad_set=dad_set)
        mixup, prefetcher = mixup_kwargs(args), not args.no_prefetcher
        return pairs, create_collate(mixup, pairs.views, views=True, prefetcher=prefetcher)


def choose_task(
    args: argparse.Namespace, plain: type[TrainingTask], dataset: Any, data_config: Mapping[str, Any]
) -> Callable[..., TrainingTask]:
    """Choose the factory of the task: timm's own class without ``--dad``, else one with its arguments that makes DAD's.

    Args:
        args: Flags.
        plain: timm's ``ClassificationTask``.
        dataset: Training data from ``pair_views``.
        data_config: Size and normalization of the batches, from ``timm.data.resolve_data_config``.
    """
    if not args.dad:
        return plain

    def create(model: nn.Module, criterion: Criterion | None = None, **given: Any) -> DADTask:
        criterion = create_criterion(criterion, given.get('criterion_kwargs'))
        device = given.get('device') or next(model.parameters()).device
        return create_task(args, model, criterion, dataset, data_config, device)

    return create


def set_epoch(task: TrainingTask, epoch: int) -> None:
    """Tell the task of ``--dad`` which epoch begins; other tasks are left alone."""
    if isinstance(task, DADTask):
        task.set_epoch(epoch)


def create_task(
    args: argparse.Namespace,
    model: nn.Module,
    criterion: Criterion,
    dataset: Any,
    data_config: Mapping[str, Any],
    device: torch.device,
) -> DADTask:
    """Create the task of ``--dad`` with its frozen teacher and VQGAN.

    Args:
        args: Flags.
        model: The student, on its device.
        criterion: Task loss.
        dataset: Training data from ``pair_views``, source of class names and DAD set.
        data_config: Size and normalization of the batches, from ``timm.data.resolve_data_config``.
        device: Device that it runs on.

    Returns:
        The task; call its ``set_epoch`` at every epoch.

    Raises:
        SystemExit: If teacher, VQGAN, classes, image size and DAD set do not fit together, with one line that says why.
    """
    dad_set = None
    if isinstance(dataset, DADPairs | PairStream):
        dad_set = dataset.extra_views.dad_set
    if isinstance(dataset, AugMixDataset | DADPairs | PairStream):
        dataset = dataset.dataset
    with user_errors(os.path.basename(sys.argv[0])):
        if args.dad_temperature == AUTO and os.path.isfile(args.resume):
            keep_temperature(args, vars(read_checkpoint(args.resume, mmap=True).get('args') or argparse.Namespace()))
        task, _ = build_task(
            args,
            model,
            data_config,
            dataset_class_names(dataset),
            dataset=dataset,
            dad_set=dad_set,
            criterion=criterion,
            device=device,
            verbose=is_main_process(),
        )
        return task
