"""Matrix products in full fp32, where TF32 would change the result."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply matrices in fp32 on GPUs, too: TF32, which training enables, keeps 10 bits of the fraction."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
