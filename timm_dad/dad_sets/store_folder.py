"""The folder of a set in the making in an object store: shards are made in a local folder, and uploaded.

A shard is done when its manifest is in the store; manifest, and last the index, are uploaded after all they name.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_dad.dad_sets.claims import Claims, Locks
from timm_dad.dad_sets.manifest import (
    INDEX,
    REINFORCED,
    SETTINGS,
    WORK,
    canonical_json,
    found_shards,
    index_hash,
    manifest_name,
    parse_json,
    read_json,
    settings_id,
    shards_of,
)
from timm_dad.dad_sets.shards import ShardedFolder, are_of, check_folder, check_same
from timm_dad.dad_sets.store import Store, is_url
from timm_dad.dad_sets.store_claims import store_claims
from timm_dad.dad_sets.store_errors import StoreError

_logger = logging.getLogger(__name__)


def as_root(root: str | Path) -> Path | str:
    """Return a folder as a path, a URL unchanged."""
    return str(root).rstrip('/') if is_url(root) else Path(root)


def check_reachable(address: str) -> None:
    """Raise the error of a store's URL, or of the way to it, before anything large is built."""
    if is_url(address):
        Store(address).exists(SETTINGS)


def done_shards(root: Path | str) -> set[int]:
    """Return the shards of a set that have a manifest, in a folder or at a URL."""
    return found_shards(root) if isinstance(root, Path) else _stored_shards(Store(root))


def _stored_shards(store: Store, folder: str = '') -> set[int]:
    return shards_of(store.names(f'{folder}manifest'))


def is_finished(root: Path | str) -> bool:
    """Return whether a set is finished, in a folder or at a URL, and its stored answers, if they are begun."""
    has = (lambda name: (root / name).exists()) if isinstance(root, Path) else Store(root).exists
    begun, done = (f'{REINFORCED}/{name}' for name in (SETTINGS, INDEX))
    return bool(has(INDEX) and (has(done) or not has(begun)))


def check_begun(store: Store) -> None:
    """Raise ``ValueError`` if there is no set at a URL, finished or not."""
    if not (store.exists(SETTINGS) or store.exists(INDEX) or _stored_shards(store)):
        raise ValueError(f'{store.url} contains no DAD set (no {SETTINGS}): make one with timm-dad generate')


def bring_facts(store: Store, root: Path) -> None:
    """Fetch the files of a set that do not belong to shards, as far as they exist."""
    for folder in ('', f'{REINFORCED}/'):
        names = [name for name in store.names(folder) if name in (SETTINGS, INDEX)]
        names += map(manifest_name, _stored_shards(store, folder))
        store.bring(root, [folder + name for name in names])
        store.bring(root, [folder + name for name in _named_files(root / folder / INDEX)])


def _named_files(path: Path) -> list[str]:
    """Return the files that an index names besides settings and shards; none if it is missing or damaged."""
    try:
        index = read_json(path)
    except (OSError, ValueError):
        return []
    if index.get('sha256') != index_hash(index):
        return []
    return [place['path'] for place in index['files'] if place['path'] != SETTINGS]


def check_place(root: Path | str, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a folder or a URL contains anything but a set with these settings."""
    if isinstance(root, Path):
        check_folder(root, settings)
    else:
        _check_store(Store(root), settings)


def _check_store(store: Store, settings: Mapping[str, Any]) -> None:
    names = [SETTINGS] if store.exists(SETTINGS) else store.names()
    if SETTINGS in names:  # in the list, too: another process may have begun the set in between
        check_same(store.url, settings, parse_json(store.read(SETTINGS), f'{store.url}/{SETTINGS}'))
        return
    strangers = [name for name in names if name != WORK][:3]
    if strangers and not are_of(settings_id(settings), [store.read(manifest_name(n)) for n in _stored_shards(store)]):
        raise ValueError(f'{store.url} contains other objects ({", ".join(strangers)}): choose a URL without any')


@contextmanager
def open_folder(
    root: Path | str,
    settings: Mapping[str, Any],
    num_images: int,
    shard_size: int,
    claims: Callable[[Any], Claims] | None = None,
) -> Iterator[ShardedFolder]:
    """Begin or continue a set, in a folder or at a URL; see ``ShardedFolder``.

    Args:
        root: As returned by ``as_root``.
        settings: Everything that affects the files of the set.
        num_images: Number of images of the data set.
        shard_size: Number of images per shard.
        claims: Creates the claims on shards for ``root``; by default native locks, in a store leases.
    """
    if isinstance(root, Path):
        folder = ShardedFolder(root, settings, num_images, shard_size, (claims or Locks)(root))
        try:
            yield folder
        finally:
            folder.release()
        return
    store = Store(root)
    store.warn_of_halves()
    with tempfile.TemporaryDirectory(prefix='timm_dad-store-', ignore_cleanup_errors=True) as work:
        stored = StoredFolder(store, Path(work), settings, num_images, shard_size, (claims or store_claims)(root))
        try:
            yield stored
        except OSError as error:
            raise ValueError(
                f'{work}, where shards lie until they are uploaded, cannot be written ({error.strerror or error}): '
                'make space, or set TMPDIR to another folder, and start the same command again to continue'
            ) from error
        finally:
            stored.release()


class StoredFolder(ShardedFolder):
    """The folder of a set in a store; ``root`` is a local one with the files in transit.

    Args:
        store: The store.
        root: An empty folder.
        settings: As in ``ShardedFolder``.
        num_images: Number of images of the data set.
        shard_size: Number of images per shard.
        claims: Decides who makes what.
    """

    def __init__(
        self, store: Store, root: Path, settings: Mapping[str, Any], num_images: int, shard_size: int, claims: Claims
    ) -> None:
        self._store = store
        super().__init__(root, settings, num_images, shard_size, claims)

    @property
    def place(self) -> str:
        """The name of the place in errors."""
        return self._store.url

    def _check(self, settings: Mapping[str, Any]) -> None:
        _check_store(self._store, settings)

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings unless they exist; check afterwards if the store lacks exclusive creation."""
        self._check(settings)
        if not self._store.exists(SETTINGS):
            self._store.create(SETTINGS, canonical_json(settings) + b'\n')

    def _remove_index(self) -> None:
        self._store.remove([INDEX])

    def is_done(self, shard: int) -> bool:
        """Return whether a shard is complete."""
        return self._store.exists(manifest_name(shard))

    def done(self) -> set[int]:
        """Return the complete shards."""
        return _stored_shards(self._store)

    def is_whole(self) -> bool:
        """Return whether the set is finished."""
        return self._store.exists(INDEX)

    def check_first(self, shard: int, source_sha256: str) -> None:
        """Check the first image as in ``ShardedFolder``."""
        self._store.bring(self.root, [manifest_name(shard)])
        super().check_first(shard, source_sha256)

    def _keep(self, paths: Iterable[str]) -> None:
        paths = sorted(paths)
        self._store.upload(self.root, paths)
        for path in paths:
            (self.root / path).unlink()

    def _write_manifest(self, shard: int, data: bytes) -> None:
        self._store.write(manifest_name(shard), data)

    def bring(self, paths: Iterable[str]) -> None:
        """Fetch files of finished shards."""
        self._store.bring(self.root, sorted(paths))

    def _check_manifests(self) -> None:
        self.bring([SETTINGS, *map(manifest_name, self.done())])
        super()._check_manifests()

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Yield whether this process finishes the set, which is then uploaded; the others fetch the index."""
        with super().finishing() as first:
            if not first:
                self.bring([INDEX])
            yield first
            if first:
                self._store.upload(self.root, _named_files(self.root / INDEX))
                self._store.upload(self.root, [INDEX])

    def _tidy(self) -> None:
        if self.is_whole():
            try:
                self._store.remove_folder(WORK)
            except StoreError as error:  # the set is whole all the same
                _logger.warning('%s/%s could not be removed: %s', self.place, WORK, error)
