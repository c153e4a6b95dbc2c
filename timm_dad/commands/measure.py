"""What a training takes, measured while it runs: time by part, multiply-adds, memory."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset


class Stopwatch:
    """Time by part, in place; what an inner part takes is not counted for the outer one.

    While it runs, the device is waited for at both ends of a part.

    Args:
        device: The device to wait for.

    Attributes:
        running: Whether it counts; hooks and wrappers do nothing else.
        seconds: Seconds of each part.
        images: Images that went through each part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.running = False
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.images: defaultdict[str, int] = defaultdict(int)
        self._stack: list[str] = []
        self._mark = 0.0

    def now(self) -> float:
        """Seconds on a clock, when the device has done all that it was given."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _switch(self) -> None:
        now = self.now()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    def start(self, part: str, images: int = 0) -> None:
        """Begin a part, inside the one that runs."""
        if self.running:
            self._switch()
            self._stack.append(part)
            self.images[part] += images

    def stop(self) -> None:
        """End the part that was begun last."""
        if self.running:
            self._switch()
            self._stack.pop()

    def hook(self, module: nn.Module, part: str) -> list[Any]:
        """Time the forward of a module; images are the rows of its input. Returns the hooks' handles."""
        return [
            module.register_forward_pre_hook(lambda _, inputs: self.start(part, len(inputs[0]))),
            module.register_forward_hook(lambda *_: self.stop()),
        ]

    def wrap(self, function: Callable[..., Any], part: str, factor: int = 0) -> Callable[..., Any]:
        """Time a function; images are ``factor`` times the rows of its first argument."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start(part, factor * len(args[0]) if factor else 0)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()

        return timed


class MeasuredLoader:
    """Some batches of a loader, begun anew as often as needed; notes how long each is waited for and worked on.

    Batches after the warm-up are in groups; the stopwatch runs in every second group.

    Args:
        loader: Any loader; attributes are read from it.
        watch: The stopwatch.
        groups: Groups in which the stopwatch runs; as many are without it.
        warmup: Batches before the first group.
        group: Batches of a group (those of an optimizer's step).
    """

    def __init__(self, loader: Any, watch: Stopwatch, groups: int, warmup: int, group: int = 1) -> None:
        self._loader, self._watch = loader, watch
        self._warmup, self._group = warmup, group
        self._count = warmup + 2 * groups * group
        self.waits: list[float] = []  # seconds that a batch was waited for, where the loader was under way
        self.starts: list[float] = []  # the same, where it began
        self.works: dict[bool, list[float]] = {False: [], True: []}  # seconds a group, with the stopwatch and without

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return self._count + 1  # a trainer that counts batches leaves before it is seen what the last one took

    def __iter__(self) -> Iterator[Any]:
        iterator, fresh = iter(self._loader), True
        for index in range(self._count):
            timed = index >= self._warmup and (index - self._warmup) // self._group % 2 == 1
            self._watch.running = timed
            begin = self._watch.now()
            batch = next(iterator, None)
            if batch is None:
                iterator, fresh = iter(self._loader), True
                batch = next(iterator)
            got = self._watch.now()
            yield batch
            done = self._watch.now()
            self._watch.running = False
            if index >= self._warmup or fresh:
                (self.starts if fresh else self.waits).append(got - begin)
            fresh = False
            if index >= self._warmup:
                groups = self.works[timed]
                if (index - self._warmup) % self._group == 0:
                    groups.append(0.0)
                groups[-1] += done - got
        yield batch

    @property
    def wait(self) -> float:
        """Seconds that a batch is waited for; from a mean, because loading processes deliver in bursts."""
        return mean(self.waits or self.starts)

    @property
    def start(self) -> float:
        """Seconds that an epoch takes to begin."""
        return max(0.0, median(self.starts) - self.wait) if self.waits else 0.0

    def parts(self) -> dict[str, float]:
        """Seconds of each part of a batch; their sum is what a batch takes without the stopwatch.

        The stopwatch gives the shares alone: waiting for the device at each part costs time of its own.
        """
        work = median(self.works[False]) / self._group
        seconds = dict(self._watch.seconds)
        seconds['other'] = max(0.0, sum(self.works[True]) - sum(seconds.values()))
        total = sum(seconds.values())
        return {'data': self.wait, **{name: work * value / total for name, value in seconds.items()}}

    def images(self, batch_size: int) -> dict[str, float]:
        """Images through each part, for each image of a batch."""
        batches = len(self.works[True]) * self._group
        return {name: count / (batches * batch_size) for name, count in self._watch.images.items() if count}


class Spread(Dataset[Any]):
    """Images spread evenly over a data set; over again if it holds fewer.

    Args:
        dataset: A data set with an index and ``transform``.
        count: How many.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset, self.count = dataset, count

    @property
    def transform(self) -> Any:
        """The data set's."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __getitem__(self, index: int) -> Any:
        """An image and its label."""
        total = len(self.dataset)
        return self.dataset[index * total // self.count if self.count <= total else index % total]


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's peak on a GPU since ``reset_peak_memory``; on a CPU the process's largest resident set so far."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak, where that can be done."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
