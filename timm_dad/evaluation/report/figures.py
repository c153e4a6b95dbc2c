"""Figures of whole suites from those of their parts: means over corruptions, mCE, mean OOD, effective robustness.

Part ``*`` stands for the whole suite, ``gaussian_noise/*`` for a corruption over its severities, and ``*/3`` for a
severity over the corruptions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from zlib import crc32

import numpy as np

from timm_dad.evaluation.corruptions import SEVERITIES
from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.report.bootstrap import Estimate, combine, estimate_figures, mean_estimate
from timm_dad.evaluation.report.metrics import ALEXNET_ERRORS, corruption_error, relative_corruption_error
from timm_dad.evaluation.suites.changed import MadePart, image_set
from timm_dad.evaluation.suites.layouts import V2_VARIANTS
from timm_dad.evaluation.suites.suite import Part, Suite

# Predictions by model, suite and part, and figures by model, suite, part and name.
Results = Mapping[str, Mapping[str, Mapping[str, Predictions]]]
Figures = dict[str, Estimate]
SuiteFigures = dict[str, Figures]

WHOLE = '*'
MEAN_OOD = 'mean-ood'
# The part that papers and timm mean by the suite's name; other suites are the mean of their parts.
HEADLINE_PARTS = {'imagenet-v2': 'matched-frequency'}
# The suite on which AlexNet's clean error was measured.
ALEXNET_CLEAN = 'imagenet'
# Clean top-1 above which effective robustness is defined, by shifted and clean suite: ImageNet-A consists of errors
# of a ResNet-50, which bends accuracy there. modestyachts/imagenet-testbed, plotting/paper_imagenet_a.py.
BASELINE_ABOVE = {('imagenet-a', 'imagenet'): 76.13, ('imagenet-a', 'imagenet-a-clean'): 91.86}
_WHOLE_IMAGENET_C = [f'{corruption}/{severity}' for corruption in ALEXNET_ERRORS for severity in SEVERITIES]


def estimate_parts(
    results: Results, suites: Sequence[Suite], resamples: int, seed: int
) -> dict[str, dict[str, SuiteFigures]]:
    """Estimate top-1, top-5 and calibration error of all models on all parts; ``ValueError`` if their images differ.

    All models get the same resamples. So do the parts of a corruption suite, and a suite and its changed versions
    (``--corrupt``, ``--attack``), because they show the same images.
    """
    figures: dict[str, dict[str, SuiteFigures]] = {
        model: {suite.name: {part.name: {} for part in suite.parts} for suite in suites} for model in results
    }
    image_sets: dict[str, list[tuple[str, str, str]]] = {}
    for suite in suites:
        for part in suite.parts:
            of_first_model = next(iter(results.values()))[suite.name][part.name]
            places = image_sets.setdefault(_image_set(suite, part, of_first_model), [])
            places += ((model, suite.name, part.name) for model in results)
    for name, places in image_sets.items():
        predictions = [results[model][suite_name][part_name] for model, suite_name, part_name in places]
        of_set = estimate_figures(predictions, name, resamples, seed)
        for (model, suite_name, part_name), estimates in zip(places, of_set, strict=True):
            figures[model][suite_name][part_name].update(estimates)
    return figures


def _image_set(suite: Suite, part: Part, predictions: Predictions) -> str:
    if isinstance(part, MadePart):
        return part.image_set or image_set(suite.name, part.name)
    # Corrupted parts with missing images are a different set.
    shared = f'{crc32(predictions.label.tobytes()):08x}' if suite.kind == 'corruption' else part.name
    return image_set(suite.name, shared)


def missing_parts(suite: Suite) -> list[str]:
    """Return the missing parts of a suite: of ImageNet-C's 15 x 5, if it has any of them, or ImageNet-V2's variants."""
    there = [part.name for part in suite.parts]
    if suite.name == 'imagenet-v2':
        return [variant for variant in V2_VARIANTS if variant not in there]
    is_imagenet_c = suite.kind == 'corruption' and not set(there).isdisjoint(_WHOLE_IMAGENET_C)
    return [part for part in _WHOLE_IMAGENET_C if part not in there] if is_imagenet_c else []


def _error(top1: Estimate) -> Estimate:
    return combine(lambda value: 100 - value, top1)


def _mean_figures(parts: Sequence[Figures]) -> Figures:
    return {name: mean_estimate([part[name] for part in parts]) for name in ('top1', 'top5', 'ece')}


def add_whole(suite: Suite, figures: SuiteFigures, clean: Estimate | None) -> None:
    """Add the suite as a whole, and each corruption and severity, to one model's ``figures`` of its parts.

    A corruption suite gets ``mce_unnormalized``, the mean error of ImageNet-C's 15 x 5 parts. ImageNet-C itself also
    gets ``mce`` and, with ``clean`` (top-1 on ImageNet val, where AlexNet's clean error was measured),
    ``relative_mce``. If parts are missing or differ, the suite gets ``mean_error`` of the parts that exist instead.
    """
    if suite.kind != 'corruption':
        headline = HEADLINE_PARTS.get(suite.name)
        figures[WHOLE] = dict(figures[headline]) if headline in figures else _mean_figures(list(figures.values()))
        return
    by_corruption: dict[str, list[Figures]] = {}
    by_severity: dict[str, list[Figures]] = {}
    for part, estimates in figures.items():
        corruption, _, severity = part.rpartition('/')
        by_corruption.setdefault(corruption, []).append(estimates)
        by_severity.setdefault(severity, []).append(estimates)
    means = {corruption: _mean_figures(parts) for corruption, parts in by_corruption.items()}
    total = _mean_figures(list(means.values()))
    errors = {corruption: _error(mean['top1']) for corruption, mean in means.items()}
    whole = set(_WHOLE_IMAGENET_C) == set(figures)
    total['mce_unnormalized' if whole else 'mean_error'] = mean_estimate(list(errors.values()))
    if whole and suite.normalizer == 'alexnet':
        _add_normalized(means, total, errors, clean)
    figures.update({f'{corruption}/{WHOLE}': mean for corruption, mean in means.items()})
    of_all = {severity: parts for severity, parts in by_severity.items() if len(parts) == len(means)}
    figures.update({f'{WHOLE}/{severity}': _mean_figures(parts) for severity, parts in of_all.items()})
    figures[WHOLE] = total


def have_same_classes(of_model: Mapping[str, Mapping[str, Predictions]], *suites: str) -> bool:
    """Return whether all parts of these suites have the same classes."""
    classes = {np.unique(part.label).tobytes() for suite in suites for part in of_model[suite].values()}
    return len(classes) == 1


def _add_normalized(
    means: dict[str, Figures], total: Figures, errors: Mapping[str, Estimate], clean: Estimate | None
) -> None:
    for name, error in errors.items():
        means[name]['ce'] = combine(partial(corruption_error, corruption=name), error)
        if clean is not None:
            relative = partial(relative_corruption_error, corruption=name)
            means[name]['relative_ce'] = combine(relative, error, _error(clean), images=error.images)
    total['mce'] = mean_estimate([mean['ce'] for mean in means.values()])
    if clean is not None:
        total['relative_mce'] = mean_estimate([mean['relative_ce'] for mean in means.values()])


def clean_suite(suites: Sequence[Suite], of: str) -> str | None:
    """Return the name of the suite that gives the clean accuracy for the suite ``of``, if there is one.

    For ImageNet-A and -R it is ImageNet val with their classes (``imagenet-a-clean``), else ``imagenet`` or the first
    clean suite.
    """
    names = [suite.name for suite in suites if suite.kind == 'clean']
    for name in (f'{of}-clean', 'imagenet'):
        if name in names:
            return name
    return next((name for name in names if name not in ('imagenet-a-clean', 'imagenet-r-clean')), None)
