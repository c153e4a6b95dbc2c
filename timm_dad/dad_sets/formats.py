"""How views lie in a DAD set: single pictures (``folder``), WebDataset shards (``wds``) or VQGAN codes (``codes``)."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from timm_dad.common.files import write_file
from timm_dad.dad_sets.manifest import canonical_json, sha256

FORMATS = ('folder', 'wds', 'codes')
IMAGE_FORMATS = {'png': '.png', 'jpeg': '.jpg', 'webp': '.webp'}


@dataclass(frozen=True, kw_only=True)
class FormatConfig:
    """How views are stored.

    Args:
        format: ``folder``, ``wds`` or ``codes``.
        image_format: ``png`` (exact), ``jpeg`` or ``webp``; of ``folder`` and ``wds``.
        quality: 1 to 100, of ``jpeg`` and ``webp``.

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    format: str = 'folder'
    image_format: str = 'png'
    quality: int = 95

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f'format must be one of {FORMATS}, got {self.format!r}')
        if self.image_format not in IMAGE_FORMATS:
            raise ValueError(f'image_format must be one of {tuple(IMAGE_FORMATS)}, got {self.image_format!r}')
        if not 1 <= self.quality <= 100:
            raise ValueError(f'quality is from 1 to 100, got {self.quality}')

    @property
    def settings(self) -> dict[str, Any]:
        """What of it matters."""
        if self.format == 'codes':
            return {'format': 'codes'}
        quality = {} if self.image_format == 'png' else {'quality': self.quality}
        return {'format': self.format, 'image_format': self.image_format, **quality}


def encode_image(pixels: NDArray[np.uint8], config: FormatConfig) -> bytes:
    """Encode pixels ``[H, W, 3]``, uint8, as a picture file."""
    options: dict[str, Any] = {
        'png': {},
        'jpeg': {'quality': config.quality, 'subsampling': 0},
        'webp': {'quality': config.quality},
    }[config.image_format]
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, config.image_format, **options)
        return file.getvalue()


def bits_of(n_embed: int) -> int:
    """Bits of one code index."""
    return max(1, (n_embed - 1).bit_length())


def pack_codes(codes: Tensor, n_embed: int) -> bytes:
    """Pack code indices ``[h, w]`` to ``ceil(h * w * bits / 8)`` bytes, row by row, highest bit first."""
    shifts = np.arange(bits_of(n_embed) - 1, -1, -1)
    bits = (codes.reshape(-1, 1).cpu().numpy() >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_codes(data: bytes, grid: tuple[int, int], n_embed: int) -> Tensor:
    """The code indices ``[h, w]``, int64, that ``pack_codes`` took."""
    bits = bits_of(n_embed)
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), count=grid[0] * grid[1] * bits)
    codes = unpacked.reshape(-1, bits).astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return torch.from_numpy(codes).view(grid)


@dataclass(frozen=True)
class Item:
    """All views of one image, encoded.

    Args:
        index: Place in the data set.
        name: Name without suffix, such as ``class/stem``.
        label: Class index.
        source_sha256: Hash of the image it was made from.
        views: Encoded views.
    """

    index: int
    name: str
    label: int
    source_sha256: str
    views: Sequence[bytes]


# Where one view lies, for the manifest: path, bytes, sha256, and offset where the file holds several.
Place = dict[str, Any]


def write_items(
    root: Path, work: Path, shard: int, items: Sequence[Item], config: FormatConfig
) -> tuple[list[list[Place]], list[Place]]:
    """Write a shard's views.

    Args:
        root: Folder of the set.
        work: Folder for unfinished files.
        shard: Number of the shard.
        items: Its images, in order.
        config: How.

    Returns:
        The place of every view of every item, and files that hold several.
    """
    writer = {'folder': _write_folder, 'wds': _write_tar, 'codes': _write_codes}[config.format]
    return writer(root, work, shard, items, config)


def place_of(path: str, data: bytes, **more: Any) -> Place:
    """Where ``data`` lies, for the manifest."""
    return {'path': path, 'bytes': len(data), 'sha256': sha256(data), **more}


def view_path(name: str, view: int, config: FormatConfig) -> str:
    """Path of a view's picture in a set of the format ``folder``."""
    return f'view{view}/{name}{IMAGE_FORMATS[config.image_format]}'


def container_path(shard: int, format: str) -> str:
    """Path of a shard's file in a set of the format ``wds`` or ``codes``."""
    return f'shards/{shard:06d}{ {"wds": ".tar", "codes": ".safetensors"}[format] }'


def logits_path(shard: int) -> str:
    """Path of the stored logits of a shard."""
    return f'logits/{shard:06d}.safetensors'


def _write_folder(
    root: Path, work: Path, shard: int, items: Sequence[Item], config: FormatConfig
) -> tuple[list[list[Place]], list[Place]]:
    places = []
    for item in items:
        places.append([place_of(view_path(item.name, view, config), data) for view, data in enumerate(item.views)])
        for place, data in zip(places[-1], item.views, strict=True):
            write_file(root / place['path'], data, sync=True, work=work)
    return places, []


def _write_tar(
    root: Path, work: Path, shard: int, items: Sequence[Item], config: FormatConfig
) -> tuple[list[list[Place]], list[Place]]:
    path, suffix = container_path(shard, 'wds'), IMAGE_FORMATS[config.image_format]
    places: list[list[Place]] = []
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as tar:

            def add(name: str, data: bytes) -> int:
                info = tarfile.TarInfo(name)  # no time and no user: equal views give equal bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                return int(tar.offset) - -len(data) % tarfile.BLOCKSIZE - len(data)

            for item in items:
                places.append([])
                for view, data in enumerate(item.views):
                    key = f'{item.index:08d}_{view}'
                    facts = {'name': item.name, 'source_sha256': item.source_sha256, 'view': view}
                    places[-1].append(place_of(path, data, offset=add(key + suffix, data)))
                    add(f'{key}.cls', str(item.label).encode())
                    add(f'{key}.json', canonical_json(facts))
        data = file.getvalue()
    write_file(root / path, data, sync=True, work=work)
    return places, [place_of(path, data)]


def _write_codes(
    root: Path, work: Path, shard: int, items: Sequence[Item], config: FormatConfig
) -> tuple[list[list[Place]], list[Place]]:
    path = container_path(shard, 'codes')
    packed = np.frombuffer(b''.join(data for item in items for data in item.views), np.uint8)
    data = save({'codes': torch.from_numpy(packed.reshape(len(items), len(items[0].views), -1).copy())})
    offset, places = len(data) - packed.size, list[list[Place]]()
    for item in items:
        places.append([])
        for view in item.views:
            places[-1].append(place_of(path, view, offset=offset))
            offset += len(view)
    write_file(root / path, data, sync=True, work=work)
    return places, [place_of(path, data)]


def wds_info(split: str, num_views: int, shard_items: Sequence[int]) -> bytes:
    """The ``_info.json`` that timm's reader of WebDataset shards wants."""
    lengths = [count * num_views for count in shard_items]
    info = {
        'name': 'dad',
        'splits': {
            split: {
                'name': split,
                'num_samples': sum(lengths),
                'filenames': [container_path(shard, 'wds') for shard in range(len(lengths))],
                'shard_lengths': lengths,
            }
        },
    }
    return json.dumps(info, indent=1).encode()
