"""The DAD views of one shard, with all that its manifest says of them (Zhou et al. 2023, section 3.3)."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.common.files import write_file
from timm_dad.common.options import check_types, option
from timm_dad.common.version import __version__
from timm_dad.dad_sets.formats import FormatConfig, Item, encode_image, logits_path, pack_codes, place_of, write_items
from timm_dad.dad_sets.logits import add_logits
from timm_dad.dad_sets.manifest import ShardManifest
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.data.images import Frame, LoadedImage, Source
from timm_dad.data.pictures import check_label
from timm_dad.method.augment import DADAugment

_ENCODERS = 4  # threads; a PNG of 224 px takes one 5 ms, and a GPU about 9 ms to make
_NO_PIXELS = torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How a DAD set is made.

    Args:
        frame: Size of the views, and the part of an image that they show.
        files: How they are stored.

    Raises:
        ValueError: If a number is out of range.
    """

    frame: Frame
    files: FormatConfig
    num_views: int = option(1, 'views of every image', metavar='K')
    seed: int = option(0, 'random seed, of all random starts', metavar='S')
    batch_size: int = option(
        64, 'images at a time; a setting of the set, for it may change how sums round', metavar='N'
    )
    shard_size: int = option(
        256, 'images between two points at which work is taken up again or shared out', metavar='N'
    )
    top_k: int = option(
        0,
        "store the teacher's K largest logits of images and views, for training with --dad-stored-logits",
        metavar='K',
    )
    temperature: float = option(4.0, 'distillation temperature that they, and an average of several teachers, are for')

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in {'num_views': 1, 'batch_size': 1, 'shard_size': 1, 'seed': 0, 'top_k': 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be {least} or more, got {getattr(self, name)}')
        if not 0 < self.temperature < float('inf'):
            raise ValueError(f'temperature must be positive, got {self.temperature}')

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the bytes of the set."""
        frame = {'interpolation': self.frame.interpolation, 'crop_pct': self.frame.crop_pct}
        return {
            'views': {'count': self.num_views, 'size': list(self.frame.size), 'seed': self.seed, **frame},
            'files': self.files.settings,
            'logits': {'top_k': self.top_k, 'temperature': self.temperature} if self.top_k else None,
            'batch_size': self.batch_size,
            'shard_size': self.shard_size,
        }


def view_seed(seed: int, index: int, view: int) -> int:
    """Seed of the random start of one view."""
    return int(np.random.SeedSequence([seed, index, view]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class ShardMaker:
    """Make the views of one shard, batch by batch."""

    def __init__(self, source: Source, augment: DADAugment, config: GenerateConfig, device: torch.device) -> None:
        self.source, self.augment, self.config, self.device = source, augment, config, device
        self.n_embed = augment.vqgan.config.n_embed
        # Encoding and writing go on beside the networks; on a CPU they share its cores with them.
        self._encoders = ThreadPoolExecutor(_ENCODERS if device.type == 'cuda' else 1)
        self._writer = ThreadPoolExecutor(1)
        self._written: tuple[int, Future[ShardManifest]] | None = None
        self.clear()

    def clear(self) -> None:
        """Begin a shard."""
        self.items: list[tuple[LoadedImage, Sequence[Future[bytes]]]] = []
        self.facts: list[Sequence[dict[str, Any]]] = []  # of every view
        self.codes_used = np.zeros(self.n_embed, bool)
        self.logits: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, batch: list[LoadedImage]) -> None:
        """Make the views of a batch."""
        x_pix = torch.stack([image.pixels for image in batch]).to(self.device).float() / 255
        num_classes = self.augment.teacher.num_classes
        labels = [check_label(image.label, num_classes, f'image {image.index} of the data set') for image in batch]
        target = torch.tensor(labels, device=self.device)
        centre = self.augment.find_centre(x_pix, target)
        encoded, facts, dad_logits = [], [], []
        for view in range(self.config.num_views):
            seeds = [view_seed(self.config.seed, image.index, view) for image in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            views = self.augment.attack_centre(centre, target, generator=generators)
            dad_pixels = views.x_dad.mul(255).round().byte()
            distance = (dad_pixels.float() / 255 - x_pix).flatten(1).norm(dim=1).tolist()
            kept = views.kept.tolist()
            self.codes_used[views.dad_codes.unique().cpu().numpy()] = True
            data = self._encode(dad_pixels, views.dad_codes)
            numbers = zip(seeds, kept, distance, strict=True)
            facts.append([{'seed': seed, 'kept': own, 'l2': round(l2, 6)} for seed, own, l2 in numbers])
            encoded.append(data)
            if self.config.top_k:
                dad_logits.append(self.augment.ask_teacher(self._as_stored(dad_pixels, data)))
        self.facts += zip(*facts, strict=True)
        facts_alone = (replace(image, pixels=_NO_PIXELS) for image in batch)
        self.items += zip(facts_alone, zip(*encoded, strict=True), strict=True)
        if self.config.top_k:
            self._keep_logits('clean', self.augment.ask_teacher(x_pix) if centre.logits is None else centre.logits)
            self._keep_logits('dad', torch.stack(dad_logits, dim=1))

    def _encode(self, pixels: Tensor, codes: Tensor) -> list[Future[bytes]]:
        if self.config.files.format == 'codes':
            return [self._encoders.submit(pack_codes, own, self.n_embed) for own in codes.cpu()]
        views = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return [self._encoders.submit(encode_image, own, self.config.files) for own in views]

    def _as_stored(self, pixels: Tensor, data: list[Future[bytes]]) -> Tensor:
        """The views as training will read them, in [0, 1]: JPEG and WebP lose something."""
        if self.config.files.settings.get('quality'):
            pictures = [pil_to_tensor(Image.open(io.BytesIO(own.result())).convert('RGB')) for own in data]
            pixels = torch.stack(pictures).to(self.device)
        return pixels.float() / 255

    def _keep_logits(self, of: str, logits: Tensor) -> None:
        add_logits(self.logits, of, logits.cpu(), self.config.top_k, self.config.temperature)

    def write(self, folder: ShardedFolder, shard: int) -> None:
        """Begin to write the shard; it is done by the next call, or by ``settle``."""
        self.settle(folder)
        device = torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else self.device.type
        header = {
            'shard': shard,
            'first': self.items[0][0].index,
            'items': len(self.items),
            'settings': folder.settings_id,
            'made_with': {
                'timm_dad': __version__, 'torch': torch.__version__, 'pillow': PIL.__version__, 'device': device,
            },
            'codes_used': base64.b64encode(np.packbits(self.codes_used).tobytes()).decode(),
        }  # fmt: skip
        job = self._writer.submit(self._write, folder, header, self.items, self.facts, self.logits)
        self._written = shard, job
        self.clear()

    def settle(self, folder: ShardedFolder) -> None:
        """Wait until the shard of the last ``write`` is on the disk, and say that it is done."""
        if self._written is not None:
            (shard, job), self._written = self._written, None
            folder.commit(shard, job.result())

    def close(self) -> None:
        """Stop the threads, once what they are at is written."""
        for pool in (self._writer, self._encoders):
            pool.shutdown(cancel_futures=True)

    def _write(
        self,
        folder: ShardedFolder,
        header: dict[str, Any],
        images: Sequence[tuple[LoadedImage, Sequence[Future[bytes]]]],
        facts: Sequence[Sequence[dict[str, Any]]],
        logits: dict[str, list[Tensor]],
    ) -> ShardManifest:
        """Write the files of a shard; returns its manifest."""
        shard = header['shard']
        work = folder.work(f'{shard:06d}')
        items = [
            Item(image.index, self.source.name(image.index, image.label), image.label, image.sha256,
                 tuple(view.result() for view in views))
            for image, views in images
        ]  # fmt: skip
        places, files = write_items(folder.root, work, shard, items, self.config.files, self._encoders)
        if logits:
            path = logits_path(shard)
            data = save({name: torch.cat(parts) for name, parts in logits.items()})
            write_file(folder.root / path, data, sync=True, work=work)
            files = [*files, place_of(path, data)]
        lines = [
            {**vars(item), 'views': [{**place, **fact} for place, fact in zip(own_places, own_facts, strict=True)]}
            for item, own_places, own_facts in zip(items, places, facts, strict=True)
        ]
        return ShardManifest({**header, 'files': files}, lines)
