"""Evaluate models on suites, and keep every part as soon as it is whole."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from timm_dad.common.extras import require_extra
from timm_dad.evaluation.adversarial import check_classes
from timm_dad.evaluation.changed_suites import AttackedPart, CorruptedPart
from timm_dad.evaluation.corruptions import MIN_SIZE
from timm_dad.evaluation.model_specs import ModelSpec
from timm_dad.evaluation.models import EvalModel, ModelOptions, open_model, suite_classes
from timm_dad.evaluation.predict import EvalConfig, evaluate_part
from timm_dad.evaluation.prediction_store import PredictionStore
from timm_dad.evaluation.predictions import Predictions
from timm_dad.evaluation.suite_data import Suite
from timm_dad.teachers.spec import DataClasses

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``evaluate`` found.

    Args:
        results: Predictions by model, suite and part; in the main process, and nothing in the others.
        timm_models: timm's name and the input size of those models that have the weights that timm publishes.
        notes: Sentences to read beside the figures.
    """

    results: dict[str, dict[str, dict[str, Predictions]]] = field(default_factory=dict)
    timm_models: dict[str, tuple[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One model on suites of the same classes."""

    spec: ModelSpec
    data: DataClasses
    suites: tuple[Suite, ...]
    fingerprint: str


class _Opener:
    """Opens models for classes, and keeps the last one."""

    def __init__(self, options: ModelOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.last: tuple[tuple[ModelSpec, DataClasses], EvalModel] | None = None

    def __call__(self, spec: ModelSpec, data: DataClasses) -> EvalModel:
        key = spec, data
        if self.last is None or self.last[0] != key:
            self.last = None  # free it first
            self.last = key, open_model(spec, data, self.options, self.device)
        return self.last[1]


def evaluate(
    models: Sequence[ModelSpec],
    suites: Sequence[Suite],
    config: EvalConfig,
    options: ModelOptions,
    output: Path,
    device: torch.device,
) -> Evaluation:
    """Evaluate all models on all suites; parts that are in ``output`` already, made the same way, are taken from there.

    A model is opened once for the suites of the same classes to check them and, where something is left to do, once
    more.

    Args:
        models: The models.
        suites: The suites.
        config: How they are evaluated.
        options: What holds for all models.
        output: Folder of the results.
        device: Where the models run.

    Returns:
        Predictions, in the main process, and notes.

    Raises:
        ValueError: If a model cannot do a suite: before the first is evaluated.
    """
    store = PredictionStore(output / 'predictions')
    opener, evaluation = _Opener(options, device), Evaluation()
    groups = _by_classes(suites, options)
    jobs = [_check(spec, data, of_group, opener, evaluation) for spec in models for data, of_group in groups]
    found: dict[str, dict[str, dict[str, Predictions]]] = {}
    for job in jobs:
        for suite in job.suites:
            found.setdefault(job.spec.name, {})[suite.name] = _evaluate_suite(job, suite, opener, store, config)
    if PartialState().is_main_process:
        for name, of_model in found.items():
            evaluation.results[name] = {suite.name: of_model[suite.name] for suite in suites}
    return evaluation


def _by_classes(suites: Sequence[Suite], options: ModelOptions) -> list[tuple[DataClasses, tuple[Suite, ...]]]:
    groups: list[tuple[DataClasses, tuple[Suite, ...]]] = []
    for suite in suites:
        data = suite_classes(suite, options)
        for number, (known, of_group) in enumerate(groups):
            if known == data:
                groups[number] = known, (*of_group, suite)
                break
        else:
            groups.append((data, (suite,)))
    return groups


def _check(
    spec: ModelSpec, data: DataClasses, suites: tuple[Suite, ...], opener: _Opener, evaluation: Evaluation
) -> _Job:
    model = opener(spec, data)
    for suite in suites:
        check_model(model, suite, data.num_classes)
        if note := resize_note(model, suite):
            _logger.warning(note)
            evaluation.notes.append(note)
    if model.timm_name:
        evaluation.timm_models[spec.name] = model.timm_name, model.preprocess.input_size[-1]
    return _Job(spec=spec, data=data, suites=suites, fingerprint=model.fingerprint)


def check_model(model: EvalModel, suite: Suite, num_classes: int) -> None:
    """Check that a model can do a suite.

    Raises:
        ValueError: If its input is too small for corruptions, or it has too few classes for an attack.
        ImportError: If the extra ``eval`` is needed and not installed.
    """
    height, width = model.preprocess.input_size
    part = suite.parts[0]
    if isinstance(part, CorruptedPart):
        require_extra('imagecorruptions', 'eval')
        if min(height, width) < MIN_SIZE:
            raise ValueError(
                f'--corrupt needs images of {MIN_SIZE} pixels a side or more, and {model.name} takes '
                f'{width} x {height}: leave one of them out'
            )
    if isinstance(part, AttackedPart):
        if part.attack == 'autoattack':
            require_extra('pyautoattack', 'eval')
        try:
            check_classes(part.attack, num_classes)
        except ValueError as error:
            raise ValueError(f'--attack: suite {suite.name}: {error}') from error


def resize_note(model: EvalModel, suite: Suite) -> str | None:
    """What a reader must know where images that should go in as they are do not: the network's size is another one."""
    height, width = model.preprocess.input_size
    if suite.resize or model.uncut_network is not None:
        return None
    size = suite.parts[0].dataset[0][0].size
    if size == (width, height):
        return None
    return (
        f'{model.name} takes images of {width} x {height} alone: those of {suite.name}, {size[0]} x {size[1]}, are '
        'resized for it.'
    )


def _evaluate_suite(
    job: _Job, suite: Suite, opener: _Opener, store: PredictionStore, config: EvalConfig
) -> dict[str, Predictions]:
    name, slug = job.spec.name, job.spec.slug
    is_main = PartialState().is_main_process
    kept: list[Any] = [None]
    facts = {}
    if is_main:
        precision = opener.options.precision
        facts = {part.name: store.facts(job.fingerprint, suite, part, config, precision) for part in suite.parts}
        kept = [{part: store.load(slug, suite.name, part, of) for part, of in facts.items()}]
        there = sum(predictions is not None for predictions in kept[0].values())
        if there:
            _logger.info('%s on %s: %d of %d parts are there', name, suite.name, there, len(facts))
    broadcast_object_list(kept)
    found: dict[str, Predictions] = {}
    for part in suite.parts:
        predictions = kept[0][part.name]
        if predictions is None:
            predictions = evaluate_part(opener(job.spec, job.data), suite, part, config, opener.device)
            if is_main:
                store.save(slug, suite.name, part.name, predictions, facts[part.name])
        found[part.name] = predictions
    top1 = 100 * sum(float(predictions.correct.mean()) for predictions in found.values()) / len(found)
    parts = f', mean of {len(found)} parts' if len(found) > 1 else ''
    _logger.info('%s on %s: top-1 %.2f%s', name, suite.name, top1, parts)
    return found
