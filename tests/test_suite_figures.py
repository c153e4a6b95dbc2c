import numpy as np
import pytest
from predicted import IMAGENET_C, predict, suite

from timm_dad.evaluation.report.bootstrap import Estimate
from timm_dad.evaluation.report.figures import (
    add_whole,
    clean_suite,
    estimate_parts,
    have_same_classes,
    missing_parts,
)
from timm_dad.evaluation.report.metrics import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS
from timm_dad.evaluation.suites.changed import attacked_suites, corrupted_suites
from timm_dad.evaluation.suites.suite import Part, Suite

C = suite('imagenet-c', 'corruption', IMAGENET_C, normalizer='alexnet')


def exact(top1, images=10):
    return {name: Estimate(top1, np.array([top1, top1 + 1]), images) for name in ('top1', 'top5', 'ece')}


def figures_of(suite, top1):
    """Figures of a model whose top-1 on each part is ``top1(corruption, severity)``."""
    return {part.name: exact(top1(*part.name.split('/'))) for part in suite.parts}


def test_mce_by_hand():
    """Errors of AlexNet shifted by severity, which the mean over severities takes out, and 10 points better."""
    figures = figures_of(C, lambda name, severity: 110 - ALEXNET_ERRORS[name] + (int(severity) - 3))
    clean = Estimate(100 - ALEXNET_CLEAN_ERROR, np.zeros(2), 10)
    add_whole(C, figures, clean)
    errors = {name: error - 10 for name, error in ALEXNET_ERRORS.items()}
    whole = figures['*']
    assert whole['mce'].value == pytest.approx(np.mean([100 * (e - 10) / e for e in ALEXNET_ERRORS.values()]))
    relative = [100 * (error - 10 - 43.48) / (error - 43.48) for error in ALEXNET_ERRORS.values()]
    assert whole['relative_mce'].value == pytest.approx(np.mean(relative))
    assert whole['mce_unnormalized'].value == pytest.approx(np.mean(list(errors.values())))
    assert whole['mce_unnormalized'].samples[1] == pytest.approx(np.mean(list(errors.values())) - 1)
    assert whole['top1'].value == pytest.approx(100 - whole['mce_unnormalized'].value)
    assert (whole['mce'].images, whole['relative_mce'].images) == (750, 750)
    assert 'mean_error' not in whole
    fog = figures['fog/*']
    assert fog['ce'].value == pytest.approx(100 * (81.9324 - 10) / 81.9324)
    assert fog['relative_ce'].value == pytest.approx(100 * (81.9324 - 53.48) / (81.9324 - 43.48))


def test_a_part_less_is_no_mce():
    partial = suite('imagenet-c', 'corruption', IMAGENET_C[1:], normalizer='alexnet')
    figures = figures_of(partial, lambda name, severity: 50.0)
    add_whole(partial, figures, Estimate(70.0, np.zeros(2), 10))
    assert not {'mce', 'relative_mce', 'mce_unnormalized'} & set(figures['*'])
    assert figures['*']['mean_error'].value == 50
    assert 'ce' not in figures['fog/*']
    assert missing_parts(partial) == [IMAGENET_C[0]]
    assert missing_parts(C) == []
    assert missing_parts(suite('imagenet-v2', 'ood', ['top-images'])) == ['matched-frequency', 'threshold0.7']


def test_without_clean_top1_no_relative_mce():
    figures = figures_of(C, lambda name, severity: 50.0)
    add_whole(C, figures, None)
    assert 'mce' in figures['*']
    assert 'relative_mce' not in figures['*']


def test_corruptions_made_here_are_not_divided_by_alexnet():
    own = suite('noto-corrupted', 'corruption', IMAGENET_C)
    figures = figures_of(own, lambda name, severity: 60.0)
    add_whole(own, figures, Estimate(70.0, np.zeros(2), 10))
    assert figures['*']['mce_unnormalized'].value == 40
    assert 'mce' not in figures['*']


def test_other_corruptions_are_a_mean_over_corruptions_not_over_parts():
    other = suite('imagenet-c-bar', 'corruption', ['a/1', 'a/2', 'a/3', 'b/1'])
    figures = figures_of(other, lambda name, severity: {'a': 80.0, 'b': 40.0}[name])
    add_whole(other, figures, None)
    assert figures['*']['mean_error'].value == 40
    assert figures['*/1']['top1'].value == 60
    assert '*/2' not in figures  # of a alone
    assert missing_parts(other) == []


def test_parts_of_corruptions_share_resamples_and_variants_do_not():
    """Were they drawn apart, the mean over 10 equal parts would have an interval a third as wide."""
    parts = [f'a/{severity}' for severity in range(10)]
    shared, apart = suite('x-c', 'corruption', parts), suite('v2', 'ood', parts)
    same = predict(np.random.default_rng(0).random(200) < 0.5)
    results = {'m': {one.name: dict.fromkeys(parts, same) for one in (shared, apart)}}
    figures = estimate_parts(results, [shared, apart], 400, 0)['m']
    widths = {}
    for one in (shared, apart):
        add_whole(one, figures[one.name], None)
        widths[one.name] = np.ptp(figures[one.name]['*']['top1'].interval())
        single = np.ptp(figures[one.name]['a/0']['top1'].interval())
        widths[f'{one.name} part'] = single
    assert widths['x-c'] == widths['x-c part']
    assert widths['v2'] < 0.5 * widths['v2 part']


def samples_of(figures, *place):
    suite_name, part = place
    return figures['m'][suite_name][part]['top1'].samples.tolist()


def test_what_is_made_of_a_suite_is_drawn_with_it():
    val = suite('x', 'clean', ['val'])
    (corrupted,), (fgsm, pgd) = corrupted_suites(val, ['fog'], [1]), attacked_suites(val, ['fgsm', 'pgd'])
    one = predict(np.random.default_rng(0).random(50) < 0.5)
    suites = [val, corrupted, fgsm, pgd]
    results = {'m': {made.name: {part.name: one for part in made.parts} for made in suites}}
    figures = estimate_parts(results, suites, 20, 0)
    assert list(figures['m']) == ['x', 'x-corrupted', 'x-fgsm', 'x-pgd']
    expected = samples_of(figures, 'x', 'val')
    assert samples_of(figures, 'x-corrupted', 'fog/1') == expected
    assert samples_of(figures, 'x-fgsm', 'val') == samples_of(figures, 'x-pgd', 'val') == expected
    assert samples_of(estimate_parts(results, suites[2:], 20, 0), 'x-pgd', 'val') == expected


def test_some_of_the_images_attacked_are_a_set_of_their_own():
    val = Suite(name='x', kind='clean', parts=(Part(name='val', dataset=range(50)),), class_names=None, num_classes=5)
    fgsm, pgd = attacked_suites(val, ['fgsm', 'pgd'], 30)
    (whole,) = attacked_suites(val, ['autoattack'], 50)
    correct = np.random.default_rng(0).random(50) < 0.5
    some, all_of_it = {'val': predict(correct[:30])}, {'val': predict(correct)}
    results = {'m': {'x': all_of_it, 'x-fgsm': some, 'x-pgd': some, 'x-autoattack': all_of_it}}
    figures = estimate_parts(results, [val, fgsm, pgd, whole], 20, 0)
    assert figures['m']['x-fgsm']['val']['top1'].images == 30
    assert samples_of(figures, 'x-fgsm', 'val') == samples_of(figures, 'x-pgd', 'val')
    assert samples_of(figures, 'x-autoattack', 'val') == samples_of(figures, 'x', 'val')


def test_classes_of_all_parts():
    five, four = predict([1, 0] * 20), predict([1, 0] * 20, classes=4)
    of_model = {'imagenet': {'val': five}, 'c': {'a/1': five, 'b/1': five}, 'd': {'a/1': five, 'b/1': four}}
    assert have_same_classes(of_model, 'c', 'imagenet')
    assert not have_same_classes(of_model, 'd', 'imagenet')


def test_a_corruption_with_images_missing_is_drawn_apart():
    one = suite('x-c', 'corruption', ['a/1', 'b/1'])
    figures = estimate_parts({'m': {'x-c': {'a/1': predict([1, 0, 1]), 'b/1': predict([1, 0])}}}, [one], 10, 0)
    assert [figures['m']['x-c'][part]['top1'].images for part in ('a/1', 'b/1')] == [3, 2]


@pytest.mark.parametrize('kind', ['ood', 'corruption'])
def test_models_on_other_images_are_refused(kind):
    one = suite('x', kind, ['a/1'])
    results = {'m': {'x': {'a/1': predict([1, 0, 1])}}, 'n': {'x': {'a/1': predict([1, 0])}}}
    with pytest.raises(ValueError, match=r'x/.*: compared predictions must be of the same images'):
        estimate_parts(results, [one], 10, 0)


def test_v2_is_matched_frequency():
    parts = ['threshold0.7', 'matched-frequency', 'top-images']
    for name, expected in (('imagenet-v2', 60), ('mine', 70)):
        figures = {part: exact(top1) for part, top1 in zip(parts, (70.0, 60.0, 80.0), strict=True)}
        add_whole(suite(name, 'ood', parts), figures, None)
        assert figures['*']['top1'].value == expected


def test_clean_suites():
    names = ['noto', 'imagenet-a-clean', 'imagenet']
    suites = [suite(name, 'clean') for name in names] + [suite('imagenet-a', 'ood'), suite('imagenet-r', 'ood')]
    assert clean_suite(suites, 'imagenet-a') == 'imagenet-a-clean'
    assert clean_suite(suites, 'imagenet-r') == clean_suite(suites, 'mine') == 'imagenet'
    assert clean_suite(suites[:2], 'mine') == 'noto'
    assert clean_suite(suites[3:], 'mine') is None
    assert clean_suite([suite('photos-clean', 'clean')], 'mine') == 'photos-clean'
