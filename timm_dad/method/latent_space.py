"""The attack on a VQGAN's latents before quantization: it changes codes where an attack on pixels hardly does.

``z0 = encode(x)``; from a random start, ascend ``objective(decode(quantize(z)))`` inside a ball around ``z0`` whose
radius is a fraction of ``||z0||``, with a straight-through gradient at the quantizer; then quantize and decode once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from timm_dad.common.options import option
from timm_dad.method.attack import AttackConfig, ascend
from timm_dad.method.space import Ball, Centre, Objective
from timm_dad.vqgan.model import VQGAN

OBJECTIVES = ('cross_entropy', 'disagreement')


@dataclass(frozen=True, kw_only=True)
class LatentAttackConfig(AttackConfig):
    """Attack on a VQGAN's latents before quantization; lengths are fractions of an image's ``||encode(x)||``.

    NOTE: below about 0.05 a radius hardly changes a code; one like 8/255 is meant for pixels.

    Raises:
        ValueError: If a value is out of range.
    """

    eps: float = option(0.5, "radius of the attack, as a fraction of the length of an image's latents")
    step_size: float = option(0.5, 'length of one step, in the same unit')
    random_start: float = option(1.0, 'probability that an image starts from a random point of the ball')
    start_size: float = option(0.5, 'length of the random start, as a fraction of the radius')
    objective: str = option(
        'cross_entropy', "what is ascended: the teacher's cross-entropy, or the disagreement of teacher and student",
        choices=OBJECTIVES,
    )  # fmt: skip

    space: ClassVar[str] = 'latent'
    unit: ClassVar[str] = 'units of the length of the latents'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != 'l2':
            raise ValueError(f'norm must be l2 in the latent space, got {self.norm!r}')
        if not 0 <= self.start_size <= 1:
            raise ValueError(f'start_size is a fraction of the radius, from 0 to 1, got {self.start_size}')
        if self.objective not in OBJECTIVES:
            raise ValueError(f'objective must be one of {OBJECTIVES}, got {self.objective!r}')

    @property
    def max_eps(self) -> float:
        """Largest radius that makes sense: at 1, hardly any code stays."""
        return 2.0

    def check_length(self, name: str, value: float) -> None:
        """Raise ``ValueError`` unless a radius or step is in range."""
        if not 0 <= value <= self.max_eps:
            raise ValueError(f'{name} is in {self.unit}, from 0 to {self.max_eps:g}, got {value} (try 0.5)')

    def lengths(self, centre: Tensor) -> Tensor:
        """Return the length of the latents ``[B, D, h, w]`` of each image ``[B, 1, 1, 1]``."""
        length: Tensor = torch.linalg.vector_norm(centre.float(), dim=(1, 2, 3), keepdim=True)
        return length

    def start_radius(self, radius: Tensor) -> Tensor:
        """Return the distance of a random start from its centre, in a ball of the given radius."""
        return self.start_size * radius

    def clip(self, point: Tensor) -> Tensor:
        """Return the point unchanged: latents may lie anywhere."""
        return point


class LatentSpace(Ball):
    """Latents ``[B, D, h, w]`` of a VQGAN.

    Args:
        vqgan: Frozen VQGAN.
        config: The attack.
        objective: What it ascends.
        gradient_vqgan: One with the same codebook, such as a tiny one, through whose decoder the gradient flows;
            ``vqgan`` by default.
    """

    def __init__(
        self, vqgan: VQGAN, config: LatentAttackConfig, objective: Objective, gradient_vqgan: VQGAN | None = None
    ) -> None:
        self.vqgan, self.config, self.objective = vqgan, config, objective
        self.gradient_vqgan = gradient_vqgan or vqgan

    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Encode images to latents; nothing is decoded."""
        return Centre(self.vqgan.encode(x_pix).float(), tuple(x_pix.shape[-2:]))

    def attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> Tensor:
        """Perturb the latents."""
        height, width = centre.size

        def loss_fn(z: Tensor) -> Tensor:
            x_vq = self.gradient_vqgan.decode(self.vqgan.quantize_straight_through(z))
            return self.objective(x_vq[..., :height, :width], target)

        return ascend(loss_fn, centre.x0, self.config, eps=eps, start=start)

    def discretize(self, point: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Quantize latents, decode them to images, and return images and codes."""
        codes = self.vqgan.codes_of(point)
        return self.vqgan.decode_codes(codes)[..., : size[0], : size[1]], codes

    def distance(self, centre: Centre, point: Tensor) -> Tensor:
        """Return ``||z - z0|| / ||z0||``."""
        moved: Tensor = torch.linalg.vector_norm(point - centre.x0, dim=(1, 2, 3))
        return moved / self.config.lengths(centre.x0).flatten().clamp_min(torch.finfo(torch.float32).tiny)
