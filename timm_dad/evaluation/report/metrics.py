"""Figures of robustness that papers report: calibration error, mCE, relative mCE, effective robustness.

Everything is in percent, 0 to 100, as papers print it; an mCE of 100 is AlexNet's. Functions take numbers or arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BINS = 15
# Mean top-1 error of AlexNet over the five severities, in percent, by which mCE divides (Hendrycks & Dietterich 2019,
# arXiv:1903.12261). The digits are those of google-research/augmix, imagenet.py (ALEXNET_ERR, in the order of its
# CORRUPTIONS), and of bethgelab/game-of-noise, evaluation_utils.py; hendrycks/robustness keeps them in a spreadsheet.
ALEXNET_ERRORS = {
    'gaussian_noise': 88.6428, 'shot_noise': 89.4468, 'impulse_noise': 92.2640, 'defocus_blur': 81.9880,
    'glass_blur': 82.6268, 'motion_blur': 78.5948, 'zoom_blur': 79.8360, 'snow': 86.6816, 'frost': 82.6572,
    'fog': 81.9324, 'brightness': 56.4592, 'contrast': 85.3204, 'elastic_transform': 64.6056, 'pixelate': 71.7840,
    'jpeg_compression': 60.6500,
}  # fmt: skip
# Its top-1 error on ImageNet val: google-research/robustness_metrics, reports/imagenet_variants.py.
ALEXNET_CLEAN_ERROR = 43.48


def calibration_gaps(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> Array:
    """Return what each image adds to the gap between confidence and accuracy of its bin ``[N, bins]``.

    ``confidence`` is ``[N]`` (softmax, [0, 1]). The entries of other bins are zero. Bins have equal width and include
    their upper edge; the first includes 0, too.
    """
    confidence = np.asarray(confidence, np.float64)
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError('confidences are softmax probabilities in [0, 1], got some outside or NaN (are they logits?)')
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), index] = confidence - np.asarray(correct, np.float64)
    return gaps


def calibration_error(mean_gaps: ArrayLike) -> Any:
    """Return the ECE ``[...]``, in percent, of gaps ``[..., bins]`` averaged over images (empty bins add nothing).

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3, with the 15 bins of their table 1; bin edges as in
    gpleiss/temperature_scaling.
    """
    return 100 * np.abs(mean_gaps).sum(axis=-1)


def corruption_error(error: ArrayLike, corruption: str) -> Any:
    """Return the CE: mean error of a corruption over its five severities, in percent of AlexNet's.

    mCE is the mean CE over ImageNet-C's 15 corruptions.

    Source: Hendrycks & Dietterich 2019, arXiv:1903.12261; google-research/augmix, imagenet.py.
    """
    return 100 * np.asarray(error) / ALEXNET_ERRORS[corruption]


def relative_corruption_error(error: ArrayLike, clean_error: ArrayLike, corruption: str) -> Any:
    """Return the relative CE: error added to that on ImageNet val, in percent of the error added for AlexNet.

    Source: Hendrycks & Dietterich 2019, arXiv:1903.12261; google-research/robustness_metrics.
    """
    added = np.asarray(error) - np.asarray(clean_error)
    return 100 * added / (ALEXNET_ERRORS[corruption] - ALEXNET_CLEAN_ERROR)


def logit(accuracy: ArrayLike) -> Array:
    """Return the logit of accuracies in percent; infinite at 0 and 100."""
    fraction = np.asarray(accuracy, np.float64) / 100
    return np.log(fraction / (1 - fraction))


@dataclass(frozen=True)
class Baseline:
    """Expected OOD accuracy at a given clean accuracy: a line in logit space, fitted to some models."""

    slope: float
    intercept: float
    models: int

    def effective_robustness(self, clean: ArrayLike, ood: ArrayLike) -> Any:
        """Return by how many percentage points OOD top-1 exceeds the line's value at clean top-1, both in percent.

        Source: Taori et al. 2020, arXiv:2007.00644.
        """
        # 0 % and 100 % have no logit.
        expected = self.slope * logit(np.clip(clean, 1e-6, 100 - 1e-6)) + self.intercept
        return np.asarray(ood) - 100 / (1 + np.exp(-expected))


def fit_baseline(models: Sequence[tuple[float, float]]) -> Baseline | None:
    """Fit shifted top-1 of models to their clean top-1, in percent, by least squares in logit space.

    Args:
        models: Clean and shifted top-1 of each model; models at 0 % or 100 %, which have no logit, are left out.

    Returns:
        The line; ``None`` if fewer than three models of different clean accuracy remain.

    Source: Taori et al. 2020, arXiv:2007.00644; modestyachts/imagenet-testbed,
    plotting/eff_robust_inspect_plot.py.
    """
    points = np.array([pair for pair in models if 0 < min(pair) and max(pair) < 100], np.float64).reshape(-1, 2)
    clean, ood = points.T
    if len(np.unique(clean)) < 3:
        return None
    slope, intercept = np.polyfit(logit(clean), logit(ood), 1)
    return Baseline(float(slope), float(intercept), len(points))
