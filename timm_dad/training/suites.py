"""Suites for a student in training: which of its classes they have, and where its figures go."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import nn

from timm_dad.data.images import Frame
from timm_dad.evaluation.models import EvalModel
from timm_dad.evaluation.predict import EvalConfig, Predictions, evaluate_part
from timm_dad.evaluation.report.figures import HEADLINE_PARTS, MEAN_OOD, Results
from timm_dad.evaluation.report.plots import write_plots
from timm_dad.evaluation.report.write import build_report, write_report
from timm_dad.evaluation.suites.open import open_suites
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.flags.rules import under_flag
from timm_dad.training.on_pixels import FLAG, resize_notes

COLUMNS = ('epoch', 'model', 'suite', 'top1', 'top5')

_logger = logging.getLogger(__name__)

# Top-1 and top-5, in percent, by model and suite.
SuiteResults = dict[str, dict[str, tuple[float, float]]]


def open_eval_suites(texts: Sequence[str]) -> list[Suite]:
    """Open the suites of ``--eval-suites``.

    Raises:
        ValueError: If one is not there, not as it should be, or called as the report calls its mean.
    """
    if MEAN_OOD in (text.partition('=')[0] for text in texts):
        raise ValueError(f'{FLAG}: the report calls its mean {MEAN_OOD}: give another NAME')
    with under_flag(FLAG):
        suites, missing = open_suites(texts)
    if missing:
        name, _, path = missing[0].partition('=')
        raise ValueError(f'{FLAG} {name}: no images for split validation: there is no folder {path}')
    return suites


def match_suite(suite: Suite, num_classes: int, class_names: Sequence[str] | None) -> list[int] | None:
    """Which of a student's classes the suite's are.

    Args:
        suite: The suite.
        num_classes: Classes of the student.
        class_names: Names of its training data's classes, if they have any; 1000 without names are ImageNet's.

    Returns:
        The student's output of each class of the suite; ``None`` if they are the same.

    Raises:
        ValueError: If the student does not know them.
    """
    imagenet = list(ImageNetInfo().label_names())
    names = imagenet if suite.groups is not None else suite.class_names
    count = num_classes if names is None else len(names)
    known = class_names or (imagenet if num_classes == len(imagenet) else None)
    if names is None or known is None:
        if count != num_classes:
            raise ValueError(_wrong_count(suite, num_classes, count))
        return None
    position = {name: index for index, name in enumerate(known)}
    missing = [name for name in names if name not in position]
    if missing and count != num_classes:
        raise ValueError(_wrong_count(suite, num_classes, count))
    if missing:
        raise ValueError(f'{FLAG} {suite.name}: data must have classes of the training data; {missing[:4]} are none')
    index = [position[name] for name in names]
    return None if index == list(range(num_classes)) else index


def _wrong_count(suite: Suite, num_classes: int, count: int) -> str:
    return (
        f'{FLAG} {suite.name}: data must have as many classes as --num-classes, {num_classes}, got {count} (or classes '
        'of the training data alone)'
    )


def evaluate_on_suites(
    models: Mapping[str, nn.Module],
    suites: Sequence[Suite],
    indices: Mapping[str, list[int] | None],
    frame: Frame,
    config: EvalConfig,
    device: torch.device,
    *,
    all_parts: bool = True,
) -> dict[str, dict[str, dict[str, Predictions]]]:
    """Evaluate networks of the same classes on suites; all processes take part, and all get the answers.

    Args:
        models: Networks on [0, 1] pixels, by name.
        suites: The suites.
        indices: Of each suite, what ``match_suite`` says.
        frame: How images are framed, for all networks.
        config: Batches and workers.
        device: Where the networks are.
        all_parts: Leave out no part; else of a suite that has a part that goes by its name that one alone.

    Returns:
        Predictions by model, suite and part.
    """
    results: dict[str, dict[str, dict[str, Predictions]]] = {label: {} for label in models}
    for label, network in models.items():
        network.eval()
        for suite in suites:
            model = EvalModel(name=label, network=_masked(network, indices[suite.name]), frame=frame)
            named = [part for part in suite.parts if part.name == HEADLINE_PARTS.get(suite.name)]
            parts = suite.parts if all_parts or not named else named
            results[label][suite.name] = {
                part.name: evaluate_part(model, suite, part, config, device) for part in parts
            }
    return results


def _masked(network: nn.Module, index: list[int] | None) -> Any:
    return network if index is None else lambda x_pix: network(x_pix)[:, index]


def accuracies(results: Results) -> SuiteResults:
    """Top-1 and top-5; of a suite of several parts those of the part that goes by its name, or their mean.

    Args:
        results: Of ``evaluate_on_suites``.
    """
    found: SuiteResults = {}
    for label, of_model in results.items():
        found[label] = {}
        for suite, parts in of_model.items():
            chosen = [part for name, part in parts.items() if name == HEADLINE_PARTS.get(suite)] or parts.values()
            top1, top5 = (
                100 * sum(float(getattr(one, name).mean()) for one in chosen) / len(chosen)
                for name in ('correct', 'correct5')
            )
            found[label][suite] = top1, top5
    return found


def write_suite_report(
    results: Results, suites: Sequence[Suite], folder: Path, size: tuple[int, int] | None = None
) -> list[Path]:
    """Write the report of ``timm-dad evaluate``, and its plots where matplotlib is installed.

    Args:
        results: Of ``evaluate_on_suites``.
        suites: The suites.
        folder: Where to.
        size: Of ``fixed_size``.

    Returns:
        The files.
    """
    report = build_report(results, suites)
    report['notes'] += resize_notes(suites, size)
    files = write_report(report, folder)
    try:
        return files + write_plots(report, results, suites, folder)
    except ImportError as error:
        _logger.warning('No plots of the suites: %s', error)
        return files


def add_rows(text: str, epoch: int, results: SuiteResults) -> str:
    """Rows of an epoch, in ``suites.csv``.

    Args:
        text: What the file holds; empty if there is none.
        epoch: The epoch; its rows of the same model and suite are replaced.
        results: Of ``evaluate_on_suites``.

    Returns:
        What the file is to hold.
    """
    rows = {(row['epoch'], row['model'], row['suite']): row for row in csv.DictReader(text.splitlines())}
    for model, of_model in results.items():
        for suite, (top1, top5) in of_model.items():
            values = (str(epoch), model, suite, f'{top1:.4f}', f'{top5:.4f}')
            rows[values[:3]] = dict(zip(COLUMNS, values, strict=True))
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows.values())
    return file.getvalue()


def read_rows(path: Path) -> str:
    """Text of ``suites.csv``, line ends as they are; empty if there is none."""
    return path.read_bytes().decode() if path.exists() else ''
