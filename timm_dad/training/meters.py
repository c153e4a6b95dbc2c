"""Means of the loss parts over an epoch, read from the device once per update."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

Metrics = OrderedDict[str, float]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


class Meters:
    """Sums of the loss parts over images, in this process.

    Args:
        accelerator: Device and processes.

    Attributes:
        sums: Sum over images of each part read so far.
        count: Number of images whose parts were read.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.reset()

    def reset(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        """Begin or continue an epoch."""
        self.sums, self.count = dict(sums or {}), count
        self._waiting: list[tuple[Tensor, int, str]] = []

    @property
    def means(self) -> dict[str, float]:
        """Mean of each part over this process's images read so far."""
        return {name: value / self.count for name, value in self.sums.items()} if self.count else {}

    def add(self, result: Mapping[str, Tensor], count: int, where: str) -> None:
        """Take the result of a task for a batch, without waiting for the device.

        Args:
            result: ``output`` and the parts of the loss, scalars.
            count: Images of the batch.
            where: Name of the batch in errors.
        """
        parts = {name: value.detach().float() for name, value in result.items() if name != 'output'}
        self._names = tuple(parts)
        self._waiting.append((torch.stack(list(parts.values())), count, where))

    def read(self) -> None:
        """Read the parts of an update's batches: the host waits for the device, and processes for each other.

        Raises:
            NonFiniteLossError: If a part of a batch's loss is not finite, here or in another process; the message is
                empty if it was another process, which reports it.
        """
        if not self._waiting:
            return
        rows = torch.stack([row for row, *_ in self._waiting])
        failed = self.accelerator.reduce((~rows.isfinite().all()).float().view(1), reduction='sum')
        *values, anywhere = torch.cat([rows.flatten(), failed.to(rows)]).tolist()
        width = len(self._names)
        for place, (_, count, where) in enumerate(self._waiting):
            row = values[place * width : (place + 1) * width]
            if anywhere and not all(map(math.isfinite, row)):
                parts = ', '.join(f'{name} {value:g}' for name, value in zip(self._names, row, strict=True))
                process = self.accelerator.process_index
                raise NonFiniteLossError(f'the loss is not finite in {where}, process {process} ({parts})')
            for name, value in zip(self._names, row, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value * count
            self.count += count
        self._waiting.clear()
        if anywhere:
            raise NonFiniteLossError

    def reduce(self) -> Metrics:
        """Return the mean of each part over all processes."""
        totals = torch.tensor([*self.sums.values(), self.count], dtype=torch.float64, device=self.accelerator.device)
        *sums, count = self.accelerator.reduce(totals, reduction='sum').tolist()
        return OrderedDict((name, value / count) for name, value in zip(self.sums, sums, strict=True))


def merged(
    states: Sequence[tuple[Mapping[str, float], int]], rank: int, num_processes: int
) -> tuple[dict[str, float], int]:
    """Return the state with which a process's meters continue, from those of all processes of the previous run.

    Args:
        states: Sums and counts by process.
        rank: This process.
        num_processes: Number of processes of this run; if it changed, the first one takes all sums.
    """
    if len(states) == num_processes:
        sums, count = states[rank]
        return dict(sums), count
    names = states[0][0] if states else {}
    if rank:
        return dict.fromkeys(names, 0.0), 0
    return {name: sum(sums[name] for sums, _ in states) for name in names}, sum(count for _, count in states)
