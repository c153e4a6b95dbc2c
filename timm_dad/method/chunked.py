"""Run batches in chunks that fit in memory."""

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
    """Call functions on chunks of a batch and concatenate their results.

    Args:
        size: Images per chunk; 0: on a GPU the whole batch and, if memory runs out, half as many from then on; on a CPU
            4 of 224 px, or more smaller ones with as many pixels.

    Raises:
        ValueError: If the size is negative.
    """

    def __init__(self, size: int = 0) -> None:
        if size < 0:
            raise ValueError(f'micro_batch must be 0 (what fits in memory) or more, got {size}')
        self.automatic = not size
        self.size = size

    def __call__(self, function: Callable[..., T], *batch: Any, pixels: int = 0) -> T:
        """Call ``function(*batch)`` in chunks.

        Args:
            function: Maps rows of a batch to rows of a batch.
            *batch: Tensors of ``B`` rows, dataclasses of such tensors, or values without rows; the first has rows.
            pixels: Pixels per image, if the first is not an image.

        Returns:
            What a single call would return: a tensor, or a dataclass of tensors and of values without rows.

        Raises:
            RuntimeError: From the device, if memory runs out with one image or with an explicit size.
        """
        count = len(batch[0])
        while True:
            size = self.size or self._most(batch[0], pixels) or count
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
                'Out of memory with %d images at once: teacher and VQGAN take %d at a time from now on', size, self.size
            )

    def _most(self, value: Any, pixels: int) -> int:
        """Return the number of images per chunk if no size is set; 0: all."""
        first = value if isinstance(value, Tensor) else next(iter(vars(value).values()))
        pixels = pixels or (first[0, 0].numel() if first.ndim == 4 else 0)
        return max(1, _CPU_PIXELS // pixels) if first.is_cpu and pixels else 0


def _rows(value: Any, rows: slice) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if not dataclasses.is_dataclass(value):
        return value
    parts = {name: _rows(part, rows) for name, part in vars(value).items()}
    return dataclasses.replace(value, **parts)  # type: ignore[type-var]


def _joined(pieces: list[Any]) -> Any:
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.cat(pieces)
    if not dataclasses.is_dataclass(first):
        return first
    names = vars(first)
    parts = {name: _joined([getattr(piece, name) for piece in pieces]) for name in names}
    return dataclasses.replace(first, **parts)  # type: ignore[type-var]
