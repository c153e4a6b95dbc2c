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
    """timm's data set of pictures with an index, decoded by ``decode``; ``DataError`` on labels of no class.

    ``num_classes`` may be set; labels are not checked before.
    """

    num_classes: int | None = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """One transformed picture and its label; the next one's, with a warning, where it does not decode.

        Raises:
            DataError: If none of many in a row decodes.
            IndexError: If there is no such picture, so that a loop over the data set ends.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'the data set has {len(self)} pictures, and no picture {index}')
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
            _logger.warning('%s does not decode, and the next one is taken: %s', self._name(index), error)
            return None
        label = as_label(target, self.target_transform, self._name(index))
        return picture, label if self.num_classes is None else check_label(label, self.num_classes, self._name(index))

    def _name(self, index: int) -> str:
        return str(self.reader.filename(index % len(self), absolute=True) or f'image {index} of the data set')


class PictureStream(IterableImageDataset):  # type: ignore[misc]
    """timm's stream of pictures with what ``Pictures`` does; ``mode`` is what they are converted to."""

    num_classes: int | None = None
    mode = 'RGB'
    label_free = False

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Transformed pictures and their labels."""
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
    """Lay views ``[3, H, W]`` and classes out as timm's ``fast_collate`` does, for loaders without its prefetcher.

    Returns:
        Images ``[V * B, 3, H, W]``, the first views of all before the second ones, and their targets ``[V * B]``, or
        ``[V * B, K]`` of several labels.
    """
    views, target = default_collate(batch)
    return torch.cat(views), torch.cat([target] * len(views))


def open_dataset(name: str, root: str | None, split: str, flag: str, *, labels: bool = True, **kwargs: Any) -> Any:
    """Open ``demo/STYLE`` or a timm data set, with its labels or without; ``flag`` is what an error names."""
    dataset = _open_labelled(name, root, split, flag, **kwargs)
    if not labels:
        drop_labels(dataset)
    return dataset


def _open_labelled(name: str, root: str | None, split: str, flag: str, **kwargs: Any) -> Any:
    if name.startswith(PREFIX):
        try:
            return DemoDataset(name.removeprefix(PREFIX), split)
        except ValueError as error:
            raise ValueError(f'{flag}: {error}') from error
    mode = kwargs.pop('input_img_mode', 'RGB')
    # These readers convert pictures themselves, and clip them.
    of_reader = '' if name.split('/')[0] in ('wds', 'hfids') else mode
    try:
        dataset = create_timm_dataset(name, root=root, split=split, input_img_mode=of_reader, **kwargs)
    except Exception as error:  # timm and its readers raise what they like
        raise ValueError(f'{flag}: no images for split {split!r}: {error or type(error).__name__}') from error
    keep_no_tar_open(dataset)
    return _decoded_here(dataset, mode)


def _decoded_here(dataset: Any, mode: str) -> Any:
    """The data set with our way of decoding."""
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


def check_class_names(names: Sequence[str] | None, flag: str) -> None:
    """Raise ``ValueError`` where classes are fewer than two, or one has no name or a name that is no text."""
    if names is None:
        return
    if '' in names or len(names) < 2:
        found = 'some lie in none' if '' in names else f'there is one class, {names[0]!r}'
        raise ValueError(f'{flag}: pictures must lie in one folder a class, of two classes or more, and {found}')
    check_names_are_text(names, flag)


def check_names_are_text(names: Sequence[str], flag: str) -> None:
    """Raise ``ValueError`` where a class name is no UTF-8 or has several lines: files of names could not hold it."""
    odd = next(
        (name for name in names if name and name.encode('utf-8', 'ignore').decode().splitlines() != [name]), None
    )
    if odd is not None:
        raise ValueError(f'{flag}: class names must be lines of UTF-8 text, got {odd!a}: rename the folder')


def check_images(dataset: Any, flag: str) -> None:
    """Decode images of a folder (1000 at most) before work starts; a ``ValueError`` names ``flag`` and file."""
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
            raise ValueError(f'{flag}: images must decode, {name} does not: {error}') from error


def check_labels(dataset: Any, flag: str, num_classes: int) -> None:
    """Let a data set refuse labels of no class, those that it lists at once; ``ValueError`` names ``flag``."""
    if isinstance(dataset, Pictures | PictureStream):
        dataset.num_classes = num_classes
    _try_labels(dataset, flag, None, 1)
    labels = listed_labels(dataset)
    if labels is None:
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f'{flag}: labels must be from 0 to {num_classes - 1}, image {wrong[0]} has {labels[wrong[0]]}: set '
            '--num-classes, or mend the labels'
        )


def encode_labels(dataset: Any, flag: str, encode: Callable[[Any], Tensor]) -> None:
    """Let a data set give multi-hot labels; ``ValueError`` names ``flag`` where ``encode`` refuses one (of 1000)."""
    dataset.target_transform = encode
    _try_labels(dataset, flag, encode, _MAX_CHECKED)


def _try_labels(dataset: Any, flag: str, encode: Callable[[Any], Tensor] | None, count: int) -> None:
    """Make labels of the first targets of a data set, where it lists them without its pictures."""
    reader: Any = getattr(dataset, 'reader', None)
    targets = reader.iter_targets() if hasattr(reader, 'iter_targets') else ()
    for index, target in enumerate(itertools.islice(targets, count)):
        try:
            as_label(target, encode, f'image {index}')
        except DataError as error:
            raise ValueError(f'{flag}: {error}') from error


def listed_labels(dataset: Any) -> Any:
    """Return labels ``[N]`` where a data set has them without its pictures, else ``None``."""
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
