"""A whole DAD set as it is shared: exactly its files, every byte compared before, and its card beside them."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from timm_dad.dad_sets.manifest import INDEX, REINFORCED, SETTINGS
from timm_dad.dad_sets.read import DADSet, SetFolder
from timm_dad.dad_sets.reinforce import Reinforcement, is_reinforced
from timm_dad.dad_sets.verify import verify


def open_whole(root: Path, progress: bool = False) -> DADSet:
    """Open a set of which every byte is as its manifests say; ``ValueError`` if it is not, or not finished."""
    dad_set = DADSet(root)
    damages = list(verify(root, progress))
    if damages:
        more = f' and {len(damages) - 1} more' if len(damages) > 1 else ''
        raise ValueError(
            f'{root} is not whole ({damages[0]}{more}): timm-dad verify names what is damaged, and the same timm-dad '
            'generate with --repair makes it again'
        )
    return dad_set


def set_files(dad_set: DADSet) -> list[str]:
    """The files of a set, as paths in it: what its index and its manifests name, and no stranger.

    Raises:
        ValueError: If a path leads out of the set.
    """
    paths = _files_of(dad_set)
    if is_reinforced(dad_set.root):
        paths |= {f'{REINFORCED}/{path}' for path in _files_of(Reinforcement(dad_set))}
    outside = [path for path in paths if path.startswith('/') or '..' in PurePosixPath(path).parts]
    if outside:
        raise ValueError(f'{dad_set.root} names a file out of its folder, {outside[0]!r}: it is no set to share')
    return sorted(paths)


def _files_of(folder: SetFolder) -> set[str]:
    index = folder.index
    paths = {SETTINGS, INDEX, *(entry['path'] for entry in (*index['files'], *index['shards']))}
    for manifest in folder.manifests():
        paths |= manifest.paths()
    return paths


def lay_out(root: Path, paths: list[str], folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Let ``place(source, target)`` bring files of a set into another folder, whose folders are made."""
    for parent in {(folder / path).parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        place(root.absolute() / path, folder / path)
