"""Pairs as the teacher saw them: an image and its DAD view, augmented by seeds, and mixed if it saw mixtures."""

import random
from typing import Any

from PIL import Image
from torch import Tensor

from timm_dad.common.seeds import REINFORCE, seed_sample
from timm_dad.dad_sets.logits import encode_target
from timm_dad.dad_sets.match import check_data
from timm_dad.dad_sets.mixtures import Mixtures
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source
from timm_dad.data.pairs import DADPairs, PairTransform


class ReinforcedViews:
    """The extra view comes from a DAD set, and the augmentation that follows is one that the teacher saw."""

    def __init__(self, dad_set: DADSet, source: Source, seed: int, repeats: int) -> None:
        if source.streams:
            raise ValueError('a stream has no index to replay augmentations by: use indexed data, as for the set')
        check_data(dad_set, source)
        self.dad_set, self.source, self.seed, self.repeats = dad_set, source, seed, repeats

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """Return a view and the label coded by ``encode_target``; ``image`` is the one to be augmented next."""
        assert index is not None
        turn = random.randrange(self.repeats)
        num_classes: int = self.dad_set.settings['data']['num_classes']
        return self.begin(index, turn, label), encode_target(index, turn, self.repeats, label, num_classes)

    def begin(self, index: int, turn: int, label: int) -> Image.Image:
        """Seed the draws of one augmentation and return its view."""
        view = self.dad_set.image(index, turn % self.dad_set.num_views, self.source.name(index, label))
        seed_sample(self.seed, REINFORCE, index, turn)
        return view


class ReplayedPairs(DADPairs):
    """Pairs as the teacher saw them: augmented by seeds, and mixed if the set contains mixtures."""

    extra_views: ReinforcedViews

    def __init__(
        self, source: Source, extra_views: ReinforcedViews, views: PairTransform, mixtures: Mixtures | None
    ) -> None:
        super().__init__(source, extra_views, views)
        self.mixtures = mixtures

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the views of an image and its target, for a randomly drawn augmentation."""
        own, target = super().__getitem__(index)
        if self.mixtures is None:
            return own, target
        num_classes: int = self.extra_views.dad_set.settings['data']['num_classes']
        return self.mixed(index, target // num_classes % self.extra_views.repeats, own)[0], target

    def augmented(self, index: int, turn: int) -> tuple[tuple[Any, ...], int]:
        """Return the unmixed views of one augmentation of an image, and its label."""
        image = self.source.read(index, hashed=False)
        second = self.extra_views.begin(index, turn, image.label)
        return self.views(image.image, second), image.label

    def mixed(self, index: int, turn: int, own: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], int, float]:
        """Return the views ``own`` of an image, mixed, the label of its partner, and the share of the image."""
        assert self.mixtures is not None
        other, label = self.augmented(self.mixtures.partner(index, turn), turn)
        views, share = self.mixtures.mix(index, turn, own, other)
        return views, label, share
