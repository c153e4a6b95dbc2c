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
from tiny import save_tiny
from torch import nn

from timm_dad import load_vqgan
from timm_dad.cli import main
from timm_dad.commands import info
from timm_dad.commands.info_text import format_report
from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.method.schedule import DADSchedule

SMALL = ['--batches', '1', '--batch-size', '8', '--epochs', '10']


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
    assert set(parts) == {'student', 'teacher', 'vqgan', 'DAD view'}
    assert online['parts'] == parts
    models = {'student': timm.create_model('test_resnet', num_classes=16), 'vqgan': load_vqgan(DEMO_VQGAN)}
    for name, model in models.items():
        assert parts[name]['parameters'] == sum(value.numel() for value in model.parameters())
    assert parts['vqgan']['forward'] > 0
    assert 'backward' not in parts['vqgan']
    teacher = 2 * parts['teacher']['forward'] + parts['teacher']['backward']
    assert parts['DAD view']['forward'] == pytest.approx(2 * parts['vqgan']['forward'] + teacher, rel=0.01)
    assert parts['student']['backward'] == pytest.approx(2 * parts['student']['forward'], rel=0.1)
    assert parts['teacher']['backward'] == pytest.approx(parts['teacher']['forward'], rel=0.1)


def test_views_made_before_are_measured(cached):
    assert list(cached['batches']) == ['view']
    making = cached['making']
    assert making['seconds_per_image'] > 0
    assert 2 * 100 < making['bytes_per_image'] < 2 * (32 * 32 * 3 + 1000)


@pytest.mark.parametrize('name', ['cached', 'online'])
def test_time_and_memory_are_measured(name, request):
    report = request.getfixturevalue(name)
    for batch in report['batches'].values():
        assert batch['work'] > 0
        assert batch['wait'] > 0
    assert report['peak_memory'] > sum(4 * part.get('parameters', 0) for part in report['parts'].values())


def test_a_batch_takes_longer_where_views_are_made(online):
    assert online['batches']['view']['work'] > online['batches']['none']['work']


def test_batches_have_the_shares_of_the_schedule(online):
    shares = {name: batch['share'] for name, batch in online['batches'].items()}
    assert shares == pytest.approx({'view': 0.125, 'replayed': 0.375, 'none': 0.5})


def test_estimates_are_sums(cached, online):
    for report, gpus, images in ((cached, 2, 821), (online, 1, 1000000)):
        estimate = report['estimate']
        assert estimate['batches_per_epoch'] == images // (8 * gpus)
        seconds = sum(batch['share'] * (batch['work'] + batch['wait']) for batch in report['batches'].values())
        assert estimate['seconds_per_epoch'] == pytest.approx(estimate['batches_per_epoch'] * seconds)
        total = estimate['making_seconds'] + 10 * estimate['seconds_per_epoch']
        assert estimate['seconds'] == pytest.approx(total)
    assert cached['estimate']['making_seconds'] == pytest.approx(cached['making']['seconds_per_image'] * 821 / 2)
    assert online['estimate']['making_seconds'] == 0


def test_devices_divide_the_time():
    values = {'batch_size': 4, 'epochs': 3, 'images': 102}
    batches = {'view': {'share': 0.5, 'work': 3.0, 'wait': 1.0}, 'none': {'share': 0.5, 'work': 1.5, 'wait': 0.5}}
    report = {'configuration': {**values, 'gpus': 1}, 'batches': batches, 'making': {'seconds_per_image': 0.5}}
    one = info.estimate(report)
    assert one['seconds_per_epoch'] == 25 * 3
    assert one['seconds'] == 51 + 3 * 75
    two = info.estimate({**report, 'configuration': {**values, 'gpus': 2}})
    assert two['seconds_per_epoch'] == 12 * 3
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
    for words in ('test_resnet at 3x32x32, teacher and VQGAN in fp32, 1000000 images, on CPU', 'student ', 'vqgan ',
                  'a batch with its own views (12.5 % of all)', 'with replayed views (37.5 % of all)',
                  'without views (50 % of all)', 'of work for 8 images', 'an upper bound', 'an epoch on this device',
                  '10 epochs: '):  # fmt: skip
        assert words in text
    text = format_report(cached)
    for words in ('making the DAD views before training', 'temporary folder', 'on 2 such devices (linear scaling)'):
        assert words in text
    assert '% of all' not in text


def test_the_precision_is_the_one_that_was_measured():
    made = info.main(['--json', *SMALL, '--dad-view', 'random', '--dad-precision', 'auto'])
    assert made['configuration']['dad_precision'] in ('fp32', 'bf16')


@pytest.mark.parametrize(
    ('flags', 'parts', 'kind', 'title'),
    [
        (['--no-dad'], {'student'}, 'training', 'a batch: '),
        (['--dad-view', 'random'], {'student', 'teacher'}, 'view', 'a batch with its own views: '),
    ],
)
def test_other_trainings(flags, parts, kind, title, capsys):
    made = info.main([*SMALL, *flags, '--grad-accum-steps', '2', '--val-split', ''])
    assert set(made['parts']) == parts
    assert list(made['batches']) == [kind]
    assert title in capsys.readouterr().out


def test_the_attack_is_named_and_the_other_vqgan_counted(tmp_path, capsys):
    save_tiny(load_vqgan(DEMO_VQGAN), tmp_path / 'tiny.safetensors')
    attack = ['--dad-attack', 'disagreement', '--dad-eps-sched', 'linear', '--dad-cache', '0']
    made = info.main([*SMALL, *attack, '--dad-gradient-vqgan', str(tmp_path / 'tiny.safetensors')])
    own = sum(value.numel() for value in load_vqgan(tmp_path / 'tiny.safetensors').parameters())
    assert made['parts']['gradient vqgan'] == {'parameters': own}
    text = capsys.readouterr().out
    assert 'Attack: latents, l2, eps 0.5, 1 step of 0.5, towards disagreement with the student' in text
    assert 'gradient vqgan' in text


@pytest.mark.parametrize('stored', [False, True])
def test_a_training_from_a_dad_set_has_no_vqgan(tmp_path, stored):
    pictures = write_pictures(tmp_path / 'pictures', train=6, validation=2)
    dad_set = write_taught_set(tmp_path, create_dataset('', str(pictures), split='train'))
    flags = [
        *('--data-dir', str(pictures), '--model', 'test_resnet', '--num-classes', '4', '--img-size', '32'),
        *('--workers', '0', '--dad', '--dad-dir', str(dad_set)),
        *(('--dad-stored-logits', '--no-aug') if stored else ()),
    ]
    made = info.main([*SMALL, *flags])
    assert set(made['parts']) == ({'student'} if stored else {'student', 'teacher'})
    assert list(made['batches']) == ['view']


def test_of_timms_distillation_the_teachers_parameters_are_counted(tmp_path):
    teacher = timm.create_model('test_vit', num_classes=16)
    save_for_hf(teacher, tmp_path, model_config={'num_classes': 16}, safe_serialization=True)
    made = info.main([*SMALL, '--no-dad', '--kd-model-name', f'local-dir:{tmp_path}'])
    assert made['parts']['teacher'] == {'parameters': sum(value.numel() for value in teacher.parameters())}


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
    # Four batches are for warming up; the others work for 2, 4, 4 and 8 s, and an epoch begins in the third of them.
    assert timed.means(4) == {'work': 4.5, 'wait': 2.5}


@pytest.mark.slow
def test_the_benchmark_compares_info_with_a_training():
    script = Path(__file__).parents[1] / 'benchmarks' / 'info_agrees.py'
    more = ['--rounds', '1', '--batches', '1', '--dad-cache', '1', '--epochs', '2']
    done = subprocess.run(
        [sys.executable, script, *more, '--val-interval', '100', '--eval-suites', 'demo/noto'],
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
