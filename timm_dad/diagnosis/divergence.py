"""Differences between models, features and codes: the numbers of ``timm-dad diagnose``.

The theory of the paper (Zhou et al. 2023, arXiv:2311.01441) uses the Wasserstein distance between distributions; POT
computes it (Flamary et al. 2021, POT: Python Optimal Transport).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_dad.common.extras import require_extra

Array = NDArray[np.float64]

DISTANCES = ('exact', 'sliced')
# Directions of the sliced distance; its Monte-Carlo error falls with the square root of their number.
NUM_PROJECTIONS = 500
# POT stops at 100,000 by default, too few for several thousand points.
_MAX_ITERATIONS = 10_000_000


def wasserstein(x: Tensor, y: Tensor, distance: str = 'exact', seed: int = 0) -> float:
    """Return the 1-Wasserstein distance of samples ``[N, D]`` and ``[M, D]``, with Euclidean cost.

    NOTE: the distance of two samples of one distribution is above 0, more so with fewer points and more dimensions;
    ``split_distances`` of a set with itself measures by how much.

    Time and memory of ``exact`` grow with ``N * M`` and faster. ``sliced``, for many points, is the mean over random
    directions of the distance along them. It is smaller, and comparable only with other sliced distances.

    Raises:
        ValueError: If the shapes do not fit, a point is not finite, or ``distance`` is unknown.
        ImportError: If the extra ``eval`` is not installed.

    Source: ``ot.emd2`` and ``ot.sliced_wasserstein_distance`` of POT, the latter after Bonneel et al. 2015, "Sliced and
    Radon Wasserstein barycenters of measures".
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f'samples must be [N, D] and [M, D] with one D, got {tuple(x.shape)} and {tuple(y.shape)}')
    if distance not in DISTANCES:
        raise ValueError(f'distance must be one of {DISTANCES}, got {distance!r}')
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError('samples must be finite, got points with NaN or infinity (a broken checkpoint, or fp16?)')
    ot = require_extra('ot', 'eval')
    x, y = x.double().cpu(), y.double().cpu()
    if distance == 'sliced':
        return float(
            ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=NUM_PROJECTIONS, p=1, seed=seed)
        )
    # No matrix products: their rounding would give equal points a distance above 0.
    cost = torch.cdist(x, y, compute_mode='donot_use_mm_for_euclid_dist').numpy()
    return float(ot.emd2([], [], cost, numItermax=_MAX_ITERATIONS))


def excess(distances: Mapping[tuple[str, str], Array], one: str, two: str) -> Array:
    """Return a distance minus its noise floor: the mean of both sets' distances to themselves.

    There is one value per split. It is around 0 for sets of one distribution, and below 0 if sets of other images show
    the same things.

    Source: the correction of the Sinkhorn divergence (``ot.bregman.empirical_sinkhorn_divergence`` of POT).
    """
    return distances[one, two] - (distances[one, one] + distances[two, two]) / 2


def split_distances(
    views: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    measure: Callable[[Tensor, Tensor], float],
    *,
    num_splits: int,
    seed: int,
) -> dict[tuple[str, str], Array]:
    """Return distances of sets for each split, always between equally many different images.

    The sets may be views of the same images. Every split halves the images into ``A`` and ``B``. Two sets of views are
    compared as ``A`` of one with ``B`` of the other (and vice versa), so no image is compared with its own view. The
    distance of a set to itself is then the noise floor, which comes only from sampling. A set of other images is
    compared half with half.

    Args:
        views: Features ``[N, D]`` of views of ``N`` images, in one order.
        others: Features ``[M, D]`` of sets of other images.
        pairs: Names to compare: twice the same, two of ``views``, or one of ``views`` and one of ``others``.
        measure: Distance of two samples ``[n, D]``.
        num_splits: Random splits.
        seed: Seed of the splits.

    Raises:
        ValueError: If there is no split, or a set has fewer than 2 images.
    """
    sizes = {name: len(features) for name, features in {**views, **others}.items()}
    half = min(sizes.values()) // 2
    if num_splits < 1:
        raise ValueError(f'num_splits must be 1 or more, got {num_splits}')
    if half < 1:
        raise ValueError(f'every set needs 2 images or more to be halved, got {sizes}')
    rng = np.random.default_rng(seed)
    values: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    for _ in range(num_splits):
        order = rng.permutation(len(next(iter(views.values()))))
        halves = {name: _halves(features, order, half) for name, features in views.items()}
        for name, features in others.items():
            halves[name] = _halves(features, rng.permutation(len(features)), half)
        for first, second in pairs:
            (a, b), (other_a, other_b) = halves[first], halves[second]
            if first == second:
                found = [measure(a, b)]
            elif second in others:
                found = [measure(a, other_a), measure(b, other_b)]
            else:
                found = [measure(a, other_b), measure(b, other_a)]
            values[first, second].append(float(np.mean(found)))
    return {pair: np.array(found) for pair, found in values.items()}


def moments(values: Array) -> dict[str, float]:
    """Return mean and standard deviation over the splits; one split has standard deviation 0."""
    return {'mean': float(values.mean()), 'std': float(values.std(ddof=1)) if len(values) > 1 else 0.0}


def _halves(features: Tensor, order: NDArray[np.int64], half: int) -> tuple[Tensor, Tensor]:
    return features[order[:half]], features[order[half : 2 * half]]


def disagrees(logits: Tensor, other: Tensor) -> Tensor:
    """Return the mask ``[N]`` where the logits ``[N, K]`` of two models predict different classes."""
    if logits.shape != other.shape:
        raise ValueError(f'logits of two models must have one shape, got {tuple(logits.shape)}, {tuple(other.shape)}')
    return logits.argmax(dim=-1) != other.argmax(dim=-1)


def code_usage(counts: Tensor) -> dict[str, float]:
    """Return how many codes are ``used``, and their ``perplexity``, given their ``counts`` ``[n_embed]``.

    The perplexity is the ``exp`` of the entropy of their frequencies: the number of equally frequent codes that would
    be as diverse.

    Source: ``VectorQuantizer.forward`` of taming-transformers gives the perplexity of a batch.
    """
    if not counts.sum() > 0:
        raise ValueError('there must be codes to count, got none')
    p = counts.double() / counts.sum()
    return {'used': int((counts > 0).sum()), 'perplexity': float(torch.special.entr(p).sum().exp())}
