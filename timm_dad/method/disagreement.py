"""Disagreement of teacher and student: an objective for attacks that run in the training step."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from timm_dad.common.pixels import PixelNorm
from timm_dad.method.targets import SingleLabel, Targets
from timm_dad.teachers.teacher import Teacher


class Disagreement:
    """``T^2 KL(t(x) || s(x))`` of each image, with the student in evaluation mode.

    Args:
        student: The student in training; no gradient reaches its parameters.
        teacher: Frozen teacher.
        norm: The student's normalization.
        temperature: ``T``.
        targets: The kind of targets, which defines the divergence.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, norm: PixelNorm, temperature: float, targets: Targets | None = None
    ) -> None:
        self.student, self.teacher, self.norm, self.temperature = student, teacher, norm, temperature
        self.targets = targets or SingleLabel()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep the student in evaluation mode for forward and gradient, which may recompute the forward."""
        modes = [(module, module.training) for module in self.student.modules()]
        self.student.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def __call__(self, x_pix: Tensor) -> Tensor:
        """Return losses ``[B]``, fp32, of images ``[B, 3, H, W]`` in [0, 1]."""
        x_norm = self.norm.normalize(x_pix).to(next(self.student.parameters()).dtype)
        return self.targets.divergence(self.student(x_norm), self.teacher(x_pix), self.temperature)
