"""Faster versions of taming-transformers' Encoder and Decoder: the same weights, the same function.

They differ from taming's own ``forward`` as follows: group norm, SiLU and sums are few steps (``fused``), attention is
PyTorch's, a nearest upsampling and the convolution after it are one step with fewer multiplications, and the
encoder does not keep a list of all its feature maps.

Source: taming-transformers, ``taming/modules/diffusionmodules/model.py`` (Esser et al. 2021, arXiv:2012.09841).
"""

from typing import Any

import torch.nn.functional as F
from taming.modules.diffusionmodules import model as taming
from torch import Tensor, nn

from timm_dad.vqgan.fused import attention, conv_add, conv_norm_silu, group_norm, norm_silu


class Encoder(taming.Encoder):  # type: ignore[misc]
    """taming's ``Encoder``; images ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, z_channels, h, w]``.

    ``attn_type`` ``none``, as in latent-diffusion, removes all attention, including that in the middle.
    """

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__(**_without_attention(ddconfig))
        _drop_middle_attention(self, ddconfig)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images."""
        h = self.conv_in(x)
        for index, level in enumerate(self.down):
            h = _run_level(level, h)
            if index < self.num_resolutions - 1:
                h = level.downsample(h)
        return _run_end(self, _run_middle(self.mid, h))


class Decoder(taming.Decoder):  # type: ignore[misc]
    """taming's ``Decoder``; latents ``[B, z_channels, h, w]`` to images ``[B, 3, H, W]``, nominally in [-1, 1]."""

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__(**_without_attention(ddconfig))
        _drop_middle_attention(self, ddconfig)

    def forward(self, z: Tensor, *condition: Tensor) -> Tensor:
        """Decode latents; ``condition`` is an additional input of the norms of some kinds."""
        h = _run_middle(self.mid, self.conv_in(z), *condition)
        for index in reversed(range(self.num_resolutions)):
            h = _run_level(self.up[index], h, *condition)
            if index:
                h = upsample(self.up[index].upsample, h)
        return h if self.give_pre_end else _run_end(self, h, *condition)


def _without_attention(ddconfig: dict[str, Any]) -> dict[str, Any]:
    return {**ddconfig, 'attn_resolutions': []} if ddconfig.get('attn_type') == 'none' else ddconfig


def _drop_middle_attention(network: Any, ddconfig: dict[str, Any]) -> None:
    if ddconfig.get('attn_type') == 'none':
        network.mid.attn_1 = nn.Identity()


def _run_level(level: Any, h: Tensor, *condition: Tensor) -> Tensor:
    for index, block in enumerate(level.block):
        h = residual_block(block, h, *condition)
        if len(level.attn):
            h = attention_block(level.attn[index], h, *condition)
    return h


def _run_middle(middle: Any, h: Tensor, *condition: Tensor) -> Tensor:
    h = residual_block(middle.block_1, h, *condition)
    if not isinstance(middle.attn_1, nn.Identity):
        h = attention_block(middle.attn_1, h, *condition)
    return residual_block(middle.block_2, h, *condition)


def _run_end(network: Any, h: Tensor, *condition: Tensor) -> Tensor:
    output: Tensor = network.conv_out(norm_silu(network.norm_out, h, *condition))
    return output


def residual_block(block: Any, x: Tensor, *condition: Tensor) -> Tensor:
    """Compute taming's ``ResnetBlock`` on feature maps ``[B, C, H, W]``."""
    h = conv_norm_silu(block.conv1, block.norm2, norm_silu(block.norm1, x, *condition), *condition)
    if block.in_channels != block.out_channels:
        x = block.conv_shortcut(x) if block.use_conv_shortcut else block.nin_shortcut(x)
    return conv_add(block.conv2, block.dropout(h), x)


def attention_block(block: Any, x: Tensor, *condition: Tensor) -> Tensor:
    """Compute taming's ``AttnBlock`` on feature maps ``[B, C, H, W]``: one head over all places."""
    batch, channels, height, width = x.shape
    h = group_norm(block.norm, x, *condition)
    # [B, 1, H * W, C]
    q, k, v = (project(h).flatten(2).transpose(1, 2).unsqueeze(1) for project in (block.q, block.k, block.v))
    h = attention(q, k, v).squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
    return conv_add(block.proj_out, h, x)


def upsample(block: Any, x: Tensor) -> Tensor:
    """Compute taming's ``Upsample`` on feature maps ``[B, C, H, W]``: twice as large, then a 3 x 3 convolution.

    A 3 x 3 window over a nearest upsampling covers 2 x 2 places of ``x``, and which weights meet in a place depends on
    whether row and column are even or odd. Together this is one transposed convolution of stride 2 whose 4 x 4 kernel
    is the 3 x 3 one summed over 2 x 2 windows: 4 multiplications per pixel and channel instead of 9.
    """
    if not block.with_conv:
        resized: Tensor = block(x)
        return resized
    weight, bias = block.conv.weight, block.conv.bias
    kernel = F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)
    output: Tensor = F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    return output
