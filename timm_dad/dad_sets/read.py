"""Reading a DAD set: views made once by ``timm-dad generate`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from timm_dad.dad_sets.formats import FormatConfig, container_path, unpack_codes, view_path
from timm_dad.dad_sets.hub import cached_repo
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


def frame_of_views(settings: Mapping[str, Any]) -> Frame:
    """The part of an image that the views of a set show, and their size, by its settings."""
    views = settings['views']
    return Frame(size=tuple(views['size']), interpolation=views['interpolation'], crop_pct=views['crop_pct'])


class SetFolder:
    """A finished folder of shards; ``ValueError`` says what to do about one that is not.

    Args:
        root: The folder.
        index: That of a folder that is being finished.
    """

    def __init__(self, root: str | Path, *, index: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.settings = read_settings(self.root)
        if index is None and not (self.root / INDEX).is_file():
            fix = 'start the same timm-dad generate again, it goes on'
            if cached_repo(self.root) is not None:
                fix = 'what uploads it was stopped, and goes on when it is started again'
            raise ValueError(f'{self.root} is not finished: {fix}')
        self.index = index or read_json(self.root / INDEX)
        if index is None and self.index.get('sha256') != index_hash(self.index):
            raise ValueError(f'{self.root / INDEX} was altered: timm-dad verify {self.root} says what to do')
        if self.index.get('settings') != settings_id(self.settings):
            raise ValueError(f'{self.root / SETTINGS} was altered: timm-dad verify {self.root} says what to do')
        self.shard_size: int = self.settings['shard_size']

    def manifests(self) -> Iterator[ShardManifest]:
        """The manifests of all shards, in order; see ``manifest``."""
        return (self.manifest(shard) for shard in range(len(self.index['shards'])))

    def manifest(self, shard: int) -> ShardManifest:
        """The manifest of one shard; ``DataError`` if it is missing or damaged."""
        path = manifest_path(self.root, shard)
        try:
            data = path.read_bytes()
            manifest = ShardManifest.from_bytes(data)
            if sha256(data) != self.index['shards'][shard]['sha256']:
                raise ValueError('it is another than the index says')
            return manifest
        except (OSError, ValueError) as error:
            raise self.damaged(str(path), error) from error

    def damaged(self, path: str, why: Exception, what: str = '') -> DataError:
        """The error that says how a file of the set, or ``what`` in it, is made again."""
        repo = cached_repo(self.root)
        fix = f'timm-dad generate --repair, with the flags that made {self.root}, makes it again'
        if repo is not None:
            fix = f'remove {repo}, and it is fetched again'
        return DataError(f'{path}{what} is damaged ({why}): {fix}')

    def check_file(self, shard: int, path: str) -> None:
        """Compare a file of a shard that holds no views with its manifest; ``DataError`` if it is damaged."""
        places = {place['path']: place for place in self.manifest(shard).header['files']}
        try:
            if sha256((self.root / path).read_bytes()) != places[path]['sha256']:
                raise OSError('its bytes are others than it was made with')
        except OSError as error:
            raise self.damaged(str(self.root / path), error) from error


class DADSet(SetFolder):
    """A whole DAD set, or a ``ValueError`` that says what to do; ``index`` is that of a set that is being finished."""

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
        """The rows of ``table``: a tensor, which workers of a loader share however they are started."""
        place = next((place for place in self.index['files'] if place['path'] == TABLE), None)
        if place is None:
            return torch.from_numpy(parse_table(self.manifests(), table_shape(self.num_images, self.num_views)))
        try:
            return torch.from_numpy(read_table(self.root, place))
        except OSError as error:
            raise self.damaged(str(self.root / TABLE), error) from error

    def frame(self) -> Frame:
        """The part of an image that its views show, and their size."""
        return frame_of_views(self.settings)

    def draw_view(self) -> int:
        """One of the views, at random."""
        return random.randrange(self.num_views) if self.num_views > 1 else 0

    def image(self, index: int, view: int, name: str) -> Image.Image:
        """One DAD view, RGB, of the image ``Source.name`` at ``index``; ``DataError`` if it is missing or damaged."""
        data = self._read(index, view, name)
        if self.format == 'codes':
            return self._decode(data)
        with io.BytesIO(data) as file, Image.open(file) as picture:
            return picture.convert('RGB')

    def view_file(self, index: int, view: int, name: str) -> str:
        """The file that holds a view, as a path in the set."""
        if self.format == 'folder':
            return view_path(name, view, self._config)
        return container_path(index // self.shard_size, self.format)

    def _read(self, index: int, view: int, name: str) -> bytes:
        """Bytes of a view, which are those that it was made with."""
        single, place = self.format == 'folder', self.view_file(index, view, name)
        offset, size, half = place_of_view(self.table[index].tolist(), view)
        try:
            with (self.root / place).open('rb') as file:
                file.seek(offset)
                data = file.read(size + single)  # a byte more, if there is one
            if len(data) != size or half_of(sha256(data)) != half:
                raise OSError('it is truncated' if len(data) < size else 'its bytes are others than it was made with')
            return data
        except OSError as error:
            raise self.damaged(str(self.root / place), error, '' if single else f', view {view} of {name},') from error

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
