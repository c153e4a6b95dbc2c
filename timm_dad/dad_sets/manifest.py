"""What a DAD set records about itself: its settings, and for every shard a manifest with the hash of every item.

A set is a folder. ``dad_set.json`` contains the settings that made it; ``manifest/000012.jsonl`` appears when all items
of a shard are complete, and never before; ``index.json`` appears when all shards are complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = 'dad_set.json'
INDEX = 'index.json'
FORMAT_VERSION = 1
WORK = '.work'  # what is unfinished, and who is at it
REINFORCED = 'reinforced'  # folder of the answers on augmentations, in that of their set


def canonical_json(value: Any) -> bytes:
    """Serialize a value in its only form: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode()  # ASCII: names of files may be no UTF-8


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sync_folders(root: Path, paths: Iterable[Path]) -> None:
    """Flush the names of files under ``root``, and of their folders, to the disk, so that they survive a crash."""
    folders = {folder for path in paths for folder in path.parents if folder == root or root in folder.parents}
    for folder in sorted(folders):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def manifest_name(shard: int) -> str:
    """Return the path of a shard's manifest in its set."""
    return f'manifest/{shard:06d}.jsonl'


def manifest_path(root: Path, shard: int) -> Path:
    """Return the path of a shard's manifest."""
    return root / manifest_name(shard)


def found_shards(root: Path) -> set[int]:
    """Return the shards that have a manifest."""
    return shards_of(path.name for path in (root / 'manifest').glob('[0-9]*.jsonl'))


def shards_of(names: Iterable[str]) -> set[int]:
    """Return the shards whose manifest is among these file names."""
    stems = (name.removesuffix('.jsonl') for name in names if name.endswith('.jsonl'))
    return {int(stem) for stem in stems if stem.isdecimal()}


@dataclass(frozen=True)
class ShardManifest:
    """Manifest of one shard.

    Args:
        header: ``shard``, ``first`` (index of its first image), ``items`` (their number), ``settings`` (their hash),
            ``made_with``, ``codes_used`` (a bitmap in base64) and ``files`` (``path``, ``bytes``, ``sha256`` of files
            that are not a single view).
        items: One dictionary per image: ``index``, ``name``, ``label``, ``source_sha256`` and ``views``; each view has
            ``path`` (and ``offset`` in it, if a file contains several), ``bytes``, ``sha256``, ``seed``, ``kept``
            and ``l2`` (of the pixels before encoding).
    """

    header: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    def paths(self) -> set[str]:
        """Return the files of the shard."""
        views = (place['path'] for item in self.items for place in item.get('views', ()))
        return {*views, *(place['path'] for place in self.header['files'])}

    def to_bytes(self) -> bytes:
        """Serialize: one line of JSON for the header, one per item, and last the hash of all these lines."""
        lines = b''.join(canonical_json(line) + b'\n' for line in (self.header, *self.items))
        return lines + canonical_json({'sha256': sha256(lines)}) + b'\n'

    @classmethod
    def from_bytes(cls, data: bytes) -> 'ShardManifest':
        """Read the output of ``to_bytes``; raise ``ValueError`` if any byte was altered."""
        end = data[:-1].rfind(b'\n') + 1
        if data[end:] != canonical_json({'sha256': sha256(data[:end])}) + b'\n':
            raise ValueError('it is incomplete or was altered')
        header, *items = (json.loads(line) for line in data[:end].splitlines())
        return cls(header, items)


def settings_id(settings: Mapping[str, Any]) -> str:
    """Hash the settings that affect a set's files: models count by their content, not by the place of their files."""
    return sha256(canonical_json(identity(settings)))


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the names of models: their fingerprints identify them."""
    teacher = {name: value for name, value in settings.get('teacher', {}).items() if name != 'flags'}
    vqgan = {name: value for name, value in settings.get('vqgan', {}).items() if name != 'spec'}
    return {**settings, 'teacher': teacher, 'vqgan': vqgan}


def index_hash(index: Mapping[str, Any]) -> str:
    """Return the hash that ``index.json`` stores about itself, under ``sha256``."""
    return sha256(canonical_json({name: value for name, value in index.items() if name != 'sha256'}))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object; a ``ValueError`` names it if it is damaged."""
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, place: Path | str) -> dict[str, Any]:
    """Parse the content of a file with one JSON object; a ``ValueError`` names it if it is damaged."""
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{place} is damaged: {error}') from error
    if not isinstance(value, dict):
        raise ValueError(f'{place} is damaged: it contains no JSON object')
    return value


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix[:-1]: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f'{prefix}{name}.').items()}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """List the differences between two settings, as ``name: here X, there Y``; empty if they are equal."""
    flat_here, flat_there = _flat(here), _flat(there)
    return [
        f'{name}: here {_short(flat_here.get(name))}, there {_short(flat_there.get(name))}'
        for name in sorted(flat_here.keys() | flat_there.keys())
        if flat_here.get(name) != flat_there.get(name)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:57]}...'
