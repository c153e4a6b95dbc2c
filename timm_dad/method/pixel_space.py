"""The attack on pixels, as in the paper: reconstruct, perturb, discretize (Zhou et al. 2023, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from timm_dad.method.attack import AttackConfig, ascend, input_gradient
from timm_dad.method.space import Ball, Centre, Objective
from timm_dad.method.targets import SingleLabel, Targets
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

ATTACK_FROM = ('reconstruction', 'input')


class PixelSpace(Ball):
    """Images in [0, 1]. No gradient flows through the VQGAN, which is treated as the identity.

    NOTE: only the last of several steps is discretized, where the released code runs the VQGAN after each.

    Args:
        teacher: Frozen teacher.
        vqgan: Frozen VQGAN.
        config: The attack.
        objective: What it ascends.
        attack_from: ``reconstruction`` or ``input``, as in ``DADAugment``.
        targets: The kind of targets, whose loss the first step from the input ascends.

    Raises:
        ValueError: If ``attack_from`` is neither of them.
    """

    def __init__(
        self,
        teacher: Teacher,
        vqgan: VQGAN,
        config: AttackConfig,
        objective: Objective,
        attack_from: str = 'reconstruction',
        targets: Targets | None = None,
    ) -> None:
        if attack_from not in ATTACK_FROM:
            raise ValueError(f'attack_from must be one of {ATTACK_FROM}, got {attack_from!r}')
        self.teacher, self.vqgan, self.config, self.objective = teacher, vqgan, config, objective
        self.from_input, self.targets = attack_from == 'input', targets or SingleLabel()

    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Compute ``Q(x)``, or take the images themselves with the teacher's answer and the gradient there."""
        size = tuple(x_pix.shape[-2:])
        if not self.from_input:
            x_vq, codes = self.vqgan.reconstruct(x_pix)
            return Centre(x_vq, size, codes=codes)
        x_pix = x_pix.detach().float()
        if not self.config.num_steps:
            return Centre(x_pix, size, logits=self.teacher(x_pix))
        answers = []

        def loss_fn(x: Tensor) -> Tensor:
            answers.append(self.teacher(x))
            return self.targets.attack_loss(answers[0], target)

        with torch.autocast(x_pix.device.type, enabled=False):
            gradient = input_gradient(loss_fn, x_pix)
        return Centre(x_pix, size, logits=answers[0].detach(), gradient=gradient)

    def attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> Tensor:
        """Perturb the images."""
        return ascend(
            lambda x: self.objective(x, target),
            centre.x0,
            self.config,
            eps=eps,
            start=start,
            gradient=centre.gradient,
        )

    def discretize(self, point: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Compute ``Q`` of images and its codes."""
        return self.vqgan.reconstruct(point)

    def distance(self, centre: Centre, point: Tensor) -> Tensor:
        """Return the L2 distance over the whole image, in [0, 1] pixel units, whatever the norm of the attack."""
        length: Tensor = torch.linalg.vector_norm(point - centre.x0, dim=(1, 2, 3))
        return length
