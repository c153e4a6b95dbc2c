import itertools
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

from timm_dad.diagnosis.divergence import code_usage, disagrees, excess, moments, split_distances, wasserstein


def gaussian(count, mean=0.0, std=1.0):
    """The quantiles of a Gaussian ``[count, 1]``, in random order: no sampling noise."""
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.double) + 0.5) / count)
    return (mean + std * quantiles[torch.randperm(count)])[:, None]


# Wasserstein.


@pytest.mark.parametrize('distance', ['exact', 'sliced'])
def test_equal_sets_are_at_distance_0_in_any_order(distance):
    x = torch.randn(40, 7)
    assert wasserstein(x, x[torch.randperm(40)], distance) == pytest.approx(0, abs=0 if distance == 'exact' else 1e-12)


def test_a_translation_is_as_far_as_it_shifts():
    x, shift = torch.randn(40, 7), torch.randn(7)
    assert wasserstein(x, x + shift) == pytest.approx(shift.norm().item(), rel=1e-5)


@pytest.mark.parametrize(('mean', 'std'), [(2.0, 1.0), (0.0, 3.0), (1.5, 2.5)])
def test_gaussians_in_one_dimension_are_as_far_apart_as_the_formula_says(mean, std):
    # The quantiles are coupled: E |mean + (std - 1) z|, the mean of a folded Gaussian.
    scale = std - 1
    tail = math.erf(mean / scale / math.sqrt(2)) if scale else 1.0
    peak = scale * math.sqrt(2 / math.pi) * math.exp(-((mean / scale) ** 2) / 2) if scale else 0.0
    assert wasserstein(gaussian(400), gaussian(400, mean, std)) == pytest.approx(peak + mean * tail, rel=0.01)


def test_exact_is_the_best_of_all_assignments():
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    best = min((x - y[list(order)]).norm(dim=1).mean().item() for order in itertools.permutations(range(5)))
    assert wasserstein(x, y) == pytest.approx(best, rel=1e-5)


def test_sets_of_different_sizes():
    assert wasserstein(torch.zeros(1, 1), torch.tensor([[-1.0], [1.0], [4.0]])) == pytest.approx(2)


def test_sliced_is_the_mean_over_directions_seeded_and_below_exact():
    x = torch.randn(40, 2)
    shifted = x + torch.tensor([3.0, 4.0])
    found = wasserstein(x, shifted, 'sliced')
    assert found == pytest.approx(5 * 2 / math.pi, rel=0.1)  # E |cos| of a random angle
    assert found == wasserstein(x, shifted, 'sliced') != wasserstein(x, shifted, 'sliced', seed=1)
    assert found < wasserstein(x, shifted)


@pytest.mark.parametrize(
    ('x', 'y'), [((3, 2), (3, 4)), ((3,), (3,)), ((0, 2), (3, 2))], ids=['dimensions', 'vectors', 'empty']
)
def test_samples_that_do_not_fit(x, y):
    with pytest.raises(ValueError, match=r'samples must be \[N, D\] and \[M, D\] with one D'):
        wasserstein(torch.zeros(x), torch.zeros(y))


def test_an_unknown_distance():
    with pytest.raises(ValueError, match='distance must be one of'):
        wasserstein(torch.zeros(2, 2), torch.zeros(2, 2), 'euclidean')


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_points_that_are_not_finite(value):
    with pytest.raises(ValueError, match='samples must be finite'):
        wasserstein(torch.zeros(2, 2), torch.full((2, 2), value))


def test_without_pot_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ot', None)
    with pytest.raises(ImportError, match=r'pip install "timm-dad\[eval\]"'):
        wasserstein(torch.zeros(2, 2), torch.zeros(2, 2))


# Halves.


def all_pairs(views, others):
    names = [*views, *others]
    return [(name, name) for name in names] + [(one, two) for one in views for two in names if one != two]


def distances(views, others, measure=wasserstein, num_splits=3, seed=0):
    pairs = all_pairs(views, others)
    return split_distances(views, others, pairs, measure, num_splits=num_splits, seed=seed)


def test_a_view_that_changes_nothing_is_at_the_noise_floor_and_not_at_0():
    x = torch.randn(30, 8)
    found = distances({'x': x, 'same': x}, {})
    assert found['x', 'same'].mean() == pytest.approx(found['x', 'x'].mean())
    assert found['x', 'x'].mean() > 1
    assert excess(found, 'x', 'same') == pytest.approx([0, 0, 0])


def test_the_excess_of_one_distribution_is_small_and_that_of_a_shift_is_its_length():
    x, other, shift = torch.randn(200, 8), torch.randn(200, 8), 20 * torch.eye(8)[0]
    found = distances({'x': x, 'shifted': x + shift}, {'other': other, 'far': other - shift})
    assert abs(excess(found, 'x', 'other').mean()) < 0.1 < found['x', 'x'].mean()
    assert found['x', 'shifted'].mean() == pytest.approx(20, rel=0.1)
    assert found['shifted', 'far'].mean() == pytest.approx(40, rel=0.1)
    assert excess(found, 'x', 'far').mean() > excess(found, 'x', 'other').mean()


def test_all_samples_have_half_the_size_of_the_smallest_set_and_no_image_meets_its_own_view():
    sizes = []

    def measure(one, two):
        sizes.append((len(one), len(two)))
        assert not set(one.flatten().tolist()) & set(two.flatten().tolist())
        return 0.0

    places = torch.arange(9.0)[:, None]
    distances({'x': places, 'view': places}, {'ood': torch.arange(100.0, 107.0)[:, None]}, measure)
    assert set(sizes) == {(3, 3)}


def test_splits_are_seeded():
    x, ood = torch.randn(20, 4), torch.randn(20, 4)
    found, again, other = (distances({'x': x}, {'ood': ood}, seed=seed) for seed in (0, 0, 1))
    assert all((found[pair] == again[pair]).all() for pair in found)
    assert (found['x', 'ood'] != other['x', 'ood']).all()
    assert len(set(found['x', 'ood'].tolist())) == 3


def test_mean_and_standard_deviation():
    assert moments(np.array([1.0, 2.0, 3.0])) == {'mean': 2, 'std': 1}
    assert moments(np.array([5.0])) == {'mean': 5, 'std': 0}


def test_no_split():
    with pytest.raises(ValueError, match='num_splits must be 1 or more, got 0'):
        distances({'x': torch.zeros(4, 2)}, {}, num_splits=0)


def test_a_set_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r'every set needs 2 images or more to be halved.*ood.*1'):
        distances({'x': torch.zeros(4, 2)}, {'ood': torch.zeros(1, 2)}, partial(wasserstein))


# Models and codes.


def test_disagreement():
    logits = torch.tensor([[1.0, 0, 0], [0, 2, 1], [0, 2, 3]])
    other = torch.tensor([[5.0, 4, 0], [0, 1, 2], [1, 0, 9]])
    assert disagrees(logits, other).tolist() == [False, True, False]


def test_disagreement_of_other_classes():
    with pytest.raises(ValueError, match=r'logits of two models must have one shape'):
        disagrees(torch.zeros(2, 3), torch.zeros(2, 4))


def test_perplexity_is_the_number_of_codes_where_they_are_used_equally():
    usage = code_usage(torch.tensor([7, 7, 0, 7, 7, 0]))
    assert usage == {'used': 4, 'perplexity': pytest.approx(4)}
    assert code_usage(torch.tensor([0, 9, 0]))['perplexity'] == pytest.approx(1)
    halves = code_usage(torch.tensor([2, 1, 1]))  # entropy 1.5 bits
    assert halves['perplexity'] == pytest.approx(2**1.5)


def test_no_codes():
    with pytest.raises(ValueError, match='there must be codes to count'):
        code_usage(torch.zeros(4))
