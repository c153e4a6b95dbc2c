"""Write files that are never incomplete under their final name."""

import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_SYNCING = 8  # threads that wait for the disk, which writes down at once what is asked for at once
_BLOCK = 2**20  # bytes


def check_no_folder(path: Path) -> None:
    """Raise ``ValueError`` if a folder blocks the path of a file."""
    if path.is_dir():
        raise ValueError(f'{path} must be a file, but it is a folder: move it away')


def make_folder(path: Path) -> None:
    """Create a folder and its parents; if one cannot be created, remove the others."""
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]  # which takes any text
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.append(folder)
    except OSError:
        for folder in reversed(made):
            folder.rmdir()
        raise


@contextmanager
def naming_file(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Convert disk errors while a file is written to an ``OSError`` that names the file, under its final name."""
    try:
        yield
    except Exception as error:
        number, named = _what_the_disk_says(error)
        if not number or named not in (None, str(temporary)):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _what_the_disk_says(error: BaseException | None) -> tuple[int | None, str | None]:
    """Return number and file of an ``OSError``, even if torch or safetensors converted it to their own."""
    if isinstance(error, OSError):
        return error.errno, error.filename
    found = re.search(r'\(os error (\d+)\)', str(error))
    if found:
        return int(found[1]), None
    if isinstance(error, RuntimeError) and 'inline_container' in str(error):  # of torch.save
        return _what_the_disk_says(error.__context__)
    return None, None


@contextmanager
def replacing(path: str | Path, *, sync: bool = False, work: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file for a writer that takes a path, and rename it to ``path`` afterwards.

    Whatever the writer does, the file has the mode that opening it for writing would give: an old file's own, else 0644
    with the usual umask. On any exception, including ``KeyboardInterrupt``, the temporary file is removed and ``path``
    stays unchanged; if the disk fails, the ``OSError`` names ``path``.

    Args:
        path: The file; its folder is created if missing.
        sync: Whether to force the content to disk before the rename.
        work: Folder for unfinished files, on the same file system; by default that of ``path``.

    Yields:
        The temporary file, empty, with the suffix of ``path``. Its name is random: give ``torch.save``, which writes
        the name into the file, the open file.

    Raises:
        ValueError: If ``path`` is a folder.
    """
    path = Path(path)
    check_no_folder(path)
    work = work or path.parent
    for folder in (path.parent, work):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = work / f'.{uuid.uuid4().hex}.tmp{path.suffix}'
    try:
        with naming_file(path, temporary):
            temporary.touch(exist_ok=False)
            mode = (path if path.exists() else temporary).stat().st_mode
            yield temporary
            temporary.chmod(stat.S_IMODE(mode))  # safetensors puts a file of mode 0600 in its place
            if sync:
                with temporary.open('rb') as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes, *, sync: bool = False, work: Path | None = None) -> None:
    """Write a complete file, or leave the old one unchanged; see ``replacing``.

    Args:
        path: The file; its folder is created if missing.
        content: Text, written as UTF-8 with unchanged line ends, or bytes.
        sync: Whether to force the content to disk before the rename.
        work: Folder for unfinished files, on the same file system; by default that of ``path``.
    """
    with replacing(path, sync=sync, work=work) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_files(files: Mapping[Path, bytes], work: Path) -> None:
    """Write files that belong together: the first one gets its name once all are on disk.

    Args:
        files: Content of each, by its path.
        work: Folder for unfinished files, on the same file system.
    """
    with ExitStack() as renaming, ThreadPoolExecutor(_SYNCING) as pool:
        unfinished = {path: renaming.enter_context(replacing(path, work=work)) for path in files}

        def write(path: Path) -> None:
            with naming_file(path, unfinished[path]):
                unfinished[path].write_bytes(files[path])

        def sync(path: Path) -> None:
            with naming_file(path, unfinished[path]), unfinished[path].open('rb') as file:
                os.fsync(file.fileno())

        for step in (write, sync):
            list(pool.map(step, files))


@contextmanager
def filling_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` (new or empty), renamed to it once complete and removed otherwise."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    work = path.absolute().parent / f'.{uuid.uuid4().hex}.tmp'
    try:
        make_folder(work)
        yield work
        os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # another's by now
                folder.rmdir()
        raise


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; read in chunks, so that a large file needs no memory."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
