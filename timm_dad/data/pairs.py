"""Pairs of every image with its extra view, in the layout of timm's augmentation splits.

``[first views of all; ...; extra views of all]``, as timm collates ``AugMixDataset``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from PIL import Image
from timm.data import IterableImageDataset
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms

from timm_dad.common.seeds import random_states, set_random_states
from timm_dad.data.images import Source
from timm_dad.data.pictures import as_label, check_label, eight_bits

Transform = Callable[[Any], Any]

# What timm's training transform holds beside crop, flip and the way to a tensor.
_AUGMENTATIONS = (
    AutoAugment,
    AugMixAugment,
    RandAugment,
    RandomErasing,
    transforms.ColorJitter,
    transforms.RandomApply,
    transforms.RandomGrayscale,
)


class ExtraViews(Protocol):
    """Returns the second image of a pair.

    If it has a method ``set_epoch(epoch)``, it is told each epoch before its first image, perhaps more than once.
    """

    @property
    def dad_set(self) -> Any:
        """The DAD set that extra views come from, if any."""

    def __call__(self, index: int | None, image: Image.Image, label: Any) -> tuple[Image.Image, Any]:
        """Return the second picture and the target of an image; ``index`` is ``None`` in a stream."""


class SameImage:
    """The extra view is the picture itself, augmented again: plain distillation at equal compute."""

    dad_set = None

    def __call__(self, index: int | None, image: Image.Image, label: Any) -> tuple[Image.Image, Any]:
        """Return the picture and its label."""
        return image, label


class PairTransform:
    """Apply the transform of timm's ``create_loader`` to an image and to its second picture.

    Args:
        num_splits: Augmentation splits of the image (AugMix); the second picture gets only their base transform.
        frame: Frames the image like its second picture, before anything else.
        same_draws: Whether both get the same random numbers: the same crop, the same flip, ...
        base_alone: Whether the second picture gets only crop and flip, whatever else the image gets.
        coded: Whether targets are codes of stored answers instead of class indices.
        mixed: Whether pairs arrive mixed, and are not mixed in batches.

    Source: timm ``AugMixDataset``, whose three transforms and splits these are.
    """

    def __init__(
        self,
        num_splits: int = 1,
        frame: Transform | None = None,
        same_draws: bool = False,
        base_alone: bool = False,
        coded: bool = False,
        mixed: bool = False,
    ) -> None:
        self.num_splits, self.frame, self.same_draws = num_splits, frame, same_draws
        self.base_alone, self.coded, self.mixed = base_alone, coded, mixed
        self.transform: Transform | Sequence[Transform] | None = None

    def __call__(self, image: Any, second: Any) -> tuple[Any, ...]:
        """Return ``num_splits`` views of the image and one of the second picture."""
        if self.frame is not None:
            image = self.frame(image)
        if self.transform is None:
            return image, second
        if not self.same_draws:
            return *self._views(image), self._extra(second)
        before = random_states()
        views = self._views(image)
        after = random_states()
        set_random_states(before)
        extra = self._extra(second)
        set_random_states(after)
        return *views, extra

    def _views(self, image: Any) -> list[Any]:
        if not isinstance(self.transform, Sequence):
            assert self.transform is not None
            return [self.transform(image)]
        base, augmentation, normalize = self.transform
        image = base(image)
        return [normalize(image), *(normalize(augmentation(image)) for _ in range(self.num_splits - 1))]

    def _extra(self, second: Any) -> Any:
        if not isinstance(self.transform, Sequence):
            stages: list[Any] = [self.transform]
        else:
            base, _, normalize = self.transform
            stages = [base, normalize]
        for stage in stages:
            for step in getattr(stage, 'transforms', [stage]):
                if not (self.base_alone and isinstance(step, _AUGMENTATIONS)):
                    second = step(second)
        return second


class DADPairs(Dataset[tuple[Any, int]]):
    """Return every image together with its extra view, each transformed; set ``transform`` here, not in the source."""

    def __init__(self, source: Source, extra_views: ExtraViews, views: PairTransform | None = None) -> None:
        self.source, self.dataset = source, source.dataset
        self.extra_views = extra_views
        self.views = views or PairTransform()

    @property
    def transform(self) -> Any:
        """The transform of timm's ``create_loader``: one, or three with augmentation splits."""
        return self.views.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.views.transform = transform

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the views of an image and its target."""
        # Not from the data set, which takes the next image where one does not decode: it would get the wrong view.
        image = self.source.read(index, hashed=False)
        num_classes = getattr(self.dataset, 'num_classes', None)
        if num_classes is not None:
            check_label(image.label, num_classes, f'image {index} of the data set')
        extra, target = self.extra_views(index, image.image, image.label)
        return self.views(image.image, extra), target

    def set_epoch(self, epoch: int) -> None:
        """Tell the source of the extra views the epoch, if it takes one."""
        if hasattr(self.extra_views, 'set_epoch'):
            self.extra_views.set_epoch(epoch)


class PairStream(IterableImageDataset):  # type: ignore[misc]
    """``DADPairs`` for a stream; timm's ``create_loader`` tells a data set of this class the number of its workers."""

    def __init__(
        self, dataset: IterableDataset[Any], extra_views: ExtraViews, views: PairTransform | None = None
    ) -> None:
        dataset.transform = None  # type: ignore[attr-defined]
        # timm's class asks the reader for its length, and tells it the epoch and the number of workers.
        self.dataset = self.reader = dataset
        self.extra_views = extra_views
        self.views = views or PairTransform()

    transform = DADPairs.transform

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield the views of every image and its target."""
        for picture, label in self.reader:
            image = eight_bits(picture).convert('RGB')
            extra, target = self.extra_views(None, image, as_label(label))
            yield self.views(image, extra), target

    def set_epoch(self, count: int) -> None:
        """Tell stream and extra views the epoch."""
        super().set_epoch(count)
        if hasattr(self.extra_views, 'set_epoch'):
            self.extra_views.set_epoch(count)


def pair_views(dataset: Any) -> PairTransform | None:
    """Return how the pairs of a data set are augmented, if it consists of pairs."""
    return dataset.views if isinstance(dataset, DADPairs | PairStream) else None
