"""What limits a student away from its training data: three terms that bound its error (``timm-dad diagnose``).

With top-1 error ``e`` and top-1 disagreement ``d`` of student ``s`` and teacher ``t``: where both name one class, the
student is wrong only if the teacher is, so on every data set ``e(s) <= e(t) + d``. Written for OOD data::

    e_ood(s)  <=  e_ood(t)  +  d_dad  +  (d_ood - d_dad)
    student       teacher      fit       shift

``fit`` is what training could still make smaller, for it is distilled on DAD views; ``shift`` is what the DAD views do
not show of the OOD data (of a disagreement that is Lipschitz in the features it is at most so many times their
Wasserstein distance, by Kantorovich-Rubinstein duality). The largest term is named.

NOTE: this is a reading of what the theory of Zhou et al. 2023 (arXiv:2311.01441) is about (a robust teacher, augmented
data like the test data); it is neither that theory's bound nor a proof that mending the largest term helps most.
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
        'The student does not yet follow the teacher on DAD views, the data it is trained on: train longer, a larger '
        'student, or more weight on distillation (--dad-weight, --dad-kd-weight).'
    ),
    'shift': (
        'The student follows the teacher on DAD views, and less so on the OOD data: the augmentation does not reach '
        'there. Another or a further augmentation, a larger --dad-eps, or another VQGAN comes first.'
    ),
}


@dataclass(frozen=True, kw_only=True)
class OODErrors:
    """Where teacher and student are wrong, and where they disagree, image by image ``[N]`` of one OOD set."""

    teacher_wrong: NDArray[np.bool_]
    student_wrong: NDArray[np.bool_]
    disagrees: NDArray[np.bool_]


def terms(teacher: float, fit: float, shift: float) -> dict[str, Any]:
    """The three terms, their sum (``bound``) and the name of the largest, of equal ones the first (``limiting``)."""
    values = dict(zip(TERMS, (teacher, fit, shift), strict=True))
    return {**values, 'bound': sum(values.values()), 'limiting': max(values, key=values.__getitem__)}


def decompose(
    dad_disagrees: NDArray[np.bool_], oods: Mapping[str, OODErrors], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Terms of every OOD set and of their mean, the limiting one, and how sure that is.

    ``dad_disagrees`` is where student and teacher name different classes on DAD views ``[N]``. ``ValueError`` if there
    are no images or no OOD set.

    Returns:
        By set, and ``mean``: ``student_error``, ``teacher``, ``fit``, ``shift``, ``bound``, ``limiting``, and
        ``certainty``, the part of the bootstrap resamples of the images in which that term is the largest.
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
    """Means of flags of the same images, each ``[N]``, over resamples of the images ``[len(flags), count]``."""
    size, kinds = len(flags[0]), 2 ** len(flags)
    kind = sum(flag.astype(int) << place for place, flag in enumerate(flags))
    # Images of one kind are the same to a mean: it is enough to draw how many there are of each.
    drawn = rng.multinomial(size, np.bincount(kind, minlength=kinds) / size, size=count)
    flag_of_kind = np.stack([np.arange(kinds) >> place & 1 for place in range(len(flags))])
    means: NDArray[np.float64] = flag_of_kind @ drawn.T / size
    return means
