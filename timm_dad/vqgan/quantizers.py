"""Codebooks: which code a latent becomes, which gradient passes, and which codes are near each other.

Each kind of VQGAN has a ``Quantizer``; its parameters have the names of public checkpoints under ``quantize.``.
"""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.vqgan.nearest import likeliest_codes, nearest_codes, nearest_others


class Quantizer(nn.Module, ABC):
    """A codebook and its search. Latents are ``[B, D, h, w]``, codes are indices into ``codebook``."""

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Codes ``[n_embed, D]``, as the decoder gets them."""

    @abstractmethod
    def search(self, rows: Tensor) -> Tensor:
        """Return the codes ``[N]``, int64, of latents ``[N, D]``, fp32."""

    def prepare(self, z: Tensor) -> Tensor:
        """Convert the encoder's latents to those that are compared with codes and that an attack moves."""
        return z

    def soft(self, z: Tensor) -> Tensor:
        """Return the tensor that provides the gradient of quantized latents: by default the latents themselves."""
        return z

    def neighbours(self, codes: Tensor, count: int) -> Tensor:
        """Return the nearest other codes ``[..., count]``, nearest first, of codes ``[...]``."""
        return nearest_others(codes, self.codebook.float(), count)


class NearestQuantizer(Quantizer):
    """The nearest code, as in taming's ``VectorQuantizer`` (Esser et al. 2021, arXiv:2012.09841, equation 2)."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = _untrained(nn.Embedding(n_embed, embed_dim))

    @property
    def codebook(self) -> Tensor:
        """The codes."""
        return self.embedding.weight

    def search(self, rows: Tensor) -> Tensor:
        """Find the nearest codes."""
        return nearest_codes(rows, self.codebook.float())


class GumbelQuantizer(Quantizer):
    """The most likely code under a projection, as in taming's ``GumbelQuantize``; latents and codes share no space.

    The gradient is that of the mean code under the softmax of the logits (Jang et al. 2017, arXiv:1611.01144, section
    2.2).
    """

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        codebook = nn.Embedding(n_embed, embed_dim)
        self.proj = nn.Conv2d(embed_dim, n_embed, 1)
        self.embed = _untrained(codebook)

    @property
    def codebook(self) -> Tensor:
        """The codes."""
        return self.embed.weight

    def search(self, rows: Tensor) -> Tensor:
        """Find the most likely codes."""
        return likeliest_codes(rows, self.proj.weight.float().flatten(1), self.proj.bias.float())  # type: ignore[union-attr]

    def soft(self, z: Tensor) -> Tensor:
        """Return the mean code."""
        return mean_code(z, self.proj.weight.flatten(1), self.codebook, self.proj.bias)


def _untrained(codebook: nn.Embedding) -> nn.Embedding:
    most = 1.0 / codebook.num_embeddings  # as taming's begins
    nn.init.uniform_(codebook.weight, -most, most)
    return codebook


def mean_code(z: Tensor, weight: Tensor, codebook: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the mean of the codes ``[n_embed, D]`` at each place of ``z`` ``[B, D, h, w]``, weighted by a softmax."""
    logits = F.conv2d(z, weight.to(z.dtype)[:, :, None, None], None if bias is None else bias.to(z.dtype))
    return F.conv2d(logits.softmax(dim=1), codebook.to(z.dtype).t()[:, :, None, None])
