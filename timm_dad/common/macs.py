"""Count the multiply-adds of a model while it runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Run attention as matrix products, because torch's counter does not know the fused CPU kernels."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def count_macs(function: Callable[[], Any]) -> float:
    """Count the multiply-adds of matrix products and convolutions: half of the ``torch.utils.flop_counter`` result."""
    with _countable(), FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops()) / 2


def count_model_macs(model: nn.Module, x: Tensor, *, backward: str) -> dict[str, float]:
    """Count the multiply-adds of an image, forward and backward, in evaluation mode (batch norm needs more than one).

    Args:
        model: Maps ``x`` to a tensor.
        x: One image ``[1, C, H, W]``.
        backward: ``parameters`` (a training step), ``input`` (an attack's gradient) or ``none``.

    Returns:
        ``forward`` and, if requested, ``backward``.
    """
    mode = model.training
    model.eval()
    x = x.detach().requires_grad_(backward == 'input')
    with torch.no_grad():
        macs = {'forward': count_macs(lambda: model(x))}
    if backward != 'none':
        sources = [x] if backward == 'input' else [value for value in model.parameters() if value.requires_grad]
        total = count_macs(lambda: model(x).float().sum().backward(inputs=sources))
        macs['backward'] = total - macs['forward']
        for source in sources:
            source.grad = None
    model.train(mode)
    return macs
