import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from timm_dad.evaluation.corruptions import CORRUPTIONS
from timm_dad.evaluation.report.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    BINS,
    Baseline,
    calibration_error,
    calibration_gaps,
    corruption_error,
    fit_baseline,
    relative_corruption_error,
)

# Rounded in the paper's appendix, as google-research/robustness_metrics copied it (reports/imagenet_variants.py).
PAPER = (0.886, 0.894, 0.923, 0.820, 0.826, 0.786, 0.798, 0.867, 0.827, 0.819, 0.565, 0.853, 0.646, 0.718, 0.607)
# Top-1 in percent on the 15 corruptions, with CE and mCE: bethgelab/game-of-noise, Results/{clean,ANT}_results.txt.
RESNET50 = (
    (29.29, 27.03, 23.81, 38.75, 26.79, 38.67, 36.24, 32.53, 38.14, 45.83, 68.02, 39.06, 45.25, 44.79, 53.41),
    (79.77, 81.58, 82.58, 74.71, 88.61, 78.03, 79.86, 77.83, 74.84, 66.11, 56.64, 71.43, 84.75, 76.92, 76.82),
    76.70,
)
ANT = (
    (64.77, 65.73, 63.95, 47.02, 36.98, 43.30, 40.56, 36.71, 45.50, 44.20, 69.66, 42.12, 48.89, 54.65, 62.36),
    (39.74, 38.31, 39.07, 64.62, 76.28, 72.14, 74.46, 73.01, 65.94, 68.10, 53.74, 67.84, 79.11, 63.18, 62.05),
    62.51,
)
accuracies = st.floats(1, 99)


def ece(confidence, correct, bins=BINS):
    return calibration_error(calibration_gaps(confidence, correct, bins).mean(axis=0))


def mce(errors):
    return np.mean([corruption_error(error, name) for name, error in errors.items()], axis=0)


def test_calibration_error_by_hand():
    # Bins of a third: (0.2, wrong), (0.3, right) | (0.5, right), (0.6, wrong) | (0.9, right).
    confidence, correct = [0.2, 0.3, 0.5, 0.6, 0.9], [0, 1, 1, 0, 1]
    expected = 100 * (2 / 5 * abs(0.25 - 0.5) + 2 / 5 * abs(0.55 - 0.5) + 1 / 5 * abs(0.9 - 1))
    assert ece(confidence, correct, bins=3) == pytest.approx(expected)


def test_bins_have_their_upper_edge():
    edges = np.linspace(0, 1, 16)
    gaps = calibration_gaps(edges, np.full(16, 2))
    assert [int(np.flatnonzero(row)[0]) for row in gaps] == [0, *range(15)]


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(1, 20)), min_size=1, max_size=15))
def test_perfect_calibration_is_zero(groups):
    """Of images with confidence k / n, k of n are right."""
    confidence, correct = [], []
    for hits, size in groups:
        hits = min(hits, size)
        confidence += [hits / size] * size
        correct += [1] * hits + [0] * (size - hits)
    assert ece(confidence, correct) == pytest.approx(0, abs=1e-9)


@given(hnp.arrays(float, st.integers(1, 50), elements=st.floats(0, 1)), st.randoms())
def test_calibration_error_is_a_percentage_and_has_no_order(confidence, random):
    correct = np.array([random.random() < 0.5 for _ in confidence])
    error = ece(confidence, correct)
    assert 0 <= error <= 100
    assert ece(confidence[::-1], correct[::-1]) == pytest.approx(error)


def test_wrong_and_sure_is_a_hundred():
    assert ece([1, 1], [0, 0]) == 100


@pytest.mark.parametrize('value', [-0.1, 1.1, np.nan])
def test_confidences_are_probabilities(value):
    with pytest.raises(ValueError, match=r'confidences are softmax probabilities in \[0, 1\], .*are they logits'):
        ece([0.5, value], [1, 1])


def test_alexnet_errors_are_those_of_the_paper():
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS
    for (name, error), published in zip(ALEXNET_ERRORS.items(), PAPER, strict=True):
        assert error / 100 == pytest.approx(published, abs=0.00051), name
    assert sum(ALEXNET_ERRORS.values()) == pytest.approx(1183.4896, abs=1e-6)
    assert pytest.approx(43.5, abs=0.05) == ALEXNET_CLEAN_ERROR


def test_alexnet_is_a_hundred():
    for name, error in ALEXNET_ERRORS.items():
        assert corruption_error(error, name) == pytest.approx(100)
        assert relative_corruption_error(error, ALEXNET_CLEAN_ERROR, name) == pytest.approx(100)


@pytest.mark.parametrize(('top1', 'published', 'mean'), [RESNET50, ANT])
def test_corruption_errors_are_the_published_ones(top1, published, mean):
    errors = {name: 100 - value for name, value in zip(ALEXNET_ERRORS, top1, strict=True)}
    for (name, error), value in zip(errors.items(), published, strict=True):
        assert corruption_error(error, name) == pytest.approx(value, abs=0.014), name  # top-1 is rounded, too
    assert mce(errors) == pytest.approx(mean, abs=0.01)


def test_relative_error_by_hand():
    # AlexNet: 56.4592 - 43.48 = 12.9792.
    assert relative_corruption_error(30, 20, 'brightness') == pytest.approx(100 * 10 / 12.9792)


def test_figures_take_resamples():
    error = np.array([64, 32])
    np.testing.assert_allclose(corruption_error(error, 'elastic_transform'), error / 0.646056)
    np.testing.assert_allclose(relative_corruption_error(error, [20, 30], 'brightness'), [44 / 0.129792, 2 / 0.129792])


@given(st.floats(-3, 3), st.floats(-2, 2), st.lists(accuracies, min_size=3, max_size=9, unique_by=round))
def test_models_on_a_line_have_no_effective_robustness(slope, intercept, clean):
    line = Baseline(slope, intercept, 0)
    ood = -line.effective_robustness(clean, 0)
    found = fit_baseline(list(zip(clean, ood, strict=True)))
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=1e-5)
    np.testing.assert_allclose(found.effective_robustness(clean, ood), 0, atol=1e-4)
    np.testing.assert_allclose(found.effective_robustness(clean, ood + 3), 3, atol=1e-4)


def test_baseline_by_hand():
    # Slope 1 and an intercept of log(1/4) in logit space: odds of 1, 4 and 9 become 1/4, 1 and 9/4.
    found = fit_baseline([(50, 20), (80, 50), (90, 900 / 13)])
    assert (found.slope, found.intercept, found.models) == pytest.approx((1, np.log(0.25), 3))
    assert found.effective_robustness(80, 57) == pytest.approx(7)


def test_models_at_the_ends_are_left_out_of_the_line_and_still_have_a_figure():
    found = fit_baseline([(50, 20), (80, 50), (90, 900 / 13), (100, 90), (60, 0)])
    assert found.models == 3
    assert found.effective_robustness([0, 100], [0, 100]) == pytest.approx([0, 0], abs=1e-4)


@pytest.mark.parametrize(
    'models', [[(50, 40), (60, 50)], [(50, 40), (50, 41), (60, 50)], [(50, 40), (60, 50), (100, 60)], []]
)
def test_a_line_needs_three_models(models):
    assert fit_baseline(models) is None
