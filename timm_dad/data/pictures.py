"""Pictures become 8 bits a channel by one rule, whoever reads them: 16 bits are scaled, other ranges refused.

Their labels are class indices or, in a data set with a ``target_transform`` (timm's ``MultiLabelTarget``), multi-hot.
"""

import os
import stat
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

NOTHING_READ = (
    'the stream gives no image that can be used, and the warnings above say why: --input-key and --target-key name '
    'what its samples hold (pictures are read from .jpg, .png or .webp, labels from .cls)'
)
_16_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N')
_16_BIT_FORMATS = ('PNG', 'PPM')  # Pillow before 11 gives their 16 bits the mode I


class DataError(ValueError):
    """What is wrong with the data, in one line: a loader's process, which may raise it, adds its traceback."""

    def __init__(self, message: str) -> None:
        own = message.rpartition(f'{DataError.__name__}: ')[2] if message.startswith('Caught ') else message
        super().__init__(own.strip())


def eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; ``DataError`` where it does not say what its white is.

    NOTE: Pillow's ``convert``, which timm calls, clips at 255: pictures of 16 bits turn white, those in [0, 1] black.
    """
    mode = picture.mode
    if mode in _16_BITS or (mode == 'I' and picture.format in _16_BIT_FORMATS):
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if mode in ('I', 'F'):
        raise DataError(f'its mode is {mode} (32 bits a pixel, of any range): save it with 8 or 16 bits a channel')
    return picture


def decode(file: Any, mode: str = 'RGB') -> Image.Image:
    """Decode a path or an open file; raises whatever Pillow raises (a bomb, a broken chunk) and ``DataError``."""
    with Image.open(file) as picture:
        picture.load()
        return eight_bits(picture).convert(mode)


def open_entry(reader: Any, index: int) -> tuple[Any, Any]:
    """File and label of an image of a timm reader; ``OSError`` where there is no file, or a pipe, that never ends."""
    samples = getattr(reader, 'samples', None)
    path = samples[index][0] if isinstance(samples, list) else None
    if isinstance(path, str) and not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('it is no file')
    file, label, *_ = reader[index]
    return file, label


def as_label(target: Any, encode: Callable[[Any], Tensor] | None = None, image: str = 'an image') -> Any:
    """What a reader gives as the target of an image, as a label; ``DataError`` names the image where it is none.

    Args:
        target: A class index, ``None``, or what ``encode`` takes; a label of several classes stays as it is.
        encode: Makes a multi-hot label ``[K]`` of it.
        image: What errors call the image.

    Returns:
        A class index (-1 for ``None``), or a multi-hot label.
    """
    if isinstance(target, Tensor) and target.ndim:
        return target
    if encode is None and isinstance(target, list | tuple):
        raise DataError(
            f'{image} has the labels {list(target)[:9]}, and one class is wanted; train, generate and preview take '
            'several with --task multilabel'
        )
    try:
        return int(-1 if target is None else target) if encode is None else encode(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f'the label of {image} cannot be used: {error}') from error


def check_label(label: Any, num_classes: int, image: str) -> Any:
    """The label; ``DataError`` names the image where the classes have no such number. Multi-hot ones pass."""
    if isinstance(label, Tensor):
        return label
    if not 0 <= label < num_classes:
        raise DataError(f'labels must be from 0 to {num_classes - 1}, {image} has {label}')
    return label
