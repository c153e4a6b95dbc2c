"""What ``timm-dad info`` counts, measures and prints."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from dad_sets import write_taught_set
from folders import write_pictures
from timm.data import create_dataset
from torch import nn

from timm_dad import load_vqgan
from timm_dad.cli import main
from timm_dad.commands import info
from timm_dad.commands.measure import MeasuredLoader, Spread, Stopwatch
from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.method.schedule import DADSchedule

SMALLEST = ['--batches', '1', '--batch-size', '8', '--epochs', '10', '--val-interval', '2']
SMALL = [*SMALLEST, '--dad-cache', '2']


@pytest.fixture(autouse=True)
def own_accelerator_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope='module')
def report():
    torch.set_num_threads(1)
    made = info.main(['--json', '--gpus', '2', *SMALL])
    AcceleratorState._reset_state(reset_partial_state=True)
    return made


def test_parts_are_counted(report):
    parts = report['parts']
    assert set(parts) == {'student', 'teacher', 'vqgan'}
    models = {'student': timm.create_model('test_resnet', num_classes=16), 'vqgan': load_vqgan(DEMO_VQGAN)}
    for name, model in models.items():
        assert parts[name]['parameters'] == sum(value.numel() for value in model.parameters())
        assert parts[name]['bytes'] == 4 * parts[name]['parameters']
    assert parts['vqgan']['forward'] == parts['vqgan']['encode'] + parts['vqgan']['decode']
    assert parts['vqgan']['decode'] > parts['vqgan']['encode'] > 0
    assert parts['student']['backward'] == pytest.approx(2 * parts['student']['forward'], rel=0.1)
    assert parts['teacher']['backward'] == pytest.approx(parts['teacher']['forward'], rel=0.1)


def test_passes_are_those_of_the_method(report):
    online, cached = report['modes']['online'], report['modes']['cached']
    passes = {name: row['passes'] for name, row in online['per_image'].items() if row['passes']}
    assert passes == {'teacher forward': 3, 'teacher backward': 1, 'vqgan': 2, 'student forward': 2}
    passes = {name: row['passes'] for name, row in cached['per_image'].items() if row['passes']}
    assert passes == {'teacher forward': 2, 'student forward': 2}
    passes = {name: row['passes'] for name, row in cached['making']['per_image'].items() if row['passes']}
    assert passes == {'teacher forward': 4, 'teacher backward': 2, 'vqgan': 3}


def tables(report):
    return [report['modes']['online'], report['modes']['cached'], report['modes']['cached']['making']]


def test_totals_are_sums_of_parts(report):
    for table in tables(report):
        assert all(row['seconds'] >= 0 for row in table['per_image'].values())
        for key in ('seconds', 'macs'):
            assert table['total'][key] == pytest.approx(sum(row[key] for row in table['per_image'].values()))
            assert table['total'][key] > 0
        assert table['peak_memory'] > sum(part['bytes'] for part in report['parts'].values())


def test_multiply_adds_of_a_step_are_passes_times_those_of_a_pass(report):
    parts, rows = report['parts'], report['modes']['online']['per_image']
    assert rows['vqgan']['macs'] == 2 * parts['vqgan']['forward']
    assert rows['teacher forward']['macs'] == 3 * parts['teacher']['forward']
    assert rows['teacher backward']['macs'] == parts['teacher']['backward']
    assert rows['student backward']['macs'] == 2 * parts['student']['backward']


def test_views_made_once_cost_no_vqgan_in_a_step(report):
    online, cached = report['modes']['online'], report['modes']['cached']
    assert 'vqgan' not in cached['per_image']
    assert cached['total']['macs'] < online['total']['macs']
    assert cached['making']['views'] == 2
    assert cached['making']['view_bytes'] == 821 * 2 * 32 * 32 * 3
    assert report['chosen'] == 'cached'


def test_estimates_are_sums(report):
    for name, mode in report['modes'].items():
        estimate = mode['estimate']
        assert estimate['batches_per_epoch'] == 821 // (8 * 2)
        parts = estimate['train_seconds_per_epoch'] + estimate['validation_seconds_per_epoch']
        assert estimate['seconds_per_epoch'] == pytest.approx(parts)
        making = mode['making']['seconds'] if name == 'cached' else 0
        assert estimate['seconds'] == pytest.approx(10 * parts + making)
        train = estimate['batches_per_epoch'] * 8 * mode['total']['seconds']
        assert estimate['train_seconds_per_epoch'] >= train
        assert estimate['validation_seconds_per_epoch'] > 0


def test_devices_divide_the_time_and_validation_its_interval():
    run = SimpleNamespace(args=SimpleNamespace(batch_size=4, val_interval=5), num_epochs=3)
    scale = {'gpus': 1, 'images': 102, 'val_images': 50}
    one = info._estimate(run, 0.5, 1.0, 0.2, scale)
    assert one['train_seconds_per_epoch'] == 1 + 100 * 0.5
    assert one['validation_seconds_per_epoch'] == pytest.approx(2.0)
    assert one['seconds'] == pytest.approx(3 * 53)
    two = info._estimate(run, 0.5, 1.0, 0.2, {**scale, 'gpus': 2})
    assert two['train_seconds_per_epoch'] == 1 + 48 * 0.5
    assert two['validation_seconds_per_epoch'] == pytest.approx(1.0)


def test_share_of_batches_follows_the_schedule():
    assert info._share_of_batches(DADSchedule(), 10) == 1
    assert info._share_of_batches(DADSchedule(prob=0.5, off_epoch=6), 10) == pytest.approx(0.3)
    assert info._share_of_batches(DADSchedule(warmup_epochs=2), 10) == pytest.approx(0.9)
    assert info._share_of_batches(DADSchedule(every=4, off_epoch=5), 10) == pytest.approx(0.125)


def test_the_text_says_what_the_json_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = info.main([*SMALL, '--images', '1000000', '--dad-prob', '0.5', '--dad-cache', '0'])
    text = capsys.readouterr().out
    for words in ('student  test_resnet', 'VQGAN    demo, factor 4', '1000000 training and 275 validation images',
                  'these flags', 'an upper bound', '50 % of the batches have a DAD view', '10 epochs'):  # fmt: skip
        assert words in text
    online = made['modes']['online']
    assert 0 < online['total_without_view']['seconds'] < online['total']['seconds']
    assert online['estimate']['batches_per_epoch'] == 125000
    assert list(tmp_path.iterdir()) == []


def test_flags_that_exclude_the_cache_say_why():
    made = info.main(['--json', *SMALL, '--dad-cache', '0', '--dad-eps-sched', 'linear'])
    assert 'leave --dad-cache out' in made['modes']['cached']['excluded']
    assert made['chosen'] == 'online'


def test_the_precision_is_the_one_that_was_measured():
    made = info.main(['--json', *SMALLEST, '--dad-view', 'random', '--dad-precision', 'auto'])
    assert made['configuration']['dad_precision'] in ('fp32', 'bf16')


def test_several_teachers_are_named():
    assert info._names('demo') == info._names(['demo']) == 'demo'
    assert info._names(['demo', 'timm:test_vit']) == 'demo + timm:test_vit'
    assert info._names(None).startswith('open_clip:')


@pytest.mark.parametrize(
    ('flags', 'parts'), [(['--no-dad'], {'student'}), (['--dad-view', 'random'], {'student', 'teacher'})]
)
def test_other_trainings_have_one_mode(flags, parts, capsys):
    made = info.main([*SMALLEST, *flags, '--grad-accum-steps', '2'])
    assert set(made['parts']) == parts
    assert list(made['modes']) == ['training']
    assert made['modes']['training']['total']['seconds'] > 0
    assert 'training' in capsys.readouterr().out


@pytest.mark.parametrize('stored', [False, True])
def test_a_training_from_a_dad_set_has_one_mode_and_no_vqgan(tmp_path, stored, capsys):
    pictures = write_pictures(tmp_path / 'pictures', train=6, validation=2)
    dad_set = write_taught_set(tmp_path, create_dataset('', str(pictures), split='train'))
    flags = ['--data-dir', str(pictures), '--model', 'test_resnet', '--num-classes', '4', '--img-size', '32', '--dad',
             '--dad-dir', str(dad_set), *(['--dad-stored-logits', '--no-aug'] if stored else [])]  # fmt: skip
    made = info.main([*SMALLEST, *flags])
    assert set(made['parts']) == ({'student'} if stored else {'student', 'teacher'})
    assert list(made['modes']) == ['training']
    passes = {name: row['passes'] for name, row in made['modes']['training']['per_image'].items() if row['passes']}
    assert passes == {'student forward': 2, **({} if stored else {'teacher forward': 2})}
    text = capsys.readouterr().out
    assert (f'teacher  stored logits of {dad_set}' if stored else 'teacher  demo') in text
    assert ('teacher and VQGAN in' in text) == (not stored)


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


class FakeWatch(Stopwatch):
    """A clock that a test moves."""

    def __init__(self):
        super().__init__(torch.device('cpu'))
        self.time = 0.0

    def now(self):
        return self.time


def test_time_of_an_inner_part_is_not_the_outer_ones():
    watch = FakeWatch()
    watch.start('never', 4)
    watch.stop()
    watch.running = True
    watch.start('outer', 4)
    watch.time = 1.0
    inner = watch.wrap(lambda x: setattr(watch, 'time', watch.time + 10), 'inner', factor=2)
    inner([1, 2, 3])
    watch.time += 0.5
    watch.stop()
    assert dict(watch.seconds) == {'outer': 1.5, 'inner': 10.0}
    assert dict(watch.images) == {'outer': 4, 'inner': 6}


def test_steps_are_told_from_waits_and_from_beginnings():
    watch = FakeWatch()

    class Loader:
        """Three batches; the first of an epoch takes 5 s, the others 1 s."""

        dataset = 'data'

        def __iter__(self):
            for index in range(3):
                watch.time += 5 if index == 0 else 1
                yield index

    measured = MeasuredLoader(Loader(), watch, groups=2, warmup=1)
    for _ in zip(measured, range(len(measured)), strict=False):
        watch.start('step', 8)
        watch.time += 2 if watch.running else 1
        watch.stop()
    assert measured.dataset == 'data'
    assert (measured.wait, measured.start) == (1.0, 4.0)
    assert measured.works == {False: [1, 1], True: [2, 2]}
    # The stopwatch made a step twice as long: it gives shares, not seconds.
    assert measured.parts() == {'data': 1.0, 'step': 1.0, 'other': 0.0}
    assert measured.images(batch_size=8) == {'step': 1.0}


def test_spread_takes_images_from_all_over():
    data = list(range(10))
    assert [Spread(data, 5)[index] for index in range(5)] == [0, 2, 4, 6, 8]
    assert [Spread(data, 12)[index] for index in range(12)] == [*data, 0, 1]


@pytest.mark.slow
def test_the_benchmark_compares_info_with_a_training():
    script = Path(__file__).parents[1] / 'benchmarks' / 'info_agrees.py'
    more = ['--mode', 'cached', '--rounds', '1', '--batches', '1', '--dad-cache', '1', '--epochs', '2']
    done = subprocess.run(
        [sys.executable, script, *more, '--val-interval', '1', '--eval-suites', 'demo/noto'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    values = dict(line.rsplit(' = ' if ' = ' in line else ' s an epoch', 1) for line in done.stdout.splitlines())
    (ratio,) = (float(value) for name, value in values.items() if name.endswith('info / training'))
    assert ratio > 0  # how near to 1: run it by hand, on a machine with nothing else to do
    assert len(values) == 3


def test_json_is_what_is_returned(report, capsys, monkeypatch):
    monkeypatch.setattr(info, 'make_report', lambda *_: report)
    main(['info', '--json'])
    assert json.loads(capsys.readouterr().out) == report
