"""Pooled features of a classifier with its logits, in one pass: timm's pre-logits, and a CLIP's image embedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Answer:
    """The teacher's logits ``[B, K]`` and, if requested, its pooled features ``[B, D]``, fp32."""

    logits: Tensor
    features: Tensor | None = None

    def halves(self) -> tuple['Answer', 'Answer']:
        """Return the answers on the first and on the second half of the images."""
        logits, features = self.logits.chunk(2), (None, None) if self.features is None else self.features.chunk(2)
        return Answer(logits[0], features[0]), Answer(logits[1], features[1])

    def put(self, where: Tensor, other: 'Answer') -> None:
        """Replace in place the answers on the images ``where`` ``[B]``, bool."""
        self.logits[where] = other.logits
        if self.features is not None and other.features is not None:
            self.features[where] = other.features


class WithFeatures(nn.Module):
    """A classifier that returns logits and then pooled features in one tensor, as ``prepare_frozen`` needs it.

    Args:
        classifier: Maps normalized images ``[B, 3, h, w]`` to logits ``[B, C]``, with ``forward_features`` and
            ``forward_head`` like timm's models.

    Raises:
        ValueError: If it lacks them.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        check_features(classifier, 'the teacher')
        self.classifier = classifier

    def forward(self, x_norm: Tensor) -> Tensor:
        """Return logits and features ``[B, C + D]`` of normalized images ``[B, 3, h, w]``."""
        logits, features = self.logits_and_features(x_norm)
        return torch.cat([logits, features], dim=1)

    def logits_and_features(self, x_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, C]`` and pooled features ``[B, D]``, from one pass except for the head."""
        maps = self.classifier.forward_features(x_norm)  # type: ignore[operator]
        logits: Tensor = self.classifier.forward_head(maps)  # type: ignore[operator]
        return logits, self.classifier.forward_head(maps, pre_logits=True)  # type: ignore[operator]

    def feature_dim(self, input_size: tuple[int, int]) -> int:
        """Return ``D``, found with an empty image of ``(h, w)``; ``ValueError`` if the features are not ``[B, D]``."""
        parameter = next(self.parameters())
        with torch.no_grad():
            features = self.logits_and_features(parameter.new_zeros(1, 3, *input_size))[1]
        if features.ndim != 2:
            raise ValueError(f'pooled features of the teacher must be [B, D], got {list(features.shape)}')
        return features.shape[1]


def check_features(network: nn.Module, who: str) -> None:
    """Raise ``ValueError`` unless a network, called ``who``, gives pooled features like timm's models."""
    if not (hasattr(network, 'forward_features') and hasattr(network, 'forward_head')):
        raise ValueError(
            f'{who} must have forward_features and forward_head, like timm models, to give features: '
            f'{type(network).__name__} does not'
        )
