"""Batches of an epoch: on the device, mixed, each with its own seeds, starting at any batch."""

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import IterableDataset

from timm_dad.common.seeds import RUN, STEP, seed_all
from timm_dad.data.pairs import pair_views
from timm_dad.data.pictures import NOTHING_READ, DataError
from timm_dad.data.seeded import SeededErasing, SeededSamples
from timm_dad.training.loaders import create_mixup, set_epoch, unwrapped


class Batches:
    """The training batches of one process.

    A batch depends only on the seed, the epoch and its place in it, never on how it was reached: samples are seeded one
    by one, and draws for the batch (mixing here, dropout and attacks in the task) use seeds of the batch.

    Args:
        loader: From ``create_train_loader``.
        accelerator: Device and processes.
        seed: Seed of the run.
        mixup: Arguments of timm's ``Mixup`` for mixing here, if the loader does not mix.
        mixup_off_epoch: Epoch from which there is no mixing, here or in the loader; 0 for never.
        dtype: Dtype of the images, if the loader does not bring them to the device.
        channels_last: Memory format of the images.

    Attributes:
        seconds: Time from the start of the last pass to the end of its latest batch.
        passed: Number of batches done in it.
    """

    def __init__(
        self,
        loader: Any,
        accelerator: Accelerator,
        *,
        seed: int,
        mixup: Mapping[str, Any] | None = None,
        mixup_off_epoch: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.loader, self.accelerator, self.seed = loader, accelerator, seed
        self.dtype, self.channels_last, self.mixup_off_epoch = dtype, channels_last, mixup_off_epoch
        dataset = loader.dataset.dataset if isinstance(loader.dataset, SeededSamples) else loader.dataset
        self.mixup_fn = create_mixup(mixup, pair_views(dataset))
        self.streams = isinstance(loader.dataset, IterableDataset)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; a stream may have fewer."""
        return len(self.loader)

    def stop_mixup(self) -> None:
        """Stop mixing, here and in the loader."""
        if self.mixup_fn is not None:
            self.mixup_fn.mixup_enabled = False
        elif hasattr(self.loader, 'mixup_enabled'):
            self.loader.mixup_enabled = False

    def of_epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield place, input and target of an epoch's batches, from batch ``start`` on.

        Earlier batches are not decoded, except those of a stream, which has no index.
        """
        rank, device = self.accelerator.process_index, self.accelerator.device
        if self.mixup_off_epoch and epoch >= self.mixup_off_epoch:
            self.stop_mixup()
        self.seconds, self.passed = 0.0, 0  # of this pass
        began, iterator = time.perf_counter(), self._iterate(epoch, start)
        for place in range(start, len(self)):
            batch = next(iterator, None)
            if batch is None:  # a stream may be shorter than it says
                if not place:
                    raise DataError(NOTHING_READ)
                return
            input, target = batch
            input = input.to(device, self.dtype, non_blocking=True)
            target = target.to(device, non_blocking=True)
            seed_all(self.seed, STEP, epoch, place, rank)
            if self.mixup_fn is not None:
                input, target = self.mixup_fn(input, target)
            if self.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            yield place, input, target
            self.seconds, self.passed = time.perf_counter() - began, self.passed + 1

    def _iterate(self, epoch: int, start: int) -> Iterator[Any]:
        set_epoch(self.loader, epoch)
        seed_all(self.seed, RUN, epoch, self.accelerator.process_index)  # a loader seeds its workers, for streams
        erasing = getattr(self.loader, 'random_erasing', None)
        if isinstance(erasing, SeededErasing):
            erasing.begin(epoch, 0 if self.streams else start)
        if not start or self.streams:
            iterator: Iterator[Any] = iter(self.loader)
            for _ in range(start):
                next(iterator, None)
            return iterator
        rest = skip_first_batches(unwrapped(self.loader), start)
        if hasattr(rest, 'set_epoch'):
            rest.set_epoch(epoch)
        if unwrapped(self.loader) is self.loader:
            return iter(rest)
        prefetching = copy.copy(self.loader)
        prefetching.loader = rest
        return iter(prefetching)


def save_batch(input: Tensor, path: Path) -> None:
    """Save a batch ``[B, 3, H, W]`` as one picture, for debugging."""
    torchvision.utils.save_image(input.float(), path, padding=0, normalize=True)
