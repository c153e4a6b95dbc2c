"""What models say of sets of images: logits, and the features before the head (``timm-dad diagnose``)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_dad.diagnosis.data import Batch, SampledImages
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
    """What the head of a classifier gets.

    Args:
        model: A model on pixels.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].

    Returns:
        Features ``[B, D]``, fp32: of unit length where the head is on such (zero-shot, probes), timm's before the head
        (``pre_logits``) elsewhere; those of several teachers side by side.

    Raises:
        ValueError: If the network is of another kind.
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


def load_batches(
    images: SampledImages, name: str, num_classes: int, batch_size: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """Load a set of images, in order.

    Args:
        images: The set.
        name: What errors and the progress bar call it.
        num_classes: Classes of the models.
        batch_size: Images at a time.
        workers: Processes that load them.
        device: Where they go.

    Yields:
        Batches.

    Raises:
        ValueError: If an image cannot be read, or a label is none of the classes.
    """
    count = num_classes if images.classes is None else len(images.classes)
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=list)
    for items in tqdm(loader, desc=name, unit='batch', leave=False):
        for item in items:
            if isinstance(item, ValueError):
                raise item
        pixels, labels, indices = zip(*items, strict=True)
        if min(labels) < 0 or max(labels) >= count:
            raise ValueError(f'{name}: labels must be from 0 to {count - 1}, got {min(labels)} to {max(labels)}')
        yield Batch(torch.stack(pixels).to(device).float() / 255, torch.tensor(labels, device=device), indices)


class OutputCollector:
    """Outputs of models on named sets of images, gathered batch by batch.

    Args:
        models: Models on pixels, by role.
    """

    def __init__(self, models: Mapping[str, Teacher]) -> None:
        self.models = models
        self._labels: dict[str, list[Tensor]] = {}
        self._parts: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {}

    @torch.no_grad()
    def add(self, name: str, x_pix: Tensor, label: Tensor, classes: Sequence[int] | None = None) -> None:
        """Run the models on a batch.

        Args:
            name: The set that it is of.
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            label: Their classes ``[B]``.
            classes: Outputs that are kept, where the labels are among these.
        """
        self._labels.setdefault(name, []).append(label.cpu())
        for role, model in self.models.items():
            logits = model(x_pix).float().cpu()
            logits = logits if classes is None else logits[:, list(classes)]
            parts = self._parts.setdefault(name, {}).setdefault(role, [])
            parts.append((logits, image_features(model, x_pix).cpu()))

    def labels(self) -> dict[str, Tensor]:
        """Classes ``[N]`` of every set."""
        return {name: torch.cat(parts) for name, parts in self._labels.items()}

    def outputs(self) -> dict[str, dict[str, Outputs]]:
        """By set and role."""
        return {
            name: {role: Outputs(*map(torch.cat, zip(*parts, strict=True))) for role, parts in by_role.items()}
            for name, by_role in self._parts.items()
        }
