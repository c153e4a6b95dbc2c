"""A survey of a data set before training: its classes, its pictures, and their oddities."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import ExifTags, Image
from timm.data import get_img_extensions

from timm_dad.common.listing import some
from timm_dad.common.spread import spread
from timm_dad.data.datasets import listed_labels
from timm_dad.data.images import Source
from timm_dad.data.pictures import as_label, eight_bits, open_entry, picture_names

MOST = 1000  # pictures to decode, as many as a training decodes before it begins
_OF_A_STREAM = 64
_UNEQUAL = 10  # classes are unequal if one has this many times the pictures of another
_FEW = 5  # names listed in a line
# Pictures that Pillow reads and timm's image folders do not.
_OTHER_SUFFIXES = ('.avif', '.bmp', '.gif', '.heic', '.tif', '.tiff', '.webp')


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The content of a split.

    Args:
        counts: Number of pictures of each class; for a stream, only of those that were read.
        looked: Number of pictures that were tried.
        broken: Pictures that do not decode, with the reason.
        modes: Number of pictures in each of Pillow's modes.
        sizes: Width and height of each picture.
        turned: Number of pictures that are stored turned or mirrored, and say so in their EXIF data.
        empty: Class folders without pictures.
        nested: Class folders with pictures in sub-folders.
        unread: Number of pictures by suffix that timm does not read.
        streams: Whether it is a stream, of which only the first pictures were read.
    """

    counts: Mapping[str, int]
    looked: int
    broken: Sequence[str]
    modes: Mapping[str, int]
    sizes: Sequence[tuple[int, int]]
    turned: int = 0
    empty: Sequence[str] = ()
    nested: Sequence[str] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    streams: bool = False

    @property
    def total(self) -> int:
        """Number of pictures of all classes."""
        return sum(self.counts.values())

    @property
    def side(self) -> int:
        """Median of the shorter sides, in pixels; 0 if no picture decodes."""
        return int(median(map(min, self.sizes))) if self.sizes else 0

    @property
    def modes_text(self) -> str:
        """Modes with their numbers of pictures, the most frequent first."""
        return ', '.join(f'{mode} {count}' for mode, count in Counter(self.modes).most_common())

    def __str__(self) -> str:
        """Return pictures, classes, sizes and modes in one line."""
        counts = sorted(self.counts.values())
        each = f'{counts[0]}' if counts[0] == counts[-1] else f'{counts[0]} to {counts[-1]}'
        sides = sorted(map(min, self.sizes)) or [0]
        wide = f'{sides[0]} px' if sides[0] == sides[-1] else f'{sides[0]} to {sides[-1]} px, median {self.side}'
        seen = 'the first ' if self.streams else ''
        return (
            f'{seen}{self.total} pictures in {len(counts)} classes, {each} a class; shorter side {wide}; '
            f'{self.modes_text}'
        )


def survey(source: Source, class_names: Sequence[str], folder: Path | None = None) -> Survey:
    """Survey a split.

    Args:
        source: The data set.
        class_names: Names of its classes, in the order of the labels.
        folder: Its folder of class folders, if it has one.

    Raises:
        ValueError: If a picture has several labels, or none has the label of a class.
    """
    broken: list[str] = []
    modes: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    labels: Counter[int] = Counter()
    looked = turned = 0
    for name, found in _pictures(source):
        looked += 1
        if isinstance(found, Exception):
            broken.append(f'{name} ({found})')
            continue
        modes[found.mode] += 1
        sizes.append(found.size)
        turned += found.turned
        labels[as_label(found.label, image=name)] += 1
    listed = listed_labels(source.dataset)
    if listed is not None:
        labels = Counter(listed.tolist())
    counts = {class_names[label]: labels[label] for label in sorted(labels) if 0 <= label < len(class_names)}
    if not counts:
        raise ValueError(f'none of the {looked} pictures looked at has a label from 0 to {len(class_names) - 1}')
    names = [] if folder is None else class_folders(folder)
    nested = [] if folder is None else [name for name in names if pictures_below(folder / name)]
    return Survey(
        counts=counts, looked=looked, broken=broken, modes=modes, sizes=sizes, turned=turned,
        empty=sorted(set(names) - set(counts) - set(nested)), nested=nested,
        unread={} if folder is None else _unread(folder), streams=source.streams,
    )  # fmt: skip


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def pictures_below(folder: Path) -> bool:
    """Return whether sub-folders of a folder have pictures; timm names their classes after the innermost folder."""
    return any(picture_names(Path(root)) for name in class_folders(folder) for root, *_ in os.walk(folder / name))


def _unread(folder: Path) -> Counter[str]:
    suffixes = (os.path.splitext(name)[1].lower() for _, _, names in os.walk(folder) for name in names)
    return Counter(suffix for suffix in suffixes if suffix in _OTHER_SUFFIXES and suffix not in get_img_extensions())


class _Look(NamedTuple):
    mode: str
    size: tuple[int, int]
    turned: bool
    label: Any


def _pictures(source: Source) -> Iterator[tuple[str, _Look | Exception]]:
    """Yield names of some pictures, each with what is seen of it, or with the error if it does not decode."""
    if source.streams:
        for index, image in source.some(_OF_A_STREAM).items():
            yield str(index), _look(image.image, image.label)
        return
    for index in spread(len(source), MOST):
        try:
            yield source.filename(index), _look_at(source, index)
        except Exception as error:  # Pillow raises various errors: a decompression bomb, a broken chunk
            yield source.filename(index), error


def _look_at(source: Source, index: int) -> _Look:
    if not source.has_files:
        image = source.read(index, hashed=False)
        return _look(image.image, image.label)
    file, label = open_entry(source.reader, index)
    with file, Image.open(file) as picture:
        picture.load()
        eight_bits(picture).convert('RGB')
        return _look(picture, label)


def _look(picture: Image.Image, label: Any) -> _Look:
    turned = False
    with contextlib.suppress(Exception):  # a picture whose EXIF data are broken trains as well as another
        turned = picture.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return _Look(picture.mode, picture.size, turned, label)


def to_mend(train: Survey, val: Survey | None) -> list[str]:
    """Return what a training would reject, one line each, with the fix."""
    found = []
    for split, what in (('train', train), ('val', val)):
        if what is not None and what.broken:
            found.append(
                f'{len(what.broken)} of {what.looked} pictures of {split} do not decode: repair or remove them: '
                f'{some(what.broken, _FEW)}'
            )
    if val is not None and set(train.counts) != set(val.counts) and not val.streams:
        extra, missing = (sorted(set(a.counts) - set(b.counts)) for a, b in ((val, train), (train, val)))
        both = ((extra, 'only in val'), (missing, 'only in train'))
        parts = [f'{some(names, _FEW)} {where}' for names, where in both if names]
        found.append(f'train and val must have the same classes: {"; ".join(parts)}')
    return found


def oddities(train: Survey, val: Survey | None, side: int) -> list[str]:
    """Return what a training accepts but the user may not expect; ``side`` is its image size, in pixels."""
    found, splits = [], [('train', train)] if val is None else [('train', train), ('val', val)]
    for split, what in splits:
        single = [name for name, count in what.counts.items() if count == 1]
        counts = sorted(what.counts.items(), key=lambda item: item[1])
        (least, fewest), (most, largest) = counts[0], counts[-1]
        small = sum(min(size) < side for size in what.sizes)
        rules = (
            (what.empty, f'folders without pictures, which do not count as classes: {some(what.empty, _FEW)}'),
            (
                what.nested,
                f'pictures in sub-folders, whose class is the innermost folder: {some(what.nested, _FEW)}',
            ),
            (
                what.unread,
                'pictures that timm does not read (convert them to .png or .jpg): '
                f'{", ".join(f"{count} {suffix}" for suffix, count in sorted(what.unread.items()))}',
            ),
            (single and not what.streams, f'classes with only one picture: {some(single, _FEW)}'),
            (
                largest >= _UNEQUAL * fewest and not what.streams,
                f'classes of very unequal size: {most} has {largest} pictures, {least} {fewest}',
            ),
            (
                set(what.modes) - {'RGB'},
                f'not all pictures are RGB (all are converted, without transparency): {what.modes_text}',
            ),
            (
                what.turned,
                f'{what.turned} of {len(what.sizes)} pictures are stored turned, as their EXIF data say; timm ignores '
                'that: rotate the files (such as with `exiftran -ai`)',
            ),
            (small, f'{small} of {len(what.sizes)} pictures have a side below {side} px, and are enlarged'),
        )
        found += [f'{split}: {text}' for holds, text in rules if holds]
    return found
