"""A folder that any number of processes and machines fill, shard by shard; the bytes are the same however they come.

A shard is claimed by a lock that the operating system frees when its process dies, and is done when its manifest is
there. Unfinished files lie in ``.work``, which goes when the set is whole.
"""

import errno
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from timm_dad.common.files import write_file
from timm_dad.dad_sets.manifest import (
    INDEX,
    SETTINGS,
    ShardManifest,
    canonical_json,
    differences,
    found_shards,
    identity,
    manifest_path,
    read_json,
    settings_id,
    sync_folders,
)

_WORK = '.work'
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def check_folder(root: Path, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a folder holds anything else than a set of these settings; nothing is written."""
    path = root / SETTINGS
    if not root.exists():
        return
    if not path.exists():
        strangers = sorted(file.name for file in root.iterdir() if file.name != _WORK)[:3]
        if strangers and not _has_own_shards(root, settings_id(settings)):
            raise ValueError(f'{root} holds other files ({", ".join(strangers)}): name an empty folder')
        return
    others = differences(identity(settings), identity(read_json(path)))
    if others:
        raise ValueError(
            f'{root} is a set of other settings ({"; ".join(others[:3])}): give the same flags to go on with it, or '
            'name another folder'
        )


def _has_own_shards(root: Path, settings: str) -> bool:
    """Whether the shards that are there were made with these settings, whose file is gone."""
    done = found_shards(root)
    manifests = (ShardManifest.from_bytes(manifest_path(root, shard).read_bytes()) for shard in done)
    return bool(done) and all(manifest.header['settings'] == settings for manifest in manifests)


class ShardedFolder:
    """The folder of a set while it is made; ``ValueError`` if it holds anything else, or a set of other settings."""

    def __init__(self, root: Path, settings: Mapping[str, Any], num_images: int, shard_size: int) -> None:
        self.root, self.num_images, self.shard_size = root, num_images, shard_size
        self.num_shards = -(-num_images // shard_size)
        self.settings_id = settings_id(settings)
        self.own = uuid.uuid4().hex[:12]
        self._claims: dict[int, FileLock] = {}
        self._start(settings)

    def _start(self, settings: Mapping[str, Any]) -> None:
        with self._lock('start', timeout=60):
            check_folder(self.root, settings)  # nobody has begun another set since
            path = self.root / SETTINGS
            if not path.exists():
                write_file(path, canonical_json(settings) + b'\n', sync=True, work=self.work('start'))
            if self.pending():
                (self.root / INDEX).unlink(missing_ok=True)  # a shard was taken out of a whole set, to be made again
            else:
                self._tidy()

    @contextmanager
    def _lock(self, name: str, timeout: float) -> Iterator[None]:
        while (lock := self._acquire(name, timeout)) is None:
            pass
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, name: str, timeout: float) -> FileLock | None:
        """Take a lock; ``None`` if another process has just taken those of a whole set away."""
        try:
            folder = self.root / _WORK / 'locks'
            folder.mkdir(parents=True, exist_ok=True)
            # A soft lock, which filelock falls back to, outlives its process.
            lock = FileLock(folder / f'{name}.lock', fallback_to_soft=False)
            lock.acquire(timeout=timeout)
        except (NotImplementedError, OSError) as error:
            if getattr(error, 'errno', errno.ENOSYS) in _NO_LOCKS:
                raise ValueError(
                    f'{self.root} is on a file system without locks (flock): name a folder on another one'
                ) from error
            if not isinstance(error, FileNotFoundError | FileExistsError) or not self.is_whole():
                raise
            return None
        return lock

    def work(self, name: str) -> Path:
        """Folder for unfinished files that no other process uses."""
        return self.root / _WORK / f'{name}-{self.own}'

    def shard_range(self, shard: int) -> range:
        """Indices of the images of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def is_done(self, shard: int) -> bool:
        """Whether a shard is whole."""
        return manifest_path(self.root, shard).exists()

    def done(self) -> set[int]:
        """Shards that are whole."""
        return found_shards(self.root)

    def pending(self) -> list[int]:
        """Shards that are not whole yet, in order."""
        done = self.done()
        return [shard for shard in range(self.num_shards) if shard not in done]

    def images_done(self) -> int:
        """Images of the shards that are whole."""
        return sum(len(self.shard_range(shard)) for shard in self.done())

    def claim(self, shard: int) -> bool:
        """Take a shard, unless it is done or another process is at it; whether it is this process's now."""
        if shard in self._claims:
            return True
        if self.is_done(shard) or self.is_whole():
            return False
        try:
            lock = self._acquire(f'{shard:06d}', timeout=0)
        except Timeout:
            return False
        if lock is None:
            return False
        if self.is_done(shard):  # in the meantime
            lock.release()
            return False
        self._claims[shard] = lock
        return True

    def check_first(self, shard: int, source_sha256: str) -> None:
        """Raise ``ValueError`` if the first image in a stream of a finished shard is no longer what it was made of."""
        path = manifest_path(self.root, shard)
        if path.exists():
            first = ShardManifest.from_bytes(path.read_bytes()).items[0]
            if first['source_sha256'] != source_sha256:
                raise ValueError(
                    f'{self.root} was made of another stream: image {first["index"]} is another now (one before it '
                    'added, taken out or mended since?); name an empty folder'
                )

    def commit(self, shard: int, manifest: ShardManifest) -> None:
        """Say that all files of a claimed shard are whole, and let go of it."""
        places = [place for item in manifest.items for place in item['views']] + list(manifest.header['files'])
        sync_folders(self.root, [self.root / place['path'] for place in places])
        path = manifest_path(self.root, shard)
        write_file(path, manifest.to_bytes(), sync=True, work=self.work('commit'))
        sync_folders(self.root, [path])
        self._claims.pop(shard).release()

    def release(self) -> None:
        """Let go of all claimed shards."""
        for lock in self._claims.values():
            lock.release()
        self._claims.clear()

    def is_whole(self) -> bool:
        """Whether the set is finished."""
        return (self.root / INDEX).exists()

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Whether this process is the one that finishes the set; the others wait until it is done."""
        with self._lock('finish', timeout=-1):
            yield not self.is_whole()
        self._tidy()

    def _tidy(self) -> None:
        if self.is_whole():
            shutil.rmtree(self.root / _WORK, ignore_errors=True)
