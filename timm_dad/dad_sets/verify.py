"""``timm-dad verify``: find and remove every missing, truncated or altered item of a DAD set."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from timm_dad.dad_sets.store import Store
from timm_dad.dad_sets.store_folder import as_root, bring_facts, check_begun, check_place, done_shards

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """One damaged item."""

    what: str  # missing, truncated or altered
    path: str  # relative to the set
    item: str = ''  # the view in it, where the file holds several
    shard: int | None = None  # to be made again
    folder: str = ''  # of the set, that the shard is of

    def __str__(self) -> str:
        """Format it in one line."""
        return f'{self.what}: {self.path}' + (f' ({self.item})' if self.item else '')


# Has files of a set, by their paths in it, where they are looked for.
Bring = Callable[[Sequence[str]], object]


def verify(root: str | Path, progress: bool = False) -> Iterator[Damage]:
    """Compare all bytes of a set, as far as it is made, with its manifests; ``ValueError`` if it cannot be read.

    Args:
        root: A folder, or a URL in an object store, from which each file is fetched once and not kept.
        progress: Whether to show a progress bar.
    """
    root = as_root(root)
    if isinstance(root, Path):
        yield from _verify_set(root, progress, lambda paths: None)
        return
    store = Store(root)
    check_begun(store)
    with tempfile.TemporaryDirectory(prefix='timm_dad-verify-', ignore_cleanup_errors=True) as work:
        bring_facts(store, Path(work))
        yield from _verify_set(Path(work), progress, partial(_bring_alone, store, Path(work)))


def _bring_alone(store: Store, root: Path, paths: Sequence[str]) -> None:
    """Fetch files of a shard in place of those of the previous one."""
    for folder in ('view*', 'shards', 'logits', f'{REINFORCED}/logits'):
        for path in root.glob(folder):
            shutil.rmtree(path)
    store.bring(root, paths)


def _verify_set(root: Path, progress: bool, bring: Bring) -> Iterator[Damage]:
    yield from _verify_folder(root, progress, bring)
    answers = root / REINFORCED
    if (answers / SETTINGS).exists() or (answers / INDEX).exists() or found_shards(answers):  # else hardly begun
        for damage in _verify_folder(
            root / REINFORCED, progress, lambda paths: bring([f'{REINFORCED}/{path}' for path in paths])
        ):
            yield replace(damage, path=f'{REINFORCED}/{damage.path}', folder=REINFORCED)


def _verify_folder(root: Path, progress: bool, bring: Bring) -> Iterator[Damage]:
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
        yield from _verify_shard(root, shard, hashes.get(shard), bring)


def _whole_json(path: Path) -> dict[str, Any] | None:
    """Parse a file written by ``canonical_json``; return ``None`` if it cannot be one."""
    try:
        value = read_json(path)
        return value if path.read_bytes() == canonical_json(value) + b'\n' else None
    except (OSError, ValueError):
        return None


def _verify_shard(root: Path, shard: int, expected: str | None, bring: Bring) -> Iterator[Damage]:
    path = manifest_path(root, shard)
    name = str(path.relative_to(root))
    try:
        data = path.read_bytes()
        manifest = ShardManifest.from_bytes(data)
        if expected not in (None, sha256(data)):
            raise ValueError('it differs from the index')
    except (OSError, ValueError) as error:
        yield Damage('missing' if isinstance(error, FileNotFoundError) else 'altered', name, shard=shard)
        return
    bring(sorted(manifest.paths()))
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
    """Compare a file, or the part of it that ``place`` describes."""
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


def clear_damage(
    root: Path | str, settings: Mapping[str, Any], progress: bool = False, *, answers: bool = True
) -> None:
    """Remove whatever is damaged in a set, so that ``generate`` makes it again, with the original bytes.

    A damaged view takes its shard with it. Nothing is removed from a set with other ``settings``.

    Args:
        root: The set.
        settings: What it must have been made with.
        progress: Whether to show a progress bar.
        answers: Whether stored answers will be made again.

    Raises:
        ValueError: If there is no set, it has other settings, nothing in it is intact, or answers are damaged that will
            not be made again.
    """
    damages = list(verify(root, progress))
    left = [damage.path for damage in damages if damage.folder and not answers]
    if left:
        raise ValueError(f'{root}: its stored answers are damaged, too ({left[0]}): add --reinforce and its flags')
    if SETTINGS not in {damage.path for damage in damages}:
        check_place(root, settings)
    elif not done_shards(root) - {damage.shard for damage in damages if not damage.folder}:
        raise ValueError(f'{root}: nothing in it is intact, not even {SETTINGS}: remove it, and make the set again')
    for damage in damages:
        _logger.info('To be made again: %s', damage)
    manifests = {
        str(manifest_path(Path(damage.folder), damage.shard)) for damage in damages if damage.shard is not None
    }
    indices = {str(Path(damage.folder, INDEX)) for damage in damages}
    names = {*indices, *manifests, *(damage.path for damage in damages if damage.shard is None)}
    if isinstance(root, str):
        Store(root).remove(sorted(names))
        return
    for path in (*(root / damage.path for damage in damages), *(root / name for name in names)):
        _clear_place(root, path)
    for name in names:
        (root / name).unlink(missing_ok=True)


def _clear_place(root: Path, path: Path) -> None:
    """Remove what blocks the path of a file: a folder in its place, a link, or a file in place of its folder."""
    for place in (*reversed(path.parents), path):
        if root not in place.parents:
            continue
        if place.is_symlink() or (place != path and place.exists() and not place.is_dir()):
            place.unlink()
        elif place == path and place.is_dir():
            shutil.rmtree(place)
