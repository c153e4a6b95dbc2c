"""Suites derived from others: corrupted, attacked, and ImageNet val with fewer classes."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from timm_dad.common.spread import spread
from timm_dad.evaluation.suites.suite import Chosen, FolderImages, Part, Suite

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MadePart(Part):
    """A part derived from another one's images."""

    image_set: str | None = None  # their name, one for all that is made of them: the bootstrap draws them together


@dataclass(frozen=True, kw_only=True)
class CorruptedPart(MadePart):
    """A part whose images are corrupted once they have the model's size, as ImageNet-C was made at 224."""

    corruption: str
    severity: int


@dataclass(frozen=True, kw_only=True)
class AttackedPart(MadePart):
    """A part whose images are attacked."""

    attack: str


def image_set(suite: str, part: str) -> str:
    """Return the name of a part's images."""
    return f'{suite}/{part}'


def corrupted_suites(suite: Suite, names: Sequence[str], severities: Sequence[int]) -> Iterator[Suite]:
    """Yield ``NAME-corrupted`` with the parts ``CORRUPTION/SEVERITY``; one suite for each part of a suite with several.

    Not ``NAME-c``: ``imagenet-c`` is the published one, whose files differ.
    """
    for part in suite.parts:
        name = suite.name if len(suite.parts) == 1 else f'{suite.name}-{part.name}'
        parts = tuple(
            CorruptedPart(
                name=f'{corruption}/{severity}', corruption=corruption, severity=severity,
                dataset=part.dataset, multi_labels=part.multi_labels, image_set=image_set(suite.name, part.name),
            )
            for corruption in names
            for severity in severities
        )  # fmt: skip
        yield replace(suite, name=f'{name}-corrupted', kind='corruption', parts=parts)


def attacked_suites(suite: Suite, attacks: Sequence[str], max_images: int | None = None) -> Iterator[Suite]:
    """Yield ``NAME-ATTACK`` with the suite's own parts.

    An attack needs one label per image, among the model's own classes: suites with several labels, or with groups of
    classes, are skipped with a warning. ``max_images`` of a part are attacked, spread evenly; all by default.
    """
    if attacks and (suite.groups is not None or any(part.multi_labels is not None for part in suite.parts)):
        _logger.warning('%s is not attacked: its images do not have exactly one label of the model', suite.name)
        return
    for attack in attacks:
        parts = tuple(_attacked_part(suite, part, attack, max_images) for part in suite.parts)
        yield replace(suite, name=f'{suite.name}-{attack}', kind='adversarial', parts=parts)


def _attacked_part(suite: Suite, part: Part, attack: str, max_images: int | None) -> AttackedPart:
    dataset, name = part.dataset, image_set(suite.name, part.name)
    if max_images is not None and max_images < len(dataset):  # a set of its own, the same for all attacks
        dataset, name = Chosen(dataset, spread(len(dataset), max_images)), f'{name}/{max_images}'
    return AttackedPart(name=part.name, dataset=dataset, image_set=name, attack=attack)


def clean_counterparts(suites: Sequence[Suite]) -> Iterator[Suite]:
    """Yield ``imagenet-a-clean`` and ``imagenet-r-clean``: ImageNet val with A's or R's 200 classes, if both exist.

    They are the reference for the accuracy on A and R; the files are those of ``imagenet``.

    Source: huggingface/pytorch-image-models, results/README.md.
    """
    named = {suite.name: suite for suite in suites}
    for name in ('imagenet-a', 'imagenet-r'):
        if 'imagenet' in named and name in named:
            (val,) = named['imagenet'].parts
            labels = {wnid: label for label, wnid in enumerate(named[name].class_names or ())}
            part = Part(name='val', dataset=FolderImages(val.dataset.root, labels))
            yield replace(named[name], name=f'{name}-clean', kind='clean', parts=(part,))
