"""Figures with bootstrap confidence intervals: one resampling of the images serves all figures computed from them.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap; ``scipy.stats.bootstrap``, percentile method.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.report.metrics import BINS, calibration_error, calibration_gaps

Array = NDArray[np.float64]
T = TypeVar('T')

LEVEL = 95
RESAMPLES = 1000
_MAX_COUNTS = 8_000_000  # entries in the table of counts: at most 32 MB for any number of images and resamples


@dataclass(frozen=True)
class Estimate:
    """A figure, and its value on every resample ``[R]``; figures of the same images share the resamples."""

    value: float
    samples: Array
    images: int  # predictions that it is computed from

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % percentile interval, or ``None`` without resamples."""
        if not len(self.samples):
            return None
        low, high = np.percentile(self.samples, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        return float(low), float(high)


def combine(function: Callable[..., Any], *estimates: Estimate, images: int | None = None) -> Estimate:
    """Compute a figure from others: ``function`` of their values, and of their resamples ``[R]``.

    ``images`` is the number of predictions that it is computed from: by default the sum of theirs.
    """
    value = function(*(estimate.value for estimate in estimates))
    samples = function(*(estimate.samples for estimate in estimates))
    count = sum(estimate.images for estimate in estimates) if images is None else images
    return Estimate(float(value), np.asarray(samples, np.float64), count)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the plain mean of figures."""
    return combine(lambda *values: np.mean(values, axis=0), *estimates)


def resample_means(
    items: Sequence[T], table: Callable[[T], Array], images: int, resamples: int, seed: Sequence[int]
) -> list[Array]:
    """Return column means ``[R, F]`` of items' tables ``[N, F]`` over ``N`` images drawn with replacement.

    All items share the draws: counts of draws times table is a matrix product, so one draw serves the figures of all
    models and corruptions, while ``scipy.stats.bootstrap`` would draw again at each call (times and memory in
    docs/metrics.md). ``table`` is called again for every block of resamples.
    """
    if images < 1:
        raise ValueError('a figure needs at least one image, got none')
    rng = np.random.default_rng(list(seed))
    rows = max(1, _MAX_COUNTS // images)
    blocks: list[list[Array]] = [[] for _ in items]
    for start in range(0, max(1, resamples), rows):
        # Exact in fp32: counts and correctness are integers.
        counts = np.empty((min(rows, resamples - start), images), np.float32)
        for row in counts:
            row[:] = np.bincount(rng.integers(images, size=images, dtype=np.int32), minlength=images)
        for block, item in zip(blocks, items, strict=True):
            block.append((counts @ table(item).astype(np.float32)).astype(np.float64) / images)
    return [np.concatenate(block) for block in blocks]


def _table(predictions: Predictions) -> Array:
    gaps = calibration_gaps(predictions.confidence, predictions.correct)
    return np.column_stack([predictions.correct, predictions.correct5, gaps])


def _figures(means: Array) -> dict[str, Array]:
    assert means.shape[-1] == 2 + BINS
    figures = {'top1': 100 * means[..., 0], 'top5': 100 * means[..., 1], 'ece': calibration_error(means[..., 2:])}
    return {name: np.asarray(figure) for name, figure in figures.items()}


def estimate_figures(
    predictions: Sequence[Predictions], image_set: str, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Estimate]]:
    """Compute ``top1``, ``top5`` and ``ece``, in percent, for several predictions on the same images.

    The predictions may come from several models or from corrupted versions of the images. Equal ``image_set`` names,
    numbers of images and seeds give equal resamples; 0 resamples give no intervals. ``ValueError`` if there are no
    images, or the labels differ.
    """
    labels = predictions[0].label
    if not all(np.array_equal(one.label, labels) for one in predictions):
        raise ValueError(f'{image_set}: compared predictions must be of the same images, but their labels differ')
    seeds = [seed, zlib.crc32(image_set.encode())]
    means = resample_means(predictions, _table, len(labels), resamples, seeds)
    estimates = []
    for one, samples in zip(predictions, means, strict=True):
        values, resampled = _figures(_table(one).mean(axis=0)), _figures(samples)
        if resamples:
            # NOTE: resampled gaps are noisier, and ECE takes their absolute values, so resamples lie above the figure
            # (entirely, if calibration is perfect). This bias is subtracted.
            shifted = resampled['ece'] - resampled['ece'].mean() + values['ece']
            resampled['ece'] = shifted.clip(0, 100)
        estimates.append({name: Estimate(float(values[name]), resampled[name], len(labels)) for name in values})
    return estimates
