"""``timm-dad patch`` puts the lines of ``patches/`` into timm's ``train.py``; ``timm-dad run`` runs it with them."""

import linecache
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.flags.parser import Parser

_PACKAGE = Path(__file__).parents[1]
# An installed package has them inside (see package-dir in pyproject.toml), a checkout beside.
PATCHES = next(folder / 'patches' for folder in (_PACKAGE, _PACKAGE.parent) if (folder / 'patches').is_dir())


def apply_patch(path: Path, patch: Path, *, revert: bool = False) -> bytes:
    """Apply a patch to the content of a file: every hunk where its lines stand, whatever the line number.

    Returns:
        The content with the changes, or without them (``revert``); as it is, if it is so already.

    Raises:
        ValueError: If the lines around a change are missing or stand there more than once; the message shows them.
        OSError: If the file cannot be read.
    """
    hunks = re.split(r'^(?=@@ )', patch.read_text(encoding='utf-8'), flags=re.MULTILINE)[1:]
    original = content = path.read_bytes()
    missing = ''
    for hunk in hunks:
        changed = _apply_hunk(content, hunk, revert)
        if changed is None:
            missing += hunk
        else:
            content = changed
    if not missing:
        return content
    if all(_apply_hunk(original, hunk, not revert) is not None for hunk in hunks):
        return original
    missing = missing.rstrip('\n')
    sys.stdout.write(f'{missing}\n')
    raise ValueError(
        f'{path} is left as it is: the lines around the changes above are missing there, or stand there more than once '
        f'(another version of timm, or edited?). All changes, to {"undo" if revert else "make"} by hand, are in {patch}'
    )


def _apply_hunk(content: bytes, hunk: str, revert: bool) -> bytes | None:
    """Replace the one place where the lines of a hunk stand, in its line ends; ``None`` if that is not one place."""
    lines = hunk.splitlines(keepends=True)[1:]
    before, after = (
        ''.join(line[1:] for line in lines if line[0] in (' ', sign)).encode() for sign in ('+-' if revert else '-+')
    )
    for end in (b'\n', b'\r\n'):
        places = list(re.finditer(b'^' + re.escape(before.replace(b'\n', end)), content, re.MULTILINE))
        if len(places) == 1:
            start, stop = places[0].span()
            return content[:start] + after.replace(b'\n', end) + content[stop:]
    return None


def patch_file(path: Path, *, revert: bool = False) -> str:
    """Patch ``train.py`` (or ``pyproject.toml``) of a timm checkout, or take the lines out again (``revert``).

    Returns:
        What was done, and how to undo it.

    Raises:
        ValueError: If the patch does not fit the file.
        OSError: If it cannot be read or written; it is as it was then.
    """
    path = Path(os.path.realpath(path / 'train.py' if path.is_dir() else path))
    names = {'.py': 'timm-train.patch', '.toml': 'timm-extra.patch'}
    if path.suffix not in names:
        raise ValueError(f'{path} must be train.py or pyproject.toml of timm')
    patch = PATCHES / names[path.suffix]
    content = apply_patch(path, patch, revert=revert)
    if content == path.read_bytes():
        return f'{path} has {"none of" if revert else "already"} the lines of {patch.name}: nothing to do'
    write_file(path, content)
    if revert:
        return f'{path}: the lines of {patch.name} are out again'
    return f'{path}: the lines of {patch.name} are in\nundo: timm-dad patch {path} --revert'


def main(argv: Sequence[str]) -> None:
    """Run the command ``patch``."""
    parser = Parser(
        prog='timm-dad patch',
        description="Add the flags --dad to timm's train.py (or the extra to its pyproject.toml).",
    )
    parser.add_argument('path', type=Path, help="timm's checkout, or the file")
    parser.add_argument('--revert', action='store_true', help='take the lines out again')
    args = parser.parse_args(argv)
    with user_errors('timm-dad patch'):
        try:
            done = patch_file(args.path, revert=args.revert)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise ValueError(str(error)) from error
    print(done)


def run(argv: Sequence[str]) -> None:
    """Run a ``train.py`` as ``python train.py`` does, patched in memory alone.

    Args:
        argv: Path of the script, then its flags and ``--dad ...``.

    Raises:
        SystemExit: If the patch does not fit the script, or on a bad flag; the message says why.
    """
    parser = Parser(
        prog='timm-dad run',
        usage='%(prog)s path/to/train.py [its flags] [--dad ...]',
        description="timm's train.py with the flags --dad, its file unchanged. After the path, --help is the script's.",
    )
    parser.add_argument('script', type=Path, help="timm's train.py")
    script = parser.parse_args(argv[:1]).script.resolve()
    if not script.is_file():
        parser.error(f'the script must be a file, got {argv[0]!r}, which is none')
    with user_errors(script.name):
        source = apply_patch(script, PATCHES / 'timm-train.patch')
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
