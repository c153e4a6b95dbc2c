"""Outputs of models on sets of images: logits, and the features before the head (``timm-dad diagnose``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timm_dad.frozen.prepare import own_precision
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.heads import HeadClassifier
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.zero_shot import ZeroShotClassifier, unit_features


@dataclass(frozen=True)
class Outputs:
    """One model on one set of images, on the CPU: logits ``[N, K]`` and image features ``[N, D]``, fp32."""

    logits: Tensor
    features: Tensor


@torch.no_grad()
def image_features(model: Teacher, x_pix: Tensor) -> Tensor:
    """Return the input of the head of a classifier on pixels ``[B, D]``, fp32; several teachers are concatenated.

    They have unit length if the head expects it (zero-shot, probes); otherwise they are timm's ``pre_logits``.
    """
    if isinstance(model, TeacherEnsemble):
        members: list[Teacher] = list(model.teachers)  # type: ignore[arg-type]
        return torch.cat([image_features(member, x_pix) for member in members], dim=1)
    network: Any = model.model
    if isinstance(network, (ZeroShotClassifier, HeadClassifier)):
        with own_precision(network):
            return unit_features(network.visual, model.normalize(x_pix))
    if not (hasattr(network, 'forward_features') and hasattr(network, 'forward_head')):
        raise ValueError(f"{type(network).__name__} has no features: it needs timm's forward_features and forward_head")
    with own_precision(network):
        features: Tensor = network.forward_head(network.forward_features(model.normalize(x_pix)), pre_logits=True)
    return features.flatten(1).float()


class OutputCollector:
    """Outputs of models on pixels, by role and named set of images, collected batch by batch."""

    def __init__(self, models: Mapping[str, Teacher]) -> None:
        self.models = models
        self._labels: dict[str, list[Tensor]] = {}
        self._parts: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {}

    @torch.no_grad()
    def add(self, name: str, x_pix: Tensor, label: Tensor, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Run the models on a batch of the set ``name``; ``classes`` are the outputs to keep; ``label`` indexes them.

        Returns:
            Logits ``[B, K]``, on the CPU, by model.
        """
        self._labels.setdefault(name, []).append(label.cpu())
        found = {}
        for role, model in self.models.items():
            logits = model(x_pix).float().cpu()
            found[role] = logits = logits if classes is None else logits[:, list(classes)]
            parts = self._parts.setdefault(name, {}).setdefault(role, [])
            parts.append((logits, image_features(model, x_pix).cpu()))
        return found

    def labels(self) -> dict[str, Tensor]:
        """Return the labels ``[N]`` of every set."""
        return {name: torch.cat(parts) for name, parts in self._labels.items()}

    def outputs(self) -> dict[str, dict[str, Outputs]]:
        """Return the outputs by set and role."""
        return {
            name: {role: Outputs(*map(torch.cat, zip(*parts, strict=True))) for role, parts in by_role.items()}
            for name, by_role in self._parts.items()
        }
