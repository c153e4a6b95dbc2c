"""What limits a student away from its training data: three terms that bound its error (``timm-dad diagnose``).

Let ``e`` be the top-1 error, and ``d`` the top-1 disagreement of student ``s`` and teacher ``t``. Where both predict
the same class, the student is wrong only if the teacher is, so ``e(s) <= e(t) + d`` on every data set. For OOD data::

    e_ood(s)  <=  e_ood(t)  +  d_dad  +  (d_ood - d_dad)
    student       teacher      fit       shift

``fit`` is the disagreement that more training could still reduce, because the student is distilled on DAD views.
``shift`` is what the DAD views do not cover of the OOD data (for a disagreement that is Lipschitz in the features, it
is at most the Lipschitz constant times their Wasserstein distance, by Kantorovich-Rubinstein duality). The largest term
is reported as the limit.

NOTE: this is an interpretation of the subject of the theory of Zhou et al. 2023 (arXiv:2311.01441): a robust teacher,
and augmented data like the test data. It is neither that theory's bound nor a proof that improving the largest term
helps most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TERMS = ('teacher', 'fit', 'shift')
ADVICE = {
    'teacher': (
        "The teacher's own errors on the OOD data are the largest part: a stronger or more robust teacher, or several "
        '(--dad-teacher), comes first.'
    ),
    'fit': (
        'The student does not yet follow the teacher on DAD views, its training data: train longer, or use a larger '
        'student or more weight on distillation (--dad-weight, --dad-kd-weight).'
    ),
    'shift': (
        'The student follows the teacher on DAD views, but less so on the OOD data: the augmentation does not cover '
        'it. Another or an additional augmentation, a larger --dad-eps, or another VQGAN comes first.'
    ),
}


@dataclass(frozen=True, kw_only=True)
class OODErrors:
    """Where teacher and student are wrong, and where they disagree, image by image ``[N]`` of one OOD set."""

    teacher_wrong: NDArray[np.bool_]
    student_wrong: NDArray[np.bool_]
    disagrees: NDArray[np.bool_]


def terms(teacher: float, fit: float, shift: float) -> dict[str, Any]:
    """Return the three terms, their sum (``bound``) and the name of the largest, or first of equals (``limiting``)."""
    values = dict(zip(TERMS, (teacher, fit, shift), strict=True))
    return {**values, 'bound': sum(values.values()), 'limiting': max(values, key=values.__getitem__)}


def decompose(
    dad_disagrees: NDArray[np.bool_], oods: Mapping[str, OODErrors], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the terms of every OOD set and of their mean, the limiting term, and how certain that is.

    ``dad_disagrees`` marks DAD views ``[N]`` where student and teacher predict different classes. ``ValueError`` if
    there are no images or no OOD set.

    Returns:
        By set, and ``mean``: ``student_error``, ``teacher``, ``fit``, ``shift``, ``bound``, ``limiting``, and
        ``certainty``, the fraction of bootstrap resamples of the images in which that term is the largest.
    """
    if not oods or not len(dad_disagrees) or not all(len(ood.disagrees) for ood in oods.values()):
        raise ValueError('the terms need images of DAD views and of one OOD set or more, got none')
    rng = np.random.default_rng(seed)
    dad = _resampled(rng, num_resamples, dad_disagrees)
    found, resamples = {}, []
    for name, ood in oods.items():
        fit = float(dad_disagrees.mean())
        own = terms(float(ood.teacher_wrong.mean()), fit, float(ood.disagrees.mean() - dad_disagrees.mean()))
        teacher, disagrees = _resampled(rng, num_resamples, ood.teacher_wrong, ood.disagrees)
        resamples.append(np.stack([teacher, dad[0], disagrees - dad[0]]))  # [3, num_resamples]
        found[name] = {'student_error': float(ood.student_wrong.mean()), **own, **_certainty(own, resamples[-1])}
    error, *means = (float(np.mean([own[name] for own in found.values()])) for name in ('student_error', *TERMS))
    mean = terms(*means)
    return {**found, 'mean': {'student_error': error, **mean, **_certainty(mean, np.mean(resamples, axis=0))}}


def _certainty(own: Mapping[str, Any], resamples: NDArray[np.float64]) -> dict[str, float]:
    return {'certainty': float((resamples.argmax(axis=0) == TERMS.index(own['limiting'])).mean())}


def _resampled(rng: np.random.Generator, count: int, *flags: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return means ``[len(flags), count]`` of flags of the same images, each ``[N]``, over resamples of the images."""
    size, kinds = len(flags[0]), 2 ** len(flags)
    kind = sum(flag.astype(int) << place for place, flag in enumerate(flags))
    # Images of one kind are interchangeable in a mean, so it is enough to draw the count of each kind.
    drawn = rng.multinomial(size, np.bincount(kind, minlength=kinds) / size, size=count)
    flag_of_kind = np.stack([np.arange(kinds) >> place & 1 for place in range(len(flags))])
    means: NDArray[np.float64] = flag_of_kind @ drawn.T / size
    return means
