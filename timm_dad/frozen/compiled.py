"""``torch.compile`` for frozen networks: one graph for one batch size, and few sizes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# With and without a gradient these are 8 graphs, all that torch keeps of a function (``recompile_limit``).
_HALVINGS = 3


class FixedBatch:
    """Call a function with batches of few sizes: others are filled up to the next of them, and cut back after.

    A compiled function is compiled again for every new shape; the last batch of a data set would be one. The sizes are
    that of the largest batch so far, its half, quarter and eighth (rounded up); a size that fails, as when memory runs
    out, is forgotten.

    Args:
        function: Maps a tensor ``[B, ...]`` to another, row by row.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.size = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """Call the function."""
        size = self._size_for(len(batch))
        try:
            found = self.function(_filled(batch, size))
        except RuntimeError:
            self.size = 0
            raise
        self.size = max(self.size, size)
        return found[: len(batch)]

    def _size_for(self, count: int) -> int:
        largest = max(self.size, count)
        sizes = [math.ceil(largest / (1 << halved)) for halved in range(_HALVINGS + 1)]
        return min(size for size in sizes if size >= count)


def _filled(rows: Tensor, size: int) -> Tensor:
    missing = size - len(rows)
    if missing:
        rows = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    # Strides are part of what a function is compiled for.
    return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows


def compile_network(network: nn.Module) -> None:
    """Compile the forward of a network in place; names of its parameters stay.

    Args:
        network: Maps batches ``[B, ...]`` of one image size to tensors ``[B, ...]``.

    Raises:
        ValueError: If this machine cannot compile.
    """
    check_compiler(next(network.parameters()).device)
    network.forward = FixedBatch(torch.compile(network.forward, dynamic=False))


def check_compiler(device: torch.device) -> None:
    """Compile next to nothing, to see that it can be done.

    Raises:
        ValueError: If it cannot: ``torch.compile`` needs a C++ compiler on a CPU and Triton on a GPU.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # inductor raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'torch.compile does not work on this machine (a compiler is missing?): {reason}') from error
