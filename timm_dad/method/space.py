"""The space in which an attack moves an image: pixels, the latents of a VQGAN, or codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from timm_dad.method.attack import AttackConfig, Generators, radii, random_start

# Maps images ``[B, 3, H, W]``, nominally in [0, 1], and targets to one loss an image ``[B]``.
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Centre:
    """What all DAD views of a batch share.

    Args:
        x0: Centres of the balls: images ``[B, 3, H, W]`` in [0, 1], latents ``[B, D, h, w]``, or codes ``[B, h, w]``.
        size: ``(H, W)`` of the images.
        codes: Codes of ``Q(x)`` ``[B, h, w]``, if ``x0`` is ``Q(x)``.
        logits: Teacher's logits ``[B, K]`` on ``x``, if ``x0`` is ``x``, or if images have no labels or several.
        gradient: Gradient of the objective there, if known before the views are made.
        label: The teacher's answer on ``x`` as a target, if there are no labels.
    """

    x0: Tensor
    size: Sequence[int]
    codes: Tensor | None = None
    logits: Tensor | None = None
    gradient: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.x0)


class Space(Protocol):
    """One way to make the DAD view of an image."""

    config: Any

    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Find where the attack on images ``[B, 3, H, W]`` in [0, 1] starts."""

    def start(self, centre: Centre, eps: Tensor | None, generator: Generators) -> Tensor:
        """Draw everything random for the views of a batch, one row per image."""

    def attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> Tensor:
        """Return the perturbed points, like ``centre.x0``."""

    def discretize(self, point: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images ``[B, 3, H, W]`` in [0, 1] of points like ``centre.x0``, and their codes ``[B, h, w]``."""

    def is_stuck(self, centre: Centre, start: Tensor, point: Tensor) -> bool:
        """Return whether gradients that should have moved the points did not: all are zero or not finite."""

    def distance(self, centre: Centre, point: Tensor) -> Tensor:
        """Return the distance of points from their centres ``[B]``, in the unit of ``config.eps``."""


class Ball:
    """Common part of the spaces whose attack ascends inside a ball."""

    config: AttackConfig

    def start(self, centre: Centre, eps: Tensor | None, generator: Generators) -> Tensor:
        """Draw random points of the balls."""
        return random_start(centre.x0.float(), radii(centre.x0, self.config, eps), self.config, generator)

    def is_stuck(self, centre: Centre, start: Tensor, point: Tensor) -> bool:
        """Return whether no image left its start, but for what rounding does to points on a sphere."""
        step = self.config.step_length(radii(centre.x0, self.config)).flatten()
        moved = torch.linalg.vector_norm(point - start, dim=(1, 2, 3))
        return self.config.ascends and not bool((moved > 1e-3 * step).any())
