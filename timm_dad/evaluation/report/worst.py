"""The pictures that models get most confidently wrong, read again as the models got them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from timm_dad.common.html_report import ShownPicture, picture_name
from timm_dad.data.images import Frame, LoadedImage
from timm_dad.evaluation.predict import Predictions, part_images
from timm_dad.evaluation.report.figures import Results
from timm_dad.evaluation.suites.suite import Part, Suite
from timm_dad.preview.image import shown_names
from timm_dad.preview.sheet import percent

PICTURES = 4  # per model and suite
MAX_PICTURES = 120  # per report, but at least one per model and suite


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: its place, the true and the predicted class, and the probability of the latter."""

    part: Part
    index: int
    label: int
    predicted: int
    confidence: float


def find_mistakes(suite: Suite, of_parts: Mapping[str, Predictions], count: int) -> list[Mistake]:
    """Find the ``count`` most confident mistakes on a suite, at most one per picture; ties go to the first in the data.

    If several parts show a picture (such as those of a corruption), the most confident mistake on it counts.
    """
    found = [mistake for part in suite.parts for mistake in _of_part(part, of_parts[part.name], count)]
    by_file: dict[str, Mistake] = {}
    for mistake in sorted(found, key=lambda mistake: -mistake.confidence):
        by_file.setdefault(mistake.part.dataset.filename(mistake.index), mistake)
    return list(by_file.values())[:count]


def _of_part(part: Part, predictions: Predictions, count: int) -> Iterator[Mistake]:
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.confidence[wrong], kind='stable')[:count]
    for index in wrong[order].tolist():
        label, predicted = int(predictions.label[index]), int(predictions.predicted[index])
        yield Mistake(part, index, label, predicted, float(predictions.confidence[index]))


def worst_pictures(
    results: Results, suites: Sequence[Suite], frames: Mapping[str, Frame], seed: int
) -> dict[str, dict[str, list[ShownPicture]]]:
    """Read the pictures of the most confident mistakes, by suite and model.

    They are framed and corrupted as the model got them. Attacked pictures are not kept: they are shown as they were
    before the attack.

    Args:
        results: Predictions by model, suite and part.
        suites: The suites of the predictions.
        frames: Resize and crop of each model.
        seed: Seed of the corruptions.

    Raises:
        ValueError: If a picture cannot be read.
    """
    count = max(1, min(PICTURES, MAX_PICTURES // max(1, len(results) * len(suites))))
    shown: dict[str, dict[str, list[ShownPicture]]] = {}
    for suite in suites:
        names = _names(suite)
        shown[suite.name] = {
            model: [
                _show(mistake, suite, names, frames[model], seed)
                for mistake in find_mistakes(suite, of_model[suite.name], count)
            ]
            for model, of_model in results.items()
        }
    return shown


def _show(mistake: Mistake, suite: Suite, names: Sequence[str], frame: Frame, seed: int) -> ShownPicture:
    part, index = mistake.part, mistake.index
    loaded = part_images(frame, suite, part, seed)[index]
    if not isinstance(loaded, LoadedImage):
        raise loaded
    labels = [mistake.label] if part.multi_labels is None else part.multi_labels[index]
    right = ', '.join(names[label] for label in labels)
    wrong = names[mistake.predicted] if mistake.predicted >= 0 else 'none of these classes'
    place = f'{part.name}: ' if len(suite.parts) > 1 else ''
    file = f'{place}{picture_name(part.dataset.filename(index))}'
    lines = (f'predicted: {wrong}, {percent(mistake.confidence)}', f'true: {right}', file)
    picture = Image.fromarray(loaded.pixels.permute(1, 2, 0).numpy())
    return ShownPicture(views={f'{right}, taken for {wrong}': picture}, lines=lines)


def _names(suite: Suite) -> list[str]:
    """Return class names for readers; equal names, such as ImageNet's two cranes, get the data's own name added."""
    names = shown_names(suite.class_names, suite.num_classes)
    own, counted = suite.class_names or names, Counter(names)
    return [name if counted[name] == 1 else f'{name} ({own[label]})' for label, name in enumerate(names)]
