"""``timm-dad verify``: find every item of a DAD set that is missing, truncated or altered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timm_dad.dad_sets.manifest import (
    INDEX,
    SETTINGS,
    ShardManifest,
    canonical_json,
    found_shards,
    index_hash,
    manifest_path,
    read_json,
    sha256,
)
from timm_dad.dad_sets.read import read_settings


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    Args:
        what: ``missing``, ``truncated`` or ``altered``.
        path: The file, relative to the set.
        item: The view in it, where the file holds several.
        shard: The shard to be made again; ``None`` where it is of none.
    """

    what: str
    path: str
    item: str = ''
    shard: int | None = None

    def __str__(self) -> str:
        """One line."""
        return f'{self.what}: {self.path}' + (f' ({self.item})' if self.item else '')


def verify(root: str | Path, progress: bool = False) -> Iterator[Damage]:
    """Compare every byte of a set with its manifests.

    Args:
        root: Folder of the set; a set that is not finished is checked as far as it is.
        progress: Show a progress bar.

    Yields:
        What is wrong.

    Raises:
        ValueError: If there is no set, or one of another version.
    """
    root = Path(root)
    found = found_shards(root)
    settings = _whole_json(root / SETTINGS)
    if settings is not None or not (found or (root / INDEX).exists()):
        read_settings(root)  # says that there is no set, or one of another version
    index = None
    if (root / INDEX).exists():
        index = _whole_json(root / INDEX)
        if index is None or index.get('sha256') != index_hash(index):
            yield Damage('altered', INDEX)
            index = None
    if index is not None:
        for place in index['files']:  # the settings among them
            yield from _compare(root, place)
    elif not (root / SETTINGS).exists():
        yield Damage('missing', SETTINGS)
    elif settings is None:
        yield Damage('altered', SETTINGS)
    hashes = {} if index is None else {shard: entry['sha256'] for shard, entry in enumerate(index['shards'])}
    for shard in tqdm(sorted(found | hashes.keys()), desc='Shards', disable=not progress, leave=False):
        yield from _verify_shard(root, shard, hashes.get(shard))


def _whole_json(path: Path) -> dict[str, Any] | None:
    """What a file of ``canonical_json`` holds; ``None`` if it cannot be one."""
    try:
        value = read_json(path)
        return value if path.read_bytes() == canonical_json(value) + b'\n' else None
    except (OSError, ValueError):
        return None


def _verify_shard(root: Path, shard: int, expected: str | None) -> Iterator[Damage]:
    path = manifest_path(root, shard)
    name = str(path.relative_to(root))
    try:
        data = path.read_bytes()
        manifest = ShardManifest.from_bytes(data)
    except FileNotFoundError:
        yield Damage('missing', name, shard=shard)
        return
    except (OSError, ValueError):
        yield Damage('altered', name, shard=shard)
        return
    if expected not in (None, sha256(data)):
        yield Damage('altered', name, shard=shard)
        return
    whole = set()
    for place in manifest.header['files']:
        damages = list(_compare(root, place, shard))
        yield from damages
        if not damages:
            whole.add(place['path'])
    containers = {place['path'] for place in manifest.header['files']}
    for item in manifest.items:
        for number, place in enumerate(item['views']):
            if place['path'] not in whole:
                what = f'view {number} of {item["name"]}' if place['path'] in containers else ''
                yield from _compare(root, place, shard, what)


def _compare(root: Path, place: Mapping[str, Any], shard: int | None = None, item: str = '') -> Iterator[Damage]:
    """A file, or the part of it that ``place`` is about."""
    path = root / place['path']
    try:
        with path.open('rb') as file:
            file.seek(place.get('offset', 0))
            data = file.read(place['bytes']) if item else file.read()
    except FileNotFoundError:
        yield Damage('missing', place['path'], item, shard)
        return
    except OSError:  # a folder in its place, or a disk that fails
        yield Damage('altered', place['path'], item, shard)
        return
    if len(data) < place['bytes']:
        yield Damage('truncated', place['path'], item, shard)
    elif sha256(data) != place['sha256']:
        yield Damage('altered', place['path'], item, shard)
