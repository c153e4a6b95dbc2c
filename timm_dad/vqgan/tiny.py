"""Encoder and decoder of a tiny VQGAN: few channels, no normalization, no attention.

The layout follows TAESD (madebyollin/taesd, ``taesd.py``): residual blocks of three 3 x 3 convolutions with
ReLU, one at the size of the picture and some at each smaller size, and one width for all sizes by default.

NOTE: unlike in TAESD, latents are not clamped (they are codes: a finite set), a picture is nominally in [-1, 1], and a
nearest upsampling with the 3 x 3 convolution after it is one transposed convolution, which can be the same function and
needs 4 multiplications instead of 9.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Block(nn.Module):
    """Residual block of three convolutions; feature maps ``[B, channels, h, w]`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        output: Tensor = (self.conv3(self.conv2(self.conv1(x).relu()).relu()) + x).relu()
        return output


class TinyEncoder(nn.Sequential):
    """Images ``[B, in_channels, H, W]`` in [-1, 1] to latents ``[B, z_channels, h, w]``.

    Args:
        ddconfig: ``ch`` and ``ch_mult`` (their product is the width at each size, the picture's first); ``in_channels``
            and ``z_channels``; ``num_res_blocks``: blocks at each size except the picture's own, which has one.
    """

    def __init__(self, ddconfig: Mapping[str, Any]) -> None:
        widths = _widths(ddconfig)
        layers = [nn.Conv2d(ddconfig['in_channels'], widths[0], 3, padding=1), Block(widths[0])]
        for above, width in itertools.pairwise(widths):
            layers.append(nn.Conv2d(above, width, 3, stride=2, padding=1, bias=False))
            layers += [Block(width) for _ in range(ddconfig['num_res_blocks'])]
        super().__init__(*layers, nn.Conv2d(widths[-1], ddconfig['z_channels'], 3, padding=1))


class TinyDecoder(nn.Sequential):
    """Latents ``[B, z_channels, h, w]`` to images ``[B, out_ch, H, W]``, nominally in [-1, 1]; see ``TinyEncoder``."""

    def __init__(self, ddconfig: Mapping[str, Any]) -> None:
        widths = _widths(ddconfig)
        layers: list[nn.Module] = [nn.Conv2d(ddconfig['z_channels'], widths[-1], 3, padding=1), nn.ReLU()]
        for width, above in itertools.pairwise(reversed(widths)):
            layers += [Block(width) for _ in range(ddconfig['num_res_blocks'])]
            layers.append(nn.ConvTranspose2d(width, above, 4, stride=2, padding=1, bias=False))
        super().__init__(*layers, Block(widths[0]), nn.Conv2d(widths[0], ddconfig['out_ch'], 3, padding=1))


def _widths(ddconfig: Mapping[str, Any]) -> list[int]:
    return [ddconfig['ch'] * factor for factor in ddconfig['ch_mult']]
