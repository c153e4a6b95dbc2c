"""Where an attack moves an image: among images, among the latents of a VQGAN, or from code to code."""

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
        codes: Codes of ``Q(x)`` ``[B, h, w]``, where ``x0`` is that.
        logits: Teacher's logits ``[B, K]`` on ``x``, where ``x0`` is that, there are no labels, or several.
        gradient: Gradient of the objective there, if it is known before the views are made.
        label: The teacher's answer on ``x`` as a target, where there are no labels.
    """

    x0: Tensor
    size: Sequence[int]
    codes: Tensor | None = None
    logits: Tensor | None = None
    gradient: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        """Images."""
        return len(self.x0)


class Space(Protocol):
    """One way to make the DAD view of an image."""

    config: Any

    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Where the attack on images ``[B, 3, H, W]`` in [0, 1] starts."""

    def start(self, centre: Centre, eps: Tensor | None, generator: Generators) -> Tensor:
        """All that is drawn at random for the views of a batch, one row an image."""

    def attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> Tensor:
        """The perturbed points, like ``centre.x0``."""

    def discretize(self, point: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` in [0, 1] of points like ``centre.x0``, and the codes ``[B, h, w]`` in them."""

    def is_stuck(self, centre: Centre, start: Tensor, point: Tensor) -> bool:
        """Whether gradients that should have moved the points did not: all are zero, or not finite."""

    def distance(self, centre: Centre, point: Tensor) -> Tensor:
        """How far points are from their centres ``[B]``, in the unit of ``config.eps``."""


class Ball:
    """What spaces have alike whose attack ascends inside a ball."""

    config: AttackConfig

    def start(self, centre: Centre, eps: Tensor | None, generator: Generators) -> Tensor:
        """Random points of the balls."""
        return random_start(centre.x0.float(), radii(centre.x0, self.config, eps), self.config, generator)

    def is_stuck(self, centre: Centre, start: Tensor, point: Tensor) -> bool:
        """Whether no image left its start."""
        return self.config.ascends and torch.equal(point, start)
