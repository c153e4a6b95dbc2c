"""Data: timm's data sets and the demo's, their class names, and checks before work starts."""

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


def collate_views(batch: Any) -> tuple[Tensor, Tensor]:
    """Lay views ``[3, H, W]`` and classes out as timm's ``fast_collate`` does, for loaders without its prefetcher.

    Returns:
        Images ``[V * B, 3, H, W]``, the first views of all before the second ones, and their targets ``[V * B]``.
    """
    views, target = default_collate(batch)
    return torch.cat(views), target.repeat(len(views))


def open_dataset(name: str, root: str | None, split: str, flag: str, **kwargs: Any) -> Any:
    """Open ``demo/STYLE`` or a timm data set; ``flag`` is what an error names."""
    if name.startswith(PREFIX):
        try:
            return DemoDataset(name.removeprefix(PREFIX), split)
        except ValueError as error:
            raise ValueError(f'{flag}: {error}') from error
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
    if hasattr(getattr(dataset, 'reader', None), 'cache_tarfiles'):
        dataset.reader.cache_tarfiles = False


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
    """Decode images of a folder (1000 at most) before work starts; a ``ValueError`` names ``flag`` and file."""
    reader: Any = getattr(dataset, 'reader', None)
    if not hasattr(reader, '__getitem__') or not hasattr(reader, 'filename'):
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
