"""End to end: ``train_dad.py`` on small folders of pictures, in this process and as a command."""

import csv
import errno
import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dad_sets import write_taught_set
from folders import CLASSES, write_pictures
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data import create_dataset as create_timm_dataset
from timm.data import resolve_data_config
from timm.optim import optimizer_kwargs
from timm.utils import CheckpointSaver
from tiny import save_tiny

import train_dad
from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.flags import kwargs, losses, objective
from timm_dad.flags.dad import loss_config, schedule_config
from timm_dad.flags.data import open_training_data
from timm_dad.flags.pairs import uses_pairs
from timm_dad.flags.student import create_student, place_student, prepare_task
from timm_dad.flags.timm import REFUSED
from timm_dad.flags.train import create_parser, learning_rate, parse_args
from timm_dad.flags.views import attack_config
from timm_dad.preview.image import preview_image
from timm_dad.training import setup
from timm_dad.training.resume import find_newest
from timm_dad.training.run_folder import RunFolder
from timm_dad.vqgan.load import load_vqgan

REPO = Path(train_dad.__file__).parent


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=3)


needs_new_timm = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31 has no such flag')


def flags(pictures, output, *more):
    """A run of 2 epochs of 2 updates on the pictures, without DAD."""
    return [
        *('--data-dir', str(pictures), '--output', str(output), '--experiment', 'run', '--model', 'test_resnet'),
        *('--num-classes', '4', '--img-size', '32', '--mean', '0.5', '0.5', '0.5', '--std', '0.5', '0.5'),
        *('0.5', '--batch-size', '12', '--workers', '0', '--epochs', '2', '--opt', 'adamw', '--lr', '0.01'),
        *('--warmup-epochs', '0', *map(str, more)),
    ]


DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo')
LATENT, CODES = (*DAD, '--dad-attack', 'latent'), (*DAD, '--dad-attack', 'codes')
SET = ('--dad', '--dad-dir', '{dad_set}')


def weights(output, name='last'):
    return torch.load(output / 'run' / f'{name}.pth.tar', weights_only=False)


def digest(state_dict):
    sha = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        sha.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def summary(output):
    with open(output / 'run' / 'summary.csv') as file:
        return list(csv.DictReader(file))


def test_two_steps_of_dad_leave_everything_that_a_run_leaves(pictures, tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    more = (*DAD, '--eval-suites', f'again={pictures}', '--model-ema', '--model-ema-decay', '0')
    results = train_dad.main(flags(pictures, tmp_path, *more))
    number, speed = r'\d[\d.e+-]*', r'\d[\d.]* s  \d[\d.e+]* images/s'
    for line in (
        rf'^Data: {pictures}, 24 images of 4 classes, 12 to validate$',
        r'^Student: test_resnet at 32x32, 0\.\d+ M parameters$',
        r'^Teacher: demo at 64x64, right on \d+% of 24 pictures$',
        r'^VQGAN: demo, 1024 codes of 4x4 pixels, Q\(x\) at \d+\.\d dB$',
        r'^Attack: l2, eps 0.1, 1 step of 0.01, random start with probability \S+$',
        r'^Training: 2 epochs of 2 updates of 12 images, learning rate 0.01, on CPU, 1 thread, in float32, teacher and '
        rf'VQGAN in fp32, to {tmp_path}/run$',
        rf'^Epoch 0: loss {number} .*  val_ema_loss {number}  val_ema_top1 {number}  val_plain_loss {number}  '
        rf'val_plain_top1 {number}  lr 0.01  {speed}  best top1 {number} \(epoch 0\)$',
        rf'^Best: top-1 {number} \(epoch [01]\), {tmp_path}/run/model_best.pth.tar; next: timm-dad evaluate --model '
        rf'run:{tmp_path}/run --suite val={pictures}/validation --output {tmp_path}/run/evaluate$',
    ):
        assert any(re.search(line, record.getMessage()) for record in caplog.records), line
    assert 'Config(' not in caplog.text
    names = {path.name for path in (tmp_path / 'run').iterdir()}
    assert {'args.yaml', 'summary.csv', 'last.pth.tar', 'model_best.pth.tar', 'preview.png'} <= names
    assert not [name for name in names if 'tmp' in name]
    rows = summary(tmp_path)
    assert [row['epoch'] for row in rows] == ['0', '1']
    row = {name: float(value) for name, value in rows[0].items()}
    parts = row['train_task_loss'] + 0.5 * row['train_kd_loss'] + 0.5 * row['train_dad_loss']
    assert row['train_loss'] == pytest.approx(parts, rel=1e-4)
    assert 0 <= row['train_teacher_kept'] <= 1
    assert results['student']['again'] == pytest.approx(float(rows[1]['eval_top1']))
    assert set(results['teacher']) == {'again'}
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['dad_eps'] == 0.1
    width, height = Image.open(tmp_path / 'run' / 'preview.png').size
    assert width > 4 * 128
    assert height > 6 * 128


@pytest.fixture(scope='module')
def dad_set(pictures, tmp_path_factory):
    dataset = create_timm_dataset('', str(pictures), split='train')
    return write_taught_set(tmp_path_factory.mktemp('sets'), dataset)


def test_a_run_from_a_dad_set_loads_no_vqgan(pictures, dad_set, tmp_path, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError('a VQGAN was loaded')

    monkeypatch.setattr('timm_dad.flags.pairs.load_vqgan', never)
    results = train_dad.main(flags(pictures, tmp_path, '--dad', '--dad-dir', dad_set, '--eval-suites', f'a={pictures}'))
    assert set(results['teacher']) == {'a'}
    assert all(float(row['train_dad_loss']) > 0 for row in summary(tmp_path))
    assert not (tmp_path / 'run' / 'preview.png').exists()
    args = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert (args['dad_dir'], args['dad_teacher']) == (str(dad_set), 'demo')


def test_a_run_from_stored_logits_loads_no_teacher(pictures, dad_set, tmp_path, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError('a teacher was loaded')

    monkeypatch.setattr('timm_dad.flags.dad.create_teacher', never)
    more = ('--dad', '--dad-dir', dad_set, '--dad-stored-logits', '--no-aug', '--eval-suites', f'a={pictures}')
    results = train_dad.main(flags(pictures, tmp_path, *more))
    assert set(results['student']) == {'a'}
    assert 'teacher' not in results
    assert 'teacher' not in capsys.readouterr().out.splitlines()[0]
    assert all(float(row['train_kd_loss']) > 0 < float(row['train_dad_loss']) for row in summary(tmp_path))


def test_a_set_of_other_pictures_ends_with_one_line(pictures, dad_set, tmp_path, capsys):
    other = write_pictures(tmp_path / 'other', train=5, validation=3)
    with pytest.raises(SystemExit):
        train_dad.main(flags(other, tmp_path / 'out', '--dad', '--dad-dir', dad_set))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        f'timm-dad train: error: --dad-dir {dad_set}: it was made from 24 images, but the data set has 20'
    )
    assert not (tmp_path / 'out').exists()


@pytest.mark.timm
def test_checkpoint_holds_the_student_alone_and_timm_loads_it(pictures, tmp_path):
    train_dad.main(flags(pictures, tmp_path, *DAD, '--model-ema'))
    checkpoint = weights(tmp_path)
    model = timm.create_model('test_resnet', num_classes=4)
    assert set(checkpoint['state_dict']) == set(model.state_dict()) == set(checkpoint['state_dict_ema'])
    for name in ('last', 'model_best'):
        path = str(tmp_path / 'run' / f'{name}.pth.tar')
        loaded = timm.create_model('test_resnet', num_classes=4, checkpoint_path=path)
        assert digest(loaded.state_dict()) == digest(weights(tmp_path, name)['state_dict_ema'])


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(pictures, tmp_path):
    states = []
    for index, seed in enumerate(('1', '1', '2')):
        train_dad.main(flags(pictures, tmp_path / str(index), *DAD, '--seed', seed))
        states.append(digest(weights(tmp_path / str(index))['state_dict']))
    assert states[0] == states[1] != states[2]


@pytest.mark.slow
@pytest.mark.timm
@pytest.mark.parametrize(
    'source',
    ['fresh', 'plateau', *(pytest.param(name, marks=pytest.mark.slow) for name in ('lookahead', 'cache', 'set'))],
)
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    pictures, dad_set, tmp_path, monkeypatch, caplog, source
):
    caplog.set_level('INFO', logger='timm_dad')
    reduced = ('--sched', 'plateau', '--warmup-epochs', '1', '--patience-epochs', '0', '--lr-noise', '0', '1')
    dad = {
        'fresh': DAD,
        'plateau': reduced,
        'lookahead': ('--opt', 'lookahead_adamw'),
        'cache': (*DAD, '--dad-cache', '2'),
        'set': ('--dad', '--dad-dir', dad_set),
    }[source]
    more = (*dad, '--model-ema', '--epochs', '4', '--smoothing', '0.1', '--mixup', '0.2')
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    train_one_epoch = train_dad.train_one_epoch

    def stop_at_epoch_2(epoch, *rest):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_one_epoch(epoch, *rest)

    monkeypatch.setattr(train_dad, 'train_one_epoch', stop_at_epoch_2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    assert stopped.value.args == ('--output', str(tmp_path / 'broken'), '--experiment', 'run', '--resume', 'auto')
    monkeypatch.undo()
    resume = str(tmp_path / 'broken' / 'run' / 'last.pth.tar')
    train_dad.main(flags(pictures, tmp_path / 'broken', *more, '--resume', resume))
    whole, broken = weights(tmp_path / 'whole'), weights(tmp_path / 'broken')
    for name in ('state_dict', 'state_dict_ema'):
        assert digest(whole[name]) == digest(broken[name])
    rows = summary(tmp_path / 'broken')
    assert [row['epoch'] for row in rows] == ['0', '1', '2', '3']
    assert [row['lr'] for row in rows] == [row['lr'] for row in summary(tmp_path / 'whole')]
    assert 'Already finished' not in caplog.text
    train_dad.main(flags(pictures, tmp_path / 'broken', *more, '--resume', 'auto'))
    assert (
        f'Already finished: all 4 epochs are done, in {tmp_path}/broken/run; to continue, give more --epochs'
        in caplog.text
    )


@pytest.mark.timm
@pytest.mark.parametrize('sched', ['cosine', pytest.param('wsd', marks=[needs_new_timm, pytest.mark.slow])])
def test_a_run_that_stops_on_its_way_goes_on_to_the_bits_of_one_that_did_not(pictures, tmp_path, caplog, sched):
    caplog.set_level('INFO', logger='timm_dad')
    more = ('--sched', sched, '--warmup-epochs', '0', '--epochs', '4', '--val-interval', '2', '--save-epochs', '1', '4')
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    stopping = (*more, '--resume', 'auto', '--stop-epoch')
    for _ in range(2):
        train_dad.main(flags(pictures, tmp_path / 'parts', *stopping, '2'))
        assert [row['epoch'] for row in summary(tmp_path / 'parts')] == ['0', '1']
    assert 'Already finished: all 2 epochs are done, ' in caplog.text
    assert 'to continue, give more epochs with a later --stop-epoch' in caplog.text
    train_dad.main(flags(pictures, tmp_path / 'parts', *stopping, '3'))
    train_dad.main(flags(pictures, tmp_path / 'parts', *more, '--resume', 'auto'))
    for name, epoch in (('last', 3), ('milestone-1', 0), ('milestone-4', 3)):
        whole, parts = weights(tmp_path / 'whole', name), weights(tmp_path / 'parts', name)
        assert whole['epoch'] == parts['epoch'] == epoch
        assert digest(whole['state_dict']) == digest(parts['state_dict'])
    # An epoch that is kept is validated, and so is the one that a run stops after.
    assert [row['epoch'] for row in summary(tmp_path / 'whole')] == ['0', '1', '3']
    assert [row['lr'] for row in summary(tmp_path / 'parts')[-1:]] == [summary(tmp_path / 'whole')[-1]['lr']]
    assert 'Flags that changed' not in caplog.text


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(pictures, tmp_path, monkeypatch, capsys):
    calls = []
    cross_entropy = torch.nn.CrossEntropyLoss.forward

    def poisoned(self, *args):
        calls.append(1)
        return cross_entropy(self, *args) * (float('nan') if len(calls) == 4 else 1.0)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, 'forward', poisoned)
    with pytest.raises(SystemExit, match='2'):
        train_dad.main(flags(pictures, tmp_path, '--smoothing', '0'))
    message = (
        r'error: the loss is not finite in epoch 1, batch 1, process 0 .*last\.pth\.tar with --output .* --resume auto$'
    )
    assert re.search(message, capsys.readouterr().err.strip())
    assert weights(tmp_path)['epoch'] == 0
    assert all(value.isfinite().all() for value in weights(tmp_path)['state_dict'].values())


def test_an_optimizer_of_second_order_has_its_graph(pictures, tmp_path):
    more = ('--opt', 'adahessian', '--lr', '0.01', '--model', 'test_resnet', '--no-dad', '--epochs', '1')
    train_dad.main(flags(pictures, tmp_path, *more))
    assert all(value.isfinite().all() for value in weights(tmp_path)['state_dict'].values())


@pytest.mark.parametrize(
    'error',
    [
        ValueError('DAD set: view1/cat/3.png is truncated'),
        OSError(errno.ENOSPC, 'No space left on device', 'last.pth.tar'),
    ],
)
def test_what_a_reader_or_a_disk_says_while_training_is_one_line(pictures, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(train_dad, 'validate_task', lambda *args, **more: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit, match='2'):
        train_dad.main(flags(pictures, tmp_path))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(
        ('error: --val-split: DAD set: view1/cat/3.png is truncated', 'no space left on device: last.pth.tar')
    )


def test_classes_of_the_data_are_those_of_the_student(pictures, tmp_path):
    argv = flags(pictures, tmp_path)
    place = argv.index('--num-classes')
    args = parse_args([*argv[:place], *argv[place + 2 :]])
    assert open_training_data(args).class_names == sorted(CLASSES)
    assert create_student(args).num_classes == args.num_classes == 4
    streams = parse_args(['--dataset', 'wds/x', '--data-dir', 'x', '--model', 'test_resnet'])
    assert streams.num_classes is None


def bad_folder(tmp_path, pictures, kind):
    """A copy of the pictures with one fault."""
    root = tmp_path / 'data'
    for path in pictures.rglob('*.png'):
        copy = root / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if kind != 'empty':
            copy.write_bytes(path.read_bytes())
    if kind == 'truncated':
        (root / 'train/dog/3.png').write_bytes((pictures / 'train/dog/3.png').read_bytes()[:100])
    if kind == 'nan':
        (root / 'train/dog/3.png').unlink()
        Image.fromarray(np.full((36, 40), np.nan, dtype=np.float32)).save(root / 'train/dog/3.png', format='TIFF')
    return root


@pytest.mark.timm
@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--model', 'resnet_of_nobody'), r'--model must be a timm model, got .resnet_of_nobody'),
        ((*DAD, '--dad-teacher', 'timm:clip_of_nobody'), r'--dad-teacher timm:clip_of_nobody: timm has no model'),
        ((*DAD, '--dad-teacher', 'open_clip:ViT-Z/openai'), r'--dad-teacher open_clip:ViT-Z/openai: open_clip has no'),
        ((*DAD, '--dad-teacher', 'clip'), r'--dad-teacher must be timm:MODEL, open_clip:MODEL/PRETRAINED or demo, got'),
        ((*DAD, '--dad-eps', '8', '--dad-norm', 'linf'), r'--dad-eps: eps is in \[0, 1\] pixel units.*got 8.*8/255'),
        ((*DAD, '--dad-eps', '8'), r'--dad-eps: eps is in \[0, 1\] pixel units.*got 8.*8/255'),
        ((*DAD, '--dad-temperature', '0'), r'--dad-temperature: temperature must be positive, got 0'),
        ((*DAD, '--dad-weight', '-1'), r'--dad-weight: dad_weight must be 0 or more and finite, got -1'),
        ((*DAD, '--img-size', '30', '--dad-strict-size'), r'--img-size: image size must be a multiple of 4.*got 30x30'),
        ((*DAD[:3], '--dad-view', 'random', '--dad-strict-size'), r'--dad-strict-size shapes the DAD view and needs'),
        ((*DAD, '--num-classes', '7'), r'--data-dir: data must have as many classes as --num-classes, 7, got 4'),
        ((*DAD, '--dad-vqgan', 'nowhere.safetensors'), r'--dad-vqgan: no VQGAN at nowhere.safetensors'),
        ((*DAD, '--dad-classnames', 'nowhere.txt'), r'--dad-classnames must be a file, got .nowhere.txt'),
        (('--dad',), r'--dad-teacher must be'),
        (('--dad', '--dad-teacher', 'demo'), r'--dad-vqgan must name'),
        (('--dad-eps', '0.2'), r'--dad-eps needs --dad'),
        ((*DAD, '--dad-every', '0'), r'--dad-every: every must be 1 \(every batch\) or more, got 0'),
        ((*DAD, '--dad-replay', '-1'), r'--dad-replay: replay must be 0 or more, got -1'),
        ((*DAD, '--dad-replay', '8'), r'--dad-replay is for batches without fresh DAD views: it needs --dad-every or'),
        (
            (*DAD, '--dad-cache', '1', '--dad-every', '2', '--dad-replay', '8'),
            r'--dad-replay keeps views made during training',
        ),
        ((*DAD, '--dad-micro-batch', '-2'), r'--dad-micro-batch: micro_batch must be 0 .* or more, got -2'),
        (
            (*DAD[:3], '--dad-view', 'random', '--dad-attack-from', 'input'),
            r'--dad-attack-from shapes the DAD view and needs --dad-view dad',
        ),
        (('--dad-preview-interval', '1'), r'--dad-preview-interval needs --dad'),
        ((*DAD, '--dad-preview-interval', '-1'), r'--dad-preview-interval must be 0 or more, got -1'),
        (
            (*DAD[:3], '--dad-view', 'random', '--dad-preview-interval', '1'),
            r'--dad-preview-interval shows DAD views, but --dad-view random makes none',
        ),
        ((*DAD, '--val-split', '', '--dad-preview-interval', '1'), r'shows validation images: it needs --val-split'),
        (
            (*DAD[:3], '--dad-view', 'random', '--dad-eps', '0.2'),
            r'--dad-eps shapes the DAD view and needs --dad-view dad',
        ),
        ((*DAD, '--dad-cache', '-1'), r'--dad-cache must be 0 or more.*got -1'),
        (('--batch-size', '0'), r'--batch-size must be 1 or more, got 0'),
        (('--batch-size', '64'), r'--batch-size must be at most the 24 training images, got 64'),
        (('--config', 'nowhere.yaml'), r'--config must be a YAML file, got .nowhere.yaml'),
        (('--eval-suites', 'sketch'), r'--eval-suites must be NAME=PATH or demo/STYLE, got .sketch'),
        (
            ('--eval-suites', 'demo/noto'),
            r'--eval-suites noto: data must have as many classes as .*, 4, got 16',
        ),
        (('--eval-suites', 'demo/kandinsky'), r'the demo has the styles .* got .kandinsky'),
        (('--resume', 'nowhere.pth.tar'), r'--resume must be a checkpoint, got .nowhere'),
        (('--initial-checkpoint', 'nowhere.pth'), r'--initial-checkpoint must be a checkpoint, got .nowhere'),
        (('--opt', 'adamx'), r'--opt'),
        (('--sched', 'cosinus'), r'--sched'),
        (('--sched', 'plateau', '--sched-on-updates'), r'--sched plateau works by epochs'),
        (('--train-split', 'trian'), r"--train-split must be a folder in .* got 'trian'; the folders are .*'train'"),
        (('--val-split', 'test'), r"--val-split must be a folder in .* got 'test'"),
        (('--aa', 'foo'), r'--aa must be a policy'),
        (('--interpolation', 'foo'), r"--interpolation must be one of .*'bicubic'.*, got foo"),
        (('--scale', '0.5'), r'--scale must be two positive numbers, the smaller one first, got \[0\.5\]'),
        (('--mean', '0.5', '0.5'), r'--mean takes 3 numbers'),
        (('--std', '0', '0', '0'), r'--std must be positive, got \[0\.0, 0\.0, 0\.0\]'),
        (('--opt-betas', '0.9'), r'--opt-betas takes 2 numbers'),
        (('--opt-betas', '2', '3'), r'--opt-betas must be from 0 to less than 1, got \[2\.0, 3\.0\]'),
        (('--scale', '1', '0.1'), r'--scale must be two positive numbers, the smaller one first, got \[1\.0, 0\.1\]'),
        (('--ratio', '2', '1'), r'--ratio must be two positive numbers, the smaller one first'),
        (('--cutmix-minmax', '0.8', '0.2'), r'--cutmix-minmax must be two numbers from 0 to 1, the smaller one first'),
        (('--seed', '-1'), r'--seed must be 0 or more, got -1'),
        (('--resume', 'auto', '--experiment', ''), r'--resume auto needs --experiment'),
        (('--opt', 'lookahead_nobody'), r'--opt must be one of the'),
        (
            ('--model', 'vit_tiny_patch16_224', '--img-size', '48'),
            r'--img-size: vit_tiny\w+ does not take pictures of 3x48x48 \(.*48.*\); add --model-kwargs img_size=48',
        ),
        (('--opt-kwargs', 'foo=1'), r'--opt, --opt-kwargs: TypeError'),
        (('--model-kwargs', 'foo=1'), r'--model, --model-kwargs.*TypeError'),
        (('--hflip', '2'), r'--hflip must be from 0 to 1, got 2'),
        (('--mixup', '-1'), r'--mixup must be 0 or more, got -1'),
        (('--batch-size', '11', '--mixup', '0.2'), r'--mixup and --cutmix need an even --batch-size, got 11'),
        (('--start-epoch', '-1'), r'--start-epoch must be 0 or more, got -1'),
        (('--torchcompile', 'foo'), r'--torchcompile must be one of'),
        (('--config', '{nonsense}'), r"--config .*: dad_view has the bad value 'nonsense'"),
        (('--resume', '{junk}'), r'--resume: .*junk.pth is not a PyTorch checkpoint'),
        (('--initial-checkpoint', '{junk}'), r'--initial-checkpoint: '),
        (
            ('--eval-suites', 'a={pictures}', 'a={pictures}'),
            r'--eval-suites takes every NAME once, got a more than once',
        ),
        (('--eval-suites', 'a=nowhere'), r'--eval-suites a: no images for split'),
        (('--eval-suites-interval', '1'), r'--eval-suites-interval needs --eval-suites'),
        (
            ('--eval-suites', 'a={pictures}', '--eval-suites-interval', '-1'),
            r'--eval-suites-interval must be 0 or more, got -1',
        ),
        (('--eval-suites', 'a={pictures}', '--in-chans', '1'), r'--eval-suites needs images of 3 channels'),
        (('--dataset', 'demo/noto'), r'--data-dir .* and --dataset demo/noto: the demo needs no folder'),
        ((*DAD, '--dad-classnames', '{three}'), r'there are 3 class names for 4 classes'),
        ((*DAD, '--dad-teacher', 'demo:small'), r"--dad-teacher must be .* got 'demo:small'"),
        ((*DAD, '--dad-teacher', 'probe:{three}'), r'--dad-teacher probe:.*three.txt is not a PyTorch checkpoint'),
        ((*DAD, '--dad-teacher', 'demo', 'clip'), r"--dad-teacher must be .* got 'clip'"),
        ((*DAD, '--dad-teacher-weights', '1'), r'--dad-teacher-weights is for several teachers, one weight each'),
        ((*DAD, '--dad-class-map', '{three}'), r'--dad-class-map is for teachers with their own head'),
        ((*DAD, '--dad-templates', '{three}'), r'--dad-templates .*three.txt: a template needs'),
        ((*DAD, '--dad-prob', '1.5'), r'--dad-prob: prob is a probability, from 0 to 1, got 1.5'),
        (
            (*DAD, '--dad-eps-sched', 'linear', '--dad-eps-start', '1'),
            r'--dad-eps-start must be at most',
        ),
        ((*DAD, '--dad-off-epoch', '-1'), r'--dad-off-epoch: off_epoch must be 0 or more, got -1'),
        ((*DAD, '--kd-model-name', 'resnet18'), r'--kd-model-name is another kind of distillation than --dad'),
        ((*DAD, '--in-chans', '1'), r'--dad needs images of 3 channels, got 1'),
        (('--jsd-loss',), r'--jsd-loss needs --aug-splits 2 or more, got --aug-splits 0'),
        (('--aug-splits', '1'), r'--aug-splits must be 0, or 2 or more, got 1'),
        (('--aug-repeats', '3'), r'--aug-repeats needs several processes'),
        (('--sync-bn',), r'--sync-bn needs GPUs'),
        (('--worker-seeding', 'part'), r'--worker-seeding part is for streams'),
        (('--device', 'cuda'), r'--device cuda: there is no CUDA device; use --device cpu'),
        (('--log-with', 'notepad'), r'--log-with'),
        (('--wandb-resume-id', 'x'), r'--wandb-resume-id needs --resume'),
        (('--local_rank', '3'), r'--local_rank must match the launcher'),
        (('--drop-connect', '0.1'), r'--drop-connect is deprecated'),
        (('--loss', 'jsd'), r'--loss jsd needs --aug-splits 2 or more, got --aug-splits 0'),
        (('--loss', 'jsd', '--bce-loss'), r'--bce-loss and --loss jsd exclude each other'),
        (('--loss', 'zlpr'), r'--loss zlpr does not support --task classification: use ce, bce, asl, poly or jsd'),
        (
            ('--loss', 'bce', '--loss-pos-weight', '5', '--loss-weight-max', '3'),
            r'--loss-weight-max needs --loss-pos-weight or --loss-class-weight computed from --class-stats',
        ),
        (
            ('--sched', 'plateau', '--val-interval', '2', '--stop-epoch', '1'),
            r'affects --sched plateau: give --val-interval 1',
        ),
        (('--loss', 'asl', '--mixup', '0.2'), r'--loss asl takes one class per image'),
        (('--loss', 'asl', '--bce-sum'), r'--bce-sum is for --loss bce, got --loss asl'),
        (('--asl-gamma-neg', '2'), r'--asl-gamma-neg is for --loss asl, got --loss ce'),
        (('--bce-loss', '--poly-epsilon', '1'), r'--poly-epsilon is for --loss poly, got --bce-loss'),
        (('--lr-decay-fn', 'linear'), r'--lr-decay-fn needs --sched wsd or rsqrt, got cosine'),
        (('--lr-stable-timescale', '2'), r'--lr-stable-timescale needs --sched rsqrt, got cosine'),
        (
            ('--sched', 'wsd'),
            r'(--decay-epochs must leave --sched wsd at least one epoch|--sched wsd needs timm 1.0.31)',
        ),
        (('--stop-epoch', '3'), r'--stop-epoch must be at most the 2 epochs of the training, got 3'),
        (('--save-epochs', '1', '4'), r'--save-epochs must be at most the 2 epochs of the training, got 4'),
        (('--save-epochs', '0'), r'--save-epochs must be 1 or more, got \[0\]'),
        (('--stop-epoch', '0'), r'--stop-epoch must be 1 or more, got 0'),
        (('--model-ema', '--model-ema-force-fp32'), r'--model-ema-force-fp32 needs .* --model-dtype bfloat16'),
        (('--amp', '--model-dtype', 'bfloat16'), r'--amp needs --model-dtype float32'),
    ],
)
def test_bad_flags_are_named_before_anything_is_written(pictures, tmp_path, capsys, more, message):
    (tmp_path / 'nonsense.yaml').write_text('dad_view: nonsense')
    (tmp_path / 'junk.pth').write_bytes(b'junk')
    (tmp_path / 'three.txt').write_text('cat\ndog\nfish\n')
    files = {'nonsense': 'nonsense.yaml', 'junk': 'junk.pth', 'three': 'three.txt'}
    paths = {name: tmp_path / file for name, file in files.items()}
    more = [flag.format(**paths, pictures=pictures) for flag in more]
    with pytest.raises(SystemExit) as error:
        train_dad.main(flags(pictures, tmp_path / 'out', *more))
    assert re.search(message, f'{error.value} {capsys.readouterr().err}')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('empty', r'--data-dir .*no images'),
        ('truncated', r'--data-dir: images must decode, .*3\.png does not'),
        ('nan', r'--data-dir: images must decode, .*3\.png does not: its mode is F'),
    ],
)
def test_bad_pictures_are_named_before_anything_is_written(pictures, tmp_path, capsys, kind, message):
    root = bad_folder(tmp_path, pictures, kind)
    with pytest.raises(SystemExit):
        train_dad.main(flags(root, tmp_path / 'out'))
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_folder_in_use_and_a_folder_of_an_older_run_are_refused(pictures, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    with RunFolder(tmp_path / 'run', Accelerator(), find_newest, resume=False):
        holder = subprocess.run(
            [sys.executable, REPO / 'train_dad.py', *flags(pictures, tmp_path)], capture_output=True, text=True
        )
    assert holder.returncode != 0
    assert 'is in use by another run' in holder.stderr.splitlines()[-1]
    train_dad.main(flags(pictures, tmp_path))
    before = (tmp_path / 'run' / 'last.pth.tar').read_bytes()
    with pytest.raises(SystemExit):
        train_dad.main(flags(pictures, tmp_path))
    assert 'contains an older run' in capsys.readouterr().err
    assert (tmp_path / 'run' / 'last.pth.tar').read_bytes() == before


# --- every flag changes something -----------------------------------------------------------------------------------


def fingerprint(argv, root, monkeypatch):
    """All that a run leaves or uses, but for the echo of its flags in ``args.yaml``."""
    seen = {'postfix': 0}
    train_one_epoch, tell = train_dad.train_one_epoch, train_dad.tell

    def spy(epoch, task, batches, *rest):
        loader = batches.loader
        student = train_dad.utils.unwrap_model(task.trainable_module)
        inner = getattr(loader, 'loader', loader)
        batch_size = getattr(inner.batch_sampler, 'batch_size', None)  # that of several image sizes has none
        seen['loader'] = (batch_size, inner.num_workers, inner.pin_memory, inner.persistent_workers)
        seen['prefetcher'] = inner is not loader
        seen['compiled'] = type(task.trainable_module).__name__
        seen['checkpointing'] = getattr(student, 'grad_checkpointing', None)
        kernel = next(p for p in student.parameters() if p.ndim == 4 and p.shape[1] > 1)
        seen['channels_last'] = kernel.is_contiguous(memory_format=torch.channels_last)
        return train_one_epoch(epoch, task, batches, *rest)

    def count(*args):
        seen['postfix'] += 1
        tell(*args)

    validate_task, save_recovery = train_dad.validate_task, CheckpointSaver.save_recovery
    seen['recovery'] = []

    def spy_recovery(self, *args, **kwargs):
        seen['recovery'].append((args, kwargs))
        return save_recovery(self, *args, **kwargs)

    def spy_validate(task, loader, accelerator, **more):
        seen['eval_loader'] = (getattr(loader, 'loader', loader).batch_size, len(loader))
        return validate_task(task, loader, accelerator, **more)

    with monkeypatch.context() as patch:
        patch.setattr(train_dad, 'train_one_epoch', spy)
        patch.setattr(train_dad, 'tell', count)
        patch.setattr(train_dad, 'validate_task', spy_validate)
        patch.setattr(CheckpointSaver, 'save_recovery', spy_recovery)
        patch.chdir(root)
        results = train_dad.main(argv)
        AcceleratorState._reset_state(reset_partial_state=True)
    output = root / results['output_dir']
    checkpoint = torch.load(output / 'last.pth.tar', weights_only=False)
    seen['files'] = sorted(str(path.relative_to(root)) for path in root.rglob('*'))
    seen['summary'] = [path.read_text() for path in sorted(output.glob('*.csv'))]
    seen['weights'] = {
        name: digest(checkpoint[name]) for name in ('state_dict', 'state_dict_ema') if name in checkpoint
    }
    seen['results'] = {
        name: value for name, value in results.items() if name not in ('output_dir', 'report', 'preview')
    }
    return seen


KD = ('--kd-model-name', 'local-dir:{timm_teacher}')
DEIT = ('--model', 'deit_tiny_distilled_patch16_224', '--model-kwargs', 'img_size=32')
TOKEN = (
    *KD,
    '--kd-distill-type',
    'token',
    '--model',
    'deit_tiny_distilled_patch16_224',
    '--model-kwargs',
    'img_size=32',
)
CYCLES = ('--epochs', '2', '--lr-cycle-limit', '2')
PLATEAU = ('--sched', 'plateau', '--epochs', '3', '--eval-metric', 'top5')
WSD = ('--sched', 'wsd', '--decay-epochs', '3')
SIZES = ('--train-img-sizes', '32', '44')
PROGRESSIVE = (*SIZES, '--train-size-schedule', 'progressive')
RSQRT = ('--sched', 'rsqrt', '--warmup-epochs', '1')
BCE, STATS = ('--loss', 'bce'), ('--class-stats', '{stats}')
RESUME = ('--resume', '{checkpoint}', '--epochs', '3')
TIMM_TEACHER = ('--dad', '--dad-teacher', 'timm:test_resnet', '--dad-vqgan', 'demo')
TWO_TEACHERS = (*DAD, '--dad-teacher', 'demo', 'timm:test_resnet/{checkpoint}')

# Flag -> what timm's create_dataset must get.
DATASET_FLAGS = {
    'train_num_samples': ('--train-num-samples', '7', {'num_samples': 7}),
    'val_num_samples': ('--val-num-samples', '5', {'num_samples': 5}),
    'dataset_download': ('--dataset-download', None, {'download': True}),
    'input_img_mode': ('--input-img-mode', 'L', {'input_img_mode': 'L'}),
    'input_key': ('--input-key', 'png', {'input_key': 'png'}),
    'target_key': ('--target-key', 'cls', {'target_key': 'cls'}),
    'dataset_trust_remote_code': ('--dataset-trust-remote-code', None, {'trust_remote_code': True}),
    'epoch_repeats': ('--epoch-repeats', '2', {'repeats': 2.0}),
}

# For each flag: what both runs are given on top of the base, and what the second run alone is given.
VARIANTS = {
    'config': ((), ('--config', '{config}')),
    'data_dir': ((), ('--data-dir', '{other}')),
    'dataset': ((), ('--data-dir', '', '--dataset', 'demo/noto', '--num-classes', '16', '--batch-size', '400')),
    'train_split': ((), ('--train-split', 'validation')),
    'val_split': ((), ('--val-split', 'train')),
    'eval_suites': ((), ('--eval-suites', 'again={pictures}')),
    'eval_suites_interval': (('--eval-suites', 'again={pictures}'), ('--eval-suites-interval', '1')),
    'model': ((), ('--model', 'resnet10t')),
    'initial_checkpoint': ((), ('--initial-checkpoint', '{checkpoint}')),
    'resume': (('--epochs', '3'), ('--resume', '{checkpoint}')),
    'no_resume_opt': (RESUME, ('--no-resume-opt',)),
    'start_epoch': (RESUME, ('--start-epoch', '1')),
    'model_kwargs': ((), ('--model-kwargs', 'output_stride=8')),
    'img_size': ((), ('--img-size', '48')),
    'input_size': ((), ('--input-size', '3', '48', '48')),
    'crop_pct': ((), ('--crop-pct', '0.5')),
    'mean': ((), ('--mean', '0.4', '0.5', '0.6')),
    'std': ((), ('--std', '0.2', '0.2', '0.2')),
    'interpolation': (('--crop-pct', '0.5'), ('--interpolation', 'nearest')),
    'batch_size': ((), ('--batch-size', '8')),
    'validation_batch_size': ((), ('--validation-batch-size', '5')),
    'grad_accum_steps': ((), ('--grad-accum-steps', '2')),
    'grad_checkpointing': ((), ('--grad-checkpointing',)),
    'channels_last': ((), ('--channels-last',)),
    'torchcompile': ((), ('--torchcompile', 'eager')),
    'amp': ((), ('--amp',)),
    'amp_dtype': (('--amp',), ('--amp-dtype', 'bfloat16')),
    'opt': ((), ('--opt', 'sgd')),
    'opt_eps': ((), ('--opt-eps', '0.1')),
    'opt_betas': ((), ('--opt-betas', '0.5', '0.5')),
    'momentum': (('--opt', 'sgd'), ('--momentum', '0.1')),
    'weight_decay': ((), ('--weight-decay', '0.5')),
    'clip_grad': ((), ('--clip-grad', '0.1')),
    'clip_mode': (('--opt', 'sgd', '--clip-grad', '0.01'), ('--clip-mode', 'value')),
    'layer_decay': ((), ('--layer-decay', '0.5')),
    'opt_kwargs': ((), ('--opt-kwargs', 'maximize=True')),
    'sched': ((), ('--sched', 'poly')),
    'sched_on_updates': ((), ('--sched-on-updates',)),
    'lr': ((), ('--lr', '0.02')),
    'lr_base': (('--lr', '0'), ('--lr-base', '0.2')),
    'lr_base_size': (('--lr', '0'), ('--lr-base-size', '64')),
    'lr_base_scale': (('--lr', '0'), ('--lr-base-scale', 'linear')),
    'warmup_lr': (('--warmup-epochs', '1'), ('--warmup-lr', '0.001')),
    'min_lr': ((), ('--min-lr', '0.005')),
    'epochs': ((), ('--epochs', '3')),
    'warmup_epochs': ((), ('--warmup-epochs', '1')),
    'cooldown_epochs': ((), ('--cooldown-epochs', '1')),
    'no_aug': ((), ('--no-aug',)),
    'scale': ((), ('--scale', '0.9', '1.0')),
    'ratio': ((), ('--ratio', '1.0', '1.0')),
    'hflip': ((), ('--hflip', '0')),
    'vflip': ((), ('--vflip', '0.5')),
    'color_jitter': ((), ('--color-jitter', '0.1')),
    'aa': ((), ('--aa', 'rand-m9-mstd0.5-inc1')),
    'reprob': ((), ('--reprob', '0.5')),
    'remode': (('--reprob', '0.9'), ('--remode', 'const')),
    'mixup': ((), ('--mixup', '0.2')),
    'cutmix': ((), ('--cutmix', '1.0')),
    'mixup_prob': (('--mixup', '0.5'), ('--mixup-prob', '0.1')),
    'mixup_off_epoch': (('--mixup', '0.5'), ('--mixup-off-epoch', '1')),
    'smoothing': ((), ('--smoothing', '0')),
    'train_interpolation': ((), ('--train-interpolation', 'bilinear')),
    'drop': ((), ('--drop', '0.5')),
    'drop_path': ((), ('--drop-path', '0.5')),
    'model_ema': ((), ('--model-ema',)),
    'model_ema_decay': (('--model-ema',), ('--model-ema-decay', '0.5')),
    'model_ema_warmup': (('--model-ema',), ('--model-ema-warmup',)),
    'seed': ((), ('--seed', '7')),
    'log_interval': ((), ('--log-interval', '1')),
    'val_interval': ((), ('--val-interval', '2')),
    'checkpoint_hist': ((), ('--checkpoint-hist', '1')),
    'workers': ((), ('--workers', '1')),
    'pin_mem': ((), ('--pin-mem',)),
    'output': ((), ('--output', 'elsewhere')),
    'experiment': ((), ('--experiment', 'other')),
    'eval_metric': ((), ('--eval-metric', 'loss')),
    'train_crop_mode': ((), ('--train-crop-mode', 'rkrc')),
    'color_jitter_prob': ((), ('--color-jitter-prob', '0.1')),
    'grayscale_prob': ((), ('--grayscale-prob', '0.9')),
    'gaussian_blur_prob': ((), ('--gaussian-blur-prob', '0.9')),
    'aug_splits': (('--aa', 'augmix-m5'), ('--aug-splits', '2')),
    'loss': ((), ('--loss', 'asl')),
    'class_stats': ((*BCE, '--loss-pos-weight', 'neg_pos', *STATS), ('--class-stats', '{other_stats}')),
    'loss_pos_weight': (BCE, ('--loss-pos-weight', '3')),
    'loss_class_weight': (BCE, ('--loss-class-weight', '1,2,3,4')),
    'loss_weight_power': ((*BCE, '--loss-pos-weight', 'neg_pos', *STATS), ('--loss-weight-power', '0.5')),
    'loss_weight_beta': ((*BCE, '--loss-class-weight', 'effective_num', *STATS), ('--loss-weight-beta', '0.5')),
    'loss_weight_max': ((*BCE, '--loss-pos-weight', 'neg_pos', *STATS), ('--loss-weight-max', '1')),
    'asl_gamma_pos': (('--loss', 'asl'), ('--asl-gamma-pos', '0')),
    'asl_gamma_neg': (('--loss', 'asl'), ('--asl-gamma-neg', '1')),
    'poly_epsilon': (('--loss', 'poly'), ('--poly-epsilon', '1')),
    'jsd_loss': (('--aug-splits', '2'), ('--jsd-loss',)),
    'bce_loss': ((), ('--bce-loss',)),
    'bce_sum': (('--bce-loss',), ('--bce-sum',)),
    'bce_target_thresh': (('--bce-loss', '--mixup', '0.5'), ('--bce-target-thresh', '0.2')),
    'bce_pos_weight': (('--bce-loss',), ('--bce-pos-weight', '3')),
    'recount': (('--reprob', '0.9'), ('--recount', '3')),
    'resplit': (('--reprob', '0.9', '--aug-splits', '2'), ('--resplit',)),
    'cutmix_minmax': ((), ('--cutmix-minmax', '0.2', '0.8')),
    'mixup_switch_prob': (
        ('--mixup', '0.5', '--cutmix', '1', '--mixup-switch-prob', '1'), ('--mixup-switch-prob', '0')
    ),
    'mixup_mode': (('--mixup', '0.5'), ('--mixup-mode', 'elem')),
    'drop_block': (('--model', 'resnet10t'), ('--drop-block', '0.5')),
    'bn_momentum': (('--model', 'test_efficientnet'), ('--bn-momentum', '0.5')),
    'bn_eps': (('--model', 'test_efficientnet'), ('--bn-eps', '0.1')),
    'split_bn': (('--aug-splits', '2'), ('--split-bn',)),
    'model_ema_force_cpu': (('--model-ema',), ('--model-ema-force-cpu',)),
    'layer_decay_min_scale': (('--layer-decay', '0.1'), ('--layer-decay-min-scale', '0.5')),
    'layer_decay_no_opt_scale': (('--layer-decay', '0.1'), ('--layer-decay-no-opt-scale', '0.05')),
    'lr_noise': ((), ('--lr-noise', '0', '1')),
    'lr_noise_pct': (('--lr-noise', '0', '1'), ('--lr-noise-pct', '0.1')),
    'lr_noise_std': (('--lr-noise', '0', '1', '--seed', '3'), ('--lr-noise-std', '0.1')),
    'lr_cycle_mul': (CYCLES, ('--lr-cycle-mul', '2')),
    'lr_cycle_decay': (CYCLES, ('--lr-cycle-decay', '0.1')),
    'lr_cycle_limit': (('--epochs', '2'), ('--lr-cycle-limit', '2')),
    'lr_k_decay': ((), ('--lr-k-decay', '0.5')),
    'decay_milestones': (('--sched', 'multistep'), ('--decay-milestones', '1')),
    'decay_epochs': (('--sched', 'step'), ('--decay-epochs', '1')),
    'lr_decay_fn': ((*WSD, '--epochs', '5'), ('--lr-decay-fn', 'linear')),
    'lr_stable_timescale': ((*RSQRT, '--epochs', '6'), ('--lr-stable-timescale', '4')),
    'stop_epoch': ((), ('--stop-epoch', '1')),
    'save_epochs': (('--val-interval', '2'), ('--save-epochs', '1')),
    'persistent_workers': (('--workers', '1'), ('--persistent-workers',)),
    'pretrained_cfg_overlay': ((), ('--pretrained-cfg-overlay', 'crop_pct=0.5')),
    'model_ema_force_fp32': (('--model-ema', '--model-dtype', 'bfloat16'), ('--model-ema-force-fp32',)),
    'train_img_sizes': ((), SIZES),
    'train_size_probs': (SIZES, ('--train-size-probs', '0', '1')),
    'train_size_schedule': (SIZES, ('--train-size-schedule', 'progressive')),
    'train_size_schedule_spread': (PROGRESSIVE, ('--train-size-schedule-spread', '9')),
    'train_size_random_mix': (PROGRESSIVE, ('--train-size-random-mix', '1')),
    'decay_rate': (('--sched', 'step', '--decay-epochs', '1'), ('--decay-rate', '0.5')),
    'warmup_prefix': (('--warmup-epochs', '1'), ('--warmup-prefix',)),
    'patience_epochs': (PLATEAU, ('--patience-epochs', '0')),
    'recovery_interval': (('--val-interval', '2'), ('--recovery-interval', '1')),
    'save_images': (('--log-interval', '1'), ('--save-images',)),
    'no_prefetcher': (('--mixup', '0.5'), ('--no-prefetcher',)),
    'use_multi_epochs_loader': (('--workers', '1'), ('--use-multi-epochs-loader',)),
    'log_with': ((), ('--log-with', 'tensorboard')),
    'pretrained_path': ((), ('--pretrained', '--pretrained-path', '{checkpoint}')),
    'gp': (('--img-size', '64'), ('--gp', 'max')),
    'in_chans': ((), ('--in-chans', '1', '--mean', '0.4', '--std', '0.4')),
    'head_init_scale': ((), ('--head-init-scale', '3')),
    'head_init_bias': ((), ('--head-init-bias', '1')),
    'model_dtype': ((), ('--model-dtype', 'bfloat16')),
    'class_map': ((), ('--class-map', '{class_map}')),
    'kd_model_name': ((), KD),
    'kd_distill_type': (KD, ('--kd-distill-type', 'feature')),
    'distill_loss_weight': (KD, ('--distill-loss-weight', '3')),
    'task_loss_weight': (KD, ('--task-loss-weight', '0.3')),
    'kd_temperature': (KD, ('--kd-temperature', '1')),
    'kd_token_distill_type': (TOKEN, ('--kd-token-distill-type', 'hard')),
    'dad': ((), DAD),
    'dad_teacher': (DAD, ('--dad-teacher', 'timm:test_resnet', '--dad-teacher-checkpoint', '{checkpoint}')),
    'dad_teacher_checkpoint': (
        (*TIMM_TEACHER, '--dad-teacher-checkpoint', '{checkpoint}'), ('--dad-teacher-checkpoint', '{best}')
    ),
    'dad_teacher_img_size': (
        (*TIMM_TEACHER, '--dad-teacher-checkpoint', '{checkpoint}'), ('--dad-teacher-img-size', '64')
    ),
    'dad_teacher_weights': (TWO_TEACHERS, ('--dad-teacher-weights', '0.9', '0.1')),
    'dad_teacher_temperatures': (TWO_TEACHERS, ('--dad-teacher-temperatures', '1', '9')),
    'dad_class_map': (
        (*TIMM_TEACHER, '--dad-teacher-checkpoint', '{checkpoint}'), ('--dad-class-map', '{teacher_classes}')
    ),
    'dad_classnames': (DAD, ('--dad-classnames', '{classnames}')),
    'dad_templates': (DAD, ('--dad-templates', '{templates}')),
    'dad_vqgan': (DAD, ('--dad-vqgan', '{vqgan}')),
    'dad_view': (DAD[:3], ('--dad-view', 'random')),
    'dad_cache': (DAD, ('--dad-cache', '2')),
    'dad_dir': (SET, ('--dad-dir', '{other_set}')),
    'dad_same_crop': (SET, ('--dad-same-crop',)),
    'dad_stored_logits': ((*SET, '--no-aug'), ('--dad-stored-logits',)),
    'dad_norm': ((*DAD, '--dad-eps', '0.2', '--dad-step-size', '0.1'), ('--dad-norm', 'linf')),
    'dad_eps': ((*DAD, '--dad-step-size', '4'), ('--dad-eps', '4')),
    'dad_step_size': ((*DAD, '--dad-eps', '4'), ('--dad-step-size', '4')),
    'dad_num_steps': ((*DAD, '--dad-eps', '4', '--dad-step-size', '2'), ('--dad-num-steps', '2')),
    'dad_random_start': ((*DAD, '--dad-eps', '4'), ('--dad-random-start', '0')),
    'dad_keep_label': (DAD, ('--dad-keep-label',)),
    'no_labels': (DAD, ('--no-labels',)),
    'dad_temperature': (DAD, ('--dad-temperature', '1')),
    'dad_task_weight': (DAD, ('--dad-task-weight', '0.5')),
    'dad_kd_weight': (DAD, ('--dad-kd-weight', '1')),
    'dad_weight': (DAD, ('--dad-weight', '1')),
    'dad_attack_from': (DAD, ('--dad-attack-from', 'input')),
    'dad_attack': (DAD, ('--dad-attack', 'latent')),
    'dad_start_size': (LATENT, ('--dad-start-size', '1')),
    'dad_gradient_vqgan': (LATENT, ('--dad-gradient-vqgan', '{tiny}')),
    'dad_neighbours': (CODES, ('--dad-neighbours', '2')),
    'dad_candidates': (CODES, ('--dad-candidates', '1')),
    'dad_view_aug': ((*DAD, '--aa', 'rand-m9'), ('--dad-view-aug', 'base')),
    'dad_recipe': (DAD, ('--dad-recipe', 'latent')),
    'dad_extra_task_weight': (DAD, ('--dad-extra-task-weight', '1')),
    'dad_feature_weight': (DAD, ('--dad-feature-weight', '1')),
    'dad_prob': (DAD, ('--dad-prob', '0.3')),
    'dad_every': (DAD, ('--dad-every', '2')),
    'dad_replay': ((*DAD, '--dad-every', '2'), ('--dad-replay', '8')),
    'dad_warmup_epochs': (DAD, ('--dad-warmup-epochs', '1')),
    'dad_off_epoch': (DAD, ('--dad-off-epoch', '1')),
    'dad_eps_sched': ((*DAD, '--dad-eps', '4'), ('--dad-eps-sched', 'linear')),
    'dad_eps_start': ((*DAD, '--dad-eps', '4', '--dad-eps-sched', 'cosine'), ('--dad-eps-start', '3')),
    'dad_precision': (DAD, ('--dad-precision', 'bf16')),
    'dad_preview_interval': (DAD, ('--dad-preview-interval', '1')),
}  # fmt: skip
ELSEWHERE = {
    'help': 'argparse',
    'pretrained': 'test_pretrained_asks_timm_for_its_weights',
    'torchcompile_mode': 'test_the_mode_reaches_torch_compile',
    'data': 'test_the_folder_may_be_positional',
    'synchronize_step': 'test_gpu.py',
    'dad_look': 'test_first_look.py',
    **dict.fromkeys(('task', 'target_format', 'multilabel_threshold'), 'test_multilabel.py'),
    **dict.fromkeys(losses._MULTILABEL_SETTINGS, 'test_losses.py'),
    'dad_compile': 'test_compiled_and_in_pieces_it_is_the_same_training',
    'dad_micro_batch': 'test_compiled_and_in_pieces_it_is_the_same_training',
    **dict.fromkeys(REFUSED, 'test_flags_that_make_no_sense_here_say_so'),
    **dict.fromkeys(
        (
            'num_classes',
            'device',
            'local_rank',
            'worker_seeding',
            'drop_connect',
            'sync_bn',
            'wandb_resume_id',
            'dad_strict_size',
        ),
        'test_bad_flags_are_named_before_anything_is_written',
    ),
    **dict.fromkeys(('aug_repeats', 'dist_bn', 'no_ddp_bb'), 'test_processes.py'),
    **dict.fromkeys(DATASET_FLAGS, 'test_flags_of_data_sets_reach_timm'),
    **dict.fromkeys(('fuser', 'fast_norm'), 'test_switches_reach_timm'),
    **dict.fromkeys(('kd_loss_type', 'kd_student_feature_dim', 'kd_teacher_feature_dim'), 'test_kd_flags_reach_timm'),
    **dict.fromkeys(('log_wandb', 'wandb_project', 'wandb_tags'), 'test_wandb_flags_reach_accelerate'),
}


@pytest.fixture(scope='module')
def things(pictures, tmp_path_factory):
    """Files that flags name: a checkpoint, another folder, a config, class names, templates, another VQGAN."""
    root = tmp_path_factory.mktemp('things')
    train_dad.main(flags(pictures, root, '--seed', '5'))
    train_dad.main(flags(pictures, root / 'best', '--seed', '6'))
    AcceleratorState._reset_state(reset_partial_state=True)
    for path in pictures.rglob('*.png'):
        copy = root / 'other' / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(copy)
    teacher = timm.create_model('test_resnet', num_classes=4)
    timm.models.save_for_hf(teacher, root / 'timm_teacher', model_config={'num_classes': 4}, safe_serialization=True)
    dataset = create_timm_dataset('', str(pictures), split='train')
    sets = {
        name: write_taught_set(root / name, dataset, light) for name, light in (('a', (0.7, 0.8)), ('b', (0.4, 0.5)))
    }
    (root / 'class_map.txt').write_text('\n'.join(reversed(CLASSES)))
    (root / 'config.yaml').write_text('weight_decay: 0.5\n')
    (root / 'classnames.txt').write_text('vehicle\nweather\nfood\ntool\n')
    (root / 'stats.json').write_text('{"pos_counts": [1, 2, 3, 4], "num_samples": 10}')
    (root / 'other_stats.json').write_text('{"pos_counts": [4, 3, 2, 1], "num_samples": 10}')
    (root / 'templates.txt').write_text('a photo of the {}.\n')
    (root / 'teacher_classes.csv').write_text('class,teacher\ncat,3\ndog,2\nfish,1\ntree,0\n')
    from safetensors.torch import load_file, save_file

    state = load_file(DEMO_VQGAN)
    state['post_quant_conv.weight'] = -state['post_quant_conv.weight']
    save_file(state, root / 'vqgan.safetensors')
    (root / 'vqgan.yaml').write_text(DEMO_VQGAN.with_suffix('.yaml').read_text())
    save_tiny(load_vqgan(DEMO_VQGAN), root / 'tiny.safetensors')
    return {
        'pictures': pictures,
        'other': root / 'other',
        'checkpoint': root / 'run' / 'last.pth.tar',
        'best': root / 'best' / 'run' / 'last.pth.tar',
        'timm_teacher': root / 'timm_teacher',
        'class_map': root / 'class_map.txt',
        'config': root / 'config.yaml',
        'classnames': root / 'classnames.txt',
        'stats': root / 'stats.json',
        'other_stats': root / 'other_stats.json',
        'templates': root / 'templates.txt',
        'teacher_classes': root / 'teacher_classes.csv',
        'vqgan': root / 'vqgan.safetensors',
        'tiny': root / 'tiny.safetensors',
        'dad_set': sets['a'],
        'other_set': sets['b'],
    }


def test_every_flag_has_a_variant():
    flags_of_help = {action.dest for action in create_parser()._actions}
    assert flags_of_help == set(VARIANTS) | set(ELSEWHERE)


# Flags that no factory gets as an argument: a run shows what they do.
BY_RUN = {
    'config',
    'resume',
    'output',
    'experiment',
    'log_with',
    'pretrained_path',
    'initial_checkpoint',
    'start_epoch',
}
# Tried by a run always; all others in the slow tests.
ALWAYS = ('dad', 'dad_view', 'dad_dir', 'eval_suites')


# What train_one_epoch and its loop read themselves.
TRAINING_FLAGS = """grad_accum_steps clip_grad clip_mode synchronize_step log_interval save_images
    val_interval dad_preview_interval seed""".split()
LOSSES = (
    'AsymmetricLossSingleLabel', 'BinaryCrossEntropy', 'JsdCrossEntropy', 'LabelSmoothingCrossEntropy',
    'SoftTargetCrossEntropy',
)  # fmt: skip
POLY = ('PolyCrossEntropy',) if NEW_TIMM else ()
KD_TASKS = ('LogitDistillationTask', 'FeatureDistillationTask', 'TokenDistillationTask')
PAIRS = ('dir', 'cache', 'same_crop', 'stored_logits', 'view_aug')


def factory_arguments(argv, monkeypatch):
    """All that factories get for a command line, but what they build."""
    seen = []

    def create_model(*names, **arguments):
        seen.append((names, arguments))
        return timm.create_model('test_resnet', num_classes=4, in_chans=arguments['in_chans'])

    args = parse_args(argv)
    config = resolve_data_config(vars(args))
    found = {
        'loading': [kwargs.train_loader_kwargs(args, config), kwargs.eval_loader_kwargs(args, config)],
        'accelerator': kwargs.accelerator_kwargs(args),
        'batches': kwargs.batches_kwargs(args),
        'data': [args.data_dir, args.dataset, args.train_split, args.val_split, args.class_map],
        'suites': args.eval_suites,
        'optimizer': [optimizer_kwargs(cfg=args), args.opt_kwargs, learning_rate(args, 1)],
        'schedule': kwargs.schedule_kwargs(args, args.eval_metric, 1),
        'checkpoints': kwargs.checkpoint_kwargs(args, args.eval_metric, 1, 1),
        'resume': kwargs.resume_kwargs(args, 1),
        'suites_hook': kwargs.suites_kwargs(args),
        'training': [getattr(args, name) for name in TRAINING_FLAGS],
        'pairs': [uses_pairs(args), *(getattr(args, f'dad_{name}') for name in PAIRS)],
    }
    accelerator, placed, task = MagicMock(device='cpu', num_processes=1), MagicMock(), MagicMock()
    place_student(args, placed, accelerator)
    prepare_task(args, task, None, accelerator)
    found['prepared'] = [placed.mock_calls, task.mock_calls]
    with monkeypatch.context() as patch:
        patch.setattr('timm_dad.flags.student.create_model', create_model)
        for module, names in ((losses, LOSSES), (timm.loss, POLY), (objective, KD_TASKS)):
            for name in names:
                patch.setattr(module, name, lambda name=name, **arguments: seen.append((name, repr(arguments))))
        losses.create_criterion(args)
        objective.create_kd_task(args, None, None, None)
        student = create_student(args)
    head = student.get_classifier().weight.std() > 0.1, student.get_classifier().bias.sum() > 0
    found['model'] = [seen, args.grad_checkpointing, args.split_bn, head]
    if args.dad:
        views = [
            getattr(args, f'dad_{name}')
            for name in ('vqgan', 'precision', 'keep_label', 'attack_from', 'gradient_vqgan')
        ]
        found['dad'] = [attack_config(args), loss_config(args), schedule_config(args), args.dad_view, views]
        teacher = (
            'teacher', 'teacher_weights', 'teacher_checkpoint', 'teacher_img_size', 'classnames', 'templates',
            'class_map', 'teacher_temperatures',
        )  # fmt: skip
        found['teacher'] = [getattr(args, f'dad_{name}') for name in teacher]
    return found


# What timm before 1.0.31 has not.
OF_NEW_TIMM = {
    'class_stats', 'loss_pos_weight', 'loss_class_weight', 'loss_weight_power', 'loss_weight_beta', 'loss_weight_max',
    'poly_epsilon', 'lr_decay_fn', 'lr_stable_timescale', 'model_ema_force_fp32', 'train_img_sizes', 'train_size_probs',
    'train_size_schedule', 'train_size_schedule_spread', 'train_size_random_mix',
}  # fmt: skip


def variant(flag, things):
    """The parts of a row of ``VARIANTS`` with the names of files."""
    if flag in OF_NEW_TIMM and not NEW_TIMM:
        pytest.skip('timm before 1.0.31 has no such flag')
    return ([part.format(**things) for part in parts] for parts in VARIANTS[flag])


@pytest.mark.timm
@pytest.mark.parametrize('flag', sorted(set(VARIANTS) - BY_RUN))
def test_flag_reaches_a_factory(flag, pictures, things, monkeypatch):
    common, changed = variant(flag, things)
    extra = ['--dad-vqgan', 'demo'] if flag == 'dad_view' else []
    before = factory_arguments(flags(pictures, 'out', *common, *extra), monkeypatch)
    after = factory_arguments(flags(pictures, 'out', *common, *changed), monkeypatch)
    assert before != after


def test_equal_flags_give_factories_equal_arguments(pictures, monkeypatch):
    """Without this, the test above could not fail."""
    assert factory_arguments(flags(pictures, 'out', *DAD), monkeypatch) == factory_arguments(
        flags(pictures, 'out', *DAD), monkeypatch
    )


FLAGS = [flag if flag in ALWAYS else pytest.param(flag, marks=pytest.mark.slow) for flag in VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize('flag', FLAGS)
def test_flag_changes_something(flag, pictures, things, tmp_path, monkeypatch):
    common, changed = variant(flag, things)
    prints = []
    for name, more in (('a', common), ('b', [*common, *changed])):
        (tmp_path / name).mkdir()
        # Without --dad-vqgan the first run of --dad-view needs it.
        extra = ['--dad-vqgan', 'demo'] if flag == 'dad_view' and name == 'a' else []
        prints.append(fingerprint(flags(pictures, 'out', *more, *extra), tmp_path / name, monkeypatch))
    assert prints[0] != prints[1]


@pytest.mark.slow
def test_the_fingerprint_of_equal_runs_is_equal(pictures, tmp_path, monkeypatch):
    """Without this, the test above could not fail."""
    prints = []
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        prints.append(fingerprint(flags(pictures, 'out', *DAD), tmp_path / name, monkeypatch))
    assert prints[0] == prints[1]


def test_pretrained_asks_timm_for_its_weights(pictures, tmp_path, monkeypatch):
    asked = []

    def create(*args, pretrained, **kwargs):
        asked.append(pretrained)
        return timm.create_model(*args, **kwargs)

    monkeypatch.setattr('timm_dad.flags.student.create_model', create)
    train_dad.main(flags(pictures, tmp_path, '--pretrained'))
    assert asked == [True]


def test_the_mode_reaches_torch_compile(pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, 'compile', lambda model, **kwargs: seen.append(kwargs) or model)
    train_dad.main(flags(pictures, tmp_path, '--torchcompile', 'inductor', '--torchcompile-mode', 'max-autotune'))
    assert seen == [{'backend': 'inductor', 'mode': 'max-autotune'}]


def test_the_folder_may_be_positional():
    assert parse_args(['pictures', '--model', 'resnet18']).data_dir == 'pictures'


@pytest.mark.parametrize('name', REFUSED)
def test_flags_that_make_no_sense_here_say_so(name, capsys):
    flag = '--' + name.replace('_', '-')
    values = {'naflex_loss_scale': 'sqrt', 'variable_batch_loss_scale': 'sqrt'}
    value = (
        [] if name in ('torchscript', 'naflex_loader', 'naflex_patchify_channels_first') else [values.get(name, '1')]
    )
    with pytest.raises(SystemExit):
        parse_args(['--data-dir', 'pictures', flag, *value])
    assert re.search(rf'{flag} does not work here: .*; (use|run|leave)', capsys.readouterr().err)


@pytest.mark.parametrize('name', DATASET_FLAGS)
def test_flags_of_data_sets_reach_timm(name, pictures, monkeypatch):
    flag, value, expected = DATASET_FLAGS[name]
    seen = []
    monkeypatch.setattr('timm_dad.data.datasets.create_timm_dataset', lambda *args, **kwargs: seen.append(kwargs))
    args = parse_args(['--data-dir', str(pictures), flag, *([value] if value else [])])
    open_training_data(args)
    assert expected.items() <= seen[name.startswith('val')].items()


def test_switches_reach_timm(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(setup.utils, 'set_jit_fuser', seen.append)
    monkeypatch.setattr(setup, 'set_fast_norm', lambda: seen.append('fast_norm'))
    for more, expected in (([], []), (['--fuser', 'te', '--fast-norm'], ['te', 'fast_norm'])):
        setup.create_accelerator(tmp_path, **kwargs.accelerator_kwargs(parse_args(['--data-dir', 'x', *more])))
        assert seen == expected


@pytest.mark.timm
def test_kd_flags_reach_timm(monkeypatch):
    seen = []
    for name in KD_TASKS:
        monkeypatch.setattr(objective, name, lambda name=name, **kwargs: seen.append((name, kwargs)))
    common = ['--data-dir', 'x', '--kd-model-name', 'resnet18']
    for more in (
        ['--kd-loss-type', 'other'],
        ['--kd-distill-type', 'feature', '--kd-student-feature-dim', '8', '--kd-teacher-feature-dim', '9'],
    ):
        objective.create_kd_task(parse_args([*common, *more]), None, None, torch.device('cpu'))
    (logit, logit_flags), (feature, feature_flags) = seen
    assert (logit, feature) == ('LogitDistillationTask', 'FeatureDistillationTask')
    assert logit_flags['loss_type'] == 'other'
    assert (feature_flags['student_feature_dim'], feature_flags['teacher_feature_dim']) == (8, 9)


def test_wandb_flags_reach_accelerate(pictures, tmp_path, monkeypatch):
    pytest.importorskip('wandb', reason='wandb is not installed')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    seen = []
    monkeypatch.setattr(Accelerator, 'init_trackers', lambda self, *args: seen.append((self.log_with, args)))
    train_dad.main(flags(pictures, tmp_path, '--log-wandb', '--wandb-project', 'birds', '--wandb-tags', 'a', 'b'))
    (log_with, (project, _, options)) = seen[0]
    assert [tracker.value for tracker in log_with] == ['wandb']
    assert project == 'birds'
    assert options['wandb']['tags'] == ['a', 'b']


@pytest.mark.slow
def test_tensorboard_has_every_loss_part(pictures, tmp_path):
    train_dad.main(flags(pictures, tmp_path, *DAD, '--log-with', 'tensorboard'))
    events = EventAccumulator(str(next((tmp_path / 'run' / 'timm-dad').glob('**/events*')))).Reload()
    assert {'loss', 'task_loss', 'kd_loss', 'dad_loss', 'teacher_kept', 'val_top1', 'lr'} <= set(
        events.Tags()['scalars']
    )
    assert [event.step for event in events.Scalars('dad_loss')] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'source',
    [
        (),
        pytest.param(('--no-prefetcher', '--workers', '1'), marks=pytest.mark.slow),
        pytest.param(('--dad-cache', '2'), marks=pytest.mark.slow),
    ],
)
def test_previews_of_epochs_do_not_change_the_training(pictures, tmp_path, source):
    more = (*DAD, *source, '--epochs', '3', '--model-ema', '--mixup', '0.2', '--aa', 'rand-m9-mstd0.5')
    train_dad.main(flags(pictures, tmp_path / 'without', *more))
    train_dad.main(flags(pictures, tmp_path / 'with', *more, '--dad-preview-interval', '2'))
    without, with_ = weights(tmp_path / 'without'), weights(tmp_path / 'with')
    for name in ('state_dict', 'state_dict_ema'):
        assert digest(without[name]) == digest(with_[name])
    assert summary(tmp_path / 'without') == summary(tmp_path / 'with')
    sheets = {path.name: path.read_bytes() for path in (tmp_path / 'with' / 'run').glob('preview*')}
    assert sorted(sheets) == ['preview-1.png', 'preview-2.png', 'preview.png']  # every second, and the last
    assert sheets['preview-2.png'] == sheets['preview.png'] != sheets['preview-1.png']
    assert sheets['preview.png'] == (tmp_path / 'without' / 'run' / 'preview.png').read_bytes()


@pytest.mark.slow
def test_previews_show_the_attack_of_their_epoch_in_folder_and_trackers(pictures, tmp_path, monkeypatch, caplog):
    seen, shown = [], []

    def spy(augment, x_pix, label, **kwargs):
        image = preview_image(augment, x_pix, label, **kwargs)
        seen.append((augment.attack.eps, image))
        return image

    class Recorder:
        """A tracker in the interface of Accelerate's."""

        def __init__(self, name):
            self.name = name

        def __getattr__(self, name):
            return lambda *args, **kwargs: None

        def log_images(self, values, step=None, **kwargs):
            shown.append((self.name, values, step, kwargs))

    def init_trackers(accelerator, *args, **kwargs):
        original(accelerator, *args, **kwargs)
        accelerator.trackers += [Recorder('wandb'), Recorder('mlflow')]

    original = Accelerator.init_trackers
    monkeypatch.setattr(Accelerator, 'init_trackers', init_trackers)
    monkeypatch.setattr('timm_dad.training.preview.preview_image', spy)
    eps = ('--dad-eps', '4', '--dad-step-size', '4', '--dad-random-start', '1', '--dad-eps-sched', 'linear')
    more = ('--log-with', 'tensorboard', '--dad-preview-interval', '1')
    train_dad.main(flags(pictures, tmp_path, *DAD, *eps, *more))
    assert [value for value, _ in seen] == [2] * 6 + [4] * 12  # two epochs, and the last one again
    first, second, last = ([image for _, image in seen[start : start + 6]] for start in (0, 6, 12))
    dataset = create_timm_dataset('', str(pictures), split='validation')
    assert [image.labels[0] for image in first] == [dataset[index][1] for index in (0, 2, 4, 6, 8, 11)]
    for a, b, c in zip(first, second, last, strict=True):
        assert torch.equal(a.x_pix, b.x_pix)
        assert 1 < a.distance <= 2 + 1e-4 < b.distance
        assert torch.equal(b.x_dad, c.x_dad)
    sheets = [np.asarray(Image.open(tmp_path / 'run' / f'preview-{epoch}.png')) for epoch in (0, 1)]
    events = EventAccumulator(str(next((tmp_path / 'run' / 'timm-dad').glob('**/events*')))).Reload()
    logged = events.Images('preview')
    assert [event.step for event in logged] == [0, 1]
    for event, sheet in zip(logged, sheets, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) == sheet).all()
    assert [(name, step, kwargs) for name, _, step, kwargs in shown] == [('wandb', 0, {}), ('wandb', 1, {})]
    for (_, values, _, _), sheet in zip(shown, sheets, strict=True):
        assert (values['preview'][0] == sheet).all()  # wandb takes a list of pictures
    assert '--dad-preview-interval: mlflow accepts no pictures' in caplog.text


def test_a_set_has_no_previews(pictures, dad_set, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_dad.main(flags(pictures, tmp_path / 'out', '--dad', '--dad-dir', dad_set, '--dad-preview-interval', '1'))
    assert 'but --dad-dir already contains its views: leave it out' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--dad-stored-logits', '--no-aug'), None])
def test_a_run_can_be_had_again_from_its_args_yaml(pictures, dad_set, tmp_path, more):
    dad = DAD if more is None else ('--dad', '--dad-dir', dad_set, *more)
    train_dad.main(flags(pictures, tmp_path / 'a', *dad))
    AcceleratorState._reset_state(reset_partial_state=True)
    train_dad.main(['--config', str(tmp_path / 'a' / 'run' / 'args.yaml'), '--output', str(tmp_path / 'b')])
    assert digest(weights(tmp_path / 'a')['state_dict']) == digest(weights(tmp_path / 'b')['state_dict'])


def test_wordnet_ids_become_words():
    from timm_dad.teachers.zero_shot import spoken_names as _spoken

    assert _spoken(['n01440764', 'n02123045']) == ['tench', 'tabby cat']
    assert _spoken(['cat', 'n02123045']) == ['cat', 'n02123045']
    with pytest.raises(
        ValueError, match=r"no words are known for the WordNet ids \['n99999999'\] ...: give class names"
    ):
        _spoken(['n01440764', 'n99999999'])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('both', 'more'),
    [
        ((), ('--dad-micro-batch', '5')),
        pytest.param(('--dad-cache', '1'), ('--dad-micro-batch', '5'), marks=pytest.mark.slow),
        pytest.param((), ('--dad-compile',), marks=pytest.mark.slow),
    ],
)
def test_compiled_and_in_pieces_it_is_the_same_training(pictures, tmp_path, both, more):
    losses = []
    for name, extra in (('plain', ()), ('other', more)):
        train_dad.main(flags(pictures, tmp_path / name, *DAD, *both, *extra))
        losses.append([float(row['train_loss']) for row in summary(tmp_path / name)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # sums round otherwise, and codes may flip


@pytest.mark.slow
def test_the_precision_that_was_measured_is_kept_with_the_run(pictures, tmp_path):
    train_dad.main(flags(pictures, tmp_path, *DAD, '--dad-precision', 'auto'))
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['dad_precision'] in ('fp32', 'bf16')
