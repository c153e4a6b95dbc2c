"""The input of ``timm-dad evaluate``: suites, their parts, and pictures that know their file."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from timm_dad.common.spread import spread
from timm_dad.data.pictures import DataError, decode, picture_names
from timm_dad.flags.rules import under_flag

_MAX_CHECKED = 1000


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of pictures of a suite."""

    name: str  # in the suite, such as val, matched-frequency or gaussian_noise/3
    # An item begins with a PIL image in RGB and its label among the suite's classes; filename(index) names its file.
    dataset: Any
    multi_labels: Sequence[Sequence[int]] | None = None  # all right labels of each image, where there are several


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: one or more parts with the same classes and different names."""

    name: str  # a published one, or the user's
    kind: str  # clean, ood, corruption or adversarial
    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None  # in the order of the labels, WordNet ids in ImageNet's suites
    num_classes: int
    resize: bool = True  # and crop as the model takes images; ImageNet-C and its like are cropped already
    groups: tuple[tuple[str, ...], ...] | None = None  # ImageNet's classes that count as each class (ObjectNet)
    normalizer: str | None = None  # model whose errors normalize those on corruptions: alexnet for ImageNet-C


class FolderImages(Dataset[tuple[Image.Image, int]]):
    """Pictures in class folders of ``root``, listed at first use, in the order of ``labels`` and then by name.

    ``border`` pixels are cut off on each side. NOTE: timm's data set replaces an unreadable picture by the next one;
    this one raises an error, because the number would change.
    """

    def __init__(self, root: Path, labels: dict[str, int], border: int = 0) -> None:
        self.root, self.border = root, border
        self._folders, self._folder_labels = list(labels), list(labels.values())

    @cached_property
    def _files(self) -> tuple[list[str], NDArray[np.int64]]:
        names: list[str] = []
        counts = []
        for folder in self._folders:
            found = sorted(map(intern, picture_names(self.root / folder)))  # the 75 parts of ImageNet-C share names
            if not found:
                raise ValueError(f'{self.root / folder} contains no pictures: unpack the data set again')
            names += found
            counts.append(len(found))
        return names, np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._files[0])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return a picture in RGB and its label."""
        path = self.filename(index, absolute=True)
        image = open_picture(path, path)
        if self.border:
            width, height = image.size
            image = image.crop((self.border, self.border, width - self.border, height - self.border))
        return image, self._folder_labels[self._files[1][index]]

    def filename(self, index: int, *, absolute: bool = False) -> str:
        """Return the file of a picture, relative to the root or absolute."""
        path = Path(self._folders[self._files[1][index]], self._files[0][index])
        return str(self.root / path) if absolute else path.as_posix()


class Chosen(Subset[Any]):
    """Some images of a data set, by index, in this order."""

    def filename(self, index: int, *, absolute: bool = False) -> str:
        """Return the image's file, as the data set names it."""
        return str(self.dataset.filename(self.indices[index], absolute=absolute))  # type: ignore[attr-defined]


def open_picture(file: Any, name: str) -> Image.Image:
    """Decode a picture to RGB, or raise a ``DataError`` that names it by ``name``."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise OSError('it is not a file')
        return decode(file)
    except Exception as error:  # Pillow raises what it likes: a bomb, a broken chunk
        raise DataError(f'pictures must decode, but {name} does not: {error}') from error


def check_pictures(suite: Suite) -> None:
    """Decode pictures of a suite before work starts: all of them, or about 1000 spread evenly over its parts.

    Raise ``ValueError`` if one cannot be decoded, or if pictures that must not be resized differ in size.
    """
    sizes: dict[tuple[int, int], str] = {}
    count = max(2, _MAX_CHECKED // len(suite.parts))
    for part in suite.parts:
        for index in spread(len(part.dataset), count):
            with under_flag(f'{suite.name}, part {part.name}:'):
                image = part.dataset[index][0]
            sizes.setdefault(image.size, f'{part.name}: {part.dataset.filename(index)}')
    if not suite.resize and len(sizes) > 1:
        (size, file), (other, other_file) = list(sizes.items())[:2]
        one = ', one for each part' if len(suite.parts) > 1 else ''
        raise ValueError(
            f'{suite.name}: its pictures are not resized and must have one size, got {size} ({file}) and '
            f'{other} ({other_file}); to resize and crop them give folders of classes as MYNAME=DIR{one}'
        )
