"""Pooled features of a classifier beside its logits, of one pass: timm's pre-logits, and a CLIP's image embedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Answer:
    """The teacher's logits ``[B, K]`` and, if it was asked to give them, its pooled features ``[B, D]``, fp32."""

    logits: Tensor
    features: Tensor | None = None

    def halves(self) -> tuple['Answer', 'Answer']:
        """The answers on the first and on the second half of the images."""
        logits, features = self.logits.chunk(2), (None, None) if self.features is None else self.features.chunk(2)
        return Answer(logits[0], features[0]), Answer(logits[1], features[1])

    def put(self, where: Tensor, other: 'Answer') -> None:
        """Replace in place the answers on the images ``where`` ``[B]``, bool."""
        self.logits[where] = other.logits
        if self.features is not None and other.features is not None:
            self.features[where] = other.features


class WithFeatures(nn.Module):
    """A classifier that gives its pooled features after its logits, in one tensor, which ``prepare_frozen`` can take.

    Args:
        classifier: Maps normalized images ``[B, 3, h, w]`` to logits ``[B, C]``, with ``forward_features`` and
            ``forward_head`` as timm's models have them.

    Raises:
        ValueError: If it has not.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        check_features(classifier, 'the teacher')
        self.classifier = classifier

    def forward(self, x_norm: Tensor) -> Tensor:
        """Logits and features ``[B, C + D]`` of normalized images ``[B, 3, h, w]``."""
        logits, features = self.logits_and_features(x_norm)
        return torch.cat([logits, features], dim=1)

    def logits_and_features(self, x_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]`` and pooled features ``[B, D]``, of one pass but for the head."""
        maps = self.classifier.forward_features(x_norm)  # type: ignore[operator]
        logits: Tensor = self.classifier.forward_head(maps)  # type: ignore[operator]
        return logits, self.classifier.forward_head(maps, pre_logits=True)  # type: ignore[operator]

    def feature_dim(self, input_size: tuple[int, int]) -> int:
        """``D``, with an empty image of ``(h, w)``; ``ValueError`` if the features are no ``[B, D]``."""
        parameter = next(self.parameters())
        with torch.no_grad():
            features = self.logits_and_features(parameter.new_zeros(1, 3, *input_size))[1]
        if features.ndim != 2:
            raise ValueError(f'pooled features of the teacher must be [B, D], got {list(features.shape)}')
        return features.shape[1]


def check_features(network: nn.Module, who: str) -> None:
    """Raise ``ValueError`` unless a network, called ``who``, gives pooled features as timm's models do."""
    if not (hasattr(network, 'forward_features') and hasattr(network, 'forward_head')):
        raise ValueError(
            f'{who} must have forward_features and forward_head, as timm models have, to give features: '
            f'{type(network).__name__} has not'
        )
