"""Which code of a codebook a latent becomes: the nearest, or the likeliest (Esser et al. 2021, arXiv:2012.09841)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_MAX_BLOCK = 2**22  # floats in one block of the distance matrix: 16 MiB in fp32


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the smallest squared distance to each vector.

    The arithmetic is that of taming's ``VectorQuantizer``, in blocks of rows of one size: no one-hot matrix is built,
    and of the ``[N, n_embed]`` distances never more than 16 MiB at once.

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
        raise ValueError(f'z [N, D] and codebook [K, D] need one D, got {tuple(z.shape)} and {tuple(codebook.shape)}')
    codebook_sq = (codebook**2).sum(dim=1)

    def nearest(block: Tensor) -> Tensor:
        distance = (block**2).sum(dim=1, keepdim=True) + codebook_sq
        return distance.sub_(block @ codebook.t(), alpha=2).argmin(dim=1)

    return _in_blocks(nearest, z, len(codebook))


def likeliest_codes(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Index ``[N]`` of the largest logit of each vector ``[N, D]``, as in taming's ``GumbelQuantize``.

    NOTE: in evaluation too, taming's draws the code from the softmax of the logits (Gumbel noise of temperature 1). We
    take its mode, so that ``Q`` is a function.
    """
    return _in_blocks(lambda block: nn.functional.linear(block, weight, bias).argmax(dim=1), z, len(weight))


def _in_blocks(codes_of: Callable[[Tensor], Tensor], z: Tensor, n_embed: int) -> Tensor:
    """Codes of the rows of ``z``, so many rows at once that their ``n_embed`` scores each stay in ``_MAX_BLOCK``."""
    codes = torch.empty(len(z), dtype=torch.long, device=z.device)
    blocks = max(1, math.ceil(len(z) * n_embed / _MAX_BLOCK))
    for block, out in zip(z.tensor_split(blocks), codes.tensor_split(blocks), strict=True):
        out.copy_(codes_of(block))
    return codes
