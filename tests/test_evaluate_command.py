"""``timm-dad evaluate`` from the command line: flag by flag, twice, in two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from commands import error_line, words
from folders import write_pictures
from predicted import predict
from suite_folders import label_of, write_corruptions, write_imagenet, write_subset

import train_dad
from timm_dad.cli import main as cli
from timm_dad.data.images import Frame
from timm_dad.evaluation.args import create_parser, describe_settings, parse_args
from timm_dad.evaluation.command import collect_suites, main, write_all
from timm_dad.evaluation.evaluate import Evaluation
from timm_dad.evaluation.predict import Predictions

REPO = Path(train_dad.__file__).parent
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Pictures, models and files of classes; flags name them."""
    root = tmp_path_factory.mktemp('files')
    write_pictures(root / 'data', train=6, validation=(3, 3, 3, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ('a', 'b'):
            states = [_sharp(timm.create_model('test_resnet', num_classes=4)).state_dict() for _ in range(2)]
            torch.save({'state_dict': states[0], 'state_dict_ema': states[1]}, root / f'{name}.pth.tar')
    (root / 'map.txt').write_text('3\n2\n1\n0\n')
    (root / 'names.txt').write_text('tool\nvehicle\nanimal\nplant\n')
    (root / 'templates.txt').write_text('an abstract painting of a {}.\n')
    write_subset(root / 'root' / 'imagenet-a', 'a')
    (root / 'timm').mkdir()
    (root / 'timm' / 'results-imagenet-a.csv').write_text('model,img_size,top1,top5\ntest_resnet.r160_in1k,160,5,15\n')
    return root


def _sharp(model):
    torch.nn.init.normal_(model.get_classifier().weight, std=5.0)
    return model


def flags(files, output, *more, **changes):
    """A command line; ``changes`` replace flags, ``None`` leaves one out."""
    values = {
        'model': f'a=timm:test_resnet/{files}/a.pth.tar', 'suite': f'val={files}/data/validation', 'output': output,
        'batch_size': 4, 'workers': 0, 'bootstrap': 20, 'device': 'cpu', **changes,
    }  # fmt: skip
    return words(values, more, files)


def content(output):
    """Every file that a call leaves."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob('*') if path.is_file()}


MORE = (
    *('--model', 'b=timm:test_resnet/{files}/b.pth.tar'),
    *('--corrupt', 'shot_noise', '--severity', '1', '4', '--attack', 'pgd'),
)


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(files, tmp_path, capsys):
    reports, printed = [], []
    for name in ('one', 'two'):
        reports.append(main(flags(files, tmp_path / name, *MORE)))
        printed.append(capsys.readouterr().out.replace(str(tmp_path / name), 'OUTPUT'))
        AcceleratorState._reset_state(reset_partial_state=True)
    one, two = content(tmp_path / 'one'), content(tmp_path / 'two')
    assert one == two
    assert printed[0] == printed[1]
    assert {'report.json', 'report.csv', 'report.md', 'report.html', 'severity-val-corrupted.png'} <= one.keys()
    assert b'<h2>Figures in percent</h2>' in one['report.html']
    assert set(reports[0]['suites']) == {'val', 'val-corrupted', 'val-pgd'}
    for model in ('a', 'b'):
        assert f'predictions/{model}/val/test.npz' in one
        assert f'predictions/{model}/val-corrupted/shot_noise-4.npz' in one
        of_model = reports[0]['figures'][model]
        assert of_model['val-pgd']['*']['top1']['value'] <= of_model['val']['*']['top1']['value']
    assert 'val-corrupted' in printed[0]
    assert 'Files in OUTPUT: report.json' in printed[0]
    assert not [name for name in one if 'tmp' in name]


def test_the_figures_are_those_of_the_predictions(files, tmp_path):
    report = main(flags(files, tmp_path))
    predictions = Predictions.load(tmp_path / 'predictions' / 'a' / 'val' / 'test.npz')
    assert len(predictions) == 11
    assert predictions.label.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 2
    assert report['figures']['a']['val']['*']['top1']['value'] == pytest.approx(
        100 * predictions.correct.mean(), abs=1e-3
    )
    assert json.loads((tmp_path / 'report.json').read_text()) == report


def test_missing_suites_are_named_once_and_the_rest_runs(files, tmp_path, caplog):
    caplog.set_level('WARNING')
    report = main(
        flags(files, tmp_path, '--suite', 'imagenet-r=nowhere', 'mine={files}/no', model='demo', suite='demo/noto')
    )
    assert caplog.text.count('there is no folder for imagenet-r=nowhere, mine=') == 1
    assert report['missing_suites'] == ['imagenet-r', 'mine']
    assert list(report['suites']) == ['noto']


def test_lists_that_are_given_twice_are_one_list(files, tmp_path):
    more = '--attack fgsm --attack pgd fgsm --corrupt fog --corrupt fog snow --severity 3 --severity 1'
    args = parse_args(flags(files, tmp_path, *more.split()))
    names = [(suite.name, [part.name for part in suite.parts]) for suite in collect_suites(args)[0]]
    parts = ['fog/1', 'fog/3', 'snow/1', 'snow/3']
    assert names == [('val', ['test']), ('val-corrupted', parts), ('val-fgsm', ['test']), ('val-pgd', ['test'])]


def test_a_radius_of_a_file_belongs_to_its_norm(files, tmp_path, capsys):
    (tmp_path / 'own.yaml').write_text('attack: [fgsm]\nattack_norm: l2\nattack_eps: 0.5\n')
    argv = flags(files, tmp_path / 'out', '--config', str(tmp_path / 'own.yaml'))
    args = parse_args(argv)
    assert (args.attack_norm, args.attack_eps) == ('l2', 0.5)
    error = error_line(capsys, main, [*argv, '--attack-norm', 'linf'])
    assert '--attack-eps must be given with --attack-norm linf: that of --config may be for another norm' in error
    assert parse_args([*argv, '--attack-norm', 'linf', '--attack-eps', '1/255']).attack_norm == 'linf'


def test_plots_of_an_earlier_report_do_not_stay(files, tmp_path):
    for name in ('ood.png', 'severity-val-c.png'):
        (tmp_path / name).write_bytes(b'older')
    main(flags(files, tmp_path))
    assert not list(tmp_path.glob('*.png'))


def test_a_suite_with_a_path_is_not_looked_for_in_the_data_root(files, tmp_path):
    root = tmp_path / 'root'
    for name in ('imagenet-a', 'imagenet_a'):
        shutil.copytree(files / 'root' / 'imagenet-a', root / name)
    with pytest.raises(ValueError, match='are both imagenet-a: keep one, or give imagenet-a=PATH'):
        collect_suites(parse_args(flags(files, tmp_path, suite=None, data_root=root)))
    args = parse_args(flags(files, tmp_path, suite=f'imagenet-a={root / "imagenet_a"}', data_root=root))
    assert [suite.name for suite in collect_suites(args)[0]] == ['imagenet-a']


def test_a_data_root_gives_what_is_there(files, tmp_path, caplog):
    caplog.set_level('WARNING')
    args = parse_args(flags(files, tmp_path, suite=None, data_root=files / 'root'))
    suites, missing = collect_suites(args)
    assert [suite.name for suite in suites] == ['imagenet-a']
    assert 'imagenet-c' in missing
    assert 'does not contain imagenet, ' in caplog.text
    args = parse_args(flags(files, tmp_path, suite=f'imagenet-a={files}/no', data_root=files / 'root'))
    with pytest.raises(ValueError, match=r'nothing to evaluate on, there is no data for imagenet-a, imagenet, '):
        collect_suites(args)  # what --suite names is not looked for in the root


def test_a_is_held_against_imagenet_with_its_classes(files, tmp_path):
    root = write_imagenet(tmp_path / 'imagenet')
    more = ('--suite', f'imagenet={root}', 'imagenet-a={files}/root/imagenet-a')
    suites, _ = collect_suites(parse_args(flags(files, tmp_path / 'out', *more, suite=None)))
    assert [suite.name for suite in suites] == ['imagenet', 'imagenet-a', 'imagenet-a-clean']
    val, a, clean = suites
    assert (clean.kind, clean.class_names) == ('clean', a.class_names)
    images = clean.parts[0].dataset
    assert len(images) == 200
    for index in (0, 57, 199):
        image, label = images[index]
        assert clean.class_names[label] == val.class_names[label_of(image)]


def test_imagenet_c_and_what_corrupt_makes_are_two_suites(files, tmp_path):
    write_corruptions(tmp_path / 'c', ['fog'], severities=('1',))
    more = ('--suite', f'imagenet={write_imagenet(tmp_path / "imagenet")}', f'imagenet-c={tmp_path}/c', *CORRUPT)
    suites, _ = collect_suites(parse_args(flags(files, tmp_path / 'out', *more, suite=None)))
    assert [suite.name for suite in suites] == ['imagenet', 'imagenet-c', 'imagenet-corrupted']
    assert [suite.normalizer for suite in suites] == [None, 'alexnet', None]


def test_notes_of_the_evaluation_are_in_the_report(files, tmp_path, capsys):
    args = parse_args(flags(files, tmp_path))
    suites, _ = collect_suites(args)
    evaluation = Evaluation(results={'a': {'val': {'test': predict([1, 0])}}}, notes=['It was resized.'])
    evaluation.frames['a'] = Frame(size=(32, 32))
    assert 'It was resized.' in write_all(args, suites, [], evaluation, None)['notes']
    assert 'It was resized.' in (tmp_path / 'report.md').read_text()
    assert 'It was resized.' in capsys.readouterr().out


def test_clean_suites_of_your_own_do_not_count_as_shifted(files, tmp_path):
    more = ('--suite', 'mine={files}/data/train', 'gone={files}/no', '--clean', 'mine', 'gone')
    suites, missing = collect_suites(parse_args(flags(files, tmp_path / 'out', *more)))
    assert {suite.name: suite.kind for suite in suites} == {'val': 'clean', 'mine': 'clean'}
    assert missing == ['gone']


def test_a_model_of_imagenet_is_masked_and_compared_with_timm(files, tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, **_: _sharp(create(name)))  # no download
    more = ('--timm-results', '{files}/timm')
    argv = flags(files, tmp_path, *more, model='test_resnet.r160_in1k', suite=None, data_root=files / 'root')
    report = main(argv)
    predictions = Predictions.load(next(tmp_path.glob('predictions/*/imagenet-a/*.npz')))
    assert len(predictions) == 200
    assert predictions.predicted.max() < 200
    published = report['published']['test_resnet.r160_in1k']['imagenet-a']['top1']
    assert published['value'] == 5
    assert published['difference'] == pytest.approx(100 * predictions.correct.mean() - 5, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--split-bn', '--aug-splits', '2'), ('--split-bn',)])
def test_the_student_of_a_run_has_the_figures_that_it_ended_with(files, tmp_path, more):
    argv = [
        *('--data-dir', files / 'data', '--model', 'test_resnet', '--num-classes', '4', '--img-size', '32'),
        *('--crop-pct', '0.9', '--batch-size', '12', '--workers', '0', '--epochs', '2', '--model-ema'),
        *('--output', tmp_path, '--lr', '0.01'),
        *('--model-ema-decay', '0.5', '--experiment', 'run', '--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo'),
        *('--warmup-epochs', '0', '--checkpoint-hist', '1', '--eval-suites', f'train={files}/data/train', *more),
    ]  # fmt: skip
    results = train_dad.main([str(word) for word in argv])
    AcceleratorState._reset_state(reset_partial_state=True)
    models = ('--model', f'run:{tmp_path}/run/last.pth.tar', f'teacher:{tmp_path}/run')
    suites = ('--suite', f'train={files}/data/train')
    report = main(flags(files, tmp_path / 'out', *models, *suites, model=None, suite=None, bootstrap=0))
    top1 = {name: of_model['train']['*']['top1']['value'] for name, of_model in report['figures'].items()}
    assert top1['run'] == pytest.approx(results['student']['train'], abs=1e-3)
    assert set(top1) == {'run', 'run-teacher'}


# --- flags ----------------------------------------------------------------------------------------------------------

CORRUPT = ('--corrupt', 'gaussian_noise', '--severity', '3')
PGD = ('--attack', 'pgd', '--attack-eps', '1/255')
CLIP = {'model': 'demo', 'bootstrap': 0}

# For each flag: what both calls are given, what the second alone is given, and the plain flags changed for both.
VARIANTS = {
    'model': ((), ('--model', 'b=timm:test_resnet/{files}/b.pth.tar'), {}),
    'suite': ((), ('--suite', 'train={files}/data/train'), {}),
    'clean': (('--suite', 'train={files}/data/train'), ('--clean', 'train'), {}),
    'corrupt': ((), ('--corrupt', 'contrast'), {}),
    'severity': (('--corrupt', 'contrast', '--severity', '3'), ('--severity', '4'), {}),
    'attack': ((), ('--attack', 'fgsm'), {}),
    'attack_eps': (PGD, ('--attack-eps', '0.1'), {}),
    'attack_norm': (PGD, ('--attack-norm', 'l2'), {}),
    'attack_images': (PGD, ('--attack-images', '3'), {}),
    'use_ema': ((), ('--no-use-ema',), {}),
    'dad_classnames': ((), ('--dad-classnames', '{files}/names.txt'), CLIP),
    'dad_templates': (('--dad-classnames', '{files}/names.txt'), ('--dad-templates', '{files}/templates.txt'), CLIP),
    'dad_class_map': ((), ('--dad-class-map', '{files}/map.txt'), {}),
    'dad_precision': ((), ('--dad-precision', 'bf16'), {}),
    'bootstrap': ((), ('--bootstrap', '0'), {}),
    'seed': (CORRUPT, ('--seed', '1'), {}),
}
ELSEWHERE = {
    'help': 'test_flag_parser.py',
    'config': 'test_flag_config.py',
    'output': 'every test',
    'data_root': 'test_a_data_root_gives_what_is_there',
    'timm_results': 'test_a_model_of_imagenet_is_masked_and_compared_with_timm',
    'use_train_size': 'test_eval_models.py',
    'batch_size': 'test_size_workers_and_device_of_the_work_change_nothing',
    'workers': 'test_size_workers_and_device_of_the_work_change_nothing',
    'device': 'test_size_workers_and_device_of_the_work_change_nothing',
}


def test_every_flag_has_a_test():
    assert {action.dest for action in create_parser()._actions} == set(VARIANTS) | set(ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize('flag', VARIANTS)
def test_flag_changes_something(flag, files, tmp_path):
    common, changed, base = VARIANTS[flag]
    for name, more in (('one', common), ('two', (*common, *changed))):
        main(flags(files, tmp_path / name, *more, **base))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert content(tmp_path / 'one') != content(tmp_path / 'two')


@pytest.mark.slow
def test_size_workers_and_device_of_the_work_change_nothing(files, tmp_path):
    found = []
    for name, changes in (('one', {}), ('two', {'batch_size': 3, 'workers': 1, 'device': 'cuda'})):
        main(flags(files, tmp_path / name, *CORRUPT, *PGD, **changes))
        AcceleratorState._reset_state(reset_partial_state=True)
        paths = sorted((tmp_path / name).rglob('*.npz'))
        found.append([Predictions.load(path) for path in paths])
    assert len(found[0]) == 3
    for one, two in zip(*found, strict=True):
        for name in ('label', 'predicted', 'correct', 'correct5'):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        np.testing.assert_allclose(one.confidence, two.confidence, rtol=1e-4)


@pytest.mark.parametrize(
    ('more', 'changes', 'message'),
    [
        ((), {'suite': None}, r'--suite must be a data set as NAME=PATH (or give --data-root)'),
        ((), {'output': '{files}/map.txt'}, r'map.txt is not a folder'),
        (('--severity', '3'), {}, r'--severity is for --corrupt: add it'),
        (('--attack-images', '3'), {}, r'--attack-... needs --attack: add it'),
        (('--attack', 'pgd', '--attack-norm', 'l2'), {}, r'--attack-eps must be given with --attack-norm l2'),
        (('--attack', 'pgd', '--attack-eps', '8'), {}, r'--attack-eps: eps is in [0, 1] pixel units'),
        (('--attack', 'pgd', '--attack-images', '0'), {}, r'--attack-images must be 1 or more, got 0'),
        (('--bootstrap', '-1'), {}, r'--bootstrap must be 0 or more, got -1'),
        (('--dad-classnames', '{files}/names.txt'), {}, r'--dad-classnames is for zero-shot models'),
        (('--dad-templates', '{files}/templates.txt'), {}, r'--dad-templates is for zero-shot models'),
        (('--dad-class-map', '{files}/map.txt'), {'model': 'demo'}, r'--dad-class-map is for models with their own'),
        (('--device', 'tpu'), {}, r"--device must be cuda or cpu, got 'tpu'"),
        (('--dad-class-map', 'nowhere.txt'), {}, r"--dad-class-map must be a file, got 'nowhere.txt', which"),
        (('--dad-templates', '{files}/names.txt'), {'model': 'demo'}, r'--dad-templates: a template needs {}'),
        (('--dad-class-map', '{files}/templates.txt'), {}, r'there are 1 entries of the class map for 4 classes'),
        (('--batch-size', '0'), {}, r'--batch-size: batch_size must be 1 or more, got 0'),
        (('--model', 'a=demo'), {}, r'--model: every model needs its own name, got a twice'),
        (('--model', 'run:b\udcff'), {}, r"--model: a model name must be printable text, got ['b\udcff']"),
        (('--model', 'b\nc=demo'), {}, r"--model: a model name must be printable text, got ['b\nc']: write"),
        (('--data-root', 'nowhere'), {}, r'--data-root: there is no data root nowhere'),
        (('--timm-results', '{files}'), {}, r"--timm-results must be the folder results of timm's repository"),
        (('--suite', 'val-corrupted={files}/data/train', '--corrupt', 'fog'), {}, r'val-corrupted is also the name of'),
        (('--suite', 'mean-ood={files}/data/train'), {}, r'mean-ood is also the name of'),
        (('--clean', 'train'), {}, r'--clean must name your own suites (here val), got train'),
        ((), {'suite': 'a=nowhere'}, r'--suite: nothing to evaluate on, there is no data for a'),
        ((), {'suite': 'demo/noto'}, r'a: timm:test_resnet/'),
    ],
)  # fmt: skip
def test_errors_are_one_line(more, changes, message, files, tmp_path, capsys):
    changes = {name: value and value.format(files=files) for name, value in changes.items()}
    output = changes.pop('output', tmp_path / 'out')
    # No format: a message has braces of its own.
    argv = [*flags(files, output, **changes), *(word.replace('{files}', str(files)) for word in more)]
    assert message in error_line(capsys, main, argv)
    assert not (tmp_path / 'out' / 'report.json').exists()


def test_the_command_is_known_to_timm_dad(capsys):
    with pytest.raises(SystemExit) as caught:
        cli(['evaluate', '--help'])
    assert caught.value.code == 0
    assert '--attack-eps' in capsys.readouterr().out


def test_the_page_names_the_flags_that_figures_depend_on():
    plain = ['--model', 'demo', '--suite', 'a b=c', '--output', 'out', '--batch-size', '3', '--workers', '1']
    found = describe_settings(parse_args(plain))
    assert found['--suite'] == "'a b=c'"
    assert (found['--seed'], found['--use-ema']) == ('0', 'on')
    assert not found.keys() & {
        '--output',
        '--batch-size',
        '--workers',
        '--device',
        '--severity',
        '--attack-eps',
        '--clean',
    }
    found = describe_settings(
        parse_args([*plain, '--corrupt', '--attack', 'pgd', '--attack-eps', '0.1', '--no-use-ema'])
    )
    assert found['--corrupt'].startswith('gaussian_noise shot_noise ')
    assert (found['--severity'], found['--attack'], found['--attack-eps']) == ('1 2 3 4 5', 'pgd', '0.1')
    assert '--use-ema' not in found


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(files, tmp_path):
    main(flags(files, tmp_path / 'one', *MORE))
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO)}
    command = [*TORCHRUN, '-m', 'timm_dad', 'evaluate', *flags(files, tmp_path / 'two', *MORE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / 'one') == content(tmp_path / 'two')
    assert done.stdout.count('Figures in percent') == 1
    # More processes than batches, and a part that is there already.
    (tmp_path / 'two' / 'predictions' / 'a' / 'val' / 'test.json').unlink()
    command += ['--batch-size', '100']
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    again = Predictions.load(tmp_path / 'two' / 'predictions' / 'a' / 'val' / 'test.npz')
    first = Predictions.load(tmp_path / 'one' / 'predictions' / 'a' / 'val' / 'test.npz')
    assert np.array_equal(again.predicted, first.predicted)


@pytest.mark.slow
def test_an_error_of_several_processes_is_one_line(files, tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO)}
    command = [*TORCHRUN, '-m', 'timm_dad', 'evaluate', *flags(files, tmp_path / 'out', suite='demo/noto')]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if 'timm-dad evaluate: error' in line]) == 1
    assert 'evaluation/command.py", line' not in done.stderr  # no traceback of ours
