"""Formats of views in a DAD set: single pictures (``folder``), WebDataset shards (``wds``) or codes (``codes``)."""

import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from timm_dad.common.options import check_types, option
from timm_dad.dad_sets.manifest import SETTINGS, canonical_json, parse_json, sha256
from timm_dad.dad_sets.store import Store

FORMATS = ('folder', 'wds', 'codes')
IMAGE_FORMATS = {'png': '.png', 'jpeg': '.jpg', 'webp': '.webp'}


@dataclass(frozen=True, kw_only=True)
class FormatConfig:
    """How views are stored.

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    format: str = option(
        'wds', 'how the views are stored (default: as in the existing set; wds in a new one)', choices=FORMATS
    )
    image_format: str = option('png', 'file type of folder and wds; png is exact', choices=IMAGE_FORMATS)
    quality: int = option(95, 'quality of jpeg and webp, 1 to 100', metavar='Q')

    def __post_init__(self) -> None:
        check_types(self)
        if self.format not in FORMATS:
            raise ValueError(f'format must be one of {FORMATS}, got {self.format!r}')
        if self.image_format not in IMAGE_FORMATS:
            raise ValueError(f'image_format must be one of {tuple(IMAGE_FORMATS)}, got {self.image_format!r}')
        if not 1 <= self.quality <= 100:
            raise ValueError(f'quality is from 1 to 100, got {self.quality}')

    @property
    def settings(self) -> dict[str, Any]:
        """The values that affect the files."""
        if self.format == 'codes':
            return {'format': 'codes'}
        quality = {} if self.image_format == 'png' else {'quality': self.quality}
        return {'format': self.format, 'image_format': self.image_format, **quality}


def format_of(root: Path | str) -> str:
    """Return the format of the existing set, in a folder or at a URL, finished or not; without one, the default."""
    with suppress(ImportError, OSError, ValueError, KeyError):  # said later; --repair may be about to mend the settings
        data = (root / SETTINGS).read_bytes() if isinstance(root, Path) else Store(root).read(SETTINGS)
        return str(parse_json(data, root)['files']['format'])
    return 'folder' if isinstance(root, Path) and (root / 'view0').is_dir() else FormatConfig.format


def encode_image(pixels: NDArray[np.uint8], config: FormatConfig) -> bytes:
    """Encode pixels ``[H, W, 3]``, uint8, as a picture file."""
    with io.BytesIO() as file:  # each format takes the options that it has
        Image.fromarray(pixels).save(file, config.image_format, quality=config.quality, subsampling=0)
        return file.getvalue()


def bits_of(n_embed: int) -> int:
    """Return the number of bits per code index."""
    return max(1, (n_embed - 1).bit_length())


def pack_codes(codes: Tensor, n_embed: int) -> bytes:
    """Pack code indices ``[h, w]`` to ``ceil(h * w * bits / 8)`` bytes, row by row, highest bit first."""
    shifts = np.arange(bits_of(n_embed) - 1, -1, -1)
    bits = (codes.reshape(-1, 1).cpu().numpy() >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_codes(data: bytes, grid: tuple[int, int], n_embed: int) -> Tensor:
    """Unpack the code indices ``[h, w]``, int64, that ``pack_codes`` packed."""
    bits = bits_of(n_embed)
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), count=grid[0] * grid[1] * bits)
    codes = unpacked.reshape(-1, bits).astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return torch.from_numpy(codes).view(grid)


@dataclass(frozen=True)
class Item:
    """All views of one image, encoded; ``name`` has no suffix, and the hash is the image's."""

    index: int
    name: str
    label: int
    source_sha256: str
    views: Sequence[bytes]


# Where one view lies, for the manifest: path, bytes, sha256, and offset where the file holds several.
Place = dict[str, Any]


def place_of(path: str, data: bytes, **more: Any) -> Place:
    """Describe where ``data`` lies, for the manifest."""
    return {'path': path, 'bytes': len(data), 'sha256': sha256(data), **more}


def view_path(name: str, view: int, config: FormatConfig) -> str:
    """Return the path of a view's picture in a set of the format ``folder``."""
    return f'view{view}/{name}{IMAGE_FORMATS[config.image_format]}'


def container_path(shard: int, format: str) -> str:
    """Return the path of a shard's file in a set of the format ``wds`` or ``codes``."""
    return f'shards/{shard:06d}{ {"wds": ".tar", "codes": ".safetensors"}[format] }'


def logits_path(shard: int) -> str:
    """Return the path of a shard's stored logits."""
    return f'logits/{shard:06d}.safetensors'


def lay_out(
    shard: int, items: Sequence[Item], config: FormatConfig
) -> tuple[dict[str, bytes], list[list[Place]], list[Place]]:
    """Arrange the views of a shard in files.

    Returns:
        Content of the files by their path in the set, the place of every view of every item, and the places of files
        that contain several views.
    """
    if config.format == 'folder':
        files = {view_path(item.name, view, config): data for item in items for view, data in enumerate(item.views)}
        return files, [
            [place_of(view_path(item.name, view, config), data) for view, data in enumerate(item.views)]
            for item in items
        ], []  # fmt: skip
    path = container_path(shard, config.format)
    data, starts = _join_codes(items) if config.format == 'codes' else _tar(items, IMAGE_FORMATS[config.image_format])
    offsets = iter(starts)
    places = [[place_of(path, view, offset=next(offsets)) for view in item.views] for item in items]
    return {path: data}, places, [place_of(path, data)]


def _tar(items: Sequence[Item], suffix: str) -> tuple[bytes, Sequence[int]]:
    """Return a tar of all views, and the offset of each."""
    offsets = []
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as tar:

            def add(name: str, data: bytes) -> int:
                info = tarfile.TarInfo(name)  # no time and no user: equal views give equal bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                return int(tar.offset) - -len(data) % tarfile.BLOCKSIZE - len(data)

            for item in items:
                for view, data in enumerate(item.views):
                    key = f'{item.index:08d}_{view}'
                    facts = {'name': item.name, 'source_sha256': item.source_sha256, 'view': view}
                    offsets.append(add(key + suffix, data))
                    add(f'{key}.cls', str(item.label).encode())
                    add(f'{key}.json', canonical_json(facts))
        return file.getvalue(), offsets


def _join_codes(items: Sequence[Item]) -> tuple[bytes, Sequence[int]]:
    """Return a safetensors file of all views, which have the same size, and the offset of each."""
    packed = np.frombuffer(b''.join(data for item in items for data in item.views), np.uint8)
    data = save({'codes': torch.from_numpy(packed.reshape(len(items), len(items[0].views), -1).copy())})
    return data, range(len(data) - packed.size, len(data), len(items[0].views[0]))


def wds_info(split: str, num_views: int, shard_items: Sequence[int]) -> bytes:
    """Return the ``_info.json`` that timm's reader of WebDataset shards needs."""
    lengths = [count * num_views for count in shard_items]
    filenames = [container_path(shard, 'wds') for shard in range(len(lengths))]
    facts = {'name': split, 'num_samples': sum(lengths), 'filenames': filenames, 'shard_lengths': lengths}
    return json.dumps({'name': 'dad', 'splits': {split: facts}}, indent=1).encode()
