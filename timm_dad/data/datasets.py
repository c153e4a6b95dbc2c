"""Data: timm's data sets and the demo's, their class names, and checks before work starts."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset as create_timm_dataset
from torch import Tensor
from torch.utils.data import default_collate

from timm_dad.common.spread import spread
from timm_dad.demo.data import PREFIX, DemoDataset

_MAX_CHECKED = 1000
# Names of a split that timm takes for one another.
_SYNONYMS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))


def collate_views(batch: Any) -> tuple[Tensor, Tensor]:
    """Lay views out as timm's ``fast_collate`` does, for loaders without its prefetcher.

    Args:
        batch: Pairs of a tuple of views ``[3, H, W]`` and a class index.

    Returns:
        Images ``[V * B, 3, H, W]``, the first views of all before the second ones, and their targets ``[V * B]``.
    """
    views, target = default_collate(batch)
    return torch.cat(views), target.repeat(len(views))


def create_dataset(args: argparse.Namespace, split: str, is_training: bool, split_flag: str | None = None) -> Any:
    """Create the demo's data set or one of timm's from the flags.

    Args:
        args: Flags of ``train_dad.py``.
        split: Name of the split.
        is_training: Whether it is trained on.
        split_flag: The flag that names the split, for errors.

    Returns:
        A data set with ``transform``, of images and class indices.

    Raises:
        ValueError: If it does not exist or is empty.
    """
    if args.dataset.startswith(PREFIX) and args.data_dir:
        raise ValueError(f'--data-dir {args.data_dir} and --dataset {args.dataset}: the demo needs no folder')
    if not args.data_dir and not args.dataset:
        raise ValueError('--data-dir must name a folder with one sub-folder a class (or give --dataset)')
    flag = f'--dataset {args.dataset}' if args.dataset else f'--data-dir {args.data_dir}'
    if not args.dataset and not Path(args.data_dir).exists():
        raise ValueError(f'{flag}: there is no such folder')
    if not args.dataset and Path(args.data_dir).is_dir():
        default_flag = '--train-split' if is_training else '--val-split'
        _check_split_folder(Path(args.data_dir), split, split_flag or default_flag)
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    return open_dataset(
        args.dataset,
        args.data_dir,
        split,
        flag,
        is_training=is_training,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        seed=args.seed,
        repeats=args.epoch_repeats if is_training else 0,
        input_img_mode=args.input_img_mode or ('RGB' if channels == 3 else 'L'),
        input_key=args.input_key,
        target_key=args.target_key,
        num_samples=args.train_num_samples if is_training else args.val_num_samples,
        trust_remote_code=args.dataset_trust_remote_code,
    )


def open_dataset(name: str, root: str | None, split: str, flag: str, **kwargs: Any) -> Any:
    """Open ``demo/STYLE`` or a timm data set; ``flag`` is what an error names."""
    if name.startswith(PREFIX):
        return DemoDataset(name.removeprefix(PREFIX), split)
    try:
        dataset = create_timm_dataset(name, root=root, split=split, **kwargs)
    except Exception as error:  # timm and its readers raise what they like
        raise ValueError(f'{flag}: no images for split {split!r}: {error or type(error).__name__}') from error
    keep_no_tar_open(dataset)
    return dataset


def keep_no_tar_open(dataset: Any) -> None:
    """Let timm's reader of tars open them anew for each image.

    NOTE: it keeps them open, and loader workers forked from a process that has read one share its file position: they
    read each other's images.
    """
    reader = getattr(dataset, 'reader', None)
    if reader is not None and hasattr(reader, 'cache_tarfiles'):
        reader.cache_tarfiles = False


def _check_split_folder(root: Path, split: str, flag: str) -> None:
    # NOTE: where the split's folder is missing timm takes all of the root, training pictures for validation too.
    name = split.split('[')[0]
    synonyms = next((group for group in _SYNONYMS if name in group), (name,))
    if not any((root / synonym).is_dir() for synonym in synonyms):
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())[:5]
        raise ValueError(f'{flag} must be a folder in {root}, got {split!r}; there are {folders or "none"}')


def dataset_class_names(dataset: Any) -> list[str] | None:
    """Class names in the order of the labels, or ``None`` where the data set does not say."""
    if isinstance(dataset, DemoDataset):
        return dataset.class_names
    reader = getattr(dataset, 'reader', None)
    class_to_idx = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)  # folder, tar
    if not class_to_idx or sorted(class_to_idx.values()) != list(range(len(class_to_idx))):
        return None  # a class map may put several names into one class, or leave labels out
    return sorted(class_to_idx, key=class_to_idx.__getitem__)


def check_images(dataset: Any, flag: str) -> None:
    """Decode images of a folder before work starts: all of them, or 1000 spread evenly.

    Args:
        dataset: A data set; those without files (streams, the demo) are not checked.
        flag: The flag to name in an error.

    Raises:
        ValueError: If an image cannot be decoded or holds non-finite pixels; the file is named.
    """
    reader = getattr(dataset, 'reader', None)
    if reader is None or not hasattr(reader, '__getitem__') or not hasattr(reader, 'filename'):
        return
    for index in spread(len(reader), _MAX_CHECKED):
        try:
            with Image.open(reader[index][0]) as image:
                image.load()
                if image.mode == 'F' and not np.isfinite(np.asarray(image)).all():
                    raise ValueError('it has pixels that are not finite')
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            name = reader.filename(index, absolute=True)
            raise ValueError(f'{flag}: images must decode to finite pixels, {name} does not: {error}') from error
