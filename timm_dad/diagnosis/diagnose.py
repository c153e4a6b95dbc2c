"""Measurements for the theory of DAD: student and teacher on clean, DAD and OOD images (``timm-dad diagnose``).

They are the quantities in the theory of Zhou et al. 2023 (arXiv:2311.01441): the teacher's risk on augmented data, how
well the student follows the teacher, and Wasserstein distances between clean, augmented and OOD data; here they are
distances between features.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_dad.common.extras import require_extra
from timm_dad.common.options import check_types
from timm_dad.diagnosis.data import CLEAN, DAD, RECONSTRUCTED, MadeViews, Sample, StoredViews
from timm_dad.diagnosis.divergence import DISTANCES, disagrees, excess, moments, split_distances, wasserstein
from timm_dad.diagnosis.limiting_term import OODErrors, decompose
from timm_dad.diagnosis.outputs import OutputCollector, Outputs
from timm_dad.diagnosis.pictures import WorstImages
from timm_dad.method.loss import DADLossConfig, distillation_loss
from timm_dad.teachers.teacher import Teacher

_logger = logging.getLogger(__name__)

# A teacher predicts (nearly) one class if that class has at least this fraction of the predictions, while every class
# has less than the second fraction of the labels.
_ONE_CLASS, _NO_CLASS = 0.9, 0.75


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """How to measure; ``ValueError`` if a value is out of range."""

    distance: str = 'exact'  # or 'sliced' Wasserstein distance
    num_splits: int = 3  # random halvings of the images that a distance is averaged over
    temperature: float = DADLossConfig().temperature  # of the divergence between student and teacher
    seed: int = 0  # of splits and resamples
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.distance not in DISTANCES:
            raise ValueError(f'distance must be one of {DISTANCES}, got {self.distance!r}')
        for name, least in (('num_splits', 1), ('batch_size', 1), ('seed', 0), ('workers', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be {least} or more, got {getattr(self, name)}')
        if not 0 < self.temperature < float('inf'):
            raise ValueError(f'temperature must be positive, got {self.temperature}')


def diagnose(
    clean: Sample,
    make_views: MadeViews | StoredViews,
    oods: Mapping[str, Sample],
    teacher: Teacher,
    student: Teacher | None = None,
    config: DiagnoseConfig | None = None,
    device: torch.device | None = None,
    worst: WorstImages | None = None,
) -> dict[str, Any]:
    """Measure the terms of the student's error on OOD data.

    ``make_views`` augments the ``clean`` images, which resemble the student's training images. Both models are frozen
    classifiers on pixels, on ``device`` (by default the CPU); without a student its numbers are left out. ``worst``
    sees all images with the models' answers, and keeps some to show.

    Returns:
        - ``images`` and ``risks``: by set of images
        - ``distances``: by model whose features are compared: noise floors of the sets, and pairs of sets with
            ``nearer_than_clean``, how much nearer views are to OOD data than clean images are; without POT they are
            empty, and a warning is logged
        - ``codebook``: may be ``None``
        - ``vqgan_cost``: the teacher's error on ``Q(x)`` minus its error on ``x``; may be ``None``
        - ``one_class``: sets on which the teacher predicts nearly always one class, with the fraction
        - ``terms``: may be ``None``

    Raises:
        ValueError: If two sets have the same name, or there is no OOD set.
    """
    config, device = config or DiagnoseConfig(), device or torch.device('cpu')
    views = (CLEAN, *make_views.names)
    taken = (*views, 'mean')
    if not oods or set(taken) & set(oods):
        raise ValueError(f'OOD sets need names other than {taken}, got {sorted(oods) or "none"}')
    models = {'teacher': teacher, **({} if student is None else {'student': student})}
    measured = models if _has_pot() else {}
    collector, load = OutputCollector(models), (teacher.num_classes, config.batch_size, config.workers, device)
    for batch in clean.batches(CLEAN, *load):
        shown = {CLEAN: batch.x_pix, **make_views(batch)}
        logits = {name: collector.add(name, x_pix, batch.label) for name, x_pix in shown.items()}
        if worst is not None:
            worst.add_views(shown, batch.label, logits, clean.filenames(batch))
    for name, images in oods.items():
        for batch in images.batches(name, *load):
            said = collector.add(name, batch.x_pix, batch.label, images.classes)
            if worst is not None:
                files = images.filenames(batch)
                worst.add(name, {name: batch.x_pix}, batch.label, said, files, classes=images.classes)
    labels, outputs = collector.labels(), collector.outputs()
    found_risks = {name: risks(outputs[name], label, config.temperature) for name, label in labels.items()}
    errors = [found_risks[name]['teacher_error'] for name in (CLEAN, RECONSTRUCTED) if name in found_risks]
    return {
        'images': {name: len(label) for name, label in labels.items()},
        'config': {name: value for name, value in asdict(config).items() if name != 'workers'},
        'risks': found_risks,
        'distances': {role: _distances(outputs, role, views, list(oods), config) for role in measured},
        'codebook': make_views.codebook(),
        'vqgan_cost': errors[1] - errors[0] if len(errors) > 1 else None,
        'one_class': _one_class(outputs, labels),
        'terms': None if student is None else _terms(outputs, labels, list(oods), config.seed),
    }


def risks(outputs: Mapping[str, Outputs], label: Tensor, temperature: float) -> dict[str, float]:
    """Compute the risks of the models on one set of images, and how much they differ.

    Returns ``teacher_loss`` (cross-entropy), ``teacher_error`` (top-1), the same for the student, ``disagreement``
    (top-1) and ``divergence`` (``T^2 KL(t || s)``, as in training, at ``temperature``).
    """
    found = {}
    for role, output in outputs.items():
        found[f'{role}_loss'] = F.cross_entropy(output.logits, label).item()
        found[f'{role}_error'] = (output.logits.argmax(dim=-1) != label).double().mean().item()
    if 'student' in outputs:
        student, teacher = outputs['student'].logits, outputs['teacher'].logits
        found['disagreement'] = disagrees(student, teacher).double().mean().item()
        found['divergence'] = distillation_loss(student, teacher, temperature).item()
    return found


def _has_pot() -> bool:
    try:
        require_extra('ot', 'eval')
    except ImportError as error:
        _logger.warning('No Wasserstein distances, because they need POT: %s', error)
        return False
    return True


def _one_class(outputs: Mapping[str, Mapping[str, Outputs]], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Return, by set of images, the fraction of the teacher's most frequent class, if that is nearly all of them."""
    shares = {name: _largest_share(of['teacher'].logits.argmax(dim=-1)) for name, of in outputs.items()}
    return {
        name: share
        for name, share in shares.items()
        if share >= _ONE_CLASS and _largest_share(labels[name]) < _NO_CLASS
    }


def _largest_share(classes: Tensor) -> float:
    return classes.bincount().max().item() / len(classes)


def _distances(
    outputs: Mapping[str, Mapping[str, Outputs]],
    role: str,
    views: Sequence[str],
    oods: Sequence[str],
    config: DiagnoseConfig,
) -> dict[str, Any]:
    floors = [(name, name) for name in (*views, *oods)]
    pairs = [(CLEAN, name) for name in views if name != CLEAN] + [(view, ood) for ood in oods for view in views]
    distances = split_distances(
        {name: outputs[name][role].features for name in views},
        {name: outputs[name][role].features for name in oods},
        floors + pairs,
        partial(wasserstein, distance=config.distance, seed=config.seed),
        num_splits=config.num_splits,
        seed=config.seed,
    )
    found = []
    for one, two in pairs:
        own = excess(distances, one, two)
        nearer = excess(distances, CLEAN, two) - own if two in oods and one != CLEAN else None
        facts = {'from': one, 'to': two, 'distance': moments(distances[one, two]), 'excess': moments(own)}
        found.append({**facts, 'nearer_than_clean': None if nearer is None else moments(nearer)})
    return {'noise_floors': {name: moments(distances[name, name]) for name, _ in floors}, 'pairs': found}


def _terms(
    outputs: Mapping[str, Mapping[str, Outputs]], labels: Mapping[str, Tensor], oods: Sequence[str], seed: int
) -> dict[str, Any]:
    def wrong(name: str, role: str) -> Any:
        return (outputs[name][role].logits.argmax(dim=-1) != labels[name]).numpy()

    apart = {name: disagrees(of['student'].logits, of['teacher'].logits).numpy() for name, of in outputs.items()}
    errors = {
        ood: OODErrors(teacher_wrong=wrong(ood, 'teacher'), student_wrong=wrong(ood, 'student'), disagrees=apart[ood])
        for ood in oods
    }
    return decompose(apart[DAD], errors, seed=seed)
