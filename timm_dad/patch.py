"""``timm-dad patch``: put the lines of ``patches/`` into a checkout of timm, and take them out again."""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
# An installed package has them inside (see package-dir in pyproject.toml), a checkout beside.
PATCHES = _HERE / 'patches' if (_HERE / 'patches').is_dir() else _HERE.parent / 'patches'

_HUNK = re.compile(rb'^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@.*\n', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A unified diff of one file, as ``git diff --full-index`` writes it.

    Args:
        path: Where it lies.
        target: Name of the file that it changes.
        bases: The versions that it is for, from its header.
        before: Git's object name of the file without it.
        after: Git's object name of the file with it.
        body: The hunks.
    """

    path: Path
    target: str
    bases: tuple[str, ...]
    before: str
    after: str
    body: bytes

    def apply(self, content: bytes, *, revert: bool = False) -> bytes:
        """Apply the hunks to exactly the file that they are for, or take them out of exactly what that gives.

        Raises:
            ValueError: If it is another file.
        """
        old_object, new_object = (self.after, self.before) if revert else (self.before, self.after)
        if object_name(content) != old_object:
            raise ValueError(f'{self.path.name} is for the file {old_object}, got {object_name(content)}')
        lines = content.splitlines(keepends=True)
        # From the last hunk on, so that the line numbers of those before stay true.
        for start, before, after in reversed(self.hunks(revert=revert)):
            assert lines[start : start + len(before)] == before
            lines[start : start + len(before)] = after
        patched = b''.join(lines)
        assert object_name(patched) == new_object
        return patched

    def hunks(self, *, revert: bool = False) -> list[tuple[int, list[bytes], list[bytes]]]:
        """Index of the first line, lines before and lines after, of each hunk."""
        signs = b'+-' if revert else b'-+'
        hunks = []
        _, *parts = _HUNK.split(self.body)
        for old_start, new_start, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            before, after = (
                [line[1:] for line in text.splitlines(keepends=True) if line[0] in (ord(' '), sign)] for sign in signs
            )
            hunks.append((int(new_start if revert else old_start) - 1, before, after))
        return hunks

    def num_fitting(self, content: bytes, *, revert: bool = False) -> int:
        """Number of hunks that fit somewhere in a file."""
        return sum(content.count(b''.join(before)) == 1 for _, before, _ in self.hunks(revert=revert))

    def fits(self, content: bytes, *, revert: bool = False) -> bool:
        """Whether all of them do."""
        return self.num_fitting(content, revert=revert) == len(self.hunks())

    @property
    def size(self) -> str:
        """Lines that it adds and takes out, such as ``+9 -1``."""
        return ' '.join(f'{sign}{len(re.findall(rf"^[{sign}]", self.body.decode(), re.MULTILINE))}' for sign in '+-')


def object_name(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content, usedforsecurity=False).hexdigest()


def read_patch(path: Path) -> Patch:
    """Read a patch with its header."""
    text = path.read_bytes()
    header, first, rest = text.partition(b'\n@@')
    words = header.decode()
    objects = re.search(r'^index ([0-9a-f]{40})\.\.([0-9a-f]{40})', words, re.MULTILINE)
    target = re.search(r'^\+\+\+ b/(.+)$', words, re.MULTILINE)
    assert objects, path
    assert target, path
    bases = tuple(re.findall(r'^Base: .+?/.+? (.+), commit [0-9a-f]{40}$', words, re.MULTILINE))
    return Patch(
        path=path,
        target=target[1],
        bases=bases,
        before=objects[1],
        after=objects[2],
        body=first[1:] + rest,
    )


def timm_patches() -> list[Patch]:
    """The patches for timm."""
    return [read_patch(path) for path in sorted(PATCHES.glob('timm-*.patch'))]


def patch_file(path: Path, *, revert: bool = False) -> str:
    """Patch ``train.py`` (or ``pyproject.toml``) of a timm checkout.

    Args:
        path: The file, or the folder of the checkout for its ``train.py``.
        revert: Take the lines out again.

    Returns:
        What was done, and how to undo it.

    Raises:
        ValueError: If the file is none that a patch is for; the message ends with the lines to change by hand.
        OSError: If it cannot be read or written; it is as it was then.
    """
    path = (path / 'train.py' if path.is_dir() else path).resolve()
    content = path.read_bytes()
    name = object_name(content)
    patches = timm_patches()
    for patch in patches:
        version = f'{patch.target} of timm {" and ".join(patch.bases)}'
        if name == (patch.before if revert else patch.after):
            return f'{path} is {version}, {"without" if revert else "with"} {patch.path.name}: nothing to do'
        if name == (patch.after if revert else patch.before):
            replace_file(path, patch.apply(content, revert=revert))
            if revert:
                return f'{path}: took {patch.path.name} out; it is {version} again, byte by byte'
            return f'{path}: {version}; {patch.size} lines with {patch.path.name}\nundo: timm-dad patch {path} --revert'
    if not revert and any(patch.fits(content, revert=True) for patch in patches):
        return f'{path} has the lines of timm_dad already, and was edited elsewhere: nothing to do'
    raise ValueError(_refusal(path, content, patches, revert))


def _refusal(path: Path, content: bytes, patches: list[Patch], revert: bool) -> str:
    """Why a file is left alone, and what to do by hand."""
    fitting = [patch for patch in patches if Path(patch.target).suffix == path.suffix]
    if not fitting:
        return f'{path} must be train.py or pyproject.toml of timm'
    patch = max(fitting, key=lambda each: each.num_fitting(content, revert=revert))
    known = ', '.join(base for each in fitting for base in each.bases)
    if b'timm_dad' in content or b'timm-dad' in content:
        reason = 'it has lines of timm_dad, but is not what timm-dad patch writes (edited since?)'
    elif b'\r\n' in content:
        reason = f'its lines end with CR LF; the known ones, {known}, end with LF'
    else:
        reason = f'it is not byte by byte that of timm {known} (another version, or edited?)'
    ways = []
    if patch.fits(content, revert=revert):
        ways.append(f'It differs elsewhere only; in its folder: git apply {"-R " if revert else ""}{patch.path}')
    if patch.target == 'train.py' and not revert:
        ways.append(f'Without a change of the file: timm-dad run {path} ... --dad ...')
    what = (
        "take out the lines with '+' and put those with '-' back"
        if revert
        else "add the lines with '+', drop that with '-'"
    )
    ways.append(f'By hand, {what}:\n\n{patch.body.decode()}')
    return '\n'.join([f'{path} is left as it is: {reason}.', *ways])


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, with the mode of the old one, then rename it."""
    file, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(file, 'wb') as stream:
            stream.write(content)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
