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
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
class Terms:
    """The three terms, each a rate.

    Args:
        teacher: Teacher's error on the OOD data.
        fit: Disagreement of student and teacher on DAD views.
        shift: Disagreement on the OOD data, less that on DAD views; may be negative.
    """

    teacher: float
    fit: float
    shift: float

    @property
    def bound(self) -> float:
        """Their sum, which the student's error does not exceed."""
        return self.teacher + self.fit + self.shift

    @property
    def limiting(self) -> str:
        """Name of the largest; of equal ones the first."""
        values = asdict(self)
        return max(values, key=values.__getitem__)


@dataclass(frozen=True, kw_only=True)
class OODErrors:
    """What the terms of one OOD set are computed from, image by image ``[N]``, bool.

    Args:
        teacher_wrong: Where the teacher is wrong.
        student_wrong: Where the student is wrong.
        disagrees: Where they name different classes.
    """

    teacher_wrong: NDArray[np.bool_]
    student_wrong: NDArray[np.bool_]
    disagrees: NDArray[np.bool_]


def decompose(
    dad_disagrees: NDArray[np.bool_], oods: Mapping[str, OODErrors], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Terms of every OOD set and of their mean, the limiting one, and how sure that is.

    Args:
        dad_disagrees: Where student and teacher name different classes on DAD views ``[N]``.
        oods: The OOD sets.
        num_resamples: Bootstrap resamples of the images.
        seed: Their seed.

    Returns:
        By set, and ``mean``: ``student_error``, ``teacher``, ``fit``, ``shift``, ``bound``, ``limiting``, and
        ``certainty``, the part of the resamples in which that term is the largest.

    Raises:
        ValueError: If there are no images or no OOD set.
    """
    if not oods or not len(dad_disagrees) or not all(len(ood.disagrees) for ood in oods.values()):
        raise ValueError('the terms need images of DAD views and of one OOD set or more, got none')
    rng = np.random.default_rng(seed)
    dad = _resampled(rng, num_resamples, dad_disagrees)
    found, resamples = {}, []
    for name, ood in oods.items():
        terms = Terms(
            teacher=float(ood.teacher_wrong.mean()),
            fit=float(dad_disagrees.mean()),
            shift=float(ood.disagrees.mean() - dad_disagrees.mean()),
        )
        teacher, disagrees = _resampled(rng, num_resamples, ood.teacher_wrong, ood.disagrees)
        resamples.append(np.stack([teacher, dad[0], disagrees - dad[0]]))  # [3, num_resamples]
        found[name] = _facts(terms, float(ood.student_wrong.mean()), resamples[-1])
    names = [field.name for field in fields(Terms)]
    mean = Terms(**{name: float(np.mean([facts[name] for facts in found.values()])) for name in names})
    error = float(np.mean([facts['student_error'] for facts in found.values()]))
    return {**found, 'mean': _facts(mean, error, np.mean(resamples, axis=0))}


def _resampled(rng: np.random.Generator, count: int, *flags: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means of flags of the same images, each ``[N]``, over resamples of the images ``[len(flags), count]``."""
    size, kinds = len(flags[0]), 2 ** len(flags)
    kind = sum(flag.astype(int) << place for place, flag in enumerate(flags))
    # Images of one kind are the same to a mean: it is enough to draw how many there are of each.
    drawn = rng.multinomial(size, np.bincount(kind, minlength=kinds) / size, size=count)
    flag_of_kind = np.stack([np.arange(kinds) >> place & 1 for place in range(len(flags))])
    means: NDArray[np.float64] = flag_of_kind @ drawn.T / size
    return means


def _facts(terms: Terms, student_error: float, resamples: NDArray[np.float64]) -> dict[str, Any]:
    limiting = terms.limiting
    place = [field.name for field in fields(Terms)].index(limiting)
    certainty = float((resamples.argmax(axis=0) == place).mean())
    own = {'bound': terms.bound, 'limiting': limiting, 'certainty': certainty}
    return {'student_error': student_error, **asdict(terms), **own}
