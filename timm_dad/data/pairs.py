"""Pairs: every image with its second view, in the layout of timm's augmentation splits.

``[first views of all; ...; second views of all]``, as timm collates ``AugMixDataset``.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from timm_dad.data.images import Source

Transform = Callable[[Any], Any]


class Partner(Protocol):
    """Says what comes beside an image."""

    @property
    def dad_set(self) -> Any:
        """The DAD set that second views are of, if they are of one."""

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """Second picture and target of an image; ``index`` is ``None`` in a stream."""


class SamePicture:
    """The second view is the picture itself, augmented again: plain distillation at equal compute."""

    dad_set = None

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """The picture and its label."""
        return image, label


class PairTransform:
    """Apply the transform of timm's ``create_loader`` to an image and to its second picture.

    Args:
        num_splits: Augmentation splits of the image (AugMix); the second picture gets their base transform alone.
        frame: Brings the image to the part of it that its second picture shows, before anything else.
        same_draws: Both get the same random numbers: one crop, one flip, ...

    Source: timm ``AugMixDataset``, whose three transforms and splits these are.
    """

    def __init__(self, num_splits: int = 1, frame: Transform | None = None, same_draws: bool = False) -> None:
        self.num_splits = num_splits
        self.frame = frame
        self.same_draws = same_draws
        self.transform: Transform | Sequence[Transform] | None = None

    def __call__(self, image: Any, second: Any) -> tuple[Any, ...]:
        """``num_splits`` views of the image, and one of the second picture."""
        if self.frame is not None:
            image = self.frame(image)
        if self.transform is None:
            return image, second
        before = _random_states() if self.same_draws else None
        views = self._views(image, self.num_splits)
        with _replayed(before):
            return *views, *self._views(second, 1)

    def _views(self, image: Any, count: int) -> list[Any]:
        if not isinstance(self.transform, Sequence):
            assert self.transform is not None
            return [self.transform(image)]
        base, augmentation, normalize = self.transform
        image = base(image)
        return [normalize(image), *(normalize(augmentation(image)) for _ in range(count - 1))]


def _random_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_states(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def _replayed(states: tuple[Any, Any, Tensor] | None) -> Iterator[None]:
    """Draw random numbers from ``states`` for a while, then go on as if nothing had been drawn."""
    if states is None:
        yield
        return
    after = _random_states()
    _set_random_states(states)
    try:
        yield
    finally:
        _set_random_states(after)


class DADPairs(Dataset[tuple[Any, int]]):
    """Give every image together with its second view, each transformed.

    Args:
        source: Images with an index; set ``transform`` here, not there.
        partner: What comes beside them.
        views: How both are transformed.
    """

    def __init__(self, source: Source, partner: Partner, views: PairTransform | None = None) -> None:
        self.source = source
        self.dataset = source.dataset
        self.partner = partner
        self.views = views or PairTransform()

    @property
    def transform(self) -> Any:
        """The transform of timm's ``create_loader``: one, or three with augmentation splits."""
        return self.views.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.views.transform = transform

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The views of an image, and its target."""
        # Not from the data set, which takes the next image where one does not decode: it would get the wrong view.
        image = self.source.read(index)
        second, target = self.partner(index, image.image, image.label)
        return self.views(image.image, second), target


class PairStream(IterableImageDataset):  # type: ignore[misc]
    """``DADPairs`` of a stream; timm's ``create_loader`` tells a data set of this class the number of its workers.

    Args:
        dataset: A stream of pictures and class indices; set ``transform`` here, not there.
        partner: What comes beside them.
        views: How both are transformed.
    """

    def __init__(self, dataset: IterableDataset[Any], partner: Partner, views: PairTransform | None = None) -> None:
        dataset.transform = None  # type: ignore[attr-defined]
        self.dataset = dataset
        self.partner = partner
        self.views = views or PairTransform()

    transform = DADPairs.transform

    def __len__(self) -> int:
        """Number of pairs, as the stream says."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """The views of every image, and its target."""
        for picture, label in self.dataset:
            image = picture.convert('RGB')
            second, target = self.partner(None, image, int(label))
            yield self.views(image, second), target

    def set_epoch(self, count: int) -> None:
        """Tell the stream the epoch."""
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(count)

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tell the stream the number of workers."""
        if hasattr(self.dataset, 'set_loader_cfg'):
            self.dataset.set_loader_cfg(num_workers=num_workers)
