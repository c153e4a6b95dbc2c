"""Mixtures that a teacher was asked about: the partner and the mixing of each augmented picture.

Each sample is mixed separately, with a partner that is read and augmented for it. So a batch need not contain both,
and any order or number of processes or pictures works; the loader does twice the work.

Source: Faghri et al. 2023, arXiv:2303.08983, whose sets record the partner of an image, which is read again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from timm_dad.common.seeds import MIXTURE, seed_sample


class Mixtures:
    """Mix pictures like timm's Mixup or CutMix, with draws that depend only on picture and augmentation.

    Args:
        mixup: Settings of the draws in timm's ``Mixup``: ``mixup_alpha``, ``cutmix_alpha``, ``cutmix_minmax``,
            ``prob`` and ``switch_prob``.
        seed: Seed of the set.
        num_images: Number of images that partners are drawn from.
        base_alone: Whether extra views are not mixed.
    """

    def __init__(self, mixup: Mapping[str, Any], seed: int, num_images: int, base_alone: bool = False) -> None:
        self.mixup = Mixup(**mixup, num_classes=2, label_smoothing=0.0)
        self.seed, self.num_images, self.base_alone = seed, num_images, base_alone

    def partner(self, index: int, turn: int) -> int:
        """Return the image that augmentation ``turn`` of an image is mixed with, in its own augmentation ``turn``."""
        seed_sample(self.seed, MIXTURE, index, turn, 0)
        return int(np.random.randint(self.num_images))

    def mix(self, index: int, turn: int, own: Sequence[Any], other: Sequence[Any]) -> tuple[tuple[Tensor, ...], float]:
        """Mix the views of an image, each ``[3, H, W]``, uint8 or normalized, with those of its partner.

        All get the same weight or box. Returns them, and the share of the image itself in the mixed ones.
        """
        count = 1 if self.base_alone else len(own)
        # As channels of one image, what happens to one view happens to the others.
        both = torch.stack([torch.cat([torch.as_tensor(view) for view in views[:count]]) for views in (own, other)])
        seed_sample(self.seed, MIXTURE, index, turn, 1)
        mixed, weights = self.mixup(both.float(), torch.arange(2))
        first = mixed[0] if both.is_floating_point() else mixed[0].round().to(both.dtype)
        rest = (torch.as_tensor(view) for view in own[count:])
        return (*first.chunk(count), *rest), float(weights[0, 0])
