"""Evaluate models on suites, and store every part as soon as it is complete."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from timm_dad.common.extras import require_extra
from timm_dad.data.images import Frame
from timm_dad.evaluation.attacks import check_classes
from timm_dad.evaluation.corruptions import MIN_SIZE
from timm_dad.evaluation.models import EvalModel, ModelOptions, ModelSpec, open_model, suite_classes
from timm_dad.evaluation.predict import EvalConfig, Predictions, evaluate_part
from timm_dad.evaluation.store import PredictionStore
from timm_dad.evaluation.suites.changed import AttackedPart, CorruptedPart
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.flags.rules import under_flag
from timm_dad.teachers.spec import DataClasses

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of ``evaluate``."""

    # By model, suite and part.
    results: dict[str, dict[str, dict[str, Predictions]]] = field(default_factory=dict)
    # timm's name, and the input size, of the models that have the weights that timm publishes.
    timm_models: dict[str, tuple[str, int]] = field(default_factory=dict)
    # How each model takes images.
    frames: dict[str, Frame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Opener:
    """Opens models for classes, and keeps the last one."""

    def __init__(self, options: ModelOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.last: tuple[tuple[ModelSpec, DataClasses], EvalModel] | None = None

    def __call__(self, spec: ModelSpec, data: DataClasses) -> EvalModel:
        if self.last is None or self.last[0] != (spec, data):
            self.last = None  # free it first
            with under_flag('--model'):
                self.last = (spec, data), open_model(spec, data, self.options, self.device)
        return self.last[1]


def evaluate(
    models: Sequence[ModelSpec],
    suites: Sequence[Suite],
    config: EvalConfig,
    options: ModelOptions,
    output: Path,
    device: torch.device,
) -> Evaluation:
    """Evaluate all models on all suites; parts already in ``output``, made the same way, are reused.

    A model is opened for suites with the same classes to check them and, if something is left to do, once more:
    a ``ValueError`` for a suite it cannot handle comes before the first evaluation.
    """
    store, opener, evaluation = PredictionStore(output / 'predictions'), _Opener(options, device), Evaluation()
    classes = {suite.name: suite_classes(suite, options) for suite in suites}
    known = list(classes.values())
    jobs = []
    for spec in models:
        # Suites of the same classes one after another: they share the opened model.
        for suite in sorted(suites, key=lambda suite: known.index(classes[suite.name])):
            data = classes[suite.name]
            model = opener(spec, data)
            check_model(model, suite, data.num_classes)
            evaluation.frames[spec.name] = model.frame
            if note := resize_note(model, suite):
                _logger.warning(note)
                evaluation.notes.append(note)
            if model.timm_name:
                evaluation.timm_models[spec.name] = model.timm_name, model.frame.size[-1]
            jobs.append((spec, data, suite, model.fingerprint))
    for spec, data, suite, fingerprint in jobs:
        facts = {}
        if PartialState().is_main_process:
            facts = {
                part.name: store.facts(fingerprint, suite, part, config, options.precision) for part in suite.parts
            }
        found = _evaluate_suite(spec, data, suite, facts, opener, store, config)
        evaluation.results.setdefault(spec.name, {})[suite.name] = found
    return evaluation


def check_model(model: EvalModel, suite: Suite, num_classes: int) -> None:
    """Check that a model's input is large enough for a suite's corruptions, and its classes enough for its attack."""
    height, width = model.frame.size
    part = suite.parts[0]
    if isinstance(part, CorruptedPart):
        require_extra('imagecorruptions', 'eval')
        if min(height, width) < MIN_SIZE:
            raise ValueError(
                f'suite {suite.name}: corruptions need images of at least {MIN_SIZE} pixels per side, but {model.name} '
                f'takes {width} x {height}: leave one of them out'
            )
    if isinstance(part, AttackedPart):
        if part.attack == 'autoattack':
            require_extra('pyautoattack', 'eval')
        with under_flag(f'suite {suite.name}:'):
            check_classes(part.attack, num_classes)


def resize_note(model: EvalModel, suite: Suite) -> str | None:
    """Return a note if images that should not be resized are, because the network has another size."""
    height, width = model.frame.size
    if suite.resize or model.uncut_network is not None:
        return None
    size = suite.parts[0].dataset[0][0].size
    if size == (width, height):
        return None
    return (
        f'{model.name} takes only images of {width} x {height}: those of {suite.name}, {size[0]} x {size[1]}, are '
        'resized for it.'
    )


def _evaluate_suite(
    spec: ModelSpec,
    data: DataClasses,
    suite: Suite,
    facts: dict[str, Any],
    opener: _Opener,
    store: PredictionStore,
    config: EvalConfig,
) -> dict[str, Predictions]:
    """Return predictions of all parts; the main process, which has the facts, loads and stores them."""
    kept: list[Any] = [{part: store.load(spec.slug, suite.name, part, of) for part, of in facts.items()}]
    broadcast_object_list(kept)
    there = sum(predictions is not None for predictions in kept[0].values())
    if there:
        _logger.info('%s on %s: %d of %d parts exist', spec.name, suite.name, there, len(suite.parts))
    found: dict[str, Predictions] = {}
    for part in suite.parts:
        predictions = kept[0][part.name]
        if predictions is None:
            predictions = evaluate_part(opener(spec, data), suite, part, config, opener.device)
            if part.name in facts:
                store.save(spec.slug, suite.name, part.name, predictions, facts[part.name])
        found[part.name] = predictions
    top1 = 100 * sum(float(predictions.correct.mean()) for predictions in found.values()) / len(found)
    parts = f', mean of {len(found)} parts' if len(found) > 1 else ''
    _logger.info('%s on %s: top-1 %.2f%s', spec.name, suite.name, top1, parts)
    return found
