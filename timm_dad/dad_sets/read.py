"""Reading a DAD set: views made once by ``timm-dad generate`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from timm_dad.dad_sets.formats import FormatConfig, container_path, unpack_codes, view_path
from timm_dad.dad_sets.manifest import (
    FORMAT_VERSION,
    INDEX,
    SETTINGS,
    ShardManifest,
    index_hash,
    manifest_path,
    read_json,
    settings_id,
)
from timm_dad.vqgan.model import VQGAN


def read_settings(root: Path) -> dict[str, Any]:
    """The settings that made a set, whole or not; ``ValueError`` if there is none, or one of another version."""
    path = root / SETTINGS
    if not path.is_file():
        raise ValueError(f'{root} holds no DAD set: there is no {SETTINGS}; timm-dad generate makes one')
    settings = read_json(path)
    if settings.get('format_version') != FORMAT_VERSION:
        raise ValueError(
            f'{path} has format version {settings.get("format_version")}, and this timm_dad reads {FORMAT_VERSION}'
        )
    return settings


class DADSet:
    """A whole DAD set, or a ``ValueError`` that says what to do; ``index`` is that of a set that is being finished."""

    def __init__(self, root: str | Path, *, index: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.settings = read_settings(self.root)
        if index is None and not (self.root / INDEX).is_file():
            raise ValueError(f'{self.root} is not finished: start the same timm-dad generate again, it goes on')
        self.index = index or read_json(self.root / INDEX)
        if index is None and self.index.get('sha256') != index_hash(self.index):
            raise ValueError(f'{self.root / INDEX} was altered: timm-dad verify {self.root} says what to do')
        if self.index.get('settings') != settings_id(self.settings):
            raise ValueError(f'{self.root / SETTINGS} was altered: timm-dad verify {self.root} says what to do')
        self.num_images: int = self.settings['data']['num_images']
        self.num_views: int = self.settings['views']['count']
        self.size: tuple[int, int] = tuple(self.settings['views']['size'])
        self.class_names: list[str] | None = self.settings['data']['class_names']
        self.shard_size: int = self.settings['shard_size']
        self.logits: Mapping[str, Any] | None = self.settings['logits']
        files = dict(self.settings['files'])
        self.format: str = files['format']
        self._config = FormatConfig(**files)
        self.decoder: VQGAN | None = None  # of the format codes: the VQGAN that made it, on the CPU
        self._places = None if self.format == 'folder' else self._read_places()

    def manifests(self) -> Iterator[ShardManifest]:
        """The manifests of all shards, in order; see ``manifest``."""
        return (self.manifest(shard) for shard in range(len(self.index['shards'])))

    def manifest(self, shard: int) -> ShardManifest:
        """The manifest of one shard; ``ValueError`` if it is missing or damaged."""
        path = manifest_path(self.root, shard)
        try:
            return ShardManifest.from_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f'{path} is damaged ({error}): timm-dad verify {self.root} says what to do') from error

    def _read_places(self) -> NDArray[np.int64]:
        """Offset and size of every view in the file of its shard ``[num_images, num_views, 2]``."""
        places = np.zeros((self.num_images, self.num_views, 2), np.int64)
        for manifest in self.manifests():
            for item in manifest.items:
                places[item['index']] = [(view['offset'], view['bytes']) for view in item['views']]
        return places

    def draw_view(self) -> int:
        """One of the views, at random."""
        return random.randrange(self.num_views) if self.num_views > 1 else 0

    def image(self, index: int, view: int, name: str) -> Image.Image:
        """One DAD view, RGB, of the image ``Source.name`` at ``index``; ``ValueError`` if it is missing or damaged."""
        data = self._read(index, view, name)
        if self.format == 'codes':
            return self._decode(data)
        try:
            with io.BytesIO(data) as file, Image.open(file) as picture:
                return picture.convert('RGB')
        except (OSError, SyntaxError) as error:
            raise self._damaged(f'view {view} of {name}', error) from error

    def _read(self, index: int, view: int, name: str) -> bytes:
        if self._places is None:
            path, offset, size = self.root / view_path(name, view, self._config), 0, -1
        else:
            path = self.root / container_path(index // self.shard_size, self.format)
            offset, size = self._places[index, view].tolist()
        try:
            with path.open('rb') as file:
                file.seek(offset)
                data = file.read(size)
            if len(data) < size:
                raise OSError('it is truncated')
            return data
        except OSError as error:
            raise self._damaged(str(path), error) from error

    def _damaged(self, what: str, why: Exception) -> ValueError:
        return ValueError(f'{self.root}: {what} is damaged ({why}): timm-dad verify {self.root} says what to do')

    def _decode(self, data: bytes) -> Image.Image:
        if self.decoder is None:
            raise ValueError(f'{self.root} holds codes: set decoder to the VQGAN that made it')
        factor, (height, width) = self.decoder.config.factor, self.size
        grid = (-(-height // factor), -(-width // factor))
        codes = unpack_codes(data, grid, self.decoder.config.n_embed)
        with torch.inference_mode():
            device = self.decoder.codebook.device
            x_dad = self.decoder.decode_codes(codes[None].to(device))[0, :, :height, :width]
        return Image.fromarray(x_dad.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
