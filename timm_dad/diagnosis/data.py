"""The images of ``timm-dad diagnose``: samples of clean and OOD data, and augmented views of the clean images."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.common.progress import progress
from timm_dad.dad_sets.maker import view_seed
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Frame, FramedImages, Source, collate_images
from timm_dad.diagnosis.divergence import code_usage
from timm_dad.evaluation.report.figures import HEADLINE_PARTS
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.method.augment import DADAugment

CLEAN, RECONSTRUCTED, DAD, CROP = 'clean', 'Q(x)', 'DAD', 'random crop'


class Batch(NamedTuple):
    """Images ``[B, 3, H, W]`` in [0, 1], their labels ``[B]``, and their indices in their data set."""

    x_pix: Tensor
    label: Tensor
    indices: Sequence[int]


def sample_indices(count: int, num_images: int, seed: int) -> list[int]:
    """Draw the indices of ``num_images`` of ``count`` images without repetition, sorted; all if there are no more."""
    if num_images >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, num_images, replace=False).tolist())


@dataclass(frozen=True)
class Sample:
    """Some images of a data set, by index."""

    dataset: Any
    indices: Sequence[int]
    frame: Frame
    # The model's class of each label, if the data has only some of them; the model's other outputs are then left out.
    classes: Sequence[int] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def filenames(self, batch: Batch) -> list[str]:
        """Return the file names of a batch, relative to the root of the data set."""
        names = []
        for index in batch.indices:
            dataset, place = self.dataset, index
            if isinstance(dataset, ConcatDataset):  # the parts of a suite
                ends = dataset.cumulative_sizes
                part = bisect_right(ends, index)
                dataset, place = self.dataset.datasets[part], index - [0, *ends][part]
            names.append(str(dataset.filename(place)))
        return names

    def batches(
        self, name: str, num_classes: int, batch_size: int, workers: int, device: torch.device
    ) -> Iterator[Batch]:
        """Load the images in order; ``ValueError`` if one cannot be read or a label is not one of the classes."""
        count = num_classes if self.classes is None else len(self.classes)
        images = FramedImages(self.dataset, self.frame)
        sampler: Any = self.indices
        loader = DataLoader(images, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate_images)
        for batch in progress(loader, desc=name, unit='batch', leave=False):
            if isinstance(batch, ValueError):
                raise batch
            pixels, label, indices = batch
            if label.min() < 0 or label.max() >= count:
                low, high = int(label.min()), int(label.max())
                raise ValueError(f'{name}: labels must be from 0 to {count - 1}, got {low} to {high}')
            yield Batch(pixels.to(device).float() / 255, label.to(device), indices)


def sample_suite(
    suite: Suite,
    class_names: Sequence[str] | None,
    num_classes: int,
    indices_of: Callable[[int], Sequence[int]],
    frame: Frame,
) -> Sample:
    """Sample a suite over all its parts, or that which papers report; as they are, if it is not to be cropped.

    Raises:
        ValueError: If its classes are not among those of the models, or pictures have several.
    """
    reported = [part for part in suite.parts if part.name == HEADLINE_PARTS.get(suite.name)]
    parts = reported or suite.parts
    if any(part.multi_labels is not None for part in parts):
        raise ValueError(f'{suite.name} has several right labels a picture: leave it out')
    dataset: ConcatDataset[Any] = ConcatDataset([part.dataset for part in parts])
    classes = _suite_classes(suite, class_names, num_classes)
    frame = frame if suite.resize else replace(frame, crop_pct=1.0)
    return Sample(dataset, indices_of(len(dataset)), frame, classes)


def _suite_classes(suite: Suite, class_names: Sequence[str] | None, num_classes: int) -> list[int] | None:
    there = suite.class_names
    if suite.groups is not None:
        raise ValueError(f'{suite.name} groups classes, but the models predict single classes: leave it out')
    if there is None or class_names is None:
        if suite.num_classes != num_classes:
            raise ValueError(
                f'{suite.name} has {suite.num_classes} classes without names, but the data has {num_classes}: '
                'they must be the same'
            )
        return None
    if list(there) == list(class_names):
        return None
    unknown = [name for name in there if name not in class_names]
    if unknown:
        raise ValueError(
            f'{suite.name} must have classes of the data, but {unknown[:3]} are not among them (the data has '
            f'{list(class_names[:3])} ...)'
        )
    return [list(class_names).index(name) for name in there]


def random_crop(batch: Batch, seed: int) -> Tensor:
    """Return one random resized crop of each image ``[B, 3, H, W]``: the usual augmentation, for comparison.

    Scale and aspect ratio are torchvision's defaults, which are also timm's.
    """
    crop = RandomResizedCrop(batch.x_pix.shape[-2:], interpolation=InterpolationMode.BICUBIC, antialias=True)
    crops = []
    for x_pix, index in zip(batch.x_pix, batch.indices, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(view_seed(seed, index, 0))  # this seeds no GPU
            crops.append(crop(x_pix))
    return torch.stack(crops).clamp(0, 1)


class MadeViews:
    """``Q(x)``, DAD view and random crop of clean images, with statistics of their codes.

    The DAD view equals the first one that ``timm-dad generate`` makes with the same seed, data, models and flags.
    """

    names: tuple[str, ...] = (RECONSTRUCTED, DAD, CROP)

    def __init__(self, augment: DADAugment, seed: int = 0) -> None:
        self.augment, self.seed = augment, seed
        self.counts = torch.zeros(2, augment.vqgan.config.n_embed, dtype=torch.long)  # of Q(x), of DAD views
        self.changed = torch.zeros(2, dtype=torch.long)  # without an attack, with it
        self.total = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return views ``[B, 3, H, W]`` in [0, 1], by name."""
        centre = self.augment.find_centre(batch.x_pix, batch.label)
        generators = [torch.Generator().manual_seed(view_seed(self.seed, index, 0)) for index in batch.indices]
        views = self.augment.attack_centre(centre, batch.label, generator=generators)
        x_vq, vq_codes, calm_codes = self.augment.unattacked(centre, views)
        for row, codes in enumerate((vq_codes, views.dad_codes)):
            self.counts[row] += codes.flatten().cpu().bincount(minlength=self.counts.shape[1])
        for place, codes in enumerate((calm_codes, views.dad_codes)):
            self.changed[place] += (codes != vq_codes).sum().cpu()
        self.total += vq_codes.numel()
        return {RECONSTRUCTED: x_vq, DAD: views.x_dad, CROP: random_crop(batch, self.seed)}

    def codebook(self) -> dict[str, Any] | None:
        """Return the diversity of the codes of ``x`` and of DAD views, and the fraction in which they differ."""
        return {
            'size': self.counts.shape[1],
            **{name: code_usage(counts) for name, counts in zip((CLEAN, DAD), self.counts, strict=True)},
            'new': int(((self.counts[1] > 0) & (self.counts[0] == 0)).sum()),
            'changed_without_attack': self.changed[0].item() / self.total,
            'changed': self.changed[1].item() / self.total,
        }


class StoredViews:
    """DAD views, from a set made by ``timm-dad generate`` from ``source``, and random crops of clean images."""

    names: tuple[str, ...] = (DAD, CROP)

    def __init__(self, dad_set: DADSet, source: Source, seed: int = 0) -> None:
        self.dad_set, self.source, self.seed = dad_set, source, seed

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return views ``[B, 3, H, W]`` in [0, 1], by name; if there are several DAD views, the first."""
        views = [
            pil_to_tensor(self.dad_set.image(index, 0, self.source.name(index, label)))
            for index, label in zip(batch.indices, batch.label.tolist(), strict=True)
        ]
        x_dad = torch.stack(views).to(batch.x_pix.device).float() / 255
        return {DAD: x_dad, CROP: random_crop(batch, self.seed)}

    def codebook(self) -> dict[str, Any] | None:
        """Return ``None``: the codes of the clean images are not stored."""
        return None
