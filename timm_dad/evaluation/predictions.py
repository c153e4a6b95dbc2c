"""What a model says of every image of a data set: all that the figures of ``timm-dad evaluate`` are computed from."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from timm_dad.common.files import replacing


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model on the ``N`` images of one part of a suite, in the order of the data.

    Args:
        label: Class of each image ``[N]``, int64, an index among the suite's classes.
        predicted: Class of the largest logit ``[N]``, int64; -1 where it is none of the suite's classes.
        confidence: Its softmax probability ``[N]``, float32.
        correct: Whether ``predicted`` is right ``[N]``, bool (several labels may be: ReaL).
        correct5: Whether one of the five largest logits is right ``[N]``, bool.

    Raises:
        ValueError: If the lengths differ.
    """

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    correct5: NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'predictions must be of the same images, got lengths {lengths}')

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def save(self, path: Path) -> None:
        """Write them as ``.npz``."""
        with replacing(path) as temporary:
            np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> 'Predictions':
        """Read what ``save`` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f'{path} holds no predictions: {error}; remove it to make it again') from error
