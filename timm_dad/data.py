"""Data: timm's data sets and the demo's, their class names, checks before work starts, and a second random view."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset as create_timm_dataset

from timm_dad.demo.data import PREFIX, DemoDataset

_MAX_CHECKED = 1000


class TwoViews:
    """Apply a random transform twice: ``image -> (view, view)``.

    timm's collate lays such a batch out as ``[first view of all; second view of all]`` (as for ``AugMixDataset``).

    Args:
        transform: The transform of one view.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        """Two views of one image."""
        return self.transform(image), self.transform(image)


def create_dataset(args: argparse.Namespace, split: str, is_training: bool) -> Any:
    """Create the demo's data set or one of timm's from the flags.

    Args:
        args: Flags of ``train_dad.py``.
        split: Name of the split.
        is_training: Whether it is trained on.

    Returns:
        A data set with ``transform``, of images and class indices.

    Raises:
        ValueError: If it does not exist or is empty.
    """
    return open_dataset(args.dataset, args.data_dir, split, is_training, batch_size=args.batch_size, seed=args.seed)


def open_dataset(name: str, root: str | None, split: str, is_training: bool = False, **kwargs: Any) -> Any:
    """Open ``demo/STYLE`` or a timm data set; see ``create_dataset``."""
    if name.startswith(PREFIX):
        return DemoDataset(name.removeprefix(PREFIX), split)
    if not root and not name:
        raise ValueError('--data-dir must name a folder with one sub-folder a class (or give --dataset)')
    try:
        return create_timm_dataset(name, root=root, split=split, is_training=is_training, **kwargs)
    except (RuntimeError, FileNotFoundError, AssertionError) as error:
        raise ValueError(f'--data-dir {root}: no images for split {split!r}: {error}') from error


def dataset_class_names(dataset: Any) -> list[str] | None:
    """Class names in the order of the labels, or ``None`` where the data set does not say."""
    if isinstance(dataset, DemoDataset):
        return dataset.class_names
    class_to_idx = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    if not class_to_idx:
        return None
    return [name for name, _ in sorted(class_to_idx.items(), key=lambda item: item[1])]


def check_images(dataset: Any, flag: str = '--data-dir') -> None:
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
    count = len(reader)
    for index in np.unique(np.linspace(0, count - 1, min(count, _MAX_CHECKED)).astype(int)):
        try:
            with Image.open(reader[int(index)][0]) as image:
                image.load()
                if image.mode == 'F' and not np.isfinite(np.asarray(image)).all():
                    raise ValueError('it has pixels that are not finite')
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            name = reader.filename(int(index), absolute=True)
            raise ValueError(f'{flag}: images must decode to finite pixels, {name} does not: {error}') from error
