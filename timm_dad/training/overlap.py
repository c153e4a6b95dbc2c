"""Make the DAD views of the next batch on a separate CUDA stream while the student trains on this one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from timm_dad.common.seeds import random_states, set_random_states
from timm_dad.method.extra import Prepared
from timm_dad.method.task import DADTask

Batch = tuple[int, Tensor, Tensor]


def prepared_ahead(batches: Iterator[Batch], task: DADTask) -> Iterator[tuple[int, Tensor, Tensor, Prepared]]:
    """Yield batches with what the task needs from teacher and VQGAN, made one batch ahead.

    The consumer of a batch finds the random generators as they were after its views were made, so no draw depends on
    whether this function is used.

    Args:
        batches: Index, input and target of each batch, on the device; their producer seeds for each.
        task: Makes the views, with ``task.prepare``.

    Yields:
        Index, input, target, and the result of ``task.prepare``.
    """
    stream = torch.cuda.Stream() if task.device.type == 'cuda' else None
    waiting: tuple[tuple[int, Tensor, Tensor, Prepared], Any, Any] | None = None
    for index, input, target in batches:
        prepared, done = _prepare(task, input, target, stream)
        generators = random_states(), None if stream is None else torch.cuda.get_rng_state()
        now = (index, input, target, prepared), generators, done
        if waiting is not None:
            yield _ready(*waiting, stream)
        waiting = now
    if waiting is not None:
        yield _ready(*waiting, stream)


def _prepare(task: DADTask, input: Tensor, target: Tensor, stream: Any) -> tuple[Prepared, Any]:
    """Start to make the views; on a GPU the result may still be pending."""
    if stream is None:
        return task.prepare(input, target), None
    stream.wait_stream(torch.cuda.current_stream())  # the batch is copied and mixed there
    with torch.cuda.stream(stream):
        prepared = task.prepare(input, target)
        done = torch.cuda.Event()
        done.record(stream)
    for tensor in (input, target):
        tensor.record_stream(stream)
    return prepared, done


def _ready(batch: tuple[int, Tensor, Tensor, Prepared], generators: Any, done: Any, stream: Any) -> Any:
    """Return the batch once its views exist, with the random generators as they were left."""
    of_cpu, of_cuda = generators
    set_random_states(of_cpu)
    if stream is not None:
        torch.cuda.set_rng_state(of_cuda)
        current = torch.cuda.current_stream()
        current.wait_event(done)
        for tensor in batch[3].tensors():
            tensor.record_stream(current)
    return batch
