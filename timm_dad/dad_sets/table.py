"""The table of a DAD set: what training needs from all manifests, in one memory-mapped file.

A row of ``index.npy`` is an image, in 64-bit numbers: the start of its source's hash, its label, and for each view its
offset and size in its file, and half of its hash. All processes of a machine share one copy in memory.
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from timm_dad.common.files import replacing, sha256_of_file
from timm_dad.dad_sets.formats import Place
from timm_dad.dad_sets.manifest import ShardManifest

TABLE = 'index.npy'
_NUMBER = np.dtype('<i8')

Rows = NDArray[np.int64]


def key_of(sha256: str) -> int:
    """Return the first 64 bits of a hash, as a signed number."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), 'big', signed=True)


def half_of(sha256: str) -> tuple[int, int]:
    """Return the first half of a hash, as two numbers."""
    high, low = struct.unpack('>qq', bytes.fromhex(sha256[:32]))
    return high, low


def table_shape(num_images: int, num_views: int) -> tuple[int, int]:
    """Return the numbers of rows and columns."""
    return num_images, 2 + 4 * num_views


def place_of_view(row: Sequence[int], view: int) -> tuple[int, int, tuple[int, int]]:
    """Return offset, size and ``half_of`` the hash of a view, from its image's row."""
    offset, size, high, low = row[2 + 4 * view : 6 + 4 * view]
    return offset, size, (high, low)


def rows_of(manifest: ShardManifest) -> Rows:
    """Return the rows of a shard ``[items, 2 + 4 views]``, in order."""
    return np.array(
        [
            [key_of(item['source_sha256']), item['label'],
             *(number for place in item['views']
               for number in (place.get('offset', 0), place['bytes'], *half_of(place['sha256'])))]
            for item in manifest.items
        ],
        _NUMBER,
    )  # fmt: skip


def parse_table(manifests: Iterable[ShardManifest], shape: tuple[int, int]) -> Rows:
    """Build the table of a set that was made before tables were stored."""
    table = np.zeros(shape, _NUMBER)
    for manifest in manifests:
        first = manifest.items[0]['index']
        table[first : first + len(manifest.items)] = rows_of(manifest)
    return table


def write_table(root: Path, manifests: Iterable[ShardManifest], shape: tuple[int, int], work: Path) -> Place:
    """Write the table of a set, a shard at a time; return its place."""
    path = root / TABLE
    with replacing(path, sync=True, work=work) as temporary, temporary.open('wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': _NUMBER.str, 'fortran_order': False, 'shape': shape})
        for manifest in manifests:
            file.write(rows_of(manifest).tobytes())
    return {'path': TABLE, 'bytes': path.stat().st_size, 'sha256': sha256_of_file(path)}


def read_table(root: Path, place: Place) -> Rows:
    """Map the table of a set; raise ``OSError`` if it is damaged."""
    path = root / TABLE
    if sha256_of_file(path) != place['sha256']:
        raise OSError('its content has changed')
    table: Rows = np.load(path, mmap_mode='c')  # torch takes no array that cannot be written
    return table
