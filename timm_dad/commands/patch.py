"""``timm-dad patch`` adds the lines of ``patches/`` to timm's ``train.py``; ``timm-dad run`` runs it with them."""

import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from timm_dad.commands import train_script
from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.flags.parser import Parser

_PACKAGE = Path(__file__).parents[1]
# An installed package has them inside (see package-dir in pyproject.toml), a checkout beside.
PATCHES = next(folder / 'patches' for folder in (_PACKAGE, _PACKAGE.parent) if (folder / 'patches').is_dir())
_EXTRA = re.compile(rb"^dad = \['timm-dad'\]\r?\n", re.MULTILINE)


def with_lines(path: Path, *, revert: bool = False) -> bytes:
    """Return the content of timm's ``train.py`` or ``pyproject.toml`` with or without (``revert``) DAD's lines.

    Raises:
        ValueError: If the places of the lines are missing or not unique, or the file has other lines of DAD.
        OSError: If the file cannot be read.
    """
    kind = _kind(path)
    source = path.read_bytes()
    has_lines = kind.has_lines(source)
    if revert and not has_lines:
        return source
    by_hand = f'add the lines of {PATCHES / kind.patch} by hand'
    plain = kind.remove_lines(source)
    try:
        changed = kind.add_lines(plain)
    except ValueError as error:
        raise ValueError(f'{path} is unchanged: {error}; {by_hand}') from error
    if has_lines and changed != source:
        raise ValueError(
            f'{path} is unchanged: its lines of timm_dad are not those of this version; remove them by hand'
        )
    return plain if revert else changed


@dataclass(frozen=True)
class _Kind:
    """A file of timm that takes lines of DAD, and the patch with the same lines."""

    patch: str
    has_lines: Callable[[bytes], bool]
    add_lines: Callable[[bytes], bytes]
    remove_lines: Callable[[bytes], bytes]


def _kind(path: Path) -> _Kind:
    if path.suffix == '.py':
        return _Kind('timm-train.patch', train_script.has_lines, train_script.add_lines, train_script.remove_lines)
    if path.suffix == '.toml':
        return _Kind('timm-extra.patch', lambda source: bool(_EXTRA.search(source)), _add_extra, _remove_extra)
    raise ValueError(f'{path} must be train.py or pyproject.toml of timm')


def _add_extra(source: bytes) -> bytes:
    """Add the extra to a ``pyproject.toml``: to its existing extras, or before the table that follows ``[project]``."""
    extras = re.search(rb'^\[project\.optional-dependencies\](\r?\n)', source, re.MULTILINE)
    place = extras or re.search(rb'^\[project\](\r?\n)(?:[^\[\n].*\n|\n|\r\n)*(?=\[)', source, re.MULTILINE)
    if place is None:
        raise ValueError('found no table [project] with another one after it')
    lines = (b"dad = ['timm-dad']",) if extras else (b'[project.optional-dependencies]', b"dad = ['timm-dad']", b'')
    return source[: place.end()] + b''.join(line + place[1] for line in lines) + source[place.end() :]


def _remove_extra(source: bytes) -> bytes:
    """Remove from a ``pyproject.toml`` what ``_add_extra`` adds."""
    return re.sub(rb'^\[project\.optional-dependencies\]\r?\n\r?\n', b'', _EXTRA.sub(b'', source), flags=re.MULTILINE)


def patch_file(path: Path, *, revert: bool = False) -> str:
    """Patch ``train.py`` (or ``pyproject.toml``) of a timm checkout, or remove the lines again (``revert``).

    Returns:
        A message about what was done, and how to undo it.

    Raises:
        ValueError: If the lines have no place in the file.
        OSError: If it cannot be read or written; it is then unchanged.
    """
    path = Path(os.path.realpath(path / 'train.py' if path.is_dir() else path))
    content, name = with_lines(path, revert=revert), _kind(path).patch
    if content == path.read_bytes():
        return f'{path} has {"none of" if revert else "already"} the lines of {name}: nothing to do'
    write_file(path, content)
    if revert:
        return f'{path}: the lines of {name} are removed'
    return f'{path}: the lines of {name} are added\nundo: timm-dad patch {path} --revert'


def main(argv: Sequence[str]) -> None:
    """Run the command ``patch``."""
    parser = Parser(
        prog='timm-dad patch',
        description="Add the flags --dad to timm's train.py (or the extra to its pyproject.toml).",
    )
    parser.add_argument('path', type=Path, help="timm's checkout, or the file")
    parser.add_argument('--revert', action='store_true', help='remove the lines again')
    args = parser.parse_args(argv)
    with user_errors('timm-dad patch'):
        try:
            done = patch_file(args.path, revert=args.revert)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise ValueError(str(error)) from error
    print(done)


def run(argv: Sequence[str]) -> None:
    """Run a ``train.py`` as ``python train.py`` does, patched only in memory.

    Args:
        argv: Path of the script, then its flags and ``--dad ...``.

    Raises:
        SystemExit: If the patch does not fit the script, or on a bad flag, with a message.
    """
    parser = Parser(
        prog='timm-dad run',
        usage='%(prog)s path/to/train.py [its flags] [--dad ...]',
        description="timm's train.py with the flags --dad, the file unchanged. After its path, --help is the script's.",
    )
    parser.add_argument('script', type=Path, help="timm's train.py")
    script = parser.parse_args(argv[:1]).script.resolve()
    if not script.is_file():
        parser.error(f'the script must be a file, got {argv[0]!r}')
    with user_errors(script.name):
        source = with_lines(script)
    sys.argv = list(argv)
    sys.path.insert(0, str(script.parent))
    module = ModuleType('__main__')
    module.__file__ = os.path.abspath(argv[0])  # workers that are spawned import it from there, as it is
    sys.modules['__main__'] = module
    # Tracebacks show the lines that run: those of the file on disk have other numbers.
    name = f'{script}, patched'
    linecache.cache[name] = (len(source), None, source.decode(errors='replace').splitlines(keepends=True), name)
    sys.excepthook = traceback.print_exception
    exec(compile(source, name, 'exec', dont_inherit=True), module.__dict__)
