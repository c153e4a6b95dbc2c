"""The suites of ``--eval-suites``, and how a student in training handles their images and classes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F

from timm_dad.common.pixels import PixelNorm
from timm_dad.data.images import Frame
from timm_dad.evaluation.evaluate import resize_note
from timm_dad.evaluation.models import EvalModel
from timm_dad.evaluation.predict import EvalConfig, Predictions, evaluate_part
from timm_dad.evaluation.report.figures import MEAN_OOD, Results
from timm_dad.evaluation.suites.open import open_suites
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.flags.rules import under_flag
from timm_dad.teachers.backbones import takes_any_size

FLAG = '--eval-suites'

_logger = logging.getLogger(__name__)


def open_eval_suites(texts: Sequence[str]) -> list[Suite]:
    """Open the suites of ``--eval-suites``.

    Raises:
        ValueError: If one is missing, malformed, or has the name that the report uses for its mean.
    """
    if MEAN_OOD in (text.partition('=')[0] for text in texts):
        raise ValueError(f'{FLAG}: the report uses the name {MEAN_OOD} for its mean: give another NAME')
    with under_flag(FLAG):
        suites, missing = open_suites(texts)
    if missing:
        name, _, path = missing[0].partition('=')
        raise ValueError(f'{FLAG} {name}: no images for split validation: there is no folder {path}')
    return suites


def match_suite(suite: Suite, num_classes: int, class_names: Sequence[str] | None) -> list[int] | None:
    """Find the student's classes that the suite's classes correspond to.

    Args:
        suite: The suite.
        num_classes: Number of classes of the student.
        class_names: Names of its training data's classes, if they have any; 1000 without names are ImageNet's.

    Returns:
        The student's output for each class of the suite; ``None`` if they are the same.

    Raises:
        ValueError: If the student lacks any of them.
    """
    imagenet = list(ImageNetInfo().label_names())
    names = imagenet if suite.groups is not None else suite.class_names
    count = num_classes if names is None else len(names)
    known = class_names or (imagenet if num_classes == len(imagenet) else None)
    wrong_count = ValueError(
        f'{FLAG} {suite.name}: data must have as many classes as --num-classes, {num_classes}, got {count} (or only '
        'classes of the training data)'
    )
    if names is None or known is None:
        if count != num_classes:
            raise wrong_count
        return None
    position = {name: index for index, name in enumerate(known)}
    missing = [name for name in names if name not in position]
    if missing and count != num_classes:
        raise wrong_count
    if missing:
        raise ValueError(f'{FLAG} {suite.name}: data must have classes of the training data; not {missing[:4]}')
    index = [position[name] for name in names]
    return None if index == list(range(num_classes)) else index


class OnPixels(nn.Module):
    """A network in training, applied to [0, 1] pixels; it is neither changed nor frozen.

    Args:
        network: Maps normalized images to logits.
        mean: Its normalization.
        std: Its normalization.
        size: Height and width that images of another size are resized to, as for a teacher; by default they are not
            resized. interpolation: How they are resized: ``bilinear``, or ``bicubic`` for any other value.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        interpolation: str = 'bicubic',
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.interpolation = 'bilinear' if interpolation == 'bilinear' else 'bicubic'
        self.norm = PixelNorm(mean, std)

    def forward(self, x_pix: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1]."""
        dtype = next(self.network.parameters()).dtype
        if self.size is not None and tuple(x_pix.shape[-2:]) != self.size:
            x_pix = F.interpolate(x_pix, self.size, mode=self.interpolation, antialias=True).clamp(0, 1)
        logits: Tensor = self.network(self.norm.normalize(x_pix).to(dtype))
        return logits


class StudentSuites:
    """Suites, and how a student handles them.

    Args:
        suites: From ``open_eval_suites``.
        student: The student, on its device.
        data_config: Size, crop and normalization of validation, from ``timm.data.resolve_data_config``.
        num_classes: Number of classes of the student.
        class_names: Names of its training data's classes, if they have any.

    Attributes:
        notes: Sentences on suites whose pictures are resized here, but not elsewhere.

    Raises:
        ValueError: If the student lacks classes of a suite.
    """

    def __init__(
        self,
        suites: Sequence[Suite],
        student: nn.Module,
        data_config: Mapping[str, Any],
        num_classes: int,
        class_names: Sequence[str] | None,
    ) -> None:
        self.suites = suites
        self._outputs = {suite.name: match_suite(suite, num_classes, class_names) for suite in suites}
        self._norm = {name: data_config[name] for name in ('mean', 'std', 'interpolation')}
        self._frame = Frame(
            size=tuple(data_config['input_size'][-2:]),
            interpolation=data_config['interpolation'],
            crop_pct=data_config['crop_pct'],
        )
        uncut = student if takes_any_size(student) else None
        self._size = self._frame.size if uncut is None else None
        model = EvalModel(name='student', network=student, frame=self._frame, uncut_network=uncut)
        self.notes = [note for suite in suites if (note := resize_note(model, suite))]
        for note in self.notes:
            _logger.warning('%s: %s', FLAG, note)

    def evaluate(
        self, student: nn.Module, teacher: nn.Module | None, config: EvalConfig, device: torch.device
    ) -> Results:
        """Evaluate student and teacher on all suites; all processes take part, and all get the answers.

        Args:
            student: Maps normalized images to logits; it is put into evaluation mode.
            teacher: The same classes, on [0, 1] pixels; ``None`` to evaluate only the student.
            config: Batches and workers.
            device: Device to evaluate on.

        Returns:
            Predictions by model (``student``, ``teacher``), suite and part.
        """
        networks: dict[str, nn.Module] = {'student': OnPixels(student, size=self._size, **self._norm)}
        if teacher is not None:
            networks['teacher'] = teacher
        results: dict[str, dict[str, dict[str, Predictions]]] = {label: {} for label in networks}
        for label, network in networks.items():
            network.to(device).eval()
            for suite in self.suites:
                of_suite = select_outputs(network, self._outputs[suite.name])
                model = EvalModel(name=label, network=of_suite, frame=self._frame)
                results[label][suite.name] = {
                    part.name: evaluate_part(model, suite, part, config, device) for part in suite.parts
                }
        return results


def select_outputs(network: nn.Module, index: list[int] | None) -> Any:
    """Return the network with only these outputs; all of them by default."""
    return network if index is None else lambda x_pix: network(x_pix)[:, index]
