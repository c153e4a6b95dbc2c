"""Make the DAD views of a data set once (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

Views are made shard by shard, a shard in batches of its own and each view under a seed of its own: what a shard holds
depends neither on the processes that share the work nor on how often they were stopped.
"""

import base64
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

import timm_dad
from timm_dad.augment import DADAugment
from timm_dad.formats import FormatConfig, Item, encode_image, pack_codes, write_items
from timm_dad.manifest import ShardManifest, settings_id, sha256, write_whole
from timm_dad.shards import ShardedFolder
from timm_dad.source import Frame, Source, SourceImage
from timm_dad.sparse_logits import sparse_logits
from timm_dad.summary import finish

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How a DAD set is made.

    Args:
        frame: Size of the views, and the part of an image that they show.
        files: How they are stored.
        num_views: Views an image.
        seed: Seed of all random starts.
        batch_size: Images at a time; part of the settings, for sums in another order may round differently.
        shard_size: Images that are made, and written, between two points at which work can be taken up again.
        top_k: Teacher's logits to store for clean image and views; 0: none.
        temperature: Distillation temperature that the stored logits are for.

    Raises:
        ValueError: If a number is out of range.
    """

    frame: Frame
    files: FormatConfig
    num_views: int = 1
    seed: int = 0
    batch_size: int = 64
    shard_size: int = 256
    top_k: int = 0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ('num_views', 'batch_size', 'shard_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be 1 or more, got {getattr(self, name)}')
        for name in ('seed', 'top_k'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must be 0 or more, got {getattr(self, name)}')
        if not 0 < self.temperature < float('inf'):
            raise ValueError(f'temperature must be positive, got {self.temperature}')

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the bytes of the set."""
        frame = {'interpolation': self.frame.interpolation, 'crop_pct': self.frame.crop_pct}
        logits = {'top_k': self.top_k, 'temperature': self.temperature} if self.top_k else None
        return {
            'views': {'count': self.num_views, 'size': list(self.frame.size), 'seed': self.seed, **frame},
            'files': self.files.settings,
            'logits': logits,
            'batch_size': self.batch_size,
            'shard_size': self.shard_size,
        }


def view_seed(seed: int, index: int, view: int) -> int:
    """Seed of the random start of one view."""
    return int(np.random.SeedSequence([seed, index, view]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class _Loaded:
    """An image on its way to the device: index, framed pixels ``[3, H, W]`` uint8, and what it was read from."""

    index: int
    pixels: Tensor
    label: int
    sha256: str


class _Framed(Dataset[Any]):
    """Images of a source by index, framed."""

    def __init__(self, source: Source, frame: Frame) -> None:
        self.source = source
        self.transform = frame.transform()

    def __getitem__(self, index: int) -> _Loaded | ValueError:
        try:
            return self.load(index, self.source.read(index))
        except ValueError as error:
            return error  # raised by a worker process it would bring its traceback along

    def load(self, index: int, image: SourceImage) -> _Loaded:
        return _Loaded(index, pil_to_tensor(self.transform(image.image)), image.label, image.sha256)


def _claimed_batches(folder: ShardedFolder, shards: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of claimed shards, batch by batch."""
    for shard in shards:
        if folder.claim(shard):
            indices = list(folder.shard_range(shard))
            yield from (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))


def _claimed_stream(folder: ShardedFolder, images: _Framed, batch_size: int) -> Iterator[list[_Loaded]]:
    """Batches of claimed shards of a stream: every process reads all of it and takes what it claims."""
    batch, claimed, index = list[_Loaded](), False, -1
    for index, (picture, label) in enumerate(images.source.dataset):
        if index >= folder.num_images:
            break
        image = Source.of_pixels(picture, label)
        shard = index // folder.shard_size
        if index == folder.shard_range(shard).start:
            folder.check_first(shard, image.sha256)
            claimed = folder.claim(shard)
        if claimed:
            if len(batch) == batch_size or (batch and index == folder.shard_range(shard).start):
                yield batch
                batch = []
            batch.append(images.load(index, image))
    if index + 1 != folder.num_images:  # before the last shard is made
        more = 'more' if index >= folder.num_images else f'{index + 1} that decode'
        raise ValueError(
            f'the stream must hold the {folder.num_images} images that it announces, it has {more}: mend it, or its '
            '_info.json or --train-num-samples, and name an empty folder'
        )
    if batch:
        yield batch


def _batches(
    folder: ShardedFolder, images: _Framed, config: GenerateConfig, shards: Sequence[int], workers: int
) -> Iterator[list[_Loaded]]:
    if images.source.streams:
        yield from _reading(_claimed_stream(folder, images, config.batch_size))
        return
    loader = DataLoader(
        images,
        batch_sampler=_claimed_batches(folder, shards, config.batch_size),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=1 if workers else None,  # what is loaded ahead is claimed, and no other process makes it
    )
    for batch in _reading(iter(loader)):
        for image in batch:
            if isinstance(image, ValueError):
                raise image
        yield batch


def _reading(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; an error of the system while they are read is one of the data, not of the folder."""
    try:
        yield from batches
    except OSError as error:
        raise ValueError(f'the data set cannot be read: {error}') from error


class _ShardMaker:
    """Make the views of one shard, batch by batch."""

    def __init__(self, source: Source, augment: DADAugment, config: GenerateConfig, device: torch.device) -> None:
        self.source = source
        self.augment = augment
        self.config = config
        self.device = device
        self.n_embed = augment.vqgan.config.n_embed
        self.clear()

    def clear(self) -> None:
        """Begin a shard."""
        self.items: list[Item] = []
        self.facts: list[list[dict[str, Any]]] = []  # of every view
        self.codes_used = np.zeros(self.n_embed, bool)
        self.logits: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, batch: list[_Loaded]) -> None:
        """Make the views of a batch."""
        x_pix = torch.stack([image.pixels for image in batch]).to(self.device).float() / 255
        target = torch.tensor([self._label(image) for image in batch], device=self.device)
        x_vq, vq_codes = self.augment.vqgan.reconstruct(x_pix)
        encoded: list[list[bytes]] = [[] for _ in batch]
        facts: list[list[dict[str, Any]]] = [[] for _ in batch]
        dad_logits = []
        for view in range(self.config.num_views):
            seeds = [view_seed(self.config.seed, image.index, view) for image in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            views = self.augment.attack_reconstruction(x_vq, vq_codes, target, generator=generators)
            pixels = views.x_dad.mul(255).round().byte()
            distance = (pixels.float() / 255 - x_pix).flatten(1).norm(dim=1).tolist()
            kept = views.kept.tolist()
            self.codes_used[views.dad_codes.unique().cpu().numpy()] = True
            data = self._encode(pixels, views.dad_codes)
            for row in range(len(batch)):
                encoded[row].append(data[row])
                facts[row].append({'seed': seeds[row], 'kept': kept[row], 'l2': round(distance[row], 6)})
            if self.config.top_k:
                dad_logits.append(self.augment.teacher(self._as_stored(pixels, data)))
        self.facts += facts
        self.items += [
            Item(image.index, self.source.name(image.index, image.label), image.label, image.sha256, views_of)
            for image, views_of in zip(batch, encoded, strict=True)
        ]
        if self.config.top_k:
            self._keep_logits('clean', self.augment.teacher(x_pix))
            self._keep_logits('dad', torch.stack(dad_logits, dim=1))

    def _label(self, image: _Loaded) -> int:
        num_classes = self.augment.teacher.num_classes
        if not 0 <= image.label < num_classes:
            raise ValueError(
                f'labels must be from 0 to {num_classes - 1}, image {image.index} of the data set has {image.label}'
            )
        return image.label

    def _encode(self, pixels: Tensor, codes: Tensor) -> list[bytes]:
        if self.config.files.format == 'codes':
            return [pack_codes(own, self.n_embed) for own in codes]
        return [encode_image(own, self.config.files) for own in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    def _as_stored(self, pixels: Tensor, data: list[bytes]) -> Tensor:
        """The views as training will read them, in [0, 1]: JPEG and WebP lose something."""
        if self.config.files.settings.get('quality'):
            pictures = [pil_to_tensor(Image.open(io.BytesIO(own)).convert('RGB')) for own in data]
            pixels = torch.stack(pictures).to(self.device)
        return pixels.float() / 255

    def _keep_logits(self, of: str, logits: Tensor) -> None:
        parts = sparse_logits(logits.cpu(), self.config.top_k, self.config.temperature)
        for name, part in zip(('values', 'classes', 'rest'), parts, strict=True):
            self.logits.setdefault(f'{of}_{name}', []).append(part)

    def write(self, folder: ShardedFolder, shard: int, made_by: str) -> None:
        """Write the shard and say that it is done."""
        work = folder.work(f'{shard:06d}')
        places, files = write_items(folder.root, work, shard, self.items, self.config.files)
        if self.logits:
            path = f'logits/{shard:06d}.safetensors'
            data = save({name: torch.cat(parts) for name, parts in self.logits.items()})
            write_whole(folder.root / path, data, work)
            files = [*files, {'path': path, 'bytes': len(data), 'sha256': sha256(data)}]
        versions = {'timm_dad': timm_dad.__version__, 'torch': torch.__version__, 'pillow': PIL.__version__}
        header = {
            'shard': shard,
            'first': self.items[0].index,
            'items': len(self.items),
            'settings': made_by,
            'made_with': {**versions, 'device': _name(self.device)},
            'codes_used': base64.b64encode(np.packbits(self.codes_used).tobytes()).decode(),
            'files': files,
        }
        items = [
            {
                'index': item.index,
                'name': item.name,
                'label': item.label,
                'source_sha256': item.source_sha256,
                'views': [{**place, **fact} for place, fact in zip(own_places, own_facts, strict=True)],
            }
            for item, own_places, own_facts in zip(self.items, places, self.facts, strict=True)
        ]
        folder.commit(shard, ShardManifest(header, items))
        self.clear()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type


def generate(
    source: Source,
    augment: DADAugment,
    root: str | Path,
    config: GenerateConfig,
    settings: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a DAD set, or go on with one; returns when it is whole, whoever made the last shard.

    Args:
        source: The data set.
        augment: Makes the views; its models are frozen and on ``device``.
        root: The folder, empty or of the same settings.
        config: How.
        settings: What else decides the bytes of the set (data, teacher, VQGAN, attack); kept in it and compared.
        device: Where the models are; the CPU by default.
        rank: Which of ``world_size`` processes this is: where it begins.
        world_size: Processes that were started together. Others may come and go.
        workers: Processes that load images.
        progress: Show a progress bar.

    Returns:
        The summary: ``images``, ``views``, ``teacher_kept``, ``l2``, ``codebook_used``, ``bytes_per_view``, and
        ``kept_by_class``.

    Raises:
        ValueError: If the folder is of other settings, an image cannot be read, or the disk is full.
    """
    settings = {**settings, **config.settings}
    made_by = settings_id(settings)
    images = _Framed(source, config.frame)
    device = device or torch.device('cpu')
    maker = _ShardMaker(source, augment, config, device)
    threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)  # sums over threads round otherwise than those of one: more processes are faster, too
    try:
        folder = ShardedFolder(Path(root), settings, len(source), config.shard_size)
        try:
            done, looked = folder.images_done(), time.monotonic()
            with tqdm(total=len(source), initial=done, unit='img', disable=not progress, desc='DAD views') as bar:
                while pending := folder.pending():
                    start = len(pending) * rank // world_size  # processes begin at different places
                    pending = pending[start:] + pending[:start]
                    if not any(folder.claim(shard) for shard in pending):
                        time.sleep(0.1)  # others are at the rest, or gone: then their shards come free
                        continue
                    for batch in _batches(folder, images, config, pending, workers):
                        maker.add(batch)
                        bar.update(len(batch))
                        shard = batch[0].index // config.shard_size
                        if len(maker.items) == len(folder.shard_range(shard)):
                            maker.write(folder, shard, made_by)
                            if time.monotonic() - looked > 2:  # at what others have done
                                looked = time.monotonic()
                                bar.update(folder.images_done() - bar.n)
                bar.update(len(source) - bar.n)
            return finish(folder, source, config.frame, augment, made_by)
        finally:
            folder.release()
    except NotImplementedError as error:  # of filelock
        raise ValueError(f'{root} is on a file system without locks (flock): name a folder on another one') from error
    except OSError as error:
        raise ValueError(
            f'{root} cannot be written ({error.strerror or error}): free the room or the right it needs and start the '
            'same command again, it goes on; nothing half-written has a final name'
        ) from error
    finally:
        torch.set_num_threads(threads)
