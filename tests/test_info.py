"""What ``timm-dad info`` counts, measures and prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from dad_sets import write_taught_set
from folders import write_pictures
from timm.data import create_dataset
from timm.models import save_for_hf
from timm.task import ClassificationTask
from torch import nn

from timm_dad import load_vqgan
from timm_dad.cli import main
from timm_dad.commands import info
from timm_dad.commands.info_text import describe, format_report
from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.flags.train import parse_args
from timm_dad.method.schedule import DADSchedule

SMALL = ['--batches', '1', '--batch-size', '8', '--epochs', '10', '--val-interval', '2']


def report_in(folder, *flags):
    """A report, made with ``folder`` as the working directory; nothing is left there."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = info.main(['--json', *SMALL, *flags])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert list(folder.iterdir()) == []
    return made


@pytest.fixture(scope='module')
def cached(tmp_path_factory):
    return report_in(tmp_path_factory.mktemp('cached'), '--gpus', '2', '--dad-cache', '2')


@pytest.fixture(scope='module')
def online(tmp_path_factory):
    """Of a schedule with all kinds of steps."""
    flags = [
        '--dad-cache',
        '0',
        '--dad-every',
        '4',
        '--dad-replay',
        '16',
        '--dad-off-epoch',
        '5',
        '--images',
        '1000000',
    ]
    return report_in(tmp_path_factory.mktemp('online'), *flags)


def test_parts_are_counted(cached, online):
    parts = cached['parts']
    assert set(parts) == {'student', 'teacher', 'vqgan'}
    assert online['parts'] == parts
    models = {'student': timm.create_model('test_resnet', num_classes=16), 'vqgan': load_vqgan(DEMO_VQGAN)}
    for name, model in models.items():
        assert parts[name]['parameters'] == sum(value.numel() for value in model.parameters())
        assert parts[name]['bytes'] == 4 * parts[name]['parameters']
    assert parts['vqgan']['forward'] == parts['vqgan']['encode'] + parts['vqgan']['decode']
    assert parts['vqgan']['decode'] > parts['vqgan']['encode'] > 0
    assert parts['student']['backward'] == pytest.approx(2 * parts['student']['forward'], rel=0.1)
    assert parts['teacher']['backward'] == pytest.approx(parts['teacher']['forward'], rel=0.1)


def passes_of(step):
    return {name: row['passes'] for name, row in step['per_image'].items()}


def test_passes_are_those_of_the_method(cached, online):
    both, one = ({'student forward': count, 'student backward': count} for count in (2, 1))
    steps = online['steps']
    made = {'teacher forward': 3, 'teacher backward': 1, 'vqgan forward': 2}
    assert passes_of(steps['view']) == {**made, **both}
    assert passes_of(steps['replayed']) == {'teacher forward': 1, **both}
    assert passes_of(steps['none']) == {'teacher forward': 1, **one}
    assert passes_of(cached['steps']['view']) == {'teacher forward': 2, **both}
    assert passes_of(cached['making']) == {'teacher forward': 4, 'teacher backward': 2, 'vqgan forward': 3}


def test_multiply_adds_of_a_step_are_passes_times_those_of_a_pass(online, cached):
    for step in (*online['steps'].values(), cached['making']):
        for name, row in step['per_image'].items():
            part, way = name.split()
            assert row['macs'] == row['passes'] * online['parts'][part][way] > 0


def test_views_made_before_cost_no_vqgan_in_a_step(cached):
    assert list(cached['steps']) == ['view']
    assert not any(name.startswith('vqgan') for name in cached['steps']['view']['per_image'])
    making = cached['making']
    assert making['images'] == 8
    assert making['seconds_per_image'] > 0
    assert 2 * 100 < making['bytes_per_image'] < 2 * (32 * 32 * 3 + 1000)


@pytest.mark.parametrize('name', ['cached', 'online'])
def test_time_and_memory_are_measured(name, request):
    report = request.getfixturevalue(name)
    for step in report['steps'].values():
        assert step['work'] > 0
        assert step['wait'] > 0
    assert report['peak_memory'] > sum(part['bytes'] for part in report['parts'].values())


def test_a_step_takes_longer_where_it_makes_views(online):
    steps = online['steps']
    assert steps['view']['work'] > steps['none']['work']


def test_steps_have_the_shares_of_the_schedule(online):
    shares = {name: step['share'] for name, step in online['steps'].items()}
    assert shares == pytest.approx({'view': 0.125, 'replayed': 0.375, 'none': 0.5})


def test_estimates_are_sums(cached, online):
    for report, gpus, images in ((cached, 2, 821), (online, 1, 1000000)):
        estimate = report['estimate']
        assert estimate['batches_per_epoch'] == images // (8 * gpus)
        steps = report['steps'].values()
        batch = sum(step['share'] * (step['work'] + step['wait']) for step in steps)
        assert estimate['train_seconds_per_epoch'] == pytest.approx(estimate['batches_per_epoch'] * batch)
        assert estimate['validation_seconds_per_epoch'] > 0
        parts = estimate['train_seconds_per_epoch'] + estimate['validation_seconds_per_epoch']
        assert estimate['seconds_per_epoch'] == pytest.approx(parts)
        assert estimate['seconds'] == pytest.approx(estimate['making_seconds'] + 10 * parts)
    assert cached['estimate']['making_seconds'] == pytest.approx(cached['making']['seconds_per_image'] * 821 / 2)
    assert online['estimate']['making_seconds'] == 0


def test_devices_divide_the_time_and_validation_its_interval():
    values = {'batch_size': 4, 'accum_steps': 2, 'val_interval': 5, 'epochs': 3, 'images': 102, 'val_images': 50}
    steps = {'view': {'share': 0.5, 'work': 3.0, 'wait': 1.0}, 'none': {'share': 0.5, 'work': 1.5, 'wait': 0.5}}
    report = {'configuration': {**values, 'gpus': 1}, 'steps': steps, 'making': {'seconds_per_image': 0.5}}
    one = info.estimate(report, 0.2)
    assert one['train_seconds_per_epoch'] == 25 * 1.5
    assert one['validation_seconds_per_epoch'] == pytest.approx(2.0)
    assert one['seconds'] == pytest.approx(51 + 3 * 39.5)
    two = info.estimate({**report, 'configuration': {**values, 'gpus': 2}}, 0.2)
    assert two['train_seconds_per_epoch'] == 12 * 1.5
    assert two['validation_seconds_per_epoch'] == pytest.approx(1.0)
    assert two['making_seconds'] == 25.5


@pytest.mark.parametrize(
    ('schedule', 'shares'),
    [
        ({}, {'view': 1}),
        ({'prob': 0.5, 'off_epoch': 6}, {'view': 0.3, 'none': 0.7}),
        ({'warmup_epochs': 2}, {'view': 0.9, 'none': 0.1}),
        ({'every': 4, 'off_epoch': 5}, {'view': 0.125, 'none': 0.875}),
        ({'every': 4, 'replay': 9}, {'view': 0.25, 'replayed': 0.75}),
        ({'prob': 0.5, 'every': 2, 'replay': 9, 'warmup_epochs': 2}, {'view': 0.225, 'replayed': 0.675, 'none': 0.1}),
        ({'prob': 0.0}, {'none': 1}),
    ],
)
def test_shares_of_batches_follow_the_schedule(schedule, shares):
    assert DADSchedule(**schedule).shares(10) == pytest.approx(shares)


def test_the_text_says_what_the_json_says(cached, online):
    text = format_report(online)
    for words in ('student    test_resnet, 3x32x32, float32', 'teacher    demo, 64x64, fp32',
                  'VQGAN      demo, factor 4', 'DAD views  made in the training step',
                  '1000000 training and 275 validation images',
                  'training steps with DAD views of their own, 12.5 % of all', 'see DAD views again, 37.5 % of all',
                  'without DAD views, 50 % of all', 'an upper bound', '(of one every 2 epochs)', '10 epochs',
                  'on this device'):  # fmt: skip
        assert words in text
    text = format_report(cached)
    for words in ('2 of each image, made before training', 'making the DAD views, before training', 'temporary folder',
                  'on 2 such devices (linear scaling), ', 'of it making the views'):  # fmt: skip
        assert words in text
    assert '% of all' not in text


def test_the_precision_is_the_one_that_was_measured():
    made = info.main(['--json', *SMALL, '--dad-view', 'random', '--dad-precision', 'auto'])
    assert made['configuration']['dad_precision'] in ('fp32', 'bf16')


@pytest.mark.parametrize(
    ('flags', 'name'),
    [
        (['--dad-teacher', 'demo'], 'demo'),
        (['--dad-teacher', 'demo', 'timm:test_vit'], 'demo + timm:test_vit'),
        ([], 'open_clip:ViT-L-14/'),
    ],
)
def test_teachers_are_named(flags, name, tmp_path):
    args = parse_args(['--data-dir', str(tmp_path), '--dad', '--dad-vqgan', 'demo', *flags])
    task = ClassificationTask(nn.Linear(1, 1), verbose=False)
    assert describe(args, task, None, {'input_size': (3, 8, 8)})['teacher'].startswith(name)


@pytest.mark.parametrize(
    ('flags', 'parts', 'step', 'title'),
    [
        (['--no-dad'], {'student'}, 'training', 'training steps\n'),
        (['--dad-view', 'random'], {'student', 'teacher'}, 'view', 'training steps with random views of their own\n'),
    ],
)
def test_other_trainings(flags, parts, step, title, capsys):
    made = info.main([*SMALL, *flags, '--grad-accum-steps', '2', '--val-split', ''])
    assert made['estimate']['validation_seconds_per_epoch'] == 0
    assert set(made['parts']) == parts
    assert list(made['steps']) == [step]
    text = capsys.readouterr().out
    assert title in text
    assert 'of work for 16 images' in text
    assert '8 images, 2 an optimizer step' in text
    assert 'and 0 validation images' in text
    assert ', validation' not in text


@pytest.mark.parametrize('stored', [False, True])
def test_a_training_from_a_dad_set_has_no_vqgan(tmp_path, stored, capsys):
    pictures = write_pictures(tmp_path / 'pictures', train=6, validation=2)
    dad_set = write_taught_set(tmp_path, create_dataset('', str(pictures), split='train'))
    flags = [
        *('--data-dir', str(pictures), '--model', 'test_resnet', '--num-classes', '4', '--img-size', '32'),
        *('--workers', '0', '--dad', '--dad-dir', str(dad_set)),
        *(('--dad-stored-logits', '--no-aug') if stored else ()),
    ]
    made = info.main([*SMALL, *flags])
    assert set(made['parts']) == ({'student'} if stored else {'student', 'teacher'})
    assert list(made['steps']) == ['view']
    student = {'student forward': 2, 'student backward': 2}
    assert passes_of(made['steps']['view']) == (student if stored else {'teacher forward': 2, **student})
    text = capsys.readouterr().out
    assert (f'teacher    stored logits of {dad_set}\n' if stored else 'teacher    demo, 64x64, fp32\n') in text
    assert f'DAD views  from {dad_set}' in text
    assert 'VQGAN' not in text


def test_of_timms_distillation_the_teachers_parameters_are_counted(tmp_path, capsys):
    teacher = timm.create_model('test_vit', num_classes=16)
    save_for_hf(teacher, tmp_path, model_config={'num_classes': 16}, safe_serialization=True)
    made = info.main([*SMALL, '--no-dad', '--kd-model-name', f'local-dir:{tmp_path}'])
    count = sum(value.numel() for value in teacher.parameters())
    assert made['parts']['teacher'] == {'parameters': count, 'bytes': 4 * count}
    assert f'teacher    local-dir:{tmp_path}\n' in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(['info', *SMALL, '--no-dad', '--lr', '1e30', '--warmup-epochs', '0'])
    error = capsys.readouterr().err
    assert 'timm-dad info: error: the loss is not finite' in error
    assert 'lower --lr or set --clip-grad' in error


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--gpus', '0'], '--gpus must be 1 or more, got 0'),
        (['--batches', '0'], '--batches must be 1 or more, got 0'),
        (['--images', '-5'], '--images must be 1 or more, got -5'),
        (['--dad-epps', '1'], 'unrecognized arguments: --dad-epps'),
        (['--dad-eps', '9'], '--dad-eps: eps is in [0, 1] pixel units'),
        (['--data-dir', 'nothing'], '--data-dir nothing'),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit):
        main(['info', *argv])
    assert message in capsys.readouterr().err


def test_it_measures_in_one_process(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(SystemExit):
        main(['info'])
    assert 'it measures in one process: start it without a launcher, and give --gpus N' in capsys.readouterr().err


def test_multiply_adds_are_those_by_hand():
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    macs = count_model_macs(conv, torch.zeros(1, 3, 8, 8), backward='parameters')
    assert macs == {'forward': 8 * 8 * 9 * 3 * 5, 'backward': 8 * 8 * 9 * 3 * 5}
    assert conv.weight.grad is None
    macs = count_model_macs(conv.requires_grad_(False), torch.zeros(1, 3, 8, 8), backward='input')
    assert macs['backward'] == macs['forward']


@pytest.mark.parametrize('train', [False, True])
def test_attention_is_counted_whatever_kernel_it_has(train):
    tokens, width = 7, 8
    attention = nn.MultiheadAttention(width, 2, batch_first=True).train(train).requires_grad_(False)
    x = torch.rand(1, tokens, width)
    projections, products = 4 * tokens * width * width, 2 * tokens * tokens * width
    with torch.no_grad():
        assert count_macs(lambda: attention(x, x, x, need_weights=False)) == projections + products


def test_a_batch_is_waited_for_and_then_worked_on(monkeypatch):
    now = 0.0
    monkeypatch.setattr(info, 'clock', lambda _: now)

    class Batches:
        """Epochs of three batches; the first takes 7 s, the others 1 s."""

        def of_epoch(self, epoch):
            nonlocal now
            for place in range(3):
                now += 1 if place else 7
                yield place, f'input {epoch}.{place}', 'target'

    timed = info.TimedBatches(Batches(), 8, torch.device('cpu'))
    places = []
    for place, input, target in timed.of_epoch(4, 0):
        places.append((place, input, target))
        now += 10 if place < 4 else (2, 4, 4, 8)[place - 4]
    assert len(timed) == 8
    assert places[:4] == [(place, f'input 4.{place % 3}', 'target') for place in range(4)]
    assert [place for place, *_ in places] == list(range(8))
    # Two steps of two batches are for warming up; the others work for 6 and 12 s, and an epoch begins in the last one.
    assert timed.seconds(accum_steps=2) == {'work': 9, 'wait': 5}


def test_passes_through_a_network_are_counted_with_their_gradients():
    network, passes = nn.Linear(2, 3), info.Passes()
    info.watch(network, 'student', passes)
    network(torch.zeros(4, 2))
    with torch.no_grad():
        network(torch.zeros(2, 2))
    parts = {'student': {'forward': 6.0, 'backward': 12.0}}
    assert info.per_image(passes, parts, 2) == {
        'student forward': {'passes': 3, 'macs': 18},
        'student backward': {'passes': 2, 'macs': 24},
    }
    assert not passes


@pytest.mark.slow
def test_the_benchmark_compares_info_with_a_training():
    script = Path(__file__).parents[1] / 'benchmarks' / 'info_agrees.py'
    more = ['--rounds', '1', '--batches', '1', '--dad-cache', '1', '--epochs', '2']
    done = subprocess.run(
        [sys.executable, script, *more, '--val-interval', '1', '--eval-suites', 'demo/noto'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    values = dict(line.rsplit(' = ' if ' = ' in line else ' s an epoch', 1) for line in done.stdout.splitlines())
    (ratio,) = (float(value) for name, value in values.items() if name.endswith('info / training'))
    assert ratio > 0  # how near to 1: run it by hand, on a machine with nothing else to do
    assert len(values) == 3


def test_json_is_what_is_returned(cached, capsys, monkeypatch):
    monkeypatch.setattr(info, 'make_report', lambda *_: cached)
    main(['info', '--json'])
    assert json.loads(capsys.readouterr().out) == cached
