"""MoVQ: taming's networks with decoder norms modulated by the quantized latents (Zheng et al. 2022).

The weights are from ai-forever/MoVQGAN (``movqgan.models.vqgan.MOVQ``) and diffusers (``VQModel`` with ``norm_type``
``spatial``), whose Kandinsky pipelines contain one.

Source: arXiv:2209.09002, section 3.2.
"""

from typing import Any

import torch
from torch import Tensor, nn

from timm_dad.vqgan import networks
from timm_dad.vqgan.fused import group_norm


class SpatialNorm(nn.Module):
    """Group norm of feature maps, then scale and shift at each place from the quantized latents there.

    NOTE: scale and shift are computed once per latent and shared by its places. The originals first enlarge the latents
    to the size of the feature map, which gives the same numbers with one computation per place.
    """

    def __init__(self, norm: nn.GroupNorm, embed_dim: int) -> None:
        super().__init__()
        self.norm_layer = norm
        self.conv_y, self.conv_b = (nn.Conv2d(embed_dim, norm.num_channels, 1) for _ in range(2))

    def forward(self, x: Tensor, z_q: Tensor) -> Tensor:
        """Normalize feature maps ``[B, C, k * h, k * w]``, modulated by latents ``[B, embed_dim, h, w]``."""
        (height, width), side = z_q.shape[-2:], x.shape[-1] // z_q.shape[-1]
        places = group_norm(self.norm_layer, x).unflatten(3, (width, side)).unflatten(2, (height, side))
        scale, shift = (conv(z_q)[:, :, :, None, :, None] for conv in (self.conv_y, self.conv_b))
        output: Tensor = torch.addcmul(shift.to(places.dtype), places, scale.to(places.dtype))
        return output.flatten(4, 5).flatten(2, 3)


class Decoder(networks.Decoder):
    """Latents ``[B, z_channels, h, w]``, and the quantized ones before ``post_quant_conv``, to images."""

    def __init__(self, embed_dim: int, **ddconfig: Any) -> None:
        super().__init__(**ddconfig)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.GroupNorm) and not isinstance(module, SpatialNorm):
                    setattr(module, name, SpatialNorm(child, embed_dim))
