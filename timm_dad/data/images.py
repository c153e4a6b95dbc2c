"""The images that a DAD set is made from and paired with: their names, their hashes and their framing."""

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.common.options import option
from timm_dad.common.spread import spread
from timm_dad.data.datasets import dataset_class_names, keep_no_tar_open
from timm_dad.data.pictures import DataError, as_label, decode, eight_bits, open_entry
from timm_dad.data.unlabelled import NO_LABEL

MAX_CROP_PCT = 1.25  # timm's volo_d4 and volo_d5 have 1.15: a border beyond the picture


class SourceImage(NamedTuple):
    """One image of a data set, RGB, with the hash of its file or, if the data set has no files, of its pixels."""

    image: Image.Image
    label: Any  # a class index, or multi-hot
    sha256: str


class Source:
    """A data set of timm's, or the demo's, accessed image by image, without its transform."""

    def __init__(self, dataset: Any) -> None:
        keep_no_tar_open(dataset)
        self.dataset = dataset
        self.streams = isinstance(dataset, IterableDataset)
        self.reader: Any = getattr(dataset, 'reader', None)
        self.has_files = hasattr(self.reader, '__getitem__') and not self.streams
        self.class_names: Sequence[str] | None = dataset_class_names(dataset)
        self.label_free: bool = getattr(dataset, 'label_free', False)
        # Folders and tars do, with a folder a class; a class map may put several folders into one class.
        named = self.class_names is not None or self.label_free
        self.lists_files = self.has_files and hasattr(self.reader, 'samples') and named

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> SourceImage:
        """Return the same as ``read``."""
        return self.read(index)

    def filename(self, index: int, *, absolute: bool = False) -> str:
        """Return an image's file as timm names it, relative or absolute; its number if there are no files."""
        return str(self.reader.filename(index, absolute=absolute) if self.has_files else index)

    @property
    def identified_by(self) -> str:
        """What ``sha256`` of an image covers: ``file`` or ``pixels``."""
        return 'file' if self.has_files else 'pixels'

    def read(self, index: int, *, hashed: bool = True) -> SourceImage:
        """Read one image by index.

        NOTE: timm's data sets take the next image instead of a broken one, which would pair it with another image's
            view.

        Args:
            index: Its place in the data set.
            hashed: Whether to hash it; otherwise ``sha256`` is empty.

        Raises:
            DataError: If it does not decode.
            IndexError: If there is no such image, so that a loop over the source ends.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'the data set has {len(self)} images, but no image {index}')
        if not self.has_files:
            self.dataset.transform = None
            image, label = self.dataset[index]
            return self.of_pixels(image, label, hashed=hashed)
        try:
            file, label = open_entry(self.reader, index)
            with file:
                data = file.read()
            image = decode(io.BytesIO(data))
        except Exception as error:  # Pillow raises what it likes: a bomb, a broken chunk
            name = self.reader.filename(index, absolute=True) or f'image {index} of the data set'
            raise DataError(f'{name} does not decode: {error}; repair it, or remove it from the data set') from error
        sha256 = hashlib.sha256(data).hexdigest() if hashed else ''
        encode = getattr(self.dataset, 'target_transform', None)
        return SourceImage(image, as_label(label, encode, f'image {index} of the data set'), sha256)

    @staticmethod
    def of_pixels(image: Image.Image, label: Any, *, hashed: bool = True) -> SourceImage:
        """Create an image of a stream."""
        image = eight_bits(image).convert('RGB')
        sha256 = hashlib.sha256(f'{image.size}'.encode() + image.tobytes()).hexdigest() if hashed else ''
        return SourceImage(image, as_label(label), sha256)

    @property
    def one_class(self) -> bool:
        """Whether labels are one class per image, rather than none or several."""
        return not self.label_free and getattr(self.dataset, 'target_transform', None) is None

    def kept_label(self, label: Any) -> int:
        """Return what a DAD set stores of a label: a class index, or nothing if there is none or several."""
        return NO_LABEL if self.label_free or isinstance(label, Tensor) else int(label)

    def folder(self, label: Any) -> str:
        """Return the name of a class's folder for a data set without folders."""
        if self.label_free or isinstance(label, Tensor):
            return 'images'
        return str(label) if self.class_names is None else self._folders[label]

    @cached_property
    def _folders(self) -> list[str]:
        names = [name.replace('/', '_') for name in self.class_names or ()]
        counted = Counter(names)
        folders = [
            name if name.strip('.') and counted[name] == 1 else f'{name}-{label}' for label, name in enumerate(names)
        ]
        while len(counted := Counter(folders)) < len(folders):  # 'a/b', 'a_b' and 'a_b-0'
            folders = [name if counted[name] == 1 else f'{name}-{label}' for label, name in enumerate(folders)]
        return folders

    def name(self, index: int, label: Any) -> str:
        """Return the unique name of an image: its path without suffix if it has a path, else ``class/index``."""
        if not self.lists_files:
            return f'{self.folder(label)}/{index:08d}'
        path = self._path(index, label)
        stem = str(path.with_suffix(''))
        taken, same_paths = self._ambiguous
        if _key(stem) not in taken:
            return stem
        # a.jpg and a.png in one folder keep their suffix; files of one path, in tars inside a tar, get a number.
        return str(path) if _key(str(path)) not in same_paths else f'{path}-{index:08d}'

    def _path(self, index: int, label: int) -> PurePosixPath:
        # Cut here: os.path.relpath, which the reader takes, is slow for a million files.
        path = str(self.reader.filename(index, absolute=True))
        root = str(getattr(self.reader, 'root', '')).rstrip('/')
        parts = [part for part in PurePosixPath(path.removeprefix(root)).parts if part not in ('/', '..', '.')]
        # A tar for each class has no folders inside.
        return PurePosixPath(*parts) if len(parts) > 1 else PurePosixPath(self.folder(label), *parts)

    def _label(self, index: int) -> int:
        targets = getattr(self.reader, 'targets', None)  # samples are pairs where these are not apart
        return int(self.reader.samples[index][1] if targets is None else targets[index])

    @cached_property
    def _ambiguous(self) -> tuple[frozenset[int], frozenset[int]]:
        """Keys of stems that equal another's stem or path, and of paths that several images have."""
        keys = np.empty((2, len(self)), np.uint64)
        for index in range(len(self)):
            path = self._path(index, self._label(index))
            keys[:, index] = _key(str(path)), _key(str(path.with_suffix('')))
        paths = _repeated(keys[0].copy())
        return _repeated(keys.reshape(-1)), paths

    def listing(self) -> str | None:
        """Return a hash of all images' names and labels, or ``None`` if that requires reading the images."""
        if not self.lists_files:
            return None
        sha = hashlib.sha256()
        for index in range(len(self)):
            label = self._label(index)
            sha.update(f'{self._path(index, label)}\0{label}\n'.encode(errors='surrogateescape'))
        return sha.hexdigest()

    def sample(self) -> str:
        """Return a hash of some images and labels: 32, spread evenly, or the first 8 of a stream."""
        images = self.some(8 if self.streams else 32).values()
        return hashlib.sha256(
            repr([(image.sha256, torch.as_tensor(image.label).tolist()) for image in images]).encode()
        ).hexdigest()

    def some(self, count: int) -> dict[int, SourceImage]:
        """Return ``count`` images by index, or all if there are fewer: spread evenly, or the first ones of a stream."""
        if self.streams:
            first = itertools.islice(self.dataset, count)
            return {index: self.of_pixels(*pair) for index, pair in enumerate(first)}
        return {index: self.read(index) for index in spread(len(self), count)}


def _repeated(keys: NDArray[np.uint64]) -> frozenset[int]:
    """Return keys that occur more than once; sort them in place, because there may be millions."""
    keys.sort()
    return frozenset(keys[1:][keys[1:] == keys[:-1]].tolist())


def _key(text: str) -> int:
    """Return a 64-bit number for a name: a million names fit in 8 MB."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=8).digest(), 'big')


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How a picture is fitted to a given size: timm's transform for evaluation.

    Args:
        size: ``(height, width)``.
        crop_mode: ``center``, ``border`` or ``squash``.
        fill: Colour of a border, in [0, 1] pixel units.
    """

    size: tuple[int, int]
    interpolation: str = option('bicubic', 'how pictures are resized, as timm names it')
    crop_pct: float = option(1.0, 'fraction of the shorter side of the resized picture that is used')
    crop_mode: str = 'center'
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= MAX_CROP_PCT:
            raise ValueError(f'crop_pct must be more than 0 and at most {MAX_CROP_PCT}, got {self.crop_pct}')
        if min(self.size) < 1:
            raise ValueError(f'size must be positive, got {self.size}')

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> 'Frame':
        """Create the frame from what ``timm.data.resolve_data_config`` returns."""
        same = {name: config[name] for name in ('interpolation', 'crop_pct', 'crop_mode')}
        return cls(size=tuple(config['input_size'][-2:]), fill=tuple(config['mean']), **same)

    def transform(self) -> Callable[[Image.Image], Image.Image]:
        """Return a function from picture to picture of ``size``: timm's transform, up to the tensor."""
        same = {name: getattr(self, name) for name in ('interpolation', 'crop_pct', 'crop_mode')}
        transform = create_transform((3, *self.size), is_training=False, mean=self.fill, use_prefetcher=True, **same)
        return Compose(transform.transforms[:-1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadedImage:
    """An image on its way to the device: index, framed pixels ``[3, H, W]`` uint8, and the source it was read from."""

    index: int
    pixels: Tensor
    label: Any  # a class index, or multi-hot
    sha256: str


class FramedImages(Dataset[Any]):
    """Images by index, framed if there is a ``frame``, and then changed, given their index.

    The data set returns a picture, its label and optionally its hash (``Source``); its ``filename`` is used in errors.
    """

    def __init__(
        self, dataset: Any, frame: Frame | None, change: Callable[[Image.Image, int], Image.Image] | None = None
    ) -> None:
        self.dataset, self.change = dataset, change
        self.transform = frame.transform() if frame else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> LoadedImage | ValueError:
        """Return the image or its error: raised in a worker process, the error would carry a traceback."""
        try:
            return self.load(index, *self.dataset[index])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = self.dataset.filename(index) if hasattr(self.dataset, 'filename') else ''
            return ValueError(str(error) if name in str(error) else f'{name}: {error}')

    def load(self, index: int, image: Image.Image, label: Any, sha256: str = '') -> LoadedImage:
        """Frame an image that was read."""
        image = self.transform(image) if self.transform else image
        image = self.change(image, index) if self.change else image
        return LoadedImage(index, pil_to_tensor(image.convert('RGB')), as_label(label), sha256)


def collate_images(items: Sequence[LoadedImage | ValueError]) -> tuple[Tensor, Tensor, list[int]] | ValueError:
    """Collate pixels ``[B, 3, H, W]`` uint8, labels ``[B]`` and indices of a batch, or return an image's error."""
    images = [item for item in items if isinstance(item, LoadedImage)]
    if len(images) < len(items):
        return next(item for item in items if isinstance(item, ValueError))
    sizes = sorted({tuple(image.pixels.shape[:0:-1]) for image in images})
    if len(sizes) > 1:
        return ValueError(f'unframed images must all have one size, got {sizes[0]} and {sizes[1]} (width, height)')
    labels = torch.tensor([image.label for image in images])
    return torch.stack([image.pixels for image in images]), labels, [image.index for image in images]
