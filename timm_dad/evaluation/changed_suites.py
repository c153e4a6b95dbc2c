"""Suites made of others: corrupted (``--corrupt``), attacked (``--attack``), and ImageNet val with fewer classes."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from timm_dad.evaluation.suite_data import FolderImages, Part, Suite

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MadePart(Part):
    """A part made of another one's images.

    Args:
        image_set: Name of these images, the same for all that is made of them: the bootstrap draws them together.
    """

    image_set: str | None = None


@dataclass(frozen=True, kw_only=True)
class CorruptedPart(MadePart):
    """A part whose images are corrupted once they have the model's size, as ImageNet-C was made at 224.

    Args:
        corruption: One of ``corruptions.CORRUPTIONS``.
        severity: 1 to 5.
    """

    corruption: str
    severity: int


@dataclass(frozen=True, kw_only=True)
class AttackedPart(MadePart):
    """A part whose images are attacked.

    Args:
        attack: One of ``adversarial.ATTACKS``.
    """

    attack: str


class SpreadSubset(Dataset[tuple[Any, Any]]):
    """Some images of a data set, spread evenly.

    Args:
        dataset: The data set.
        count: How many; all if there are fewer.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """One image and its label."""
        image, label = self.dataset[int(self.indices[index])]
        return image, label

    def filename(self, index: int, *, absolute: bool = False) -> str:
        """The image's file, as the data set names it."""
        return str(self.dataset.filename(int(self.indices[index]), absolute=absolute))


def image_set(suite: str, part: str) -> str:
    """Name of the images of a part."""
    return f'{suite}/{part}'


def corrupted_suites(suite: Suite, names: Sequence[str], severities: Sequence[int]) -> Iterator[Suite]:
    """``NAME-corrupted`` with the parts ``CORRUPTION/SEVERITY``; of a suite of several parts one suite each.

    Not ``NAME-c``: ``imagenet-c`` is the published one, whose files are others.
    """
    for part in suite.parts:
        name = suite.name if len(suite.parts) == 1 else f'{suite.name}-{part.name}'
        parts = tuple(
            CorruptedPart(
                name=f'{corruption}/{severity}',
                dataset=part.dataset,
                multi_labels=part.multi_labels,
                image_set=image_set(suite.name, part.name),
                corruption=corruption,
                severity=severity,
            )
            for corruption in names
            for severity in severities
        )
        yield replace(suite, name=f'{name}-corrupted', kind='corruption', parts=parts)


def attacked_suites(suite: Suite, attacks: Sequence[str], max_images: int | None = None) -> Iterator[Suite]:
    """``NAME-ATTACK`` with the suite's own parts.

    An attack needs one label an image, among the model's own classes: suites with several labels, or with groups of
    classes, are left out, and named.

    Args:
        suite: The suite.
        attacks: Of ``adversarial.ATTACKS``.
        max_images: Images of a part, spread evenly; all by default.
    """
    if attacks and (suite.groups is not None or any(part.multi_labels is not None for part in suite.parts)):
        _logger.warning('--attack: %s is left out, its images have no one label of the model', suite.name)
        return
    for attack in attacks:
        parts = tuple(
            AttackedPart(
                name=part.name,
                dataset=part.dataset if max_images is None else SpreadSubset(part.dataset, max_images),
                image_set=_attacked_set(suite, part, max_images),
                attack=attack,
            )
            for part in suite.parts
        )
        yield replace(suite, name=f'{suite.name}-{attack}', kind='adversarial', parts=parts)


def _attacked_set(suite: Suite, part: Part, max_images: int | None) -> str:
    name = image_set(suite.name, part.name)
    # Some of the images are a set of their own, the same for all attacks.
    return name if max_images is None or max_images >= len(part.dataset) else f'{name}/{max_images}'


def clean_counterparts(suites: Sequence[Suite]) -> Iterator[Suite]:
    """``imagenet-a-clean`` and ``imagenet-r-clean``: ImageNet val with the 200 classes of A or R, where both are there.

    What accuracy on A and R is held against; the files are those of ``imagenet``.

    Source: huggingface/pytorch-image-models, results/README.md.
    """
    named = {suite.name: suite for suite in suites}
    for name in ('imagenet-a', 'imagenet-r'):
        if 'imagenet' in named and name in named:
            (val,) = named['imagenet'].parts
            labels = {wnid: label for label, wnid in enumerate(named[name].class_names or ())}
            part = Part(name='val', dataset=FolderImages(val.dataset.root, labels))
            yield replace(named[name], name=f'{name}-clean', kind='clean', parts=(part,))
