import sys
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
from PIL import Image
from predicted import IMAGENET_C, results_of, suite

from timm_dad.evaluation.report.metrics import logit
from timm_dad.evaluation.report.plot_style import new_plot
from timm_dad.evaluation.report.plots import ood_pairs, plot_ood, plot_severity, write_plots
from timm_dad.evaluation.report.write import build_report

MODELS = {'plain': 0.6, 'a/b': 0.7, 'a:b': 0.8}
SUITES = [
    suite('noto', 'clean'),
    suite('twemoji', 'ood'),
    suite('noto-corrupted', 'corruption', ['fog/1', 'fog/3', 'snow/1', 'snow/3']),
]


@pytest.fixture(scope='module')
def results():
    return results_of(MODELS, SUITES)


@pytest.fixture(scope='module')
def report(results):
    return build_report(results, SUITES, resamples=20)


def test_files_and_their_bytes(tmp_path, report):
    files = write_plots(report, tmp_path / 'a')
    names = ['severity-noto-corrupted.png', 'ood.png']
    assert [path.name for path in files] == names
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == sorted(names)
    with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'red'}):  # the user's own settings
        again = write_plots(report, tmp_path / 'b')
    for first, second in zip(files, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
        with Image.open(first) as picture:
            pixels = np.asarray(picture.convert('L'))
            assert pixels.std() > 5
            edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (edge == 255).all(), 'something is cut off'


@pytest.mark.parametrize('draw', [lambda report, path: plot_severity(report, 'noto-corrupted', path), plot_ood])
def test_plots_show_the_numbers(tmp_path, report, draw):
    other = build_report(results_of({**MODELS, 'a:b': 0.9}, SUITES), SUITES, resamples=20)
    assert draw(report, tmp_path / 'a.png').read_bytes() != draw(other, tmp_path / 'b.png').read_bytes()


def test_clean_top1_is_severity_0_of_what_is_made_of_it(tmp_path, results):
    report = build_report(results, SUITES, resamples=0)
    other = build_report(results_of({'plain': 0.9}, SUITES), SUITES, resamples=0)
    changed = {**report, 'figures': {m: {**of_model, 'noto': other['figures']['plain']['noto']}
                                     for m, of_model in report['figures'].items()}}  # fmt: skip
    pictures = [plot_severity(one, 'noto-corrupted', tmp_path / f'{id(one)}.png') for one in (report, changed)]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def test_intervals_are_shown(tmp_path, results):
    reports = [build_report(results, SUITES, resamples=resamples) for resamples in (0, 20)]
    without, bands = (plot_severity(one, 'noto-corrupted', tmp_path / f'{id(one)}.png') for one in reports)
    assert without.read_bytes() != bands.read_bytes()


def test_points_of_timm_are_shown_behind_the_line(tmp_path):
    suites = [suite('imagenet', 'clean'), suite('imagenet-r', 'ood')]
    results = results_of(MODELS, suites)
    timm = {
        f'{name}.in1k': {'imagenet': {224: (top1, 90.0)}, 'imagenet-r': {224: (top1 / 2, 60.0)}}
        for name, top1 in (('a', 50.0), ('b', 60.0), ('c', 75.0))
    }
    report = build_report(results, suites, resamples=5, timm_results=timm)
    with_points, without = plot_ood(report, tmp_path / 'a.png', timm), plot_ood(report, tmp_path / 'b.png')
    assert with_points.read_bytes() != without.read_bytes()


def _drawn(monkeypatch, draw):
    """The axes of a plot."""
    kept = []

    @contextmanager
    def keep(path, *args, **kwargs):
        with new_plot(path, *args, **kwargs) as axes:
            yield axes
            kept.extend(axis for axis in axes.flat if axis.axison)

    monkeypatch.setattr('timm_dad.evaluation.report.plots.new_plot', keep)
    draw()
    return kept


def test_intervals_and_three_ticks_are_inside_the_limits(tmp_path, monkeypatch):
    for models, images in (
        (MODELS, 12),
        ({'a': 0.62, 'b': 0.62}, 40_000),
        ({'a': 1.1, 'b': 1.2}, 40),
        ({'a': 0, 'b': 0}, 40),
    ):
        report = build_report(results_of(models, SUITES[:2], images), SUITES[:2], resamples=50)
        (axis,) = _drawn(monkeypatch, lambda report=report: plot_ood(report, tmp_path / 'x.png'))
        for limits, ticks, name in (
            (axis.get_xlim(), axis.get_xticks(), 'noto'),
            (axis.get_ylim(), axis.get_yticks(), 'twemoji'),
        ):
            assert len([tick for tick in ticks if limits[0] <= tick <= limits[1]]) == len(ticks) >= 3
            for of_model in report['figures'].values():
                top1 = of_model[name]['*']['top1']
                for value in (top1['low'], top1['value'], top1['high']):
                    assert limits[0] < logit(np.clip(value, 0.1, 99.9)) < limits[1]


def test_the_band_of_the_mean_is_its_interval(tmp_path, monkeypatch, report):
    axes = _drawn(monkeypatch, lambda: plot_severity(report, 'noto-corrupted', tmp_path / 'x.png'))
    mean = next(axis for axis in axes if axis.get_title() == 'mean')
    for band, model in zip(mean.collections, MODELS, strict=True):
        figures = report['figures'][model]
        points = [figures['noto']['*'], *(figures['noto-corrupted'][f'*/{severity}'] for severity in (1, 3))]
        found = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
        for x, point in zip((0, 1, 3), points, strict=True):
            assert point['top1']['low'] < point['top1']['high']
            assert {(x, point['top1']['low']), (x, point['top1']['high'])} <= found


def test_one_point_is_no_plot(tmp_path):
    suites = [SUITES[0], SUITES[1], suite('x-corrupted', 'corruption', ['fog/2', 'snow/2'])]
    assert write_plots(build_report(results_of({'m': 0.5}, suites), suites, resamples=5), tmp_path) == []


def test_without_matplotlib_there_are_no_plots_and_one_line(tmp_path, report, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert write_plots(report, tmp_path) == []
    assert [record.getMessage() for record in caplog.records] == [
        'No plots: matplotlib is missing; run: pip install "timm-dad[eval]"'
    ]


def test_nothing_to_plot(tmp_path):
    suites = [suite('noto', 'clean')]
    results = results_of({'m': 0.5}, suites)
    assert write_plots(build_report(results, suites, resamples=0), tmp_path) == []


def test_shifted_suites_without_a_clean_one_have_no_plot(tmp_path):
    report = build_report(results_of(MODELS, SUITES[1:]), SUITES[1:], resamples=0)
    assert ood_pairs(report) == {}
    names = [path.name for path in write_plots(report, tmp_path)]
    assert names == ['severity-noto-corrupted.png']


@pytest.mark.slow
def test_severity_of_all_of_imagenet_c(tmp_path):
    suites = [suite('imagenet', 'clean'), suite('imagenet-c', 'corruption', IMAGENET_C)]
    report = build_report(results_of(MODELS, suites), suites, resamples=5)
    with Image.open(plot_severity(report, 'imagenet-c', tmp_path / 'x.png')) as picture:
        assert picture.size[0] == 1680


def test_style_is_put_back(tmp_path):
    before = matplotlib.rcParams['font.size']
    with new_plot(tmp_path / 'x.png', 'x', 1, 1, (2, 2)) as ((axis,),):
        assert matplotlib.rcParams['legend.frameon'] is False
        axis.plot([0, 1], label='a')
    assert matplotlib.rcParams['font.size'] == before
