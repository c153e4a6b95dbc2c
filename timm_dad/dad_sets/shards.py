"""A folder that any number of processes and machines fill, shard by shard; the bytes are always the same.

A shard is done when its manifest exists; ``claims`` decide who makes it. Unfinished files lie in ``.work``, which is
removed when the set is finished.
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
    REINFORCED,
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
    """Raise ``ValueError`` if a folder contains anything but a set with these settings; nothing is written."""
    if not root.exists():
        return
    path = root / SETTINGS
    names = [SETTINGS] if path.exists() else sorted(file.name for file in root.iterdir())
    if SETTINGS in names:  # in the list, too: another process may have begun the set in between
        check_same(root, settings, read_json(path))
        return
    strangers = [name for name in names if name != WORK][:3]
    if strangers and not _has_own_shards(root, settings_id(settings)):
        raise ValueError(f'{root} contains other files ({", ".join(strangers)}): choose an empty folder')


def check_same(place: Path | str, settings: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a set has other settings."""
    others = differences(identity(settings), identity(there))
    if others:
        other = f'remove {place} to answer anew' if str(place).endswith(f'/{REINFORCED}') else 'choose another folder'
        raise ValueError(
            f'{place} is a set with other settings ({"; ".join(others[:3])}): give the same flags to continue it, or '
            f'{other}'
        )


def _has_own_shards(root: Path, settings: str) -> bool:
    """Return whether the existing shards were made with these settings, although the settings file is gone."""
    return are_of(settings, [manifest_path(root, shard).read_bytes() for shard in found_shards(root)])


def are_of(settings: str, manifests: Sequence[bytes]) -> bool:
    """Return whether there are manifests, all with these settings."""
    return bool(manifests) and all(ShardManifest.from_bytes(data).header['settings'] == settings for data in manifests)


class ShardedFolder:
    """The folder of a set in the making; ``ValueError`` if it contains other files, or a set with other settings.

    Args:
        root: The folder; it is created if missing.
        settings: Everything that affects the files of the set.
        num_images: Number of images of the data set.
        shard_size: Number of images per shard.
        claims: Decides who makes what; native locks by default.
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
        """The name of the place in errors."""
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
        """Write the settings unless they exist; never replace those of another process."""
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
        """Run a section in one process at a time, after waiting for others."""
        end = time.monotonic() + timeout
        while not self._take(name):
            if time.monotonic() > end:
                raise ValueError(
                    f'{self.place}: another process has held the {name} for {timeout:.0f} s: stop it, and start the '
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
        """Return a folder for unfinished files that no other process uses."""
        return self.root / WORK / f'{name}-{self.own}'

    def shard_range(self, shard: int) -> range:
        """Return the indices of a shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def is_done(self, shard: int) -> bool:
        """Return whether a shard is complete."""
        return manifest_path(self.root, shard).exists()

    def done(self) -> set[int]:
        """Return the complete shards."""
        return found_shards(self.root)

    def missing(self) -> list[int]:
        """Return the incomplete shards, in order."""
        done = self.done()
        return [shard for shard in range(self.num_shards) if shard not in done]

    def pending(self) -> list[int]:
        """Return the incomplete shards that this process may make."""
        return [shard for shard in self.missing() if self.claims.makes(shard)]

    def images_done(self) -> int:
        """Return the number of images in complete shards."""
        return sum(len(self.shard_range(shard)) for shard in self.done())

    def claim(self, shard: int) -> bool:
        """Try to take a shard that is not complete or taken; return whether this process holds it now."""
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
        """Raise ``ValueError`` if the first image of a finished shard of a stream has changed."""
        path = manifest_path(self.root, shard)
        if path.exists():
            first = ShardManifest.from_bytes(path.read_bytes()).items[0]
            if first['source_sha256'] != source_sha256:
                raise ValueError(
                    f'{self.place} was made from another stream: image {first["index"]} has changed (was one before it '
                    'added, removed or repaired?); choose an empty folder'
                )

    def commit(self, shard: int, manifest: ShardManifest) -> None:
        """Mark a claimed shard as complete and release it, unless another process has taken it."""
        self._keep(manifest.paths())
        if self.claims.holds(_name(shard)):
            self._write_manifest(shard, manifest.to_bytes())
        else:  # its files are equal, whoever wrote them
            _logger.warning('Shard %d: another process has taken it over: this one was silent for too long', shard)
        self._claimed.discard(shard)
        self.claims.let_go(_name(shard))

    def _keep(self, paths: Iterable[str]) -> None:
        """Make the files of a shard, which are under ``root``, durable."""
        sync_folders(self.root, [self.root / path for path in paths])

    def _write_manifest(self, shard: int, data: bytes) -> None:
        path = manifest_path(self.root, shard)
        write_file(path, data, sync=True, work=self.work('commit'))
        sync_folders(self.root, [path])

    def bring(self, paths: Iterable[str]) -> None:
        """Make files of finished shards available under ``root``: here they already are."""

    def release(self) -> None:
        """Release all claimed shards."""
        while self._claimed:
            self.claims.let_go(_name(self._claimed.pop()))

    def is_whole(self) -> bool:
        """Return whether the set is finished."""
        return (self.root / INDEX).exists()

    @contextmanager
    def until_whole(self) -> Iterator[None]:
        """Ignore failures caused by another process that finished the set meanwhile and removed the work folder."""
        try:
            yield
        except FileNotFoundError:
            if not self.is_whole():
                raise

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Yield whether this process finishes the set; the others wait until that is done."""
        with self._alone('finish'), self.until_whole():
            whole = self.is_whole()
            if not whole:
                self._check_manifests()
            yield not whole
        self._tidy()

    def _check_manifests(self) -> None:
        """Raise ``ValueError`` if a shard has other settings, made by a process that started at the same moment."""
        for shard in self.done():
            with manifest_path(self.root, shard).open('rb') as file:
                header = json.loads(file.readline())
            if header['settings'] != self.settings_id:
                raise ValueError(
                    f'{self.place}/{manifest_name(shard)} has other settings than {SETTINGS}: two commands with '
                    'different flags started at once; choose an empty folder'
                )

    def _tidy(self) -> None:
        if self.is_whole():
            shutil.rmtree(self.root / WORK, ignore_errors=True)


def _name(shard: int) -> str:
    return f'{shard:06d}'
