"""Find the files that a DAD set's settings name, from any folder and after the set was moved with them."""

from pathlib import Path
from typing import Any

from timm_dad.common.hub import SCHEME
from timm_dad.teachers.spec import WISE, change_members
from timm_dad.vqgan.presets import PRESETS


def _split(value: str) -> tuple[str, str]:
    """Split a SPEC or path into the part before the path and the path, which may be empty."""
    kind, _, rest = value.partition(':')
    if value in ('demo', *PRESETS) or 'hf-hub:' in value or value.startswith(SCHEME):
        return value, ''
    if kind not in ('timm', 'open_clip', 'probe', 'run'):
        return '', value
    if kind in ('probe', 'run'):
        return f'{kind}:', rest
    before = 'local-dir:' if rest.startswith('local-dir:') else ''.join(rest.partition('/')[:2])
    return f'{kind}:{before}', rest.removeprefix(before)


def absolute(value: Any) -> Any:
    """Return a flag's value as a set stores it: SPECs and paths of existing files become absolute."""
    if isinstance(value, list):
        return [absolute(each) for each in value]
    if not isinstance(value, str):
        return value
    if value.startswith(WISE):
        return change_members(value, absolute)
    before, path = _split(value)
    return f'{before}{Path(path).absolute()}' if path and Path(path).exists() else value


def without_folder(value: Any) -> Any:
    """Return a flag's value as it may be published: SPECs and absolute paths without the folder of their file."""
    if isinstance(value, list):
        return [without_folder(each) for each in value]
    if isinstance(value, str) and value.startswith(WISE):
        return change_members(value, without_folder)
    before, path = _split(value) if isinstance(value, str) else ('', '')
    return f'{before}{Path(path).name}' if Path(path).is_absolute() else value


def find_here(value: Any, root: Path, flag: str) -> Any:
    """Return a flag's value from a set, with the path that its file has here.

    If the file is not at its path, one with the same last folders and name beside or above the set is used: weights are
    compared with the set's by their hash anyway.

    Args:
        value: The value, from ``absolute`` or as it was originally given.
        root: Folder of the set.
        flag: The flag, such as ``--dad-teacher``.

    Raises:
        ValueError: If there is no such file.
    """
    if isinstance(value, list):
        return [find_here(each, root, flag) for each in value]
    if isinstance(value, str) and value.startswith(WISE):
        return change_members(value, lambda each: str(find_here(each, root, flag)))
    before, path = _split(value) if isinstance(value, str) else ('', '')
    if not path or Path(path).exists():
        return value
    parts = Path(path).parts[Path(path).is_absolute() :]
    for start in range(len(parts)):
        for folder in root.absolute().parents:
            if (found := folder.joinpath(*parts[start:])).exists():
                return f'{before}{found}'
    if len(parts) == 1 and not Path(path).suffix:  # a tag of open_clip
        return value
    raise ValueError(f'the set {root} was made with {flag} {value}, but {path} is not here: give {flag}')
