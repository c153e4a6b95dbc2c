"""Share a finished DAD set: exactly its files, every byte verified before, and its card beside them."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from timm_dad.dad_sets.manifest import INDEX, REINFORCED, SETTINGS
from timm_dad.dad_sets.read import DADSet, SetFolder
from timm_dad.dad_sets.reinforce import Reinforcement, is_reinforced
from timm_dad.dad_sets.verify import verify


def open_whole(root: Path, progress: bool = False) -> DADSet:
    """Open a set whose every byte matches its manifests; raise ``ValueError`` if it does not or is unfinished."""
    dad_set = DADSet(root)
    damages = list(verify(root, progress))
    if damages:
        more = f' and {len(damages) - 1} more' if len(damages) > 1 else ''
        raise ValueError(
            f'{root} is damaged ({damages[0]}{more}): timm-dad verify lists the damage, and the same timm-dad '
            'generate with --repair restores it'
        )
    return dad_set


def set_files(dad_set: DADSet) -> list[str]:
    """List the files of a set, as paths in it: only those that its index and its manifests name.

    Raises:
        ValueError: If a path leads out of the set.
    """
    paths = _files_of(dad_set)
    if is_reinforced(dad_set.root):
        paths |= {f'{REINFORCED}/{path}' for path in _files_of(Reinforcement(dad_set))}
    outside = [path for path in paths if path.startswith('/') or '..' in PurePosixPath(path).parts]
    if outside:
        raise ValueError(f'{dad_set.root} names a file outside its folder, {outside[0]!r}: it cannot be shared')
    return sorted(paths)


def _files_of(folder: SetFolder) -> set[str]:
    index = folder.index
    paths = {SETTINGS, INDEX, *(entry['path'] for entry in (*index['files'], *index['shards']))}
    for manifest in folder.manifests():
        paths |= manifest.paths()
    return paths


def lay_out(root: Path, paths: list[str], folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Apply ``place(source, target)`` to files of a set for another folder, whose subfolders are created."""
    for parent in {(folder / path).parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        place(root.absolute() / path, folder / path)
