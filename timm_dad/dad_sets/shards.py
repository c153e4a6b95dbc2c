"""A folder that any number of processes and machines fill, shard by shard; the bytes are the same however they come.

A shard is done when its manifest is there; ``claims`` say who makes it. Unfinished files lie in ``.work``, which goes
when the set is whole.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_dad.common.files import write_file
from timm_dad.dad_sets.claims import Claims, Locks
from timm_dad.dad_sets.manifest import (
    INDEX,
    SETTINGS,
    WORK,
    ShardManifest,
    canonical_json,
    differences,
    found_shards,
    identity,
    manifest_name,
    manifest_path,
    read_json,
    settings_id,
    sync_folders,
)

_logger = logging.getLogger(__name__)
_START = 180  # seconds to wait for another process to have begun; leases of one that was killed take a minute


def check_folder(root: Path, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a folder holds anything else than a set of these settings; nothing is written."""
    path = root / SETTINGS
    if not root.exists():
        return
    if not path.exists():
        strangers = sorted(file.name for file in root.iterdir() if file.name != WORK)[:3]
        if strangers and not _has_own_shards(root, settings_id(settings)):
            raise ValueError(f'{root} holds other files ({", ".join(strangers)}): name an empty folder')
        return
    check_same(root, settings, read_json(path))


def check_same(place: Path | str, settings: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a set has other settings than these."""
    others = differences(identity(settings), identity(there))
    if others:
        raise ValueError(
            f'{place} is a set of other settings ({"; ".join(others[:3])}): give the same flags to go on with it, or '
            'name another folder'
        )


def _has_own_shards(root: Path, settings: str) -> bool:
    """Whether the shards that are there were made with these settings, whose file is gone."""
    return are_of(settings, [manifest_path(root, shard).read_bytes() for shard in found_shards(root)])


def are_of(settings: str, manifests: Sequence[bytes]) -> bool:
    """Whether there are manifests, and all are of these settings."""
    return bool(manifests) and all(ShardManifest.from_bytes(data).header['settings'] == settings for data in manifests)


class ShardedFolder:
    """The folder of a set while it is made; ``ValueError`` if it holds anything else, or a set of other settings.

    Args:
        root: The folder; it is made if there is none.
        settings: What decides the bytes of the set.
        num_images: Images of the data set.
        shard_size: Images of a shard.
        claims: Who makes what; native locks by default.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, Any],
        num_images: int,
        shard_size: int,
        claims: Claims | None = None,
    ) -> None:
        self.root, self.num_images, self.shard_size = root, num_images, shard_size
        self.num_shards = -(-num_images // shard_size)
        self.settings_id = settings_id(settings)
        self.own = uuid.uuid4().hex[:12]
        self.claims = claims or Locks(root)
        self._claimed: set[int] = set()
        self._start(settings)

    @property
    def place(self) -> Path | str:
        """What errors call it."""
        return self.root

    def _start(self, settings: Mapping[str, Any]) -> None:
        with self._alone('start', timeout=_START):
            self._write_settings(settings)
            self._check(settings)  # nobody has begun another set since
            if self.is_whole() and self.missing():  # in this order: others may be making the last shard
                self._remove_index()  # a shard was taken out of a whole set, to be made again
            self._tidy()

    def _check(self, settings: Mapping[str, Any]) -> None:
        check_folder(self.root, settings)

    def _remove_index(self) -> None:
        (self.root / INDEX).unlink(missing_ok=True)

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, unless they are there; they never take the place of another process's."""
        check_folder(self.root, settings)
        path, own = self.root / SETTINGS, self.work('start') / SETTINGS
        if path.exists():
            return
        write_file(own, canonical_json(settings) + b'\n', sync=True)
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(own, path)
        own.unlink(missing_ok=True)

    @contextmanager
    def _alone(self, name: str, timeout: float = float('inf')) -> Iterator[None]:
        """Do what one process does at a time, once no other one is at it."""
        end = time.monotonic() + timeout
        while not self._take(name):
            if time.monotonic() > end:
                raise ValueError(
                    f'{self.place}: another process has held the {name} for {timeout:.0f} s: end it, and start the '
                    'same command again'
                )
            time.sleep(self.claims.pause)
        try:
            yield
        finally:
            self.claims.let_go(name)

    def _take(self, name: str) -> bool:
        try:
            return self.claims.take(name)
        except (FileNotFoundError, FileExistsError):
            if not self.is_whole():
                raise
            return False  # another process has just taken the work folder of a whole set away

    def work(self, name: str) -> Path:
        """Folder for unfinished files that no other process uses."""
        return self.root / WORK / f'{name}-{self.own}'

    def shard_range(self, shard: int) -> range:
        """Indices of the images of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def is_done(self, shard: int) -> bool:
        """Whether a shard is whole."""
        return manifest_path(self.root, shard).exists()

    def done(self) -> set[int]:
        """Shards that are whole."""
        return found_shards(self.root)

    def missing(self) -> list[int]:
        """Shards that are not whole yet, in order."""
        done = self.done()
        return [shard for shard in range(self.num_shards) if shard not in done]

    def pending(self) -> list[int]:
        """Those of them that this process may make."""
        return [shard for shard in self.missing() if self.claims.makes(shard)]

    def images_done(self) -> int:
        """Images of the shards that are whole."""
        return sum(len(self.shard_range(shard)) for shard in self.done())

    def claim(self, shard: int) -> bool:
        """Take a shard, unless it is done or another process is at it; whether it is this process's now."""
        if shard in self._claimed:
            return True
        if not self.claims.makes(shard) or self.is_done(shard) or self.is_whole() or not self._take(_name(shard)):
            return False
        if self.is_done(shard):  # in the meantime
            self.claims.let_go(_name(shard))
            return False
        self._claimed.add(shard)
        return True

    def check_first(self, shard: int, source_sha256: str) -> None:
        """Raise ``ValueError`` if the first image in a stream of a finished shard is no longer what it was made of."""
        path = manifest_path(self.root, shard)
        if path.exists():
            first = ShardManifest.from_bytes(path.read_bytes()).items[0]
            if first['source_sha256'] != source_sha256:
                raise ValueError(
                    f'{self.place} was made of another stream: image {first["index"]} is another now (one before it '
                    'added, taken out or mended since?); name an empty folder'
                )

    def commit(self, shard: int, manifest: ShardManifest) -> None:
        """Say that all files of a claimed shard are whole, and let go of it; not if another process has it since."""
        self._keep(manifest.paths())
        if self.claims.holds(_name(shard)):
            self._write_manifest(shard, manifest.to_bytes())
        else:  # its files are equal, whoever wrote them
            _logger.warning('Shard %d: another process has it, for this one was not heard of for too long', shard)
        self._claimed.discard(shard)
        self.claims.let_go(_name(shard))

    def _keep(self, paths: Iterable[str]) -> None:
        """Have files of a shard, which are under ``root``, outlive whatever happens."""
        sync_folders(self.root, [self.root / path for path in paths])

    def _write_manifest(self, shard: int, data: bytes) -> None:
        path = manifest_path(self.root, shard)
        write_file(path, data, sync=True, work=self.work('commit'))
        sync_folders(self.root, [path])

    def bring(self, paths: Iterable[str]) -> None:
        """Have files of finished shards under ``root``: here they are."""

    def release(self) -> None:
        """Let go of all claimed shards."""
        while self._claimed:
            self.claims.let_go(_name(self._claimed.pop()))

    def is_whole(self) -> bool:
        """Whether the set is finished."""
        return (self.root / INDEX).exists()

    @contextmanager
    def until_whole(self) -> Iterator[None]:
        """End what fails because another process finished the set meanwhile, and took the work folder away."""
        try:
            yield
        except FileNotFoundError:
            if not self.is_whole():
                raise

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Whether this process is the one that finishes the set; the others wait until it is done."""
        with self._alone('finish'), self.until_whole():
            whole = self.is_whole()
            if not whole:
                self._check_manifests()
            yield not whole
        self._tidy()

    def _check_manifests(self) -> None:
        """Raise ``ValueError`` if a shard was made with other settings, by a process that began at the same moment."""
        for shard in self.done():
            with manifest_path(self.root, shard).open('rb') as file:
                header = json.loads(file.readline())
            if header['settings'] != self.settings_id:
                raise ValueError(
                    f'{self.place}/{manifest_name(shard)} is of other settings than {SETTINGS}: two commands with '
                    'other flags began at once; name an empty folder'
                )

    def _tidy(self) -> None:
        if self.is_whole():
            shutil.rmtree(self.root / WORK, ignore_errors=True)


def _name(shard: int) -> str:
    return f'{shard:06d}'
