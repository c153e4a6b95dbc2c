"""Object stores, by any URL that fsspec supports (``s3://``, ``gs://``, ``memory://``), with one-line errors.

An object appears whole or not at all, and for everyone at once, so a set is made in a store as in a folder.
"""

import errno
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem, url_to_fs

from timm_dad.common.files import replacing
from timm_dad.dad_sets.manifest import WORK
from timm_dad.dad_sets.store_errors import NO_BUCKET, StoreError, advice, code_of, is_taken

_logger = logging.getLogger(__name__)
_AT_ONCE, _QUEUED = 16, 1024  # requests, and those that wait for their turn
# Whose objects are never half written. Anywhere else (sftp, hdfs, ...) a file grows under its name.
_WHOLE = frozenset('s3 s3a gs gcs az abfs abfss adl oss oci tos r2 memory'.split())
_VERSIONS = ('ETag', 'etag', 'md5Hash', 'content_md5', 'blob_id', 'generation', 'LastModified', 'mtime', 'created')


def is_url(address: str | Path) -> bool:
    """Return whether this is the URL of a store rather than a folder."""
    return isinstance(address, str) and re.match(r'[A-Za-z][A-Za-z0-9+.-]+://', address) is not None


class Store:
    """The objects below a URL, named like paths of files.

    Raises:
        ValueError: If the URL is not that of a store, or, from any method, if the store refuses or is unreachable.
        ImportError: If the package for this kind of store is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip('/')
        if not is_url(self.url) or set(self.url) & set('*?[]'):  # which fsspec takes for a pattern
            raise ValueError(f'a store is s3://BUCKET or s3://BUCKET/NAME, without any of *?[], got {url}')
        self._fs, self._root = self._open()
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    def _open(self) -> tuple[AbstractFileSystem, str]:
        kind = self.url.partition('://')[0]
        if kind in ('file', 'local'):
            raise ValueError(f'{self.url} is a folder: give it without {kind}://')
        try:
            # What other processes write is to be seen at once.
            fs, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            fix = 'run: pip install "timm-dad[store]"' if kind in ('s3', 's3a') else str(error)
            raise ImportError(f'{self.url}: the package for {kind}:// is missing; {fix}') from error
        except Exception as error:  # of any kind, a URL that makes no sense among them
            raise ValueError(f'{self.url} cannot be opened as an object store: {error}') from error
        return fs, str(root).rstrip('/')

    @contextmanager
    def _told(self, name: str = '') -> Iterator[None]:
        """Convert any error except a missing object to one line."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # botocore's, aiohttp's, ... are of no common kind
            if isinstance(error, FileNotFoundError) and code_of(error) != 'NoSuchBucket':
                raise
            url = f'{self.url}/{name}' if name else self.url
            raise StoreError(f'{url}: {advice(error)}') from error

    def _at(self, name: str) -> str:
        if name.startswith('/') or '..' in PurePosixPath(name).parts:
            raise StoreError(f'{self.url} names a file outside its folder, {name!r}: it cannot be read')
        return f'{self._root}/{name}'.rstrip('/')

    def read(self, name: str) -> bytes:
        """Read an object; raise ``FileNotFoundError`` if it is missing."""
        with self._told(name):
            return bytes(self._fs.cat_file(self._at(name)))

    def exists(self, name: str) -> bool:
        """Return whether an object with this name exists."""
        try:
            with self._told(name):
                return bool(self._fs.info(self._at(name))['type'] == 'file')  # fsspec's exists hides errors
        except FileNotFoundError:
            return False

    def names(self, folder: str = '') -> list[str]:
        """List the names directly in a folder, in order, without the folder's."""
        try:
            with self._told(folder):
                found = self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(name).rstrip('/').rpartition('/')[2] for name in found if name != self._at(folder)})

    def objects(self) -> dict[str, tuple[int, str]]:
        """Return size and version of every object, by name."""
        with self._told():
            found = self._fs.find(self._at(''), detail=True)
        return {
            path.removeprefix(self._at('')).lstrip('/'): (info['size'], _version(info))
            for path, info in sorted(found.items())
            if not path.endswith('/') and path != self._at('')  # as some tools write for a folder
        }

    def write(self, name: str, data: bytes) -> None:
        """Write an object, replacing an existing one."""
        with self._written(name):
            self._fs.pipe_file(self._at(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists; return whether it is this one now (even if a request was sent twice)."""
        try:
            with self._written(name):
                self._fs.pipe_file(self._at(name), data, mode='create')
            return True
        except StoreError as error:
            if not is_taken(error.__cause__):
                raise
        with suppress(FileNotFoundError):
            return self.read(name) == data
        return False

    @contextmanager
    def _written(self, name: str) -> Iterator[None]:
        with self._told(name):
            try:
                yield
            except FileNotFoundError as error:
                raise StoreError(f'{self.url}/{name}: {NO_BUCKET}') from error

    def upload(self, root: Path, names: Sequence[str]) -> None:
        """Upload files below a folder as objects with the same names."""

        def send(name: str) -> None:
            with self._written(name):
                self._fs.put_file(str(root / name), self._at(name))

        list(self.map(send, names))

    def download(self, name: str, path: Path) -> None:
        """Write an object atomically as a file; raise ``FileNotFoundError`` if there is no object."""
        with replacing(path) as temporary:
            try:
                with self._told(name):
                    self._fs.get_file(self._at(name), str(temporary))
            except StoreError as error:
                if getattr(error.__cause__, 'errno', None) not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error  # this disk says so

    def bring(self, root: Path, names: Sequence[str]) -> None:
        """Download objects as files of the same names below a folder; skip those that do not exist."""

        def fetch(name: str) -> None:
            with suppress(FileNotFoundError):
                self.download(name, root / name)

        list(self.map(fetch, names))

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that do not exist are ignored."""
        for name in names:
            with suppress(FileNotFoundError), self._told(name):
                self._fs.rm_file(self._at(name))

    def remove_folder(self, name: str) -> None:
        """Remove all objects in a folder."""
        with suppress(FileNotFoundError), self._told(name):
            self._fs.rm(self._at(name), recursive=True)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Map a function over items with as many concurrent requests as allowed; stop at the first error."""
        for start in range(0, len(items), _QUEUED):
            jobs = [self._pool.submit(function, item) for item in items[start : start + _QUEUED]]
            try:
                for job in jobs:
                    yield job.result()
            finally:
                for job in jobs:
                    job.cancel()
                wait(jobs)

    def has_exclusive_creation(self) -> bool:
        """Return whether an object is created only once however many try, found out by trying."""
        own = ('_pipe_file', 'pipe_file')
        if all(getattr(type(self._fs), name, None) is getattr(AbstractFileSystem, name, None) for name in own):
            return False  # fsspec's own way looks whether there is one, and then writes
        name = f'{WORK}/try-{uuid.uuid4().hex}'
        try:
            return self.create(name, b'1') and not self.create(name, b'2')
        finally:
            with suppress(StoreError):
                self.remove([name])

    def warn_of_halves(self) -> None:
        """Warn if an object may be visible half-written under its name."""
        kind = self.url.partition('://')[0]
        if kind not in _WHOLE:
            _logger.warning(
                '%s: files of %s:// may be left half-written if a process dies while writing: run timm-dad verify '
                'once the set is finished', self.url, kind,
            )  # fmt: skip


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), '')
