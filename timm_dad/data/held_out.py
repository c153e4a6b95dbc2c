"""A validation split for a folder without one: pictures are held out, as folders of links."""

import hashlib
import os
from pathlib import Path

from timm_dad.common.listing import some
from timm_dad.data.pictures import picture_names
from timm_dad.data.survey import class_folders, pictures_below

_SHARE = 5  # one picture in 5


def hold_out(root: Path, folder: Path) -> tuple[Path, Path]:
    """Link the pictures of class folders into ``folder/train`` and ``folder/val``; ``root`` stays unchanged.

    One fifth of each class is held out, ordered by a hash of the name, so each run holds out the same pictures,
    unless pictures are added or removed. At least one picture of a class is held out; if it is the only one, it is in
    both splits.

    Args:
        root: Folder of class folders, with the pictures directly inside.
        folder: Folder for the links; existing links in it are replaced.

    Returns:
        The two folders.

    Raises:
        ValueError: If fewer than two classes have pictures, a class has some in sub-folders, ``folder`` lies in
            ``root``, or it holds anything but such links; then nothing changes.
    """
    root, folder = (Path(os.path.abspath(path)) for path in (root, folder))
    if folder.is_relative_to(root):
        raise ValueError(
            f'{folder}, for links of pictures, lies in {root} itself: start in another folder, or give --output in one'
        )
    deeper = [name for name in class_folders(root) if pictures_below(root / name)]
    if deeper:
        raise ValueError(
            f'{root} must have the pictures of a class directly in its folder, but in {some(deeper)} there are some in '
            'sub-folders: move them up, or make the splits yourself'
        )
    pictures = {name: _pictures(root / name) for name in class_folders(root)}
    if len([paths for paths in pictures.values() if paths]) < 2:
        raise ValueError(
            f'{root} must have one folder per class, of two classes or more, with pictures directly inside; there are '
            f'{ ({name: len(paths) for name, paths in pictures.items()}) }'
        )
    there = [path for path in folder.rglob('*') if path.is_symlink() or not path.is_dir()]
    for path in there:
        if not (path.is_symlink() and Path(os.path.normpath(path.readlink())).is_relative_to(root)):
            raise ValueError(f'{path} is not a link into {root}: move it away, or use another folder than {folder}')
    for path in there:
        path.unlink()
    splits = folder / 'train', folder / 'val'
    for name, paths in pictures.items():
        held = max(1, round(len(paths) / _SHARE)) if paths else 0
        parts = (paths[held:] or paths, paths[:held])
        for split, part in zip(splits, parts, strict=True):
            for path in part:
                (split / name).mkdir(parents=True, exist_ok=True)
                (split / name / path.name).symlink_to(path)
    return splits


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures directly inside a folder, ordered by the hashes of their names."""
    names = sorted(picture_names(folder), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    return [folder / name for name in names]
