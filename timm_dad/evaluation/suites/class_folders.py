"""Class folders named by WordNet ids, and errors about published layouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from timm.data import ImageNetInfo


@dataclass(frozen=True)
class Place:
    """A suite's name and folder."""

    name: str
    root: Path

    def error(self, expected: str, found: str, fix: str) -> ValueError:
        """Create an error about the layout."""
        return ValueError(f'{self.name}={self.root}: {expected}, {found}: {fix}')


def imagenet_wnids() -> tuple[str, ...]:
    """Return ImageNet-1k's 1000 WordNet ids, in the order of the labels."""
    return tuple(ImageNetInfo().label_names())


def subset_wnids(letter: str) -> tuple[str, ...]:
    """Return the 200 WordNet ids of ImageNet-A (``a``) or ImageNet-R (``r``), in the order of ImageNet's labels.

    Source: timm, ``data/_info/imagenet_a_synsets.txt`` and ``imagenet_r_synsets.txt``; they equal those of
    hendrycks/natural-adv-examples ``eval.py`` and hendrycks/imagenet-r ``eval.py``.
    """
    text = (files('timm.data') / '_info' / f'imagenet_{letter}_synsets.txt').read_text()
    return tuple(sorted(text.split()))


def class_folders(place: Place, root: Path, wnids: Sequence[str], *, may_lack: bool = False) -> dict[str, int]:
    """Return the label of each class folder of ``root``, given the classes ``wnids`` in the order of the labels.

    Other folders are an error, as are missing ones (only if all are missing, with ``may_lack``).
    """
    names = {path.name for path in folders(root)}
    lacking, unknown = sorted(set(wnids) - names), sorted(names - set(wnids))
    if unknown or len(lacking) == len(wnids) or (lacking and not may_lack):
        found = f'{root} has {len(wnids) - len(lacking)} of them, lacks {len(lacking)} {first(lacking)}'
        raise place.error(
            f'it must have {len(wnids)} class folders ({wnids[0]} ... {wnids[-1]})',
            f'{found} and has {len(unknown)} others {first(unknown)}' if unknown else found,
            'unpack it again, its files sorted by class, or give another data set as MYNAME=DIR',
        )
    return {wnid: label for label, wnid in enumerate(wnids) if wnid in names}


def inner(root: Path, names: Sequence[str]) -> Path:
    """Return the first of these folders in ``root``, or ``root``."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def folders(root: Path) -> list[Path]:
    """List the folders in ``root`` by name; hidden ones are skipped."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))


def some(root: Path) -> str:
    """Return the first names in ``root``."""
    return first(sorted(path.name for path in root.iterdir()))


def first(names: Sequence[str]) -> str:
    """Format up to three names in brackets, with dots if there are more."""
    return f'({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})' if names else '(nothing)'
