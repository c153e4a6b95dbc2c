"""Convert pictures to 8 bits per channel by one rule for all readers: scale 16 bits, reject other ranges.

Their labels are class indices or, in a data set with a ``target_transform`` (timm's ``MultiLabelTarget``), multi-hot.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import get_img_extensions
from torch import Tensor

NOTHING_READ = (
    'the stream has no usable image, and the warnings above tell why: --input-key and --target-key must name '
    'the parts of its samples (pictures are read from .jpg, .png or .webp, labels from .cls)'
)
_16_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N')
_16_BIT_FORMATS = ('PNG', 'PPM')  # Pillow before 11 gives their 16 bits the mode I


class DataError(ValueError):
    """An error in the data, in one line: a loader's process, which may raise it, adds its traceback."""

    def __init__(self, message: str) -> None:
        own = message.rpartition(f'{DataError.__name__}: ')[2] if message.startswith('Caught ') else message
        super().__init__(own.strip())


def picture_names(folder: Path) -> list[str]:
    """Return the names of the pictures in a folder, unsorted; hidden files are ignored."""
    extensions, names = tuple(get_img_extensions()), [path.name for path in folder.iterdir()]
    return [name for name in names if name.lower().endswith(extensions) and not name.startswith('.')]


def eight_bits(picture: Image.Image) -> Image.Image:
    """Return the picture with 8 bits per channel; raise ``DataError`` if its white level is unknown.

    NOTE: Pillow's ``convert``, which timm calls, clips at 255: pictures of 16 bits turn white, those in [0, 1] black.
    """
    mode = picture.mode
    if mode in _16_BITS or (mode == 'I' and picture.format in _16_BIT_FORMATS):
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if mode in ('I', 'F'):
        raise DataError(f'its mode is {mode} (32 bits per pixel, of any range): save it with 8 or 16 bits per channel')
    return picture


def decode(file: Any, mode: str = 'RGB') -> Image.Image:
    """Decode a path or an open file; raise whatever Pillow raises (a bomb, a broken chunk) or ``DataError``."""
    with Image.open(file) as picture:
        picture.load()
        return eight_bits(picture).convert(mode)


def open_entry(reader: Any, index: int) -> tuple[Any, Any]:
    """Return file and label of an image of a timm reader; ``OSError`` if it is no file, or a pipe that never ends."""
    samples = getattr(reader, 'samples', None)
    path = samples[index][0] if isinstance(samples, list) else None
    if isinstance(path, str) and not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('it is not a file')
    file, label, *_ = reader[index]
    return file, label


def as_label(target: Any, encode: Callable[[Any], Tensor] | None = None, image: str = 'an image') -> Any:
    """Convert a reader's target of an image to a label; ``DataError`` names the image if that fails.

    Args:
        target: A class index, ``None``, or what ``encode`` takes; a multi-hot label stays unchanged.
        encode: Converts it to a multi-hot label ``[K]``.
        image: The image's name in errors.

    Returns:
        A class index (-1 for ``None``), or a multi-hot label.
    """
    if isinstance(target, Tensor) and target.ndim:
        return target
    if encode is None and isinstance(target, list | tuple):
        raise DataError(
            f'{image} has the labels {list(target)[:9]}, but one class is required; train, generate and preview take '
            'several classes with --task multilabel'
        )
    try:
        return int(-1 if target is None else target) if encode is None else encode(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f'the label of {image} cannot be used: {error}') from error


def check_label(label: Any, num_classes: int, image: str) -> Any:
    """Return the label; ``DataError`` names the image if there is no such class. Multi-hot labels pass."""
    if isinstance(label, Tensor):
        return label
    if not 0 <= label < num_classes:
        raise DataError(f'labels must be from 0 to {num_classes - 1}, but {image} has {label}')
    return label
