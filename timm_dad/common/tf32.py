"""Matrix products in full fp32, where TF32 would change the result."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# Switches of torch 2.9 and newer, for products on GPUs and on CPUs.
_NEWER: list[Any] = [
    part
    for part in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, 'matmul', None))
    if hasattr(part, 'fp32_precision')
]


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply matrices in fp32, even if a switch of torch allows TF32 (10-bit mantissa) or bf16 for them."""
    before = [part.fp32_precision for part in _NEWER]
    older = _older_switch()
    if older not in ('', 'highest'):
        torch.set_float32_matmul_precision('highest')
    _set_newer(['ieee' if precision in ('tf32', 'bf16') else precision for precision in before])
    try:
        yield
    finally:
        if older not in ('', 'highest'):
            torch.set_float32_matmul_precision(older)
        _set_newer(before)


def _older_switch() -> str:
    """Return the value of ``torch.set_float32_matmul_precision``; empty if torch hides it after a newer switch."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ''


def _set_newer(precisions: list[str]) -> None:
    for part, precision in zip(_NEWER, precisions, strict=True):
        if part.fp32_precision != precision:
            part.fp32_precision = precision
