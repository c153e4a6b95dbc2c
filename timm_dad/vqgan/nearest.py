"""Find the code that a latent becomes: the nearest or the most likely (Esser et al. 2021, arXiv:2012.09841)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from timm_dad.common.tf32 import without_tf32

_MAX_BLOCK = 2**22  # floats in one block of the distance matrix: 16 MiB in fp32


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the code with the smallest squared distance to each vector.

    The arithmetic equals that of taming's ``VectorQuantizer``, in row blocks of one size: no one-hot matrix is built,
    and at most 16 MiB of the ``[N, n_embed]`` distances exist at once.

    Args:
        z: Vectors ``[N, embed_dim]``, fp32.
        codebook: Codes ``[n_embed, embed_dim]``, fp32.

    Returns:
        Code indices ``[N]``, int64, in ``0 .. n_embed - 1``.

    Raises:
        ValueError: If the last dimensions differ.

    Source: Esser et al. 2021, arXiv:2012.09841, equation 2.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f'z [N, D] and codebook [K, D] must share D, got {tuple(z.shape)} and {tuple(codebook.shape)}')
    codebook_sq = (codebook**2).sum(dim=1)

    def nearest(block: Tensor) -> Tensor:
        distance = (block**2).sum(dim=1, keepdim=True) + codebook_sq
        return distance.sub_(block @ codebook.t(), alpha=2).argmin(dim=1)

    return _in_blocks(nearest, z, len(codebook))


def likeliest_codes(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the index ``[N]`` of the largest logit of each vector ``[N, D]``, as in taming's ``GumbelQuantize``.

    NOTE: even in evaluation, taming draws the code from the softmax of the logits (Gumbel noise of temperature 1). We
    take its mode, so that ``Q`` is a function.
    """
    return _in_blocks(lambda block: nn.functional.linear(block, weight, bias).argmax(dim=1), z, len(weight))


def nearest_others(codes: Tensor, codebook: Tensor, count: int) -> Tensor:
    """Return the nearest other codes ``[..., count]``, nearest first, of ``codes`` in a codebook ``[n_embed, D]``."""

    def others(block: Tensor) -> Tensor:
        distance = torch.cdist(codebook[block], codebook, compute_mode='donot_use_mm_for_euclid_dist')
        distance.scatter_(1, block[:, None], torch.inf)  # a code is no neighbour of itself
        return distance.topk(count, largest=False).indices

    used, places = codes.unique(return_inverse=True)
    return _in_blocks(others, used, len(codebook))[places]


def _in_blocks(codes_of: Callable[[Tensor], Tensor], rows: Tensor, n_embed: int) -> Tensor:
    """Return the codes of rows, in blocks whose ``n_embed`` scores per row fit in ``_MAX_BLOCK``."""
    blocks = max(1, math.ceil(len(rows) * n_embed / _MAX_BLOCK))
    with without_tf32():
        return torch.cat([codes_of(block) for block in rows.tensor_split(blocks)])
