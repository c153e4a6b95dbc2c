"""The second image of a pair: a DAD view that was made before, or the picture itself.

The paper's released generator makes views once (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

NOTE: each belongs to its image and its label. The released trainer pairs none, and reads labels by the text order of
folders named ``0`` to ``999``, which makes 988 of 1000 wrong.
"""

from typing import Any

from PIL import Image

from timm_dad.dad_sets.logits import encode_target
from timm_dad.dad_sets.match import check_data
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.table import key_of
from timm_dad.data.images import Source
from timm_dad.data.pictures import DataError


class SetViews:
    """The extra view is a random one from a DAD set of ``source``; ``coded`` targets are for ``StoredLogits``.

    Raises:
        ValueError: If the set was made from other data; the message says what differs.
    """

    def __init__(self, dad_set: DADSet, source: Source, coded: bool = False) -> None:
        check_data(dad_set, source)
        self.dad_set, self.source, self.coded = dad_set, source, coded
        self.pictures = PictureIndex(dad_set) if source.streams else None

    def __call__(self, index: int | None, image: Image.Image, label: Any) -> tuple[Image.Image, Any]:
        """Return a view, and the label or the label coded by ``encode_target``."""
        if index is None:
            assert self.pictures is not None
            index = self.pictures.find(image, self.source.kept_label(label))
        view = self.dad_set.draw_view()
        second = self.dad_set.image(index, view, self.source.name(index, label))
        if not self.coded:
            return second, label
        num_classes: int = self.dad_set.settings['data']['num_classes']
        return second, encode_target(index, view, self.dad_set.num_views, label, num_classes)


class PictureIndex:
    """Locates pictures of a stream, which arrive in any order, in a DAD set by the hash of their pixels."""

    def __init__(self, dad_set: DADSet) -> None:
        self.root = dad_set.root
        keys, labels = dad_set.table[:, :2].numpy().T
        self.order = keys.argsort(kind='stable')
        self.keys, self.labels = keys[self.order], labels[self.order]

    def find(self, image: Image.Image, label: int) -> int:
        """Return the index of a picture with this label in the set; ``DataError`` if missing or of another label."""
        key = key_of(Source.of_pixels(image, label).sha256)
        first, last = int(self.keys.searchsorted(key, 'left')), int(self.keys.searchsorted(key, 'right'))
        for place in range(first, last):
            if self.labels[place] == label:
                return int(self.order[place])
        if first < last:
            raise DataError(
                f'--dad-dir {self.root}: a picture of class {label} has class {self.labels[first]} in the set, which '
                'was made from other data or with another --class-map'
            )
        raise DataError(
            f'--dad-dir {self.root}: a picture of class {label}, {image.width} x {image.height}, is not in the set: it '
            'was made from other data, or the decoding has changed; make the set again'
        )
