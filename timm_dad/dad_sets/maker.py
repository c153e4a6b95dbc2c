"""The DAD views of one shard, with all that its manifest says of them (Zhou et al. 2023, section 3.3)."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.common.files import write_file
from timm_dad.common.version import __version__
from timm_dad.dad_sets.formats import FormatConfig, Item, encode_image, logits_path, pack_codes, place_of, write_items
from timm_dad.dad_sets.logits import sparse_logits
from timm_dad.dad_sets.manifest import ShardManifest
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.data.images import Frame, LoadedImage, Source
from timm_dad.method.augment import DADAugment


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


class ShardMaker:
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
    def add(self, batch: list[LoadedImage]) -> None:
        """Make the views of a batch."""
        x_pix = torch.stack([image.pixels for image in batch]).to(self.device).float() / 255
        target = torch.tensor([self._label(image) for image in batch], device=self.device)
        centre = self.augment.find_centre(x_pix, target)
        encoded: list[list[bytes]] = [[] for _ in batch]
        facts: list[list[dict[str, Any]]] = [[] for _ in batch]
        dad_logits = []
        for view in range(self.config.num_views):
            seeds = [view_seed(self.config.seed, image.index, view) for image in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            views = self.augment.attack_centre(centre, target, generator=generators)
            dad_pixels = views.x_dad.mul(255).round().byte()
            distance = (dad_pixels.float() / 255 - x_pix).flatten(1).norm(dim=1).tolist()
            kept = views.kept.tolist()
            self.codes_used[views.dad_codes.unique().cpu().numpy()] = True
            data = self._encode(dad_pixels, views.dad_codes)
            for row in range(len(batch)):
                encoded[row].append(data[row])
                facts[row].append({'seed': seeds[row], 'kept': kept[row], 'l2': round(distance[row], 6)})
            if self.config.top_k:
                dad_logits.append(self.augment.ask_teacher(self._as_stored(dad_pixels, data)))
        self.facts += facts
        self.items += [
            Item(image.index, self.source.name(image.index, image.label), image.label, image.sha256, views_of)
            for image, views_of in zip(batch, encoded, strict=True)
        ]
        if self.config.top_k:
            self._keep_logits('clean', self.augment.ask_teacher(x_pix) if centre.logits is None else centre.logits)
            self._keep_logits('dad', torch.stack(dad_logits, dim=1))

    def _label(self, image: LoadedImage) -> int:
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

    def write(self, folder: ShardedFolder, shard: int) -> None:
        """Write the shard and say that it is done."""
        work = folder.work(f'{shard:06d}')
        places, files = write_items(folder.root, work, shard, self.items, self.config.files)
        if self.logits:
            path = logits_path(shard)
            data = save({name: torch.cat(parts) for name, parts in self.logits.items()})
            write_file(folder.root / path, data, sync=True, work=work)
            files = [*files, place_of(path, data)]
        versions = {'timm_dad': __version__, 'torch': torch.__version__, 'pillow': PIL.__version__}
        header = {
            'shard': shard,
            'first': self.items[0].index,
            'items': len(self.items),
            'settings': folder.settings_id,
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
