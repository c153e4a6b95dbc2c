"""The attack on codes: replace some of an image's codes by near ones that raise the loss most, to first order.

HotFlip (Ebrahimi et al. 2018, arXiv:1712.06751) for codes instead of characters: one gradient at the quantized latents
estimates the gain of each replacement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from timm_dad.common.options import check_types, option
from timm_dad.method.attack import Generators, check_budget, draw, input_gradient, per_image
from timm_dad.method.space import Centre, Objective
from timm_dad.vqgan.model import VQGAN


@dataclass(frozen=True, kw_only=True)
class CodeAttackConfig:
    """Attack on the codes of an image.

    Raises:
        ValueError: If a value is out of range.
    """

    eps: float = option(0.25, "fraction of an image's codes that is replaced")
    num_steps: int = option(1, 'gradients; 0 replaces codes by random ones among the nearest')
    neighbours: int = option(32, 'number of nearest codes that may replace a code', metavar='K')
    candidates: float = option(0.5, 'fraction of the positions that may be replaced, redrawn for each view')

    space: ClassVar[str] = 'codes'
    unit: ClassVar[str] = 'fractions of the codes of an image'
    max_eps: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.eps <= 1:
            raise ValueError(f'eps is in {self.unit}, from 0 to 1, got {self.eps} (try 0.25)')
        if self.num_steps not in (0, 1):
            raise ValueError(f'num_steps must be 0 (random codes) or 1 for codes, got {self.num_steps}')
        if self.neighbours < 1:
            raise ValueError(f'neighbours must be 1 or more, got {self.neighbours}')
        if not self.eps <= self.candidates <= 1:
            raise ValueError(f'candidates is a fraction, from eps ({self.eps:g}) to 1, got {self.candidates}')

    def scaled(self, eps: float) -> 'CodeAttackConfig':
        """Return the same attack with another fraction of the codes replaced."""
        return replace(self, eps=eps)


class CodeSpace:
    """Codes ``[B, h, w]`` of a VQGAN.

    Args:
        vqgan: Frozen VQGAN.
        config: The attack.
        objective: What it ascends.
        gradient_vqgan: One with the same codebook through whose decoder the gradient flows; ``vqgan`` by default.

    Raises:
        ValueError: If the codebook has fewer neighbours.
    """

    def __init__(
        self, vqgan: VQGAN, config: CodeAttackConfig, objective: Objective, gradient_vqgan: VQGAN | None = None
    ) -> None:
        if config.neighbours >= len(vqgan.codebook):
            raise ValueError(
                f'neighbours must be at most {len(vqgan.codebook) - 1}, the other codes of the codebook, got '
                f'{config.neighbours}'
            )
        self.vqgan, self.config, self.objective = vqgan, config, objective
        self.gradient_vqgan = gradient_vqgan or vqgan

    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Compute the codes of images and the gradient at their quantized latents, shared by all views of an image."""
        height, width = size = tuple(x_pix.shape[-2:])
        codes = self.vqgan.encode_to_codes(x_pix)
        if not self.config.num_steps:
            return Centre(codes, size, codes=codes)

        def loss_fn(z: Tensor) -> Tensor:
            return self.objective(self.gradient_vqgan.decode(z)[..., :height, :width], target)

        with torch.autocast(x_pix.device.type, enabled=False):
            gradient = input_gradient(loss_fn, self.vqgan.embed(codes).float())
        return Centre(codes, size, codes=codes, gradient=gradient)

    def start(self, centre: Centre, eps: Tensor | None, generator: Generators) -> Tensor:
        """Draw uniform numbers ``[B, 2, h, w]``, which pick the candidate positions and the random replacements."""
        if eps is not None:
            check_budget(eps, len(centre), self.config.candidates, self.config.unit)
        shape = (len(centre), 2, *centre.x0.shape[1:])
        return draw(torch.rand, shape, centre.x0.device, generator)

    def attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> Tensor:
        """Replace some codes: the same number in each image with the same budget."""
        codes, (order, choice) = centre.x0.flatten(1), start.flatten(2).unbind(1)
        codebook = self.vqgan.codebook.float()
        near = self.vqgan.neighbours(codes, self.config.neighbours)  # [B, N, K]
        if centre.gradient is None:
            gain = order  # any order will do
            chosen = (choice * near.shape[-1]).long()[..., None]
        else:
            gradient = torch.nan_to_num(centre.gradient.float(), nan=0.0, posinf=0.0, neginf=0.0)
            at = gradient.flatten(2).transpose(1, 2)  # [B, N, D]
            gains = torch.einsum('bnd,bnkd->bnk', at, codebook[near] - codebook[codes][:, :, None])
            gain, chosen = gains.max(dim=-1, keepdim=True)
            gain = gain[..., 0]
        count = codes.shape[1]
        candidates = _ranks(order) < round(self.config.candidates * count)
        budget = torch.full((len(codes),), self.config.eps, device=codes.device) if eps is None else eps
        most = (per_image(budget, codes).flatten(1) * count).round()
        best = _ranks(gain.masked_fill(~candidates, -torch.inf)) < most
        swapped = near.gather(-1, chosen)[..., 0]
        if centre.gradient is not None:
            best &= gain > 0  # nothing is replaced to lower the loss
        return torch.where(best & candidates, swapped, codes).view(centre.x0.shape)

    def discretize(self, point: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode codes to images, and return both."""
        return self.vqgan.decode_codes(point)[..., : size[0], : size[1]], point.clone()

    def is_stuck(self, centre: Centre, start: Tensor, point: Tensor) -> bool:
        """Return whether the gradient gives no estimate of any replacement's gain."""
        gradient = centre.gradient
        return gradient is not None and self.config.eps > 0 and not bool((gradient.isfinite() & (gradient != 0)).any())

    def distance(self, centre: Centre, point: Tensor) -> Tensor:
        """Return the fraction of the codes that were replaced."""
        return (point != centre.x0).float().flatten(1).mean(dim=1)


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each entry ``[B, N]`` in its row; the largest has rank 0."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
