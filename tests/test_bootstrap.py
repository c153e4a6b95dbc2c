import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predicted import predict, random_predictions

from timm_dad.evaluation.report.bootstrap import Estimate, combine, estimate_figures, mean_estimate, resample_means
from timm_dad.evaluation.report.metrics import calibration_error, calibration_gaps


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 5))
def test_intervals_contain_the_figure(correct, seed):
    confidence = np.random.default_rng(seed).random(len(correct))
    figures = estimate_figures([predict(correct, confidence=confidence)], 'images', 200, seed)[0]
    assert figures['top1'].value == pytest.approx(100 * np.mean(correct))
    ece = calibration_error(calibration_gaps(confidence, correct).mean(axis=0))
    assert figures['ece'].value == pytest.approx(ece, abs=1e-4)
    for name, figure in figures.items():
        low, high = figure.interval()
        assert -1e-9 <= low <= figure.value + 1e-4, name
        assert figure.value - 1e-4 <= high <= 100 + 1e-9, name


def test_interval_of_a_share_is_that_of_scipy():
    scipy_stats = pytest.importorskip('scipy.stats')
    correct = np.arange(400) % 10 < 7
    low, high = estimate_figures([predict(correct)], 'images', 4000)[0]['top1'].interval()
    theirs = scipy_stats.bootstrap(
        (100 * correct.astype(float),), np.mean, n_resamples=4000, method='percentile', rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.5)
    # The normal interval, too: 70 +- 1.96 * sqrt(70 * 30 / 400).
    assert (low, high) == pytest.approx((65.5, 74.5), abs=0.6)


def test_equal_seeds_and_images_give_equal_resamples_others_do_not():
    one = random_predictions(0)
    alone = estimate_figures([one], 'images', 100)[0]
    beside = estimate_figures([random_predictions(1), one], 'images', 100)[1]
    for name in alone:
        np.testing.assert_array_equal(alone[name].samples, beside[name].samples)
    for other in (estimate_figures([one], 'others', 100)[0], estimate_figures([one], 'images', 100, seed=1)[0]):
        assert (other['top1'].samples != alone['top1'].samples).any()


def test_differences_are_paired():
    """A model against itself is 0 in every resample; two that differ on few images have a narrow interval."""
    correct = np.random.default_rng(0).random(300) < 0.5
    worse = correct.copy()
    worse[np.flatnonzero(correct)[:6]] = False
    first, second, again = (
        figures['top1'] for figures in estimate_figures([predict(correct), predict(worse), predict(correct)], 'x', 500)
    )
    assert combine(np.subtract, first, again).interval() == (0, 0)
    difference = combine(np.subtract, second, first)
    low, high = difference.interval()
    assert difference.value == pytest.approx(-2)
    assert -4 < low < -2 < high < 0  # unpaired it would be about -2 +- 8
    assert difference.images == 600


def test_table_means_are_means_of_the_drawn_rows():
    """Against drawing rows one resample at a time, in blocks and not."""
    table = np.random.default_rng(1).normal(size=(7, 3))
    found = resample_means([table], lambda item: item, 7, 20, [5])[0]
    rng = np.random.default_rng([5])
    expected = [table[rng.integers(7, size=7, dtype=np.int32)].mean(axis=0) for _ in range(20)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    table = np.random.default_rng(1).normal(size=(7, 3))
    whole = resample_means([table, table[::-1]], lambda item: item, 7, 20, [5])
    monkeypatch.setattr('timm_dad.evaluation.report.bootstrap._MAX_COUNTS', 21)
    for found, expected in zip(resample_means([table, table[::-1]], lambda item: item, 7, 20, [5]), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ece_of_perfect_calibration_starts_at_zero():
    """Plain percentiles of its resamples would all lie above."""
    figures = estimate_figures([predict(np.arange(200) % 2 == 0, confidence=0.5)], 'images', 300)[0]
    low, high = figures['ece'].interval()
    assert figures['ece'].value == 0 == low
    assert 0 < high < 8


def test_no_resamples_no_interval():
    figures = estimate_figures([predict([1, 0])], 'images', 0)[0]
    assert (figures['top1'].value, figures['top1'].interval()) == (50, None)


def test_mean_of_figures():
    mean = mean_estimate([Estimate(1, np.array([1.0, 2]), 10), Estimate(3, np.array([5.0, 6]), 20)])
    assert (mean.value, mean.samples.tolist(), mean.images) == (2, [3, 4], 30)


def test_bad_input():
    with pytest.raises(ValueError, match='needs at least one image'):
        estimate_figures([predict([])], 'images', 10)
    with pytest.raises(ValueError, match='images: compared predictions must be of the same images'):
        estimate_figures([predict([1, 0]), predict([1, 0], classes=1)], 'images', 10)
