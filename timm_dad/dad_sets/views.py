"""What comes beside an image in a pair: a DAD view that was made before, or the picture itself.

Views made once are the paper's own mode (Zhou et al. 2023, arXiv:2311.01441, section 3.3).
"""

import random
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from timm_dad.dad_sets.logits import encode_target
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source

_SIDES: tuple[Literal['left', 'right'], ...] = ('left', 'right')


class CachedViews:
    """The second view is one of those that ``--dad-cache`` keeps in memory, drawn anew at every access.

    Args:
        dad_images: ``[N, K, H, W, 3]`` uint8, in the order of the data set.
        num_images: ``N``.

    Raises:
        ValueError: If there is not one row of DAD images for every image.
    """

    dad_set = None

    def __init__(self, dad_images: Tensor, num_images: int) -> None:
        if len(dad_images) != num_images:
            raise ValueError(f'there must be DAD images for all {num_images} images, got {len(dad_images)}')
        self.dad_images = dad_images.numpy()

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """A view and the label."""
        variants = self.dad_images[index]
        return Image.fromarray(variants[random.randrange(len(variants))]), label


class SetViews:
    """The second view is one of a DAD set, drawn anew at every access.

    Args:
        dad_set: The set.
        source: The data that it was made of, for names.
        coded: Targets say which view was drawn, for ``StoredLogits``.
    """

    def __init__(self, dad_set: DADSet, source: Source, coded: bool = False) -> None:
        self.dad_set = dad_set
        self.source = source
        self.coded = coded
        self.pictures = PictureIndex(dad_set) if source.streams else None

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """A view, and the label or what ``encode_target`` makes of it."""
        if index is None:
            assert self.pictures is not None
            index = self.pictures.find(image, label)
        view = self.dad_set.draw_view()
        second = self.dad_set.image(index, view, self.source.name(index, label))
        return second, encode_target(self.dad_set, index, view, label) if self.coded else label


class PictureIndex:
    """Where in a DAD set the pictures of a stream are, which come in any order: by the hash of their pixels.

    Args:
        dad_set: A set that was made of a stream.
    """

    def __init__(self, dad_set: DADSet) -> None:
        self.root = dad_set.root
        keys = np.zeros(dad_set.num_images, np.uint64)
        labels = np.zeros(dad_set.num_images, np.int64)
        for manifest in dad_set.manifests():
            for item in manifest.items:
                keys[item['index']] = _key(item['source_sha256'])
                labels[item['index']] = item['label']
        self.order = keys.argsort(kind='stable')
        self.keys, self.labels = keys[self.order], labels[self.order]

    def find(self, image: Image.Image, label: int) -> int:
        """Index in the set of a picture with this label.

        Raises:
            ValueError: If the set has no such picture, or has it with another label.
        """
        key = _key(Source.of_pixels(image, label).sha256)
        first, last = (int(self.keys.searchsorted(key, side)) for side in _SIDES)
        for place in range(first, last):
            if self.labels[place] == label:
                return int(self.order[place])
        if first < last:
            raise ValueError(
                f'--dad-dir {self.root}: a picture of class {label} is of class {self.labels[first]} in the set, which '
                'was made of other data or with another --class-map'
            )
        raise ValueError(
            f'--dad-dir {self.root}: a picture of class {label}, {image.width} x {image.height}, is not in the set: it '
            'was made of other data, or they are decoded in another way since; make the set again'
        )


def _key(sha256: str) -> np.uint64:
    return np.uint64(int(sha256[:16], 16))
