"""Batches in pieces that fit in memory."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

_logger = logging.getLogger(__name__)

T = TypeVar('T')

# A CPU does not say when memory runs out, the process is killed. So pieces are small from the start there: 4 images of
# 224 px, which takes a twentieth longer than 8 at once (benchmarks/generation.py) and half the memory.
_CPU_PIXELS = 4 * 224 * 224


class Chunked:
    """Call functions with pieces of a batch, and put their results together again.

    Args:
        size: Images of a piece; 0: on a GPU the whole batch and, where memory runs out, half as many from then on; on a
            CPU 4 of 224 px, or as many smaller ones.

    Raises:
        ValueError: If the size is negative.
    """

    def __init__(self, size: int = 0) -> None:
        if size < 0:
            raise ValueError(f'micro_batch must be 0 (what fits in memory) or more, got {size}')
        self.automatic = not size
        self.size = size

    def __call__(self, function: Callable[..., T], *batch: Any) -> T:
        """Call ``function(*batch)`` in pieces.

        Args:
            function: Maps rows of a batch to rows of a batch.
            *batch: Tensors of ``B`` rows, dataclasses of such, or ``None``; the first has rows.

        Returns:
            What one call would return: a tensor or a dataclass of tensors and ``None``.

        Raises:
            RuntimeError: Of the device, if memory runs out with one image or with the size that was asked for.
        """
        count = len(batch[0])
        while True:
            size = self.size or self._most(batch[0]) or count
            try:
                pieces = [
                    function(*(_rows(value, slice(first, first + size)) for value in batch))
                    for first in range(0, count, size)
                ]
                return pieces[0] if len(pieces) == 1 else _joined(pieces)
            except RuntimeError as error:
                size = min(size, count)
                if not (self.automatic and size > 1 and should_reduce_batch_size(error)):
                    raise
            self.size = (size + 1) // 2
            clear_device_cache(garbage_collection=True)
            _logger.warning(
                'Out of memory with %d images at once: teacher and VQGAN take %d from now on', size, self.size
            )

    def _most(self, value: Any) -> int:
        """Images that are taken at once where nobody said; 0: all."""
        first = value if isinstance(value, Tensor) else next(iter(vars(value).values()))
        return max(1, _CPU_PIXELS // first[0, 0].numel()) if first.is_cpu and first.ndim == 4 else 0


def _rows(value: Any, rows: slice) -> Any:
    if value is None or isinstance(value, Tensor):
        return None if value is None else value[rows]
    return dataclasses.replace(value, **{name: _rows(part, rows) for name, part in vars(value).items()})


def _joined(pieces: list[Any]) -> Any:
    first = pieces[0]
    if first is None or isinstance(first, Tensor):
        return None if first is None else torch.cat(pieces)
    names = vars(first)
    return dataclasses.replace(first, **{name: _joined([getattr(piece, name) for piece in pieces]) for name in names})
