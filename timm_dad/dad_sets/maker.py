"""The DAD views of one shard, with everything its manifest records about them (Zhou et al. 2023, section 3.3)."""

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
from torch.utils.data import default_collate
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.common.files import write_files
from timm_dad.common.options import check_types, option
from timm_dad.common.transfer import to_device
from timm_dad.common.version import __version__
from timm_dad.dad_sets.clock import Clock, all_done
from timm_dad.dad_sets.formats import FormatConfig, Item, encode_image, lay_out, logits_path, pack_codes, place_of
from timm_dad.dad_sets.logits import add_logits
from timm_dad.dad_sets.manifest import ShardManifest
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.data.images import Frame, LoadedImage, Source
from timm_dad.data.pictures import check_label
from timm_dad.method.augment import DADAugment

_ENCODERS = 4  # threads; a PNG of 224 px takes one 5 ms, and a GPU about 9 ms to make
_NO_PIXELS = torch.empty(0)
# Seeds of the views of a batch, whether the teacher keeps the label on them, and their distance to the images.
_Facts = tuple[list[int], Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How a DAD set is made.

    Args:
        frame: Size of the views, and the part of an image they show.
        files: How they are stored.

    Raises:
        ValueError: If a number is out of range.
    """

    frame: Frame
    files: FormatConfig
    num_views: int = option(1, 'number of views of every image', metavar='K')
    seed: int = option(0, 'random seed of all random starts', metavar='S')
    batch_size: int = option(
        64, 'images per batch; part of the settings of a set, because it may change how sums round', metavar='N'
    )
    shard_size: int = option(256, 'images per shard, the unit in which work is resumed and shared', metavar='N')
    top_k: int = option(
        0,
        "store the teacher's K largest logits of images and views, for training with --dad-stored-logits",
        metavar='K',
    )
    temperature: float = option(4.0, 'distillation temperature for stored logits and for averaging several teachers')

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in {'num_views': 1, 'batch_size': 1, 'shard_size': 1, 'seed': 0, 'top_k': 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be {least} or more, got {getattr(self, name)}')
        if not 0 < self.temperature < float('inf'):
            raise ValueError(f'temperature must be positive, got {self.temperature}')

    @property
    def settings(self) -> dict[str, Any]:
        """The values that affect the files of the set."""
        frame = {'interpolation': self.frame.interpolation, 'crop_pct': self.frame.crop_pct}
        return {
            'views': {'count': self.num_views, 'size': list(self.frame.size), 'seed': self.seed, **frame},
            'files': self.files.settings,
            'logits': {'top_k': self.top_k, 'temperature': self.temperature} if self.top_k else None,
            'batch_size': self.batch_size,
            'shard_size': self.shard_size,
        }


def view_seed(seed: int, index: int, view: int) -> int:
    """Return the seed of the random start of one view."""
    return int(np.random.SeedSequence([seed, index, view]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class ShardMaker:
    """Make the views of one shard, batch by batch; ``clock`` measures how long its networks wait."""

    def __init__(self, source: Source, augment: DADAugment, config: GenerateConfig, device: torch.device) -> None:
        self.source, self.augment, self.config, self.device = source, augment, config, device
        self.n_embed, self.clock = augment.vqgan.config.n_embed, Clock(device)
        # Encoding and writing go on beside the networks; on a CPU they share its cores with them.
        self._encoders = ThreadPoolExecutor(_ENCODERS if device.type == 'cuda' else 1)
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.clear()

    def clear(self) -> None:
        """Begin a shard."""
        self.images: list[LoadedImage] = []
        self.encoded: list[Sequence[Future[bytes]]] = []  # all views of every image
        self.facts: list[list[_Facts]] = []  # of every batch, and every view
        self.codes_used = torch.zeros(self.n_embed, dtype=torch.bool, device=self.device)
        self.logits: list[tuple[str, Tensor]] = []  # of images and of views, batch by batch

    def stack(self, batch: list[LoadedImage]) -> tuple[list[LoadedImage], Tensor]:
        """Prepare a batch for ``add``: images without pixels, and pixels ``[B, 3, H, W]`` that a GPU can fetch."""
        pixels = torch.stack([image.pixels for image in batch])
        pixels = pixels.pin_memory() if self.device.type == 'cuda' else pixels
        return [replace(image, pixels=_NO_PIXELS) for image in batch], pixels

    @torch.no_grad()
    def add(self, batch: list[LoadedImage], pixels: Tensor) -> None:
        """Make the views of a batch from ``stack``; only the networks themselves wait for a GPU here."""
        num_classes, device = self.augment.teacher.num_classes, self.device
        labels = [check_label(image.label, num_classes, f'image {image.index} of the data set') for image in batch]
        encoded, facts, dad_logits = [], [], []
        with self.clock.computing():
            x_pix = pixels.to(device, non_blocking=True).float() / 255
            target = to_device(default_collate(labels), device)
            centre = self.augment.find_centre(x_pix, target)
        for view in range(self.config.num_views):
            seeds = [view_seed(self.config.seed, image.index, view) for image in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            with self.clock.computing():
                views = self.augment.attack_centre(centre, target, generator=generators)
                dad_pixels = views.x_dad.mul(255).round().byte()
                distance = (dad_pixels.float() / 255 - x_pix).flatten(1).norm(dim=1)
                self.codes_used[views.dad_codes.flatten()] = True
            facts.append((seeds, views.kept, distance))
            encoded.append(self._encode(dad_pixels, views.dad_codes))
            if self.config.top_k:
                x_dad = self._as_stored(dad_pixels, encoded[-1])
                with self.clock.computing():
                    dad_logits.append(self.augment.ask_teacher(x_dad))
        self.images += batch
        self.encoded += zip(*encoded, strict=True)
        self.facts.append(facts)
        if self.config.top_k:
            with self.clock.computing():
                clean = self.augment.ask_teacher(x_pix) if centre.logits is None else centre.logits
            self.logits += ('clean', clean), ('dad', torch.stack(dad_logits, dim=1))

    def _encode(self, pixels: Tensor, codes: Tensor) -> list[Future[bytes]]:
        of_codes = self.config.files.format == 'codes'
        data = (codes if of_codes else pixels.permute(0, 2, 3, 1)).to('cpu', non_blocking=True)
        wait = all_done(self.device)

        def encode(own: Tensor) -> bytes:
            wait()  # until the pixels have come
            return pack_codes(own, self.n_embed) if of_codes else encode_image(own.numpy(), self.config.files)

        return [self._encoders.submit(encode, own) for own in data]

    def _as_stored(self, pixels: Tensor, data: list[Future[bytes]]) -> Tensor:
        """Return the views as training will read them, in [0, 1]: JPEG and WebP are lossy."""
        if self.config.files.settings.get('quality'):
            pictures = [pil_to_tensor(Image.open(io.BytesIO(own.result())).convert('RGB')) for own in data]
            pixels = to_device(torch.stack(pictures), self.device)
        return pixels.float() / 255

    def write(self, folder: ShardedFolder, shard: int) -> None:
        """Start to write the shard; it is complete, and visible to others, by the next call or ``settle``."""
        self.settle()
        device = torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else self.device.type
        header = {
            'shard': shard,
            'first': self.images[0].index,
            'items': len(self.images),
            'settings': folder.settings_id,
            'made_with': {
                'timm_dad': __version__, 'torch': torch.__version__, 'pillow': PIL.__version__, 'device': device,
            },
        }  # fmt: skip
        made = self.images, self.encoded, self.facts, self.codes_used, self.logits
        self._written = self._writer.submit(self._write, folder, header, *made)
        self.clear()

    def settle(self) -> None:
        """Wait until the shard of the last ``write`` is complete."""
        if self._written is not None:
            job, self._written = self._written, None
            job.result()

    def close(self) -> None:
        """Stop the threads once they have finished writing."""
        for pool in (self._writer, self._encoders):
            pool.shutdown(cancel_futures=True)

    def _write(
        self,
        folder: ShardedFolder,
        header: dict[str, Any],
        images: Sequence[LoadedImage],
        encoded: Sequence[Sequence[Future[bytes]]],
        facts: Sequence[Sequence[_Facts]],
        codes_used: Tensor,
        logits: Sequence[tuple[str, Tensor]],
    ) -> None:
        """Write the files of a shard, all of them to disk before its manifest; this waits for a GPU."""
        shard = header['shard']
        header['codes_used'] = base64.b64encode(np.packbits(codes_used.cpu().numpy()).tobytes()).decode()
        source = self.source
        items = [
            Item(image.index, source.name(image.index, image.label), source.kept_label(image.label), image.sha256,
                 tuple(view.result() for view in views))
            for image, views in zip(images, encoded, strict=True)
        ]  # fmt: skip
        contents, places, files = lay_out(shard, items, self.config.files)
        if logits:
            kept: dict[str, list[Tensor]] = {}
            for of, own in logits:
                add_logits(kept, of, own.cpu(), self.config.top_k, self.config.temperature)
            path = logits_path(shard)
            contents[path] = save({name: torch.cat(parts) for name, parts in kept.items()})
            files = [*files, place_of(path, contents[path])]
        write_files({folder.root / path: data for path, data in contents.items()}, folder.work(f'{shard:06d}'))
        of_items = [own for batch in facts for own in zip(*map(_as_listed, batch), strict=True)]
        lines = [
            {**vars(item), 'views': [{**place, **fact} for place, fact in zip(own_places, own_facts, strict=True)]}
            for item, own_places, own_facts in zip(items, places, of_items, strict=True)
        ]
        folder.commit(shard, ShardManifest({**header, 'files': files}, lines))


def _as_listed(facts: _Facts) -> list[dict[str, Any]]:
    """Return what the manifest records of each view."""
    seeds, kept, distance = facts
    numbers = zip(seeds, kept.tolist(), distance.tolist(), strict=True)
    return [{'seed': seed, 'kept': own, 'l2': round(l2, 6)} for seed, own, l2 in numbers]
