"""Cache sets and data of an object store in a local folder: fetched once, and by one process at a time.

A folder is named after the store's content, and gets its name when it is complete: changed content gets another one.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from timm_dad.common.cache import cache_dir
from timm_dad.common.files import sha256_of_file
from timm_dad.common.progress import progress
from timm_dad.dad_sets.manifest import (
    INDEX,
    REINFORCED,
    SETTINGS,
    ShardManifest,
    canonical_json,
    index_hash,
    parse_json,
    sha256,
)
from timm_dad.dad_sets.store import Store, is_url

_logger = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """An object, with its known facts; size is unknown for manifests in the index, the hash for data."""

    name: str
    size: int | None = None
    sha256: str | None = None


def cached_set(root: Path) -> Path | None:
    """Return the cache folder of a set; ``None`` if it lies elsewhere."""
    return next((folder for folder in (root, *root.parents) if folder.parent == cache_dir() / 'sets'), None)


def fetch_set(url: str) -> Path:
    """Return the folder of a finished set at a URL, fetched if missing; every byte is compared with its hash.

    Raises:
        ValueError: If there is none, it is unfinished or damaged, there is no space for it, or the store refuses.
    """
    store = Store(url)
    facts = dict(_facts(store))
    if SETTINGS not in facts:
        raise ValueError(f'{store.url} contains no DAD set (no {SETTINGS}): make one with timm-dad generate')
    if INDEX not in facts:
        raise ValueError(f'{store.url} is not finished: start the same timm-dad generate again to continue')
    key = sha256(canonical_json({name: sha256(data) for name, data in facts.items()}))
    return _fetched('sets', store, key, partial(_fetch_set, store, facts))


def _facts(store: Store) -> Iterator[tuple[str, bytes]]:
    for folder in ('', f'{REINFORCED}/'):
        for name in store.names(folder.rstrip('/')):
            if name in (SETTINGS, INDEX):
                yield folder + name, store.read(folder + name)


def _fetch_set(store: Store, facts: Mapping[str, bytes], root: Path) -> None:
    wanted = dict[str, _Wanted]()
    for name, data in facts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        if name.endswith(INDEX):
            folder, index = name.removesuffix(INDEX), parse_json(data, f'{store.url}/{name}')
            if index.get('sha256') != index_hash(index):
                raise _damaged(store, _Wanted(name, sha256=''), 'was altered')
            manifests = [_Wanted(folder + entry['path'], sha256=entry['sha256']) for entry in index['shards']]
            _fetch(store, root, manifests, show=False)
            for place in (*index['files'], *_places(root, manifests)):
                path = folder + place['path']
                # A view in a file of several has an offset, and the file a place of its own.
                if path not in facts and 'offset' not in place:
                    wanted[path] = _Wanted(path, place['bytes'], place['sha256'])
    _check_room(store, root, list(wanted.values()))
    _fetch(store, root, list(wanted.values()))


def _places(root: Path, manifests: Sequence[_Wanted]) -> Iterator[Mapping[str, Any]]:
    for wanted in manifests:
        manifest = ShardManifest.from_bytes((root / wanted.name).read_bytes())
        yield from manifest.header['files']
        for item in manifest.items:
            yield from item['views']


def fetch_data(url: str) -> Path:
    """Return a folder of all objects below a URL, fetched if missing; their sizes are compared.

    Raises:
        ValueError: If there are none, there is no space for them, or the store refuses.
    """
    store = Store(url)
    try:
        objects = store.objects()
    except FileNotFoundError:
        objects = {}
    if not objects:
        raise ValueError(f'{store.url} is empty: check the name')
    wanted = [_Wanted(name, size) for name, (size, _) in objects.items()]

    def fetch(root: Path) -> None:
        _check_room(store, root, wanted)
        _fetch(store, root, wanted)

    return _fetched('data', store, sha256(canonical_json(objects)), fetch)


def _fetched(kind: str, store: Store, key: str, fetch: Callable[[Path], None]) -> Path:
    """Return the cache folder of this content, filled by ``fetch`` if it is missing."""
    root = cache_dir() / kind / f'{store.url.rpartition("/")[2]}-{key[:16]}'
    if root.is_dir():
        return root
    part = root.with_name(f'.{root.name}.part')
    root.parent.mkdir(parents=True, exist_ok=True)
    with _alone(root.with_name(f'.{root.name}.lock')):
        if not root.is_dir():  # no other process has fetched it meanwhile
            part.mkdir(exist_ok=True)
            fetch(part)
            os.replace(part, root)
    return root


@lru_cache
def data_folder(address: str | None) -> str | None:
    """Return where data is read from: the path itself, or the folder for a URL; see ``fetch_data``."""
    return str(fetch_data(address)) if address and is_url(address) else address


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    try:
        with FileLock(path, fallback_to_soft=False):
            yield
    except NotImplementedError as error:
        raise ValueError(
            f'{path.parent} is on a file system without locks (flock): set TIMM_DAD_CACHE to a folder on another one'
        ) from error


def _check_room(store: Store, root: Path, wanted: Sequence[_Wanted]) -> None:
    missing = [each for each in wanted if not (root / each.name).exists()]
    size, free = sum(each.size or 0 for each in missing), shutil.disk_usage(root).free
    _logger.info('%s: fetching %d files of %s into %s', store.url, len(missing), _written(size), root.parent)
    if size > free:
        raise ValueError(
            f'{store.url} needs {_written(size)}, but {root.parent} has {_written(free)} free: make space, or set '
            'TIMM_DAD_CACHE to another folder'
        )


def _written(size: int) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


def _fetch(store: Store, root: Path, wanted: Sequence[_Wanted], *, show: bool = True) -> None:
    """Fetch what is missing or incomplete."""

    def fetch(each: _Wanted) -> None:
        path = root / each.name
        if _is_whole(path, each):
            return
        try:
            store.download(each.name, path)
        except FileNotFoundError as error:
            raise _damaged(store, each, 'is missing') from error
        if not _is_whole(path, each):
            path.unlink()
            raise _damaged(store, each, 'has changed')

    with progress(store.map(fetch, wanted), total=len(wanted), unit='file', show=show, desc='Fetching') as bar:
        for _ in bar:
            pass


def _damaged(store: Store, wanted: _Wanted, how: str) -> ValueError:
    fix = 'another process writes there: start again'
    if wanted.sha256 is not None:
        fix = f'timm-dad verify {store.url} lists all damage, and timm-dad generate --repair restores it'
    return ValueError(f'{store.url}/{wanted.name} {how}: {fix}')


def _is_whole(path: Path, wanted: _Wanted) -> bool:
    if not path.is_file() or wanted.size not in (None, path.stat().st_size):
        return False
    return wanted.sha256 is None or sha256_of_file(path) == wanted.sha256
