"""Several teachers as one: the mean of their softened probabilities."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.common.hashing import content_hash
from timm_dad.teachers.teacher import Teacher


class TeacherEnsemble(Teacher):
    """Teachers whose softened probabilities are averaged: ``softmax(z / T) = sum_i w_i softmax(z_i / T_i)``.

    ``T_i`` is ``T`` by default. The ensemble's logits ``z`` are ``T log(sum_i w_i softmax(z_i / T_i))``: the
    distillation loss, which divides them by ``T``, gets exactly the mean of the teachers' soft targets, and a single
    teacher keeps its logits up to a constant. The attack ascends the cross-entropy of ``z``, so its gradient flows
    through all teachers. With ``multi_label`` the sigmoids of each class are averaged.

    Args:
        teachers: Frozen teachers for the same classes; each has its own normalization and size.
        weights: One positive weight per teacher, normalized to sum to 1; equal by default.
        temperature: Distillation temperature ``T``.
        temperatures: One ``T_i`` per teacher, for teachers whose logits differ in scale; ``temperature`` by default.
        multi_label: Whether an image may have several classes.

    Raises:
        ValueError: If the class counts differ, or there is not one positive weight and temperature per teacher.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 1 (arithmetic or geometric mean of the distributions).
    """

    log_weights: Tensor

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        temperatures: Sequence[float] | None = None,
        *,
        multi_label: bool = False,
    ) -> None:
        if not teachers or not all(isinstance(teacher, Teacher) for teacher in teachers):
            raise TypeError(
                f'teachers must be timm_dad.Teacher, got {[type(teacher).__name__ for teacher in teachers]}'
            )
        counts = [teacher.num_classes for teacher in teachers]
        if len(set(counts)) != 1:
            raise ValueError(f'teachers must have the same number of classes, got {counts}')
        weights = [1.0] * len(teachers) if weights is None else weights
        if len(weights) != len(teachers) or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f'weights must be {len(teachers)} positive numbers, one per teacher, got {list(weights)}')
        if not 0 < temperature < math.inf:
            raise ValueError(f'temperature must be positive, got {temperature}')
        own = [temperature] * len(teachers) if temperatures is None else list(temperatures)
        if len(own) != len(teachers) or not all(0 < each < math.inf for each in own):
            raise ValueError(f'temperatures must be {len(teachers)} positive numbers, one per teacher, got {own}')
        super().__init__(
            nn.ModuleList(teacher.model for teacher in teachers),
            mean=(0, 0, 0),  # each teacher normalizes by itself
            std=(1, 1, 1),
            input_size=max(teacher.input_size for teacher in teachers),
            num_classes=counts[0],
        )
        self.teachers = nn.ModuleList(teachers)
        self.temperature, self.temperatures, self.multi_label = temperature, own, multi_label
        self.register_buffer('log_weights', (torch.tensor(weights) / sum(weights)).log(), persistent=False)

    def __repr__(self) -> str:
        weights = [round(weight, 4) for weight in self.log_weights.exp().tolist()]
        members = ', '.join(map(repr, self.teachers))
        own = f', temperatures={self.temperatures}' if self._differ() else ''
        return f'TeacherEnsemble([{members}], weights={weights}, temperature={self.temperature:g}{own})'

    def fingerprint(self) -> str:
        """Return a hash of everything the logits depend on."""
        members = [teacher.fingerprint() for teacher in self.teachers]  # type: ignore[operator]
        weights = [round(weight, 6) for weight in self.log_weights.tolist()]
        own: dict[str, Any] = {'temperatures': self.temperatures} if self._differ() else {}  # as sets had it before
        if self.multi_label:
            own['multi_label'] = True
        return content_hash({}, {'teachers': members, 'log_weights': weights, 'temperature': self.temperature, **own})

    def _differ(self) -> bool:
        return any(each != self.temperature for each in self.temperatures)

    def with_features(self) -> Teacher:
        """Raise ``ValueError``: the teachers' features are from different spaces."""
        raise ValueError('features need a single teacher: several teachers share none')

    def forward(self, x_pix: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1]; gradients flow through all teachers."""
        softened = [teacher(x_pix).float() / own for teacher, own in zip(self.teachers, self.temperatures, strict=True)]
        with torch.autocast(x_pix.device.type, enabled=False):
            logits, log_weights = torch.stack(softened), self.log_weights[:, None, None]  # [teachers, B, K]
            if self.multi_label:  # z = T logit(mean of sigmoids)
                yes, no = ((F.logsigmoid(part) + log_weights).logsumexp(dim=0) for part in (logits, -logits))
                return self.temperature * (yes - no)
            mean = (logits.log_softmax(dim=-1) + log_weights).logsumexp(dim=0)
        return self.temperature * mean
