"""``timm-dad verify``: find every item of a DAD set that is missing, truncated or altered; and clear it away."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm_dad.common.progress import progress as bar
from timm_dad.dad_sets.manifest import (
    INDEX,
    REINFORCED,
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
from timm_dad.dad_sets.shards import check_folder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong."""

    what: str  # missing, truncated or altered
    path: str  # relative to the set
    item: str = ''  # the view in it, where the file holds several
    shard: int | None = None  # to be made again
    folder: str = ''  # of the set, that the shard is of

    def __str__(self) -> str:
        """One line."""
        return f'{self.what}: {self.path}' + (f' ({self.item})' if self.item else '')


def verify(root: str | Path, progress: bool = False) -> Iterator[Damage]:
    """Compare all bytes of a set, as far as it is made, with its manifests; ``ValueError`` if there is none to read."""
    root = Path(root)
    yield from _verify_folder(root, progress)
    if (root / REINFORCED).is_dir():
        for damage in _verify_folder(root / REINFORCED, progress):
            yield replace(damage, path=f'{REINFORCED}/{damage.path}', folder=REINFORCED)


def _verify_folder(root: Path, progress: bool) -> Iterator[Damage]:
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
    for shard in bar(sorted(found | hashes.keys()), show=progress, desc='Shards', leave=False):
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
        if expected not in (None, sha256(data)):
            raise ValueError('it is another than the index says')
    except (OSError, ValueError) as error:
        yield Damage('missing' if isinstance(error, FileNotFoundError) else 'altered', name, shard=shard)
        return
    whole: dict[str, bool] = {}  # files of several views
    for place in manifest.header['files']:
        damages = list(_compare(root, place, shard))
        yield from damages
        whole[place['path']] = not damages
    for item in manifest.items:
        for number, place in enumerate(item['views']):
            if not whole.get(place['path']):
                what = f'view {number} of {item["name"]}' if place['path'] in whole else ''
                yield from _compare(root, place, shard, what)


def _compare(root: Path, place: Mapping[str, Any], shard: int | None = None, item: str = '') -> Iterator[Damage]:
    """A file, or the part of it that ``place`` is about."""
    path = root / place['path']
    try:
        with path.open('rb') as file:
            file.seek(place.get('offset', 0))
            data = file.read(place['bytes']) if item else file.read()
    except FileNotFoundError:
        what = 'missing'
    except OSError:  # a folder in its place, or a disk that fails
        what = 'altered'
    else:
        altered = 'altered' if sha256(data) != place['sha256'] else ''
        what = 'truncated' if len(data) < place['bytes'] else altered
    if what:
        yield Damage(what, place['path'], item, shard)


def clear_damage(root: Path, settings: Mapping[str, Any], progress: bool = False) -> None:
    """Take away whatever of a set is damaged, so that ``generate`` makes it again, with the bytes that it had.

    A damaged view takes its shard along. Nothing is taken from a set of other ``settings``.

    Raises:
        ValueError: If there is no set, it is one of other settings, or nothing in it is whole.
    """
    damages = list(verify(root, progress))
    if SETTINGS not in {damage.path for damage in damages}:
        check_folder(root, settings)
    shards = {(damage.folder, damage.shard) for damage in damages if damage.shard is not None}
    own = {shard for folder, shard in shards if not folder}
    if SETTINGS in {damage.path for damage in damages} and not found_shards(root) - own:
        raise ValueError(f'{root}: nothing in it is whole, not even {SETTINGS}: remove it, and make the set anew')
    for damage in damages:
        _logger.info('To be made again: %s', damage)
        _clear_place(root, root / damage.path)
    manifests = [str(manifest_path(Path(folder), shard)) for folder, shard in shards]
    indices = {str(Path(damage.folder, INDEX)) for damage in damages}
    for name in {*indices, *manifests, *(damage.path for damage in damages if damage.shard is None)}:
        _clear_place(root, root / name)
        (root / name).unlink(missing_ok=True)


def _clear_place(root: Path, path: Path) -> None:
    """Remove what is in the way of a file: a folder in its place, a link, or a file in the place of its folder."""
    for place in (*reversed(path.parents), path):
        if root not in place.parents:
            continue
        if place.is_symlink() or (place != path and place.exists() and not place.is_dir()):
            place.unlink()
        elif place == path and place.is_dir():
            shutil.rmtree(place)
