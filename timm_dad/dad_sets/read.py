"""Read a DAD set: views made once by ``timm-dad generate`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from timm_dad.dad_sets.formats import FormatConfig, container_path, unpack_codes, view_path
from timm_dad.dad_sets.hub import cached_repo, hub_repo
from timm_dad.dad_sets.manifest import (
    FORMAT_VERSION,
    INDEX,
    SETTINGS,
    ShardManifest,
    index_hash,
    manifest_path,
    read_json,
    settings_id,
    sha256,
)
from timm_dad.dad_sets.table import TABLE, half_of, parse_table, place_of_view, read_table, table_shape
from timm_dad.data.images import Frame
from timm_dad.data.pictures import DataError
from timm_dad.vqgan.model import VQGAN


def read_settings(root: Path) -> dict[str, Any]:
    """Return the settings of a set, finished or not; raise ``ValueError`` without one of this version."""
    path = root / SETTINGS
    if not path.is_file():
        raise ValueError(f'{root} contains no DAD set (no {SETTINGS}): make one with timm-dad generate')
    settings = read_json(path)
    if settings.get('format_version') != FORMAT_VERSION:
        raise ValueError(
            f'{path} has format version {settings.get("format_version")}, but this timm_dad reads {FORMAT_VERSION}'
        )
    return settings


def frame_of_views(settings: Mapping[str, Any]) -> Frame:
    """Return the part of an image that the views of a set show, and their size, from its settings."""
    views = settings['views']
    return Frame(size=tuple(views['size']), interpolation=views['interpolation'], crop_pct=views['crop_pct'])


class SetFolder:
    """A finished folder of shards; otherwise a ``ValueError`` says what to do.

    Args:
        root: The folder.
        index: The index of a folder that is being finished.
    """

    def __init__(self, root: str | Path, *, index: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.settings = read_settings(self.root)
        if index is None and not (self.root / INDEX).is_file():
            fix = 'start the same timm-dad generate again to continue'
            if hub_repo(self.root) is not None:
                fix = 'its upload was interrupted; start the upload again to continue'
            raise ValueError(f'{self.root} is not finished: {fix}')
        self.index = index or read_json(self.root / INDEX)
        if index is None and self.index.get('sha256') != index_hash(self.index):
            raise ValueError(f'{self.root / INDEX} was altered: run timm-dad verify {self.root} for what to do')
        if self.index.get('settings') != settings_id(self.settings):
            raise ValueError(f'{self.root / SETTINGS} was altered: run timm-dad verify {self.root} for what to do')
        self.shard_size: int = self.settings['shard_size']

    def manifests(self) -> Iterator[ShardManifest]:
        """Yield the manifests of all shards, in order; see ``manifest``."""
        return (self.manifest(shard) for shard in range(len(self.index['shards'])))

    def manifest(self, shard: int) -> ShardManifest:
        """Return the manifest of one shard; raise ``DataError`` if it is missing or damaged."""
        path = manifest_path(self.root, shard)
        try:
            data = path.read_bytes()
            manifest = ShardManifest.from_bytes(data)
            if sha256(data) != self.index['shards'][shard]['sha256']:
                raise ValueError('it differs from the index')
            return manifest
        except (OSError, ValueError) as error:
            raise self.damaged(str(path), error) from error

    def damaged(self, path: str, why: Exception, what: str = '') -> DataError:
        """Return an error that says how to restore a file of the set, or ``what`` in it."""
        repo = cached_repo(self.root)
        fix = f'restore it with timm-dad generate --repair and the flags that made {self.root}'
        if repo is not None:
            fix = f'remove {repo} to fetch it again'
        return DataError(f'{path}{what} is damaged ({why}): {fix}')

    def check_file(self, shard: int, path: str) -> None:
        """Compare a shard's file without views with its manifest; raise ``DataError`` if it is damaged."""
        places = {place['path']: place for place in self.manifest(shard).header['files']}
        try:
            if sha256((self.root / path).read_bytes()) != places[path]['sha256']:
                raise OSError('its content has changed')
        except OSError as error:
            raise self.damaged(str(self.root / path), error) from error


class DADSet(SetFolder):
    """A finished DAD set, or a ``ValueError`` that says what to do; ``index`` is for a set that is being finished."""

    def __init__(self, root: str | Path, *, index: Mapping[str, Any] | None = None) -> None:
        super().__init__(root, index=index)
        self.num_images: int = self.settings['data']['num_images']
        self.num_views: int = self.settings['views']['count']
        self.size: tuple[int, int] = tuple(self.settings['views']['size'])
        self.class_names: list[str] | None = self.settings['data']['class_names']
        self.one_class = not any(self.settings['data'].get(name) for name in ('label_free', 'multi_label'))
        self.logits: Mapping[str, Any] | None = self.settings['logits']
        files = dict(self.settings['files'])
        self.format: str = files['format']
        self._config = FormatConfig(**files)
        self.decoder: VQGAN | None = None  # of the format codes: the VQGAN that made it, on the CPU
        self.table = self._read_table()

    def _read_table(self) -> torch.Tensor:
        """Return the rows of ``table``: a tensor, which loader workers share however they are started."""
        place = next((place for place in self.index['files'] if place['path'] == TABLE), None)
        if place is None:
            return torch.from_numpy(parse_table(self.manifests(), table_shape(self.num_images, self.num_views)))
        try:
            return torch.from_numpy(read_table(self.root, place))
        except OSError as error:
            raise self.damaged(str(self.root / TABLE), error) from error

    def frame(self) -> Frame:
        """Return the part of an image that the views show, and their size."""
        return frame_of_views(self.settings)

    def draw_view(self) -> int:
        """Return the number of a random view."""
        return random.randrange(self.num_views) if self.num_views > 1 else 0

    def image(self, index: int, view: int, name: str) -> Image.Image:
        """Return a DAD view, RGB, of the image ``Source.name`` at ``index``; ``DataError`` if missing or damaged."""
        data = self._read(index, view, name)
        if self.format == 'codes':
            return self._decode(data)
        with io.BytesIO(data) as file, Image.open(file) as picture:
            return picture.convert('RGB')

    def view_file(self, index: int, view: int, name: str) -> str:
        """Return the file that contains a view, as a path in the set."""
        if self.format == 'folder':
            return view_path(name, view, self._config)
        return container_path(index // self.shard_size, self.format)

    def _read(self, index: int, view: int, name: str) -> bytes:
        """Return the bytes of a view, unchanged since it was made."""
        single, place = self.format == 'folder', self.view_file(index, view, name)
        offset, size, half = place_of_view(self.table[index].tolist(), view)
        try:
            with (self.root / place).open('rb') as file:
                file.seek(offset)
                data = file.read(size + single)  # a byte more, if there is one
            if len(data) != size or half_of(sha256(data)) != half:
                raise OSError('it is truncated' if len(data) < size else 'its content has changed')
            return data
        except OSError as error:
            raise self.damaged(str(self.root / place), error, '' if single else f', view {view} of {name},') from error

    def _decode(self, data: bytes) -> Image.Image:
        if self.decoder is None:
            raise ValueError(f'{self.root} contains codes: set decoder to the VQGAN that made them')
        factor, (height, width) = self.decoder.config.factor, self.size
        grid = (-(-height // factor), -(-width // factor))
        codes = unpack_codes(data, grid, self.decoder.config.n_embed)
        with torch.inference_mode():
            device = self.decoder.codebook.device
            x_dad = self.decoder.decode_codes(codes[None].to(device))[0, :, :height, :width]
        return Image.fromarray(x_dad.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
