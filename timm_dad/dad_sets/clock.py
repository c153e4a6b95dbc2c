"""Measure how long the networks compute and wait while a DAD set is made."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def all_done(device: torch.device) -> Callable[[], object]:
    """Return a function that waits, from any thread, until a device has finished all work queued so far."""
    if device.type != 'cuda':
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


class Clock:
    """Seconds of work, and of computing in them, on a GPU by its own clock because work is queued ahead.

    Args:
        device: Where the networks are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.busy = device, 0.0, 0.0
        self._spans: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @property
    def waited(self) -> float:
        """Share of the work time in which no network computes."""
        self._add_spans()
        return max(0.0, 1 - self.busy / self.total) if self.total else 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time the work, of networks and of everything they may wait for."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.total += time.perf_counter() - begin

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Time the computing of networks."""
        if self.device.type != 'cuda':
            begin = time.perf_counter()
            yield
            self.busy += time.perf_counter() - begin
            return
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin_event.record(torch.cuda.current_stream(self.device))
        yield
        end_event.record(torch.cuda.current_stream(self.device))
        self._spans.append((begin_event, end_event))
        self._add_spans()

    def _add_spans(self) -> None:
        """Add the spans that the GPU has finished."""
        while self._spans and self._spans[0][1].query():
            begin, end = self._spans.popleft()
            self.busy += begin.elapsed_time(end) / 1000
