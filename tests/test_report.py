import csv
import io
import json

import numpy as np
import pytest
from predicted import IMAGENET_C, predict, random_predictions, results_of, suite

from timm_dad.evaluation.report.text import format_csv, format_markdown
from timm_dad.evaluation.report.write import build_report, write_report
from timm_dad.evaluation.suites.changed import corrupted_suites

MODELS = {'plain': 0.6, 'kd': 0.7, 'dad': 0.8}
SUITES = [
    suite('imagenet', 'clean'),
    suite('imagenet-a', 'ood'),
    suite('imagenet-r', 'ood'),
    suite('imagenet-v2', 'ood', ['matched-frequency', 'top-images']),
    suite('imagenet-c', 'corruption', IMAGENET_C, normalizer='alexnet'),
]
TIMM = {
    'x.in1k': {'imagenet': {224: (60.0, 80.0), 288: (61.0, 81.0)}, 'imagenet-v2': {224: (50.0, 70.0)}},
    **{f'{name}.in1k': {'imagenet': {224: (top1, 90.0)}, 'imagenet-r': {224: (top1 / 2, 60.0)}}
       for name, top1 in (('a', 50.0), ('b', 60.0), ('c', 75.0), ('d', 80.0))},
}  # fmt: skip


@pytest.fixture(scope='module')
def results():
    return results_of(MODELS, SUITES)


@pytest.fixture(scope='module')
def report(results):
    return build_report(
        results, SUITES, resamples=60, missing=['objectnet'], timm_results=TIMM, timm_models={'kd': ('x.in1k', 224)}
    )


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_figures_are_those_of_the_predictions(report, results):
    for model, of_model in results.items():
        figure = report['figures'][model]['imagenet']['*']['top1']
        assert figure['value'] == pytest.approx(100 * of_model['imagenet']['val'].correct.mean(), abs=1e-4)
        assert figure['low'] <= figure['value'] <= figure['high']
        assert figure['images'] == 40
        parts = [100 * (1 - of_model['imagenet-c'][part].correct.mean()) for part in IMAGENET_C]
        whole = report['figures'][model]['imagenet-c']['*']
        assert whole['mce_unnormalized']['value'] == pytest.approx(np.mean(parts), abs=1e-4)
        assert {'mce', 'relative_mce', 'top1', 'top5', 'ece'} <= set(whole)
        ood = [report['figures'][model][name]['*']['top1']['value'] for name in ('imagenet-a', 'imagenet-r')]
        ood.append(100 * of_model['imagenet-v2']['matched-frequency'].correct.mean())
        assert report['figures'][model]['mean-ood']['*']['top1']['value'] == pytest.approx(np.mean(ood), abs=2e-4)


def test_differences_are_to_the_reference(report, results):
    assert set(report['differences']) == {'kd', 'dad'}
    for suite_name, figure in (('imagenet', 'top1'), ('imagenet-c', 'mce'), ('mean-ood', 'top1')):
        found = report['differences']['dad'][suite_name]['*'][figure]
        ours, theirs = (report['figures'][model][suite_name]['*'][figure]['value'] for model in ('dad', 'plain'))
        assert found['value'] == pytest.approx(ours - theirs, abs=2e-4)
        assert found['low'] <= found['value'] <= found['high']
    other = build_report(dict(reversed(results.items())), SUITES, resamples=5)
    assert (other['reference'], set(other['differences'])) == ('dad', {'plain', 'kd'})


def test_a_model_against_itself_is_zero(results):
    one = results['kd']
    report = build_report({'kd': one, 'copy': one}, SUITES, resamples=20)
    for parts in report['differences']['copy'].values():
        for figures in parts.values():
            for figure in figures.values():
                assert (figure['value'], figure['low'], figure['high']) == (0, 0, 0)


def test_published_figures_stand_beside_ours(report):
    ours = report['figures']['kd']
    found = report['published']['kd']
    assert found['imagenet']['top1']['value'] == 60
    assert found['imagenet']['top1']['difference'] == pytest.approx(
        ours['imagenet']['*']['top1']['value'] - 60, abs=1e-4
    )
    v2 = ours['imagenet-v2']['matched-frequency']['top5']['value']
    assert found['imagenet-v2']['top5']['difference'] == pytest.approx(v2 - 70, abs=1e-4)
    assert set(report['published']) == {'kd'}


def test_published_figures_of_another_size_or_variant_do_not_count(results):
    suites = [SUITES[0], suite('imagenet-v2', 'ood', ['top-images'])]
    of_kd = {'kd': {'imagenet': results['kd']['imagenet'], 'imagenet-v2': {'top-images': predict([1, 0])}}}
    made = build_report(of_kd, suites, resamples=0, timm_results=TIMM, timm_models={'kd': ('x.in1k', 224)})
    assert set(made['published']['kd']) == {'imagenet'}
    made = build_report(of_kd, suites, resamples=0, timm_results=TIMM, timm_models={'kd': ('x.in1k', 320)})
    assert made['published'] == {}


def test_relative_mce_is_against_imagenet_val_with_the_same_classes_alone(results):
    note = "No relative mCE on imagenet-c: AlexNet's clean error is measured on ImageNet val"
    c = SUITES[-1]
    few = {part: random_predictions(0, 40, classes=4) for part in IMAGENET_C}
    for clean, of_c, expected in (
        ('imagenet', results['kd']['imagenet-c'], True),
        ('imagenet', few, False),
        ('imagenet-real', results['kd']['imagenet-c'], False),
        ('val', results['kd']['imagenet-c'], False),
    ):
        predictions = {'kd': {clean: results['kd']['imagenet'], 'imagenet-c': of_c}}
        made = build_report(predictions, [suite(clean, 'clean'), c], resamples=0)
        whole = made['figures']['kd']['imagenet-c']['*']
        assert 'mce' in whole
        assert ('relative_mce' in whole) == expected, clean
        assert any(one.startswith(note) for one in made['notes']) != expected


def test_v2_without_matched_frequency_has_no_line_of_timm():
    timm = {f'{name}.in1k': {'imagenet': {224: (top1, 90.0)}, 'imagenet-v2': {224: (top1 - 10, 60.0)}}
            for name, top1 in (('a', 50.0), ('b', 60.0), ('c', 75.0))}  # fmt: skip
    for parts, source in ((['top-images'], None), (['matched-frequency', 'top-images'], 'timm')):
        suites = [SUITES[0], suite('imagenet-v2', 'ood', parts)]
        report = build_report(results_of({'kd': 0.7}, suites), suites, resamples=0, timm_results=timm)
        assert report['baselines'].get('imagenet-v2', {}).get('source') == source
        notes = '\n'.join(report['notes'])
        assert ('imagenet-v2 as a whole is here the mean of top-images, not matched-frequency' in notes) == (not source)
        missing = 'threshold0.7' if source else 'matched-frequency, threshold0.7'
        assert f'imagenet-v2 lacks {missing}.' in notes


def test_notes_on_corruptions_made_here_and_on_suites_of_your_own():
    suites = [suite('noto', 'clean'), suite('sketches', 'ood'), *corrupted_suites(suite('noto', 'clean'), ['fog'], [1])]
    many, one = (build_report(results_of(models, suites), suites, resamples=0) for models in (MODELS, {'m': 0.5}))
    sizes = 'noto-corrupted: images are corrupted at the input size of each model.'
    assert [any(note.startswith(sizes) for note in report['notes']) for report in (many, one)] == [True, False]
    assert any('count as shifted data: sketches. If one is not shifted' in note for note in one['notes'])


def test_effective_robustness_is_against_timm_or_the_models_here(report):
    lines = report['baselines']
    assert (lines['imagenet-r']['source'], lines['imagenet-r']['models']) == ('timm', 4)
    assert (lines['imagenet-v2']['source'], lines['imagenet-v2']['models']) == ('models of this report', 3)
    x, y = (report['figures']['dad'][name]['*']['top1']['value'] for name in ('imagenet', 'imagenet-r'))
    logit = lines['imagenet-r']['slope'] * np.log(x / (100 - x)) + lines['imagenet-r']['intercept']
    found = report['figures']['dad']['imagenet-r']['*']['effective_robustness']
    assert found['value'] == pytest.approx(y - 100 / (1 + np.exp(-logit)), abs=0.01)
    assert found['low'] < found['value'] < found['high']


def test_on_imagenet_a_the_line_is_of_models_above_resnet50():
    accuracies = {f'm{place}': 0.5 + 0.05 * place for place in range(10)}
    results = results_of(accuracies, SUITES[:2], images=200)
    report = build_report(results, SUITES[:2], resamples=5)
    clean = {model: report['figures'][model]['imagenet']['*']['top1']['value'] for model in accuracies}
    above = {model for model, value in clean.items() if value > 76.13}
    assert 3 <= len(above) < 10
    assert report['baselines']['imagenet-a']['models'] == len(above)
    with_figure = {m for m in accuracies if 'effective_robustness' in report['figures'][m]['imagenet-a']['*']}
    assert with_figure == above
    assert any('On imagenet-a it is defined above 76.13 %' in note for note in report['notes'])


def test_too_few_models_have_no_effective_robustness_and_are_told(results):
    report = build_report({'kd': results['kd']}, SUITES[:3], resamples=5)
    assert report['baselines'] == {}
    assert 'effective_robustness' not in report['figures']['kd']['imagenet-r']['*']
    start = 'No effective robustness on imagenet-a, imagenet-r: it needs'
    assert any(note.startswith(f'{start} 3 or more models') for note in report['notes'])  # there is a clean suite
    report = build_report({'kd': results['kd']}, SUITES[1:3], resamples=5)
    assert any(note.startswith(f'{start} a clean suite, and 3 or more models') for note in report['notes'])


def test_notes_name_what_is_missing(results, report):
    assert report['missing_suites'] == ['objectnet']
    notes = '\n'.join(report['notes'])
    assert 'Not evaluated, because their data does not exist: objectnet.' in notes
    assert 'imagenet-c has 40 images a part; published figures use 50,000.' in notes
    assert 'Mean OOD is the plain mean of top-1 on imagenet-a, imagenet-r, imagenet-v2.' in notes
    partial = suite('imagenet-c', 'corruption', IMAGENET_C[:2], normalizer='alexnet')
    made = build_report(results_of({'kd': 0.5}, [partial]), [partial], resamples=0)
    assert made['suites']['imagenet-c']['missing_parts'] == IMAGENET_C[2:]
    notes = '\n'.join(made['notes'])
    assert 'imagenet-c lacks 73 of the 75 parts of ImageNet-C (gaussian_noise/3, ' in notes
    assert {row['figure'] for row in rows_of(format_csv(made)) if row['part'] == '*' and row['model'] == 'kd'} == {
        *('top1', 'top5', 'ece', 'mean_error')
    }


def test_two_runs_write_the_same_bytes(tmp_path, results, report):
    again = build_report(
        results, SUITES, resamples=60, missing=['objectnet'], timm_results=TIMM, timm_models={'kd': ('x.in1k', 224)}
    )
    first, second = write_report(report, tmp_path / 'a'), write_report(again, tmp_path / 'b')
    assert [path.name for path in first] == ['report.json', 'report.csv', 'report.md']
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['report.csv', 'report.json', 'report.md']
    assert json.loads(first[0].read_text()) == report


def test_seed_and_resamples_change_intervals_alone(results, report):
    other = build_report(results, SUITES, resamples=60, seed=1)
    first, second = (one['figures']['dad']['imagenet-r']['*']['top1'] for one in (report, other))
    assert first['value'] == second['value']
    assert (first['low'], first['high']) != (second['low'], second['high'])


def test_without_resamples_there_are_no_intervals(results):
    report = build_report(results, SUITES, resamples=0)
    figure = report['figures']['dad']['imagenet']['*']['top1']
    assert (figure['low'], figure['high']) == (None, None)
    text = format_markdown(report)
    assert '[' not in text
    assert 'bootstrap' not in text
    assert rows_of(format_csv(report))[0]['low'] == ''


def test_csv_has_every_number(report):
    rows = rows_of(format_csv(report))
    assert list(rows[0]) == ['model', 'suite', 'part', 'figure', 'value', 'low', 'high', 'images']
    by_key = {(row['model'], row['suite'], row['part'], row['figure']): row for row in rows}
    assert len(by_key) == len(rows)
    for model, suites in report['figures'].items():
        for suite_name, parts in suites.items():
            for part, figures in parts.items():
                for name, figure in figures.items():
                    row = by_key[model, suite_name, part, name]
                    assert [float(row[key]) for key in figure] == list(figure.values())


def test_the_report_says_all(report):
    text = format_markdown(report)
    for part in ('imagenet-v2 (matched-frequency)', 'imagenet-v2/top-images', 'mCE, unnormalized', 'relative mCE',
                 'effective robustness', 'mean OOD', 'Minus plain', 'objectnet', '60.00 ('):  # fmt: skip
        assert part in text, part
    figure = report['figures']['dad']['imagenet']['*']['top1']
    assert f'{figure["value"]:.2f} [{figure["low"]:.2f}, {figure["high"]:.2f}]' in text


def test_top5_of_fewer_than_six_classes_is_in_no_table():
    few, more = suite('few', 'clean', num_classes=5), suite('more', 'ood')
    text = format_markdown(build_report(results_of({'m': 0.5}, [few, more]), [few, more], resamples=0))
    assert [line.split('|')[1].strip() for line in text.splitlines() if '| top-5' in line] == ['more']
    assert 'top-1' in next(line for line in text.splitlines() if line.startswith('| few'))


def test_differences_beyond_doubt_are_marked():
    better, worse = np.ones(200, bool), np.arange(200) % 2 == 0
    results = {name: {'a': {'val': predict(correct)}} for name, correct in (('m', worse), ('n', better), ('o', worse))}
    text = format_markdown(build_report(results, [suite('a', 'clean')], resamples=50))
    line = next(line for line in text.split('Minus m')[1].splitlines() if 'top-1' in line)
    assert line.count('*') == 1
    assert line.rstrip(' |').endswith('+0.00 [+0.00, +0.00]')


def test_markdown_tables_are_whole(report):
    text = format_markdown(report)
    tables = [block for block in text.split('\n\n') if block.startswith('|')]
    assert len(tables) == 4
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
    assert '| imagenet-c: gaussian_noise    | top-1  |    200 |' in text
    assert '- Not evaluated, because their data does not exist: objectnet.' in text


def test_markdown_of_odd_names():
    results = {'a|b': {'d': {'val': predict([1, 0])}}}
    text = format_markdown(build_report(results, [suite('d', 'clean')], resamples=0))
    assert '| suite | figure | images |  a\\|b |' in text
