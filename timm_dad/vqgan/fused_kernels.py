"""Triton kernels of ``fused``: feature maps ``[B, places, C]``, C a power of two, all sums in fp32.

Moments are taken of parts of the places (``_moments_of_parts``), merged for each group (``_merge_moments``), and become
one scale and shift a channel (``_scale_and_shift``). The gradient takes the same way back.
"""

# mypy: ignore-errors
# ruff: noqa: N803 (constants of a kernel are upper case)

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

_TILE = 4096  # elements of a tile
_MOST_PARTS = 32  # of an image; a power of two: all of them are merged at once

# Or Triton compiles anew for feature maps of another size.
_kernel = triton.jit(do_not_specialize=['places', 'part_size', 'parts'])


@triton.jit
def _load(pointer, image, places, count, place, C: tl.constexpr):
    """Load rows of an image as fp32, zero from ``count`` on."""
    at = (image.to(tl.int64) * places + place)[:, None] * C + tl.arange(0, C)[None, :]
    return tl.load(pointer + at, mask=(place < count)[:, None], other=0).to(tl.float32)


@triton.jit
def _store(pointer, value, image, places, count, place, C: tl.constexpr):
    at = (image.to(tl.int64) * places + place)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=(place < count)[:, None])


@triton.jit
def _load_channels(pointer, row, C: tl.constexpr):
    return tl.load(pointer + row * C + tl.arange(0, C))[None, :]


@_kernel
def _moments_of_parts(x, mean_out, square_out, places, part_size, C: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and sum of squared deviations of each channel, ``[B, parts, C]``."""
    part, image = tl.program_id(0), tl.program_id(1)
    begin = part * part_size
    end = tl.minimum(begin + part_size, places)
    near = _load_channels(x, image.to(tl.int64) * places + begin, C).to(tl.float32)  # or squares cancel
    sums, squares = tl.zeros([BLOCK, C], tl.float32), tl.zeros([BLOCK, C], tl.float32)
    for first in range(begin, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        tile = _load(x, image, places, end, place, C)
        apart = tl.where((place < end)[:, None], tile - near, 0.0)
        sums += apart
        squares += apart * apart
    count = (end - begin).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    at = (image * tl.num_programs(0) + part) * C + tl.arange(0, C)
    tl.store(mean_out + at, mean + tl.reshape(near, [C]))
    tl.store(square_out + at, tl.maximum(tl.sum(squares, 0) - mean * mean * count, 0.0))


@triton.jit
def _by_group(values, C: tl.constexpr, GROUPS: tl.constexpr):
    """Sum channels ``[C]`` over each group; every channel gets the sum of its own."""
    sums = tl.sum(tl.reshape(values, [GROUPS, C // GROUPS]), 1)
    return tl.reshape(tl.broadcast_to(sums[:, None], [GROUPS, C // GROUPS]), [C])


@_kernel
def _merge_moments(
    means, squares, before, weight, bias, mean_out, rstd_out, scale_out, shift_out, places, part_size, parts, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Mean, 1 / standard deviation, scale and shift ``[B, C]`` of each channel, of ``before`` added to all places."""
    image, channel, part = tl.program_id(0), tl.arange(0, C), tl.arange(0, PARTS)
    mask = (part < parts)[:, None]
    at = (image * parts + part)[:, None] * C + channel[None, :]
    mean = tl.load(means + at, mask=mask, other=0)
    square = tl.load(squares + at, mask=mask, other=0)
    added = tl.zeros([C], tl.float32)
    if BEFORE:
        added = tl.load(before + channel).to(tl.float32)
        mean += added[None, :]
    count = tl.where(part < parts, tl.minimum(part_size, places - part * part_size), 0).to(tl.float32)[:, None]
    total = places.to(tl.float32) * (C // GROUPS)
    centre = _by_group(tl.sum(mean * count, 0), C, GROUPS) / total
    apart = mean - centre[None, :]
    variance = _by_group(tl.sum(square + count * apart * apart, 0), C, GROUPS) / total
    rstd = 1 / tl.sqrt(variance + eps)
    scale = rstd * tl.load(weight + channel).to(tl.float32)
    out = image * C + channel
    tl.store(mean_out + out, centre - added)
    tl.store(rstd_out + out, rstd)
    tl.store(scale_out + out, scale)
    tl.store(shift_out + out, tl.load(bias + channel).to(tl.float32) - (centre - added) * scale)


@_kernel
def _scale_and_shift(
    x, scale, shift, y, places, part_size, C: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    part, image = tl.program_id(0), tl.program_id(1)
    end = tl.minimum((part + 1) * part_size, places)
    of_scale, of_shift = _load_channels(scale, image, C), _load_channels(shift, image, C)
    for first in range(part * part_size, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        value = _load(x, image, places, end, place, C) * of_scale + of_shift
        if SILU:
            value = value * tl.sigmoid(value)
        _store(y, value, image, places, end, place, C)


@triton.jit
def _gradient_of_scaled(x, dy, scale, shift, SILU: tl.constexpr):
    """Gradient at the output of the norm, before SiLU."""
    if SILU:
        value = x * scale + shift
        gate = tl.sigmoid(value)
        dy = dy * gate * (1 + value * (1 - gate))
    return dy


@_kernel
def _gradient_sums_of_parts(
    x, dy, mean, rstd, scale, shift, sum_out, product_out, places, part_size,
    C: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of its product with the normalized input, of each channel ``[B, parts, C]``."""
    part, image = tl.program_id(0), tl.program_id(1)
    end = tl.minimum((part + 1) * part_size, places)
    of_scale, of_shift = _load_channels(scale, image, C), _load_channels(shift, image, C)
    of_mean, of_rstd = _load_channels(mean, image, C), _load_channels(rstd, image, C)
    sums, products = tl.zeros([BLOCK, C], tl.float32), tl.zeros([BLOCK, C], tl.float32)
    for first in range(part * part_size, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        tile = _load(x, image, places, end, place, C)
        gradient = _gradient_of_scaled(tile, _load(dy, image, places, end, place, C), of_scale, of_shift, SILU)
        sums += gradient
        products += gradient * (tile - of_mean) * of_rstd
    at = (image * tl.num_programs(0) + part) * C + tl.arange(0, C)
    tl.store(sum_out + at, tl.sum(sums, 0))
    tl.store(product_out + at, tl.sum(products, 0))


@_kernel
def _merge_gradient_sums(
    sums, products, weight, sum_out, product_out, places, parts,
    C: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Means ``[B, C]`` of both over the group of each channel."""
    image, channel, part = tl.program_id(0), tl.arange(0, C), tl.arange(0, PARTS)
    mask = (part < parts)[:, None]
    at = (image * parts + part)[:, None] * C + channel[None, :]
    of_weight = tl.load(weight + channel).to(tl.float32)
    total = places.to(tl.float32) * (C // GROUPS)
    out = image * C + channel
    for_sum = tl.sum(tl.load(sums + at, mask=mask, other=0), 0) * of_weight
    for_product = tl.sum(tl.load(products + at, mask=mask, other=0), 0) * of_weight
    tl.store(sum_out + out, _by_group(for_sum, C, GROUPS) / total)
    tl.store(product_out + out, _by_group(for_product, C, GROUPS) / total)


@_kernel
def _gradient(
    x, dy, mean, rstd, scale, shift, weight, sums, products, dx, places, part_size,
    C: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    part, image = tl.program_id(0), tl.program_id(1)
    end = tl.minimum((part + 1) * part_size, places)
    of_scale, of_shift = _load_channels(scale, image, C), _load_channels(shift, image, C)
    of_mean, of_rstd = _load_channels(mean, image, C), _load_channels(rstd, image, C)
    of_sum, of_product = _load_channels(sums, image, C), _load_channels(products, image, C)
    of_weight = _load_channels(weight, 0, C).to(tl.float32)
    for first in range(part * part_size, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        tile = _load(x, image, places, end, place, C)
        gradient = _gradient_of_scaled(tile, _load(dy, image, places, end, place, C), of_scale, of_shift, SILU)
        normalized = (tile - of_mean) * of_rstd
        value = of_rstd * (gradient * of_weight - of_sum - normalized * of_product)
        _store(dx, value, image, places, end, place, C)


@_kernel
def _add(x, other, bias, y, places, part_size, C: tl.constexpr, BLOCK: tl.constexpr):
    part, image = tl.program_id(0), tl.program_id(1)
    end = tl.minimum((part + 1) * part_size, places)
    of_bias = _load_channels(bias, 0, C).to(tl.float32)
    for first in range(part * part_size, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        value = _load(x, image, places, end, place, C) + of_bias + _load(other, image, places, end, place, C)
        _store(y, value, image, places, end, place, C)


def _divide(x: Tensor) -> tuple[tuple[int, int], dict[str, int], int]:
    """Return the grid of parts and images, sizes of tiles, and the places of a part."""
    batch, channels, height, width = x.shape
    places, block = height * width, max(1, _TILE // channels)
    parts = min(triton.cdiv(places, block), _MOST_PARTS, max(1, triton.cdiv(2048, batch)))
    part_size = triton.cdiv(triton.cdiv(places, parts), block) * block
    return (triton.cdiv(places, part_size), batch), {'C': channels, 'BLOCK': block}, part_size


def normalize(
    x: Tensor, norm: nn.GroupNorm, before: Tensor | None, silu: bool, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Normalize channels-last ``[B, C, H, W]`` to ``dtype``; return also what ``gradient`` needs, ``[B, C]`` each."""
    (parts, batch), tile, part_size = _divide(x)
    channels, places = x.shape[1], x.shape[2] * x.shape[3]
    means, squares = x.new_empty((2, batch, parts, channels), dtype=torch.float32)
    facts = list(x.new_empty((4, batch, channels), dtype=torch.float32))
    _, _, scale, shift = facts
    y = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        _moments_of_parts[parts, batch](x, means, squares, places, part_size, **tile)
        _merge_moments[batch,](
            means, squares, before if before is not None else means, norm.weight, norm.bias, *facts,
            places, part_size, parts, norm.eps,
            C=channels, GROUPS=norm.num_groups, PARTS=_MOST_PARTS, BEFORE=before is not None,
        )  # fmt: skip
        _scale_and_shift[parts, batch](x, scale, shift, y, places, part_size, **tile, SILU=silu)
    return y, facts


def gradient(x: Tensor, dy: Tensor, norm: nn.GroupNorm, facts: list[Tensor], silu: bool) -> Tensor:
    """Return the gradient at ``x`` of the gradient ``dy`` at the result of ``normalize``, both channels-last."""
    (parts, batch), tile, part_size = _divide(x)
    channels, places = x.shape[1], x.shape[2] * x.shape[3]
    part_sums, part_products = x.new_empty((2, batch, parts, channels), dtype=torch.float32)
    sums, products = x.new_empty((2, batch, channels), dtype=torch.float32)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _gradient_sums_of_parts[parts, batch](
            x, dy, *facts, part_sums, part_products, places, part_size, **tile, SILU=silu
        )
        _merge_gradient_sums[batch,](
            part_sums, part_products, norm.weight, sums, products, places, parts,
            C=channels, GROUPS=norm.num_groups, PARTS=_MOST_PARTS,
        )  # fmt: skip
        _gradient[parts, batch](x, dy, *facts, norm.weight, sums, products, dx, places, part_size, **tile, SILU=silu)
    return dx


def add(x: Tensor, other: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x + bias + other`` of feature maps, all of them channels-last ``[B, C, H, W]``, in ``dtype``."""
    (parts, batch), tile, part_size = _divide(x)
    y = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        _add[parts, batch](x, other, bias, y, x.shape[2] * x.shape[3], part_size, **tile)
    return y
