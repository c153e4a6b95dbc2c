"""Hold pictures of a folder without a validation split out, as folders of links."""

import hashlib
import os
from pathlib import Path

from timm.data import get_img_extensions

from timm_dad.data.survey import class_folders

_SHARE = 5  # one picture of so many


def hold_out(root: Path, folder: Path) -> tuple[Path, Path]:
    """Link the pictures of class folders into ``folder/train`` and ``folder/val``; those of ``root`` stay as they are.

    Every fifth picture of a class is held out, by a hash of its name: the same ones each time, whatever is added. A
    class has one at least, and its only one is in both.

    Args:
        root: Folder of class folders, with the pictures right inside.
        folder: Where to put the links, new; links that are there already are replaced.

    Returns:
        The two folders.

    Raises:
        ValueError: If there are not two classes with pictures; nothing is linked then.
    """
    pictures = {name: _pictures(root / name) for name in class_folders(root)}
    if len([paths for paths in pictures.values() if paths]) < 2:
        raise ValueError(
            f'{root} must have one folder a class with pictures right inside, of two classes or more; there are '
            f'{ ({name: len(paths) for name, paths in pictures.items()}) }'
        )
    for link in folder.rglob('*'):
        if link.is_symlink():
            link.unlink()
    splits = folder / 'train', folder / 'val'
    for name, paths in pictures.items():
        held = max(1, round(len(paths) / _SHARE)) if paths else 0
        parts = (paths[held:] or paths, paths[:held])
        for split, part in zip(splits, parts, strict=True):
            for path in part:
                (split / name).mkdir(parents=True, exist_ok=True)
                (split / name / path.name).symlink_to(path.absolute())
    return splits


def _pictures(folder: Path) -> list[Path]:
    """Pictures right inside a folder, in the order of the hashes of their names."""
    extensions = tuple(get_img_extensions())
    paths = [path for path in folder.iterdir() if path.suffix.lower() in extensions and not path.name.startswith('.')]
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())
