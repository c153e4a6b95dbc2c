"""Samples that depend only on seed, epoch and index, not on worker, batch or process."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from timm_dad.common.seeds import ERASING, SAMPLE, seed_all, seed_sample


class SeededSamples(Dataset[Any]):
    """Seed random, numpy and torch from (seed, epoch, index) before each sample; ``transform`` may be set here."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers may outlive an epoch
        self._told = 0

    @property
    def transform(self) -> Any:
        """The data set's transform."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in worker processes."""
        self._epoch.fill_(epoch)
        self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)
        self._told = epoch

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """Return a sample; ``key`` is its index or, for samplers that repeat indices, index and position."""
        index, *position = (key,) if isinstance(key, int) else key
        epoch = int(self._epoch)
        if epoch != self._told:  # in a worker of an earlier epoch
            self._tell(epoch)
        seed_sample(self.seed, SAMPLE, epoch, index, *position)
        return self.dataset[index]


class Shuffled(Sampler[int]):
    """All indices in an order set by seed and epoch: the order of Accelerate's ``SeedableRandomSampler``.

    NOTE: that sampler keeps a list of them, 40 MB for a million images, and this one 8 MB.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __iter__(self) -> Iterator[int]:
        """Yield the indices; the next iteration is the next epoch."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for part in order.split(1024):
            yield from part.tolist()
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        """Return the number of indices."""
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self.epoch = epoch


class OfProcess(Sampler[int]):
    """The indices of the batches of one process, where processes take turns by whole batches."""

    def __init__(self, sampler: Any, batch_size: int, rank: int, num_processes: int) -> None:
        self.sampler, self.batch_size, self.rank, self.num_processes = sampler, batch_size, rank, num_processes

    def __iter__(self) -> Iterator[int]:
        """Yield the indices in the order of the sampler."""
        for place, index in enumerate(self.sampler):
            if place // self.batch_size % self.num_processes == self.rank:
                yield index

    def __len__(self) -> int:
        """Number of indices of the batches that all processes have."""
        return len(self.sampler) // (self.batch_size * self.num_processes) * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler."""
        self.sampler.set_epoch(epoch)


class Positions(Sampler[tuple[int, int]]):
    """Number the indices of a sampler that repeats them, so that the copies of a sample get different seeds.

    The sampler yields the indices of one process: every ``num_processes``-th.
    """

    def __init__(self, sampler: Any, rank: int, num_processes: int) -> None:
        self.sampler, self.rank, self.num_processes = sampler, rank, num_processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield index and position in the order of all processes."""
        for place, index in enumerate(self.sampler):
            yield int(index), self.rank + place * self.num_processes

    def __len__(self) -> int:
        """Return the number of indices."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler."""
        self.sampler.set_epoch(epoch)


class SeededErasing:
    """timm's random erasing of a batch on the device, seeded by the position of each image in the epoch.

    A batch is ``[num_views * B, 3, H, W]``, all first views before all second ones; processes take turns by batches.
    The last ``spared`` views are not erased.
    """

    def __init__(
        self, erasing: RandomErasing, seed: int, num_views: int, rank: int, num_processes: int, *, spared: int = 0
    ) -> None:
        self.erasing, self.seed, self.num_views, self.spared = erasing, seed, num_views, spared
        self.rank, self.num_processes = rank, num_processes
        self.begin(0, 0)

    def begin(self, epoch: int, batch: int) -> None:
        """Begin an epoch at a batch of this process."""
        self.epoch, self.batch = epoch, batch

    def __call__(self, input: Tensor) -> Tensor:
        """Erase in place and return the batch."""
        count = len(input) // self.num_views
        first = (self.batch * self.num_processes + self.rank) * count
        clean = len(input) // self.erasing.num_splits if self.erasing.num_splits > 1 else 0
        for row in range(clean, len(input) - self.spared * count):
            view, place = divmod(row, count)
            seed_all(self.seed, ERASING, self.epoch, first + place, view)
            self.erasing(input[row])
        self.batch += 1
        return input
