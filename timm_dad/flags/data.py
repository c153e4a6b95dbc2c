"""The flags about data, with timm's names, and the data sets they describe."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_dad.dad_sets.store_cache import data_folder
from timm_dad.data.datasets import (
    check_class_names,
    check_images,
    check_labels,
    dataset_class_names,
    encode_labels,
    open_dataset,
)
from timm_dad.demo.data import PREFIX
from timm_dad.flags.kwargs import num_channels
from timm_dad.flags.labels import find_class_names
from timm_dad.flags.parser import add_alias
from timm_dad.flags.rules import under_flag, written
from timm_dad.flags.task import is_multilabel, label_encoder

# What a data set's name may begin with, and those that a flag is for; timm passes them by elsewhere.
_KINDS = ('demo', 'torch', 'hfds', 'hfids', 'tfds', 'wds')
_DATA_FLAGS = {
    'train_num_samples': ('wds', 'tfds', 'hfids'),
    'input_key': ('hfds', 'hfids', 'wds', 'tfds'),
    'target_key': ('hfds', 'hfids', 'wds', 'tfds'),
    'dataset_download': ('torch', 'tfds', 'hfds', 'hfids'),
    'dataset_trust_remote_code': ('hfds', 'hfids'),
}


def add_source_args(group: Any, split: str, split_flag: str = '--split', *, alias: str = '') -> None:
    """Add timm's flags of a data set, with a default split whose flag may have an older name."""
    group.add_argument('--data-dir', metavar='DIR', help='path to dataset (root dir), or the URL of one')
    group.add_argument('--dataset', metavar='NAME', default='', help="timm's dataset type + name, or demo/STYLE")
    names = group.add_argument(
        split_flag, metavar='NAME', default=split, help='dataset split, or "" for a folder without splits'
    )
    if alias:
        add_alias(group, names, alias)
    group.add_argument('--class-map', default='', metavar='FILENAME', help='class to index mapping file')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ datasets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help="run the dataset repository's own code")
    group.add_argument('--input-key', help='dataset key for input images')
    group.add_argument('--target-key', help='dataset key for target labels')


def add_data_args(parser: argparse.ArgumentParser, split: str, *, alias: str = '') -> Any:
    """Add the flags of a command that reads one data set; return their group, for more flags."""
    group = parser.add_argument_group('Dataset')
    add_source_args(group, split, alias=alias)
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes, for data without class names')
    return group


def data_flag(args: argparse.Namespace) -> str:
    """Return the flag that names the data, with its value, as errors start with it."""
    flag = f'--dataset {args.dataset}' if args.dataset else f'--data-dir {args.data_dir}'
    return f'{flag} --class-map {args.class_map}' if args.class_map else flag


def check_data_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the flags before anything is built; flags ``given`` on the command line must not be ignored."""
    if args.num_classes is not None and args.num_classes < 2:
        raise ValueError(f'--num-classes must be 2 or more, got {args.num_classes}')
    kind = args.dataset.split('/')[0] if '/' in args.dataset else ''
    for name, kinds in _DATA_FLAGS.items():
        if name in given and kind not in kinds:
            raise ValueError(f'{written(name)} is for --dataset {"/, ".join(kinds)}/, got {args.dataset or "a folder"}')
    if 'class_map' in given and kind == 'demo':
        raise ValueError('--class-map is not for the demo: it has its own classes')


def number_of_classes(args: argparse.Namespace, class_names: Sequence[str] | None) -> int:
    """Return the number of classes, from names or ``--num-classes``; ``ValueError`` if unknown or contradictory."""
    check_class_names(class_names, data_flag(args))
    if class_names is None and args.num_classes is None:
        raise ValueError('--num-classes must be given: the data does not name its classes')
    if class_names is not None and args.num_classes not in (None, len(class_names)):
        raise ValueError(f'--num-classes must be {len(class_names)}, as in the data, got {args.num_classes}')
    return len(class_names) if class_names is not None else int(args.num_classes)


# Names of a split that timm takes for one another.
_SYNONYMS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))


def create_dataset(
    args: argparse.Namespace, split: str, *, split_flag: str, labels: bool = True, **options: Any
) -> Any:
    """Create the demo's data set or one of timm's, of images and class indices.

    Args:
        args: Flags from ``add_source_args``.
        split: Name of the split.
        split_flag: The flag that names the split, for errors.
        labels: Whether to read the labels.
        options: More arguments of timm's ``create_dataset``.

    Raises:
        ValueError: If it does not exist or is empty.
    """
    kind, separator, _ = args.dataset.partition('/')
    if separator and kind not in _KINDS:  # timm takes --data-dir then, whatever the name
        raise ValueError(f'--dataset must be NAME or begin with {"/, ".join(_KINDS)}/, got {args.dataset!r}')
    if args.dataset.startswith(PREFIX) and args.data_dir:
        raise ValueError(f'--data-dir {args.data_dir} and --dataset {args.dataset}: the demo needs no folder')
    if not args.data_dir and not args.dataset:
        raise ValueError('--data-dir must name a folder with one sub-folder per class (or give --dataset)')
    flag = data_flag(args)
    with under_flag('--data-dir'):
        root: Any = data_folder(args.data_dir)
    if not args.dataset and not os.path.exists(root):  # Path.exists raises where the name is too long
        raise ValueError(f'{flag}: there is no such folder')
    if not args.dataset and Path(root).is_dir():
        _check_split_folder(Path(root), split, split_flag)
    return open_dataset(
        args.dataset, root, split, flag, labels=labels, download=args.dataset_download,
        input_key=args.input_key, class_map=args.class_map if labels else '',
        target_key=args.target_key if labels else None,
        trust_remote_code=args.dataset_trust_remote_code, **_target_format(args), **options,
    )  # fmt: skip


def _target_format(args: argparse.Namespace) -> dict[str, str]:
    """Return the arguments that timm's readers before 1.0.31 do not accept."""
    return {'target_format': args.target_format} if is_multilabel(args) else {}


def split_folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split, as timm finds it; ``None`` if there is none."""
    name = split.split('[')[0]
    synonyms = next((group for group in _SYNONYMS if name in group), (name,))
    return next((root / each for each in (name, *synonyms) if (root / each).is_dir()), None)


def _check_split_folder(root: Path, split: str, flag: str) -> None:
    # NOTE: where the split's folder is missing timm takes all of the root, training pictures for validation too.
    if split_folder(root, split) is None:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != '.')[:5]
        raise ValueError(
            f'{flag} must be a folder in {root}, got {split!r}; the folders are {folders or "none"}; "" uses all of it'
        )


@dataclass(frozen=True)
class TrainingData:
    """Data of a training: ``val`` is ``None`` without ``--val-split``, ``class_names`` if the data has none.

    With ``encoder``, which gets the number of classes, labels become multi-hot.
    """

    train: Any
    val: Any
    class_names: Sequence[str] | None
    encoder: Callable[[int], Any] | None = None


def open_training_data(args: argparse.Namespace) -> TrainingData:
    """Open the data of ``timm-dad train``; raise ``ValueError`` if it does not exist or is empty.

    The number of class names becomes ``--num-classes``, unless that was given.
    """
    common: dict[str, Any] = {
        'input_img_mode': args.input_img_mode or ('RGB' if num_channels(args) == 3 else 'L'),
        'batch_size': args.batch_size,
        'seed': args.seed,
    }
    train = create_dataset(
        args, args.train_split, split_flag='--train-split', is_training=True,
        num_samples=args.train_num_samples, repeats=args.epoch_repeats, labels=not args.no_labels, **common,
    )  # fmt: skip
    val = None
    if args.val_split:
        val = create_dataset(args, args.val_split, split_flag='--val-split', num_samples=args.val_num_samples, **common)
    class_names = find_class_names(args, dataset_class_names(val if args.no_labels else train))
    if args.num_classes is None and class_names is not None:
        args.num_classes = len(class_names)
    return TrainingData(train, val, class_names, label_encoder(args))


def encode_targets(args: argparse.Namespace, dataset: Any) -> None:
    """Make a data set return multi-hot labels if the task is multi-label; ``args`` contain the number of classes."""
    encoder = label_encoder(args)
    if encoder is not None:
        encode_labels(dataset, data_flag(args), encoder(args.num_classes))


def check_training_data(data: TrainingData, num_classes: int) -> None:
    """Decode some images, and compare classes with the student's; ``ValueError`` names the flag at fault."""
    for flag, dataset in {'--data-dir': data.train, '--val-split': data.val}.items():
        check_images(dataset, flag)
        _check_classes(dataset_class_names(dataset), data.class_names, flag, num_classes)
        if data.encoder is not None and dataset is not None:
            encode_labels(dataset, flag, data.encoder(num_classes))
        else:
            check_labels(dataset, flag, num_classes)


def _check_classes(own: Sequence[str] | None, of_training: Sequence[str] | None, flag: str, num_classes: int) -> None:
    check_class_names(own, flag)
    if own is None:
        return
    if len(own) != num_classes:
        raise ValueError(f'{flag}: data must have as many classes as --num-classes, {num_classes}, got {len(own)}')
    if of_training is not None and list(own) != list(of_training):
        other = sorted(set(own) ^ set(of_training))[:4]
        raise ValueError(f'{flag}: data must have the classes of the training data in the same order; {other} differ')
