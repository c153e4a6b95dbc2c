"""Open-MAGVIT2 (Luo et al. 2024, arXiv:2409.04410): codes are the signs of latents, networks have no attention.

The weights are from TencentARC/SEED-Voken (``src.Open_MAGVIT2.models.lfqgan.VQModel``).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.vqgan.fused import norm_silu
from timm_dad.vqgan.quantizers import Quantizer


class SignQuantizer(Quantizer):
    """Lookup-free quantization (Yu et al. 2023, arXiv:2310.05737): a code is the signs of a latent.

    Bit ``d`` of a code, counted from the lowest, is set if channel ``d`` is above 0.
    """

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        bits = torch.arange(n_embed)[:, None] >> torch.arange(embed_dim) & 1
        self.register_buffer('signs', bits * 2.0 - 1, persistent=False)

    @property
    def codebook(self) -> Tensor:
        """All corners of a cube: -1 or 1 in each channel."""
        return self.get_buffer('signs')

    def search(self, rows: Tensor) -> Tensor:
        """Return the signs as the bits of a number."""
        return ((rows > 0).long() << torch.arange(rows.shape[1], device=rows.device)).sum(dim=1)

    def neighbours(self, codes: Tensor, count: int) -> Tensor:
        """Return the codes with the fewest different signs; among equals, changes of lower bits come first."""
        changed = (self.codebook > 0).sum(dim=1).argsort(stable=True)[1 : count + 1]
        return codes[..., None] ^ changed


class ResBlock(nn.Module):
    """Residual block; feature maps ``[B, width, h, w]`` to ``[B, out_width, h, w]``."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(out_width)
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        if width != out_width:
            self.nin_shortcut = nn.Conv2d(width, out_width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        output: Tensor = h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)
        return output


class Encoder(nn.Module):
    """Images ``[B, in_channels, H, W]`` in [-1, 1] to latents ``[B, z_channels, h, w]``.

    Args:
        ddconfig: ``ch`` and ``ch_mult`` (their product is the width at each size), ``in_channels``, ``z_channels``;
            ``num_res_blocks`` at each size and in the middle.
    """

    def __init__(self, ddconfig: Mapping[str, Any]) -> None:
        super().__init__()
        widths, blocks = _widths(ddconfig), ddconfig['num_res_blocks']
        self.conv_in = nn.Conv2d(ddconfig['in_channels'], ddconfig['ch'], 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        width = ddconfig['ch']
        for index, out_width in enumerate(widths):
            level = nn.Module()
            level.block = _blocks(width, out_width, blocks)
            if index < len(widths) - 1:
                level.downsample = nn.Conv2d(out_width, out_width, 3, stride=2, padding=1)
            self.down.append(level)
            width = out_width
        self.mid_block = _blocks(width, width, blocks)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, ddconfig['z_channels'], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images."""
        h = self.conv_in(x)
        level: Any
        for level in self.down:
            h = level.block(h)
            if hasattr(level, 'downsample'):
                h = level.downsample(h)
        output: Tensor = self.conv_out(norm_silu(self.norm_out, self.mid_block(h)))
        return output


class Decoder(nn.Module):
    """Codes ``[B, z_channels, h, w]`` of at least two places to images, nominally in [-1, 1]; see ``Encoder``."""

    def __init__(self, ddconfig: Mapping[str, Any]) -> None:
        super().__init__()
        widths, blocks, channels = _widths(ddconfig), ddconfig['num_res_blocks'], ddconfig['z_channels']
        width = widths[-1]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.mid_block = _blocks(width, width, blocks)
        self.up, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for index, out_width in reversed(list(enumerate(widths))):
            level = nn.Module()
            self.adaptive.insert(0, AdaptiveGroupNorm(channels, width))
            level.block = _blocks(width, out_width, blocks)
            if index:
                level.upsample = Upsample(out_width)
            self.up.insert(0, level)
            width = out_width
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, ddconfig['out_ch'], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode codes."""
        level: Any
        h = self.mid_block(self.conv_in(z))
        for level, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            h = level.block(adaptive(h, z))
            if hasattr(level, 'upsample'):
                h = level.upsample(h)
        output: Tensor = self.conv_out(norm_silu(self.norm_out, h))
        return output


class AdaptiveGroupNorm(nn.Module):
    """Group norm of feature maps ``[B, width, H, W]``, scaled and shifted by statistics of all codes of the image."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, width, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(channels, width), nn.Linear(channels, width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Scale by the deviation and shift by the mean of ``z`` ``[B, channels, h, w]`` over its places."""
        deviation = (z.flatten(2).var(dim=-1) + self.gn.eps).sqrt()
        output: Tensor = torch.addcmul(
            self.beta(z.mean(dim=(2, 3)))[..., None, None], self.gamma(deviation)[..., None, None], self.gn(x)
        )
        return output


class Upsample(nn.Module):
    """Feature maps ``[B, width, h, w]`` to ``[B, width, 2 * h, 2 * w]``: a convolution whose channels become pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the upsampled maps."""
        # Channels are (row, column, width) here, and (width, row, column) where pixel_shuffle takes them.
        h = self.conv1(x)
        return F.pixel_shuffle(h.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


def _blocks(width: int, out_width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(out_width if index else width, out_width) for index in range(count)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _widths(ddconfig: Mapping[str, Any]) -> list[int]:
    return [ddconfig['ch'] * factor for factor in ddconfig['ch_mult']]
