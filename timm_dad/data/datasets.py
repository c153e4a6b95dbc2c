"""Data: timm's data sets and the demo's, their class names, and checks before work starts."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset, IterableImageDataset
from timm.data import create_dataset as create_timm_dataset
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.datasets import DatasetFolder

from timm_dad.common.spread import spread
from timm_dad.data.pictures import DataError, as_label, check_label, decode, eight_bits, open_entry
from timm_dad.data.unlabelled import drop_labels, read_without_labels
from timm_dad.demo.data import PREFIX, DemoDataset

_MAX_CHECKED = 1000
_logger = logging.getLogger(__name__)


class Pictures(ImageDataset):  # type: ignore[misc]
    """timm's data set of pictures with an index, decoded by ``decode``; ``DataError`` for labels outside the classes.

    ``num_classes`` may be set; labels are not checked before that.
    """

    num_classes: int | None = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return a transformed picture and its label; if it does not decode, warn and return the next one.

        Raises:
            DataError: If many pictures in a row do not decode.
            IndexError: If there is no such picture, so that a loop over the data set ends.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'the data set has {len(self)} pictures, but no picture {index}')
        for place in range(index, index + self._max_retries):
            picture = self._decode(place % len(self))
            if picture is not None:
                image, label = picture
                return self.transform(image) if self.transform else image, label
        raise DataError(f'{self._max_retries} pictures in a row do not decode, the last is {self._name(place)}')

    def _decode(self, index: int) -> tuple[Any, int] | None:
        try:
            file, target = open_entry(self.reader, index)
            with file:
                picture = decode(file, self.input_img_mode)
        except DataError as error:
            raise DataError(f'{self._name(index)} cannot be used: {error}') from error
        except Exception as error:  # Pillow raises what it likes: a bomb, a broken chunk
            _logger.warning('%s does not decode; the next one is used instead: %s', self._name(index), error)
            return None
        label = as_label(target, self.target_transform, self._name(index))
        return picture, label if self.num_classes is None else check_label(label, self.num_classes, self._name(index))

    def _name(self, index: int) -> str:
        return str(self.reader.filename(index % len(self), absolute=True) or f'image {index} of the data set')


class PictureStream(IterableImageDataset):  # type: ignore[misc]
    """timm's stream of pictures with the behaviour of ``Pictures``; ``mode`` is the mode they are converted to."""

    num_classes: int | None = None
    mode = 'RGB'
    label_free = False

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield transformed pictures and their labels."""
        if self.label_free:
            read_without_labels(self.reader)
        for picture, target in self.reader:
            try:
                image = eight_bits(picture).convert(self.mode)
            except DataError as error:
                raise DataError(f'an image of the stream cannot be used: {error}') from error
            label = as_label(target, self.target_transform, 'an image of the stream')
            if self.num_classes is not None:
                check_label(label, self.num_classes, 'an image of the stream')
            yield self.transform(image) if self.transform else image, label


def collate_views(batch: Any) -> tuple[Tensor, Tensor]:
    """Lay out views ``[3, H, W]`` and classes like timm's ``fast_collate``, for loaders without its prefetcher.

    Returns:
        Images ``[V * B, 3, H, W]``, all first views before the second ones, and their targets ``[V * B]``, or
        ``[V * B, K]`` for multi-hot labels.
    """
    views, target = default_collate(batch)
    return torch.cat(views), torch.cat([target] * len(views))


def open_dataset(name: str, root: str | None, split: str, flag: str, *, labels: bool = True, **kwargs: Any) -> Any:
    """Open ``demo/STYLE`` or a timm data set, with or without its labels; errors name ``flag``."""
    dataset = _open_labelled(name, root, split, flag, **kwargs)
    if not labels:
        drop_labels(dataset)
    return dataset


def _open_labelled(name: str, root: str | None, split: str, flag: str, **kwargs: Any) -> Any:
    mode = kwargs.pop('input_img_mode', 'RGB')
    if name.startswith(PREFIX):
        if mode != 'RGB':
            raise ValueError(f'{flag}: the pictures of the demo have 3 channels: leave --in-chans out')
        try:
            return DemoDataset(name.removeprefix(PREFIX), split)
        except ValueError as error:
            raise ValueError(f'{flag}: {error}') from error
    # These readers convert pictures themselves, and clip them.
    of_reader = '' if name.split('/')[0] in ('wds', 'hfids') else mode
    try:
        dataset = create_timm_dataset(name, root=root, split=split, input_img_mode=of_reader, **kwargs)
    except Exception as error:  # timm and its readers raise what they like
        raise ValueError(f'{flag}: no images for split {split!r}: {error or type(error).__name__}') from error
    keep_no_tar_open(dataset)
    return _decoded_here(dataset, mode)


def _decoded_here(dataset: Any, mode: str) -> Any:
    """Return the data set with our way of decoding."""
    if isinstance(dataset, ImageDataset):
        return Pictures(None, reader=dataset.reader, input_img_mode=mode)
    if isinstance(dataset, IterableImageDataset):
        stream = PictureStream(None, reader=dataset.reader)
        stream.mode = mode
        return stream
    if isinstance(dataset, DatasetFolder):
        dataset.loader = decode
    return dataset


def keep_no_tar_open(dataset: Any) -> None:
    """Let timm's reader of tars reopen them for each image.

    NOTE: it keeps them open, and forked loader workers of a process that has read one share its file position, so that
    they read each other's images.
    """
    if hasattr(getattr(dataset, 'reader', None), 'cache_tarfiles'):
        dataset.reader.cache_tarfiles = False


def dataset_class_names(dataset: Any) -> list[str] | None:
    """Return the class names in the order of the labels, or ``None`` if the data set does not tell."""
    if isinstance(dataset, DemoDataset):
        return dataset.class_names
    reader = getattr(dataset, 'reader', None)
    class_to_idx = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)  # folder, tar
    if not class_to_idx or sorted(class_to_idx.values()) != list(range(len(class_to_idx))):
        return None  # a class map may put several names into one class, or leave labels out
    return sorted(class_to_idx, key=class_to_idx.__getitem__)


def check_class_names(names: Sequence[str] | None, flag: str) -> None:
    """Raise ``ValueError`` if there are fewer than two classes, or a name is missing or not text."""
    if names is None:
        return
    if '' in names or len(names) < 2:
        found = 'some lie in no folder' if '' in names else f'there is only one class, {names[0]!r}'
        raise ValueError(f'{flag}: pictures must lie in one folder per class, of two classes or more, but {found}')
    check_names_are_text(names, flag)


def check_names_are_text(names: Sequence[str], flag: str) -> None:
    """Raise ``ValueError`` if a class name is not UTF-8 or has several lines: files of names could not store it."""
    odd = next(
        (name for name in names if name and name.encode('utf-8', 'ignore').decode().splitlines() != [name]), None
    )
    if odd is not None:
        raise ValueError(f'{flag}: class names must be single lines of UTF-8 text, got {odd!a}: rename the folder')


def check_images(dataset: Any, flag: str) -> None:
    """Decode images of a folder (at most 1000) before work starts; a ``ValueError`` names ``flag`` and file."""
    reader: Any = getattr(dataset, 'reader', None)
    if not hasattr(reader, '__getitem__') or not hasattr(reader, 'filename'):
        return
    for index in spread(len(reader), _MAX_CHECKED):
        try:
            file, _ = open_entry(reader, index)
            with file:
                decode(file)
        except Exception as error:  # Pillow raises what it likes: a bomb, a broken chunk
            name = reader.filename(index, absolute=True) or f'image {index}'
            raise ValueError(f'{flag}: images must decode, but {name} does not: {error}') from error


def check_labels(dataset: Any, flag: str, num_classes: int) -> None:
    """Make a data set reject labels outside the classes, listed ones at once; ``ValueError`` names ``flag``."""
    if isinstance(dataset, Pictures | PictureStream):
        dataset.num_classes = num_classes
    _try_labels(dataset, flag, None, 1)
    labels = listed_labels(dataset)
    if labels is None:
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f'{flag}: labels must be from 0 to {num_classes - 1}, but image {wrong[0]} has {labels[wrong[0]]}: set '
            '--num-classes, or fix the labels'
        )


def encode_labels(dataset: Any, flag: str, encode: Callable[[Any], Tensor]) -> None:
    """Make a data set return multi-hot labels; ``ValueError`` names ``flag`` if ``encode`` rejects one (of 1000)."""
    dataset.target_transform = encode
    _try_labels(dataset, flag, encode, _MAX_CHECKED)


def _try_labels(dataset: Any, flag: str, encode: Callable[[Any], Tensor] | None, count: int) -> None:
    """Convert the first labels of a data set, if it lists them without reading pictures."""
    reader: Any = getattr(dataset, 'reader', None)
    targets = reader.iter_targets() if hasattr(reader, 'iter_targets') else ()
    for index, target in enumerate(itertools.islice(targets, count)):
        try:
            as_label(target, encode, f'image {index}')
        except DataError as error:
            raise ValueError(f'{flag}: {error}') from error


def listed_labels(dataset: Any) -> Any:
    """Return the labels ``[N]`` if a data set has them without its pictures, else ``None``."""
    reader = getattr(dataset, 'reader', dataset)
    label_key = getattr(reader, 'label_key', None)
    if label_key and not reader.remap_class and label_key in getattr(reader.dataset, 'column_names', ()):  # hfds
        labels = reader.dataset.with_format('numpy')[label_key][:]
    else:
        labels = getattr(reader, 'targets', None)
        if labels is None and isinstance(getattr(reader, 'samples', None), list):
            labels = [sample[1] for sample in reader.samples]
    if labels is None:
        return None
    array = np.asarray(labels)
    return array if array.ndim == 1 and array.dtype.kind in 'iu' else None
