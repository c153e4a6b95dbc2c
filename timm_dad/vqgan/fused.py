"""Steps of a VQGAN's networks that are one on a GPU: group norm, SiLU, biases and residual sums of frozen networks.

PyTorch's group norm wants NCHW on a GPU, and autocast makes it compute and return fp32. So between two convolutions a
channels-last feature map is cast, laid out anew, normalized, activated, rounded and laid out again, and each bias is a
pass of its own. Triton kernels read it twice and write it once, also on the way back (``benchmarks/kernels.py``).
"""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_logger = logging.getLogger(__name__)
_MOST_CHANNELS = 1024  # a tile has all channels
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def norm_silu(norm: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """Compute ``silu(norm(x))`` of feature maps ``[B, C, H, W]``; ``condition`` is an additional input of the norm."""
    if _fuses(norm, x):
        return _normalize(norm, x, silu=True)
    # In place where nothing is differentiated: a feature map at full size is 26 MB an image.
    return F.silu(norm(x, *condition), inplace=not torch.is_grad_enabled())


def group_norm(norm: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """Compute ``norm(x)``, as ``norm_silu``."""
    if _fuses(norm, x):
        return _normalize(norm, x, silu=False)
    output: Tensor = norm(x, *condition)
    return output


def conv_norm_silu(conv: nn.Conv2d, norm: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """Compute ``silu(norm(conv(x)))``, as ``norm_silu``."""
    if _fuses(norm, x) and _is_plain(conv):
        return _normalize(norm, _convolve(conv, x), silu=True, before=conv.bias)
    return norm_silu(norm, conv(x), *condition)


def conv_add(conv: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """Compute ``conv(x) + other`` of feature maps ``[B, C, H, W]``."""
    if _is_plain(conv) and _fits(conv.out_channels, x):
        maps = (h.contiguous(memory_format=torch.channels_last) for h in (_convolve(conv, x), other))
        output: Tensor = _Add.apply(*maps, conv.bias)
        return output
    h: Tensor = conv(x)
    return h + other if torch.is_grad_enabled() else h.add_(other)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute ``scaled_dot_product_attention`` of ``[B, heads, places, C]``.

    With more than 256 channels a head PyTorch has one kernel on GPUs, whose gradient is slower than matrix products.
    """
    places, channels = q.shape[-2:]
    if not (q.is_cuda and q.requires_grad and channels > 256 and places <= 1024):
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast(q.device.type, enabled=False):  # fp32, as inside PyTorch's kernel
        weights = (q.float() * channels**-0.5 @ k.float().transpose(-1, -2)).softmax(-1)
        return weights.to(v.dtype) @ v  # type: ignore[no-any-return]


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a convolution without its bias."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _fuses(norm: nn.Module, x: Tensor) -> bool:
    """Return whether the kernels compute this norm."""
    if type(norm) is not nn.GroupNorm or norm.num_groups & (norm.num_groups - 1):
        return False
    return _fits(norm.num_channels, x) and _is_frozen(norm)


def _is_plain(conv: nn.Module) -> bool:
    """Return whether a convolution's bias can be added later."""
    return type(conv) is nn.Conv2d and conv.padding_mode == 'zeros' and _is_frozen(conv)


def _is_frozen(layer: Any) -> bool:
    """Return whether a layer has a bias, and nothing to learn: the kernels have a gradient for feature maps alone."""
    return layer.bias is not None and not (layer.weight.requires_grad or layer.bias.requires_grad)


def _fits(channels: int, x: Tensor) -> bool:
    """Return whether the kernels compute feature maps: on a GPU, of a power of two; a compiler makes its own."""
    if not (x.is_cuda and x.numel() and x.ndim == 4 and x.dtype in _DTYPES) or torch.compiler.is_compiling():
        return False
    if channels > _MOST_CHANNELS or channels & (channels - 1):
        return False
    return kernels_work(x.device.index)


@functools.cache
def kernels_work(device: int) -> bool:
    """Try the kernels on a GPU: Triton may be missing, or a C compiler, which it needs at the first call."""
    try:
        norm = nn.GroupNorm(2, 8, device=f'cuda:{device}').requires_grad_(False)
        x = torch.arange(64.0, device=norm.weight.device).view(1, 8, 2, 4).requires_grad_()
        with torch.enable_grad(), torch.autocast('cuda', torch.bfloat16):
            y = _Add.apply(_normalize(norm, x, silu=True), x.bfloat16(), norm.bias)
            torch.testing.assert_close(y.float(), F.silu(norm(x)) + x, atol=0.1, rtol=0.02)
            torch.autograd.grad(y.sum(), x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _logger.warning("Triton does not work here (%s): PyTorch's own group norm is used, which is slower", reason)
        return False
    return True


def _normalize(norm: nn.Module, x: Tensor, silu: bool, before: Tensor | None = None) -> Tensor:
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x = x.contiguous(memory_format=torch.channels_last)
    output: Tensor = _Normalize.apply(x, norm, before, silu, dtype)
    return output


class _Normalize(torch.autograd.Function):
    """Group norm, and SiLU, with a gradient (a first one) to the feature map, which alone is kept of its size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.GroupNorm, before: Tensor | None, silu: bool, dtype: torch.dtype
    ) -> Tensor:
        from timm_dad.vqgan import fused_kernels

        y, facts = fused_kernels.normalize(x, norm, before, silu, dtype)
        ctx.save_for_backward(x, *facts)
        ctx.norm, ctx.silu = norm, silu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from timm_dad.vqgan import fused_kernels

        x, *facts = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        return fused_kernels.gradient(x, dy, ctx.norm, facts, ctx.silu), None, None, None, None


class _Add(torch.autograd.Function):
    """Sum of two feature maps and a bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, bias: Tensor) -> Tensor:
        from timm_dad.vqgan import fused_kernels

        if x.shape != other.shape:
            raise ValueError(f'feature maps must have the same shape, got {tuple(x.shape)} and {tuple(other.shape)}')
        ctx.dtypes = x.dtype, other.dtype
        return fused_kernels.add(x, other, bias, torch.promote_types(*ctx.dtypes))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *(dy.to(dtype) for dtype in ctx.dtypes), None
