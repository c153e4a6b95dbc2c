"""DAD in timm's own ``train.py``: on a script like it made here, and with TIMM_SRC on timm's own, patched and run."""

import csv
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from dad_sets import write_taught_set
from folders import write_pictures
from timm.data import AugMixDataset, FastCollateMixup, create_dataset, create_loader
from timm.models import save_for_hf
from torch import nn
from train_scripts import OCTOBER, SCRIPT, renamed

from timm_dad.cli import main
from timm_dad.commands.patch import patch_file
from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.data.pairs import DADPairs
from timm_dad.flags.train import create_parser
from timm_dad.timm_train import check_args, create_task, pair_views
from timm_dad.training.loaders import PairCollateMixup
from timm_dad.vqgan.presets import PRESETS

pytestmark = pytest.mark.timm

REPO = Path(__file__).parents[1]
TIMM_SRC = os.environ.get('TIMM_SRC', '')
DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo')
SIZES = ('--train-img-sizes', '32', '44')
SIZE = {'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'crop_pct': 1.0}
DATA_CONFIG = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), **SIZE}

# Spawned workers import the script again; a module lies beside it.
AS_MAIN = """
import sys
import beside


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index + beside.VALUE


if __name__ == '__main__':
    loader = torch.utils.data.DataLoader(Numbers(), num_workers=1, multiprocessing_context='spawn')
    print(*(int(number) for number in loader), __file__, sys.path[0], *sys.argv, sep='|')
    main()
"""


@pytest.fixture(scope='module')
def dad_set(pictures, tmp_path_factory):
    dataset = create_dataset('', str(pictures), split='train')
    return write_taught_set(tmp_path_factory.mktemp('sets'), dataset, light=[0.5])


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=3)


@pytest.fixture
def parse(monkeypatch):
    """Flags of timm's train.py as a namespace, and as the command line of this process."""

    def parse_flags(*flags):
        monkeypatch.setattr(sys, 'argv', ['train.py', *flags])
        return create_parser().parse_args(flags)

    return parse_flags


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a script; ``timm-dad run`` changes ``sys`` of this process, which is put back."""
    for name in ('argv', 'path'):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])

    def write(text=SCRIPT):
        (tmp_path / 'train.py').write_text(text)
        return str(tmp_path / 'train.py')

    return write


def seen():
    return sys.modules['__main__'].seen


# Flags.


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ((*DAD, '--dad-cache', '2'), '--dad-cache needs `timm-dad train`'),
        ((*DAD, '--naflex-loader'), '--dad does not go with --naflex-loader'),
        ((*DAD, *SIZES, '--dad-view-aug', 'base'), '--train-img-sizes needs DAD views made from the batch'),
        (('--dad', '--dad-dir', '{dad_set}', *SIZES), '--train-img-sizes needs DAD views made from the batch'),
        ((*DAD, *SIZES, '--dad-every', '2', '--dad-replay', '8'), '--dad-replay keeps views of one size'),
        ((*DAD, *SIZES, '--dad-compile'), '--dad-compile is for one image size'),
        ((*DAD[:3], '--dad-dir', '{dad_set}', '--mixup', '0.2', '--no-prefetcher'), 'needs the prefetcher'),
        ((*DAD[:3], '--dad-view', 'random', '--cutmix', '1', '--no-prefetcher'), 'needs the prefetcher'),
        ((*DAD[:3], '--dad-view', 'random', '--mixup', '0.2', '--no-prefetcher'), 'needs the prefetcher'),
        ((*DAD[:3], '--dad-dir', '{dad_set}', '--dad-eps', '0.2'), '--dad-eps was fixed when the DAD set was made'),
        (
            ('--dad', '--dad-dir', '{dad_set}', '--dad-stored-logits', '--no-aug', '--dad-feature-weight', '1'),
            '--dad-feature-weight needs features from the teacher',
        ),
        ((*DAD[:3], '--dad-dir', 'nowhere'), '--dad-dir: nowhere contains no DAD set'),
        ((*DAD, '--kd-model-name', 'resnet18'), '--kd-model-name is another kind of distillation than --dad'),
        (('--dad-eps', '0.1'), '--dad-eps needs --dad'),
        ((*DAD, '--dad-prob=2'), '--dad-prob: prob is a probability'),
        ((*DAD[:3], '--dad-view', 'random', '--dad-eps', '0.1'), '--dad-eps shapes the DAD view'),
    ],
)
def test_a_bad_flag_ends_with_one_line(parse, capsys, flags, message, dad_set):
    args = parse(*(flag.format(dad_set=dad_set) for flag in flags))
    with pytest.raises(SystemExit) as stop:
        check_args(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith('train.py: error: ')
    assert message in error
    assert error.count('\n') == 1


def test_a_flag_may_be_abbreviated_as_timm_allows_it(parse, capsys):
    args = parse('--dad-num-steps', '2')
    sys.argv[1:] = ['--dad-num', '2']
    with pytest.raises(SystemExit):
        check_args(args)
    assert '--dad-num-steps needs --dad' in capsys.readouterr().err


@pytest.mark.parametrize(
    'flags',
    [
        (),
        ('--naflex-loader', '--train-img-sizes', '32', '--mixup', '0.2'),
        (*DAD, *SIZES, '--mixup', '0.2'),
        (*DAD, '--dad-recipe', 'latent', '--mixup', '0.2'),
        (*DAD, '--dad-recipe', 'latent', '--reprob', '0.2', '--no-prefetcher'),
        (*DAD, '--mixup', '0.2', '--use-multi-epochs-loader'),
        (*DAD[:3], '--dad-view', 'random', '--mixup', '0.2'),
        (*DAD[:3], '--dad-view', 'random', '--use-multi-epochs-loader'),
        ('--dad', '--dad-dir', '{dad_set}', '--mixup', '0.2', '--use-multi-epochs-loader'),
        ('--dad', '--dad-dir', '{dad_set}', '--aug-splits', '3', '--dad-same-crop'),
        ('--dad', '--dad-dir', '{dad_set}', '--dad-stored-logits', '--no-aug'),
    ],
)
def test_what_composes_passes(parse, flags, dad_set):
    check_args(parse(*(flag.format(dad_set=dad_set) for flag in flags)))


def test_the_main_process_says_it_before_another_exits(parse, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(time, 'sleep', lambda seconds: said.append((seconds, capsys.readouterr().err)))
    for rank in ('0', '1'):
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit):
            check_args(parse('--dad-eps', '0.1'))
        assert '--dad-eps needs --dad' in capsys.readouterr().err
        assert said == ([] if rank == '0' else [(10, '')])


def test_a_yaml_file_may_hold_dad_flags_that_the_command_line_turns_off(parse):
    args = parse('--no-dad')
    args.dad_eps = 0.3  # as set_defaults of a --config does
    check_args(args)


def test_lengths_of_another_attack_in_a_yaml_file_are_left(parse, tmp_path):
    (tmp_path / 'own.yaml').write_text('lr: 0.1\ndad_eps: 0.3\ndad_step_size: 0.02\n')
    for attack, expected in (('pixels', (0.3, 0.02)), ('latent', (0.5, 0.5))):
        args = parse(*DAD, '--dad-attack', attack)
        args.dad_eps, args.dad_step_size = 0.3, 0.02  # as set_defaults of a --config does
        sys.argv += ['--config', str(tmp_path / 'own.yaml')]
        check_args(args)
        assert (args.dad_eps, args.dad_step_size) == expected


# The task and its data.


def test_the_task_has_the_loaders_normalization_and_the_datas_class_names(parse, pictures):
    dataset = create_dataset('', str(pictures), split='train')
    config = {**DATA_CONFIG, 'mean': (0.1, 0.2, 0.3)}
    model = timm.create_model('test_resnet', num_classes=4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.3)
    args = parse(*DAD, '--num-classes', '4')
    task = create_task(args, model, criterion, dataset, config, torch.device('cpu'))
    torch.testing.assert_close(task.norm.mean.flatten(), torch.tensor(config['mean']))
    assert task.loss.criterion is criterion
    assert task.trainable_module is model
    assert task.teacher(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_the_task_with_features_trains_an_adapter_and_evaluates_the_model(parse, pictures):
    dataset = create_dataset('', str(pictures), split='train')
    model = timm.create_model('test_resnet', num_classes=4)
    args = parse(*DAD, '--num-classes', '4', '--dad-feature-weight', '1')
    task = create_task(args, model, nn.CrossEntropyLoss(), dataset, DATA_CONFIG, torch.device('cpu'))
    assert task.get_eval_model() is model
    assert task.get_trainable_module().projection.out_features == task.teacher.feature_dim > 0


@pytest.mark.skipif('input_size_choices' not in signature(create_loader).parameters, reason='needs timm 1.0.29')
def test_views_have_the_size_of_the_batch(parse, pictures):
    dataset = create_dataset('', str(pictures), split='train')
    args = parse(*DAD, '--num-classes', '4', '--dad-random-start', '0', '--dad-look', '0')
    args.train_img_sizes = [32, 44]  # timm's parser makes numbers of them
    model = timm.create_model('test_resnet', num_classes=4)
    task = create_task(args, model, nn.CrossEntropyLoss(), dataset, DATA_CONFIG, torch.device('cpu'))
    loader = create_loader(
        dataset, (3, 32, 32), 6, is_training=True, num_workers=0, persistent_workers=False, device=torch.device('cpu'),
        input_size_choices=args.train_img_sizes, batch_size_choices=(6, 3), mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    shapes = set()
    for input, target in loader:
        shapes.add(tuple(input.shape))
        x_norm = task._prepare(input, target).extra.x_norm
        torch.testing.assert_close(x_norm, 2 * task.augment.make_views(input / 2 + 0.5, target).x_dad - 1)
        assert x_norm.shape == input.shape
        assert task(input, target)['dad_loss'] > 0
    assert shapes == {(6, 3, 32, 32), (3, 3, 44, 44)}


def test_a_size_that_the_vqgan_does_not_take_is_named(parse, pictures, capsys):
    dataset = create_dataset('', str(pictures), split='train')
    args = parse(*DAD, '--num-classes', '4', '--dad-strict-size')
    args.train_img_sizes = [32, 42]
    model = timm.create_model('test_resnet', num_classes=4)
    with pytest.raises(SystemExit):
        create_task(args, model, nn.CrossEntropyLoss(), dataset, DATA_CONFIG, torch.device('cpu'))
    assert re.search(r'error: --train-img-sizes: .*42', capsys.readouterr().err)


def test_class_names_are_found_behind_augmix(parse, pictures):
    dataset = AugMixDataset(create_dataset('', str(pictures), split='train'), num_splits=3)
    model = timm.create_model('test_resnet', num_classes=4)
    args = parse(*DAD, '--num-classes', '4', '--aug-splits', '3')
    task = create_task(args, model, nn.CrossEntropyLoss(), dataset, DATA_CONFIG, torch.device('cpu'))
    assert task.num_splits == 3


def test_what_does_not_fit_ends_with_one_line(parse, pictures, capsys):
    dataset = create_dataset('', str(pictures), split='train')
    model = timm.create_model('test_resnet', num_classes=7)
    with pytest.raises(SystemExit) as stop:
        create_task(
            parse(*DAD, '--num-classes', '7'), model, nn.CrossEntropyLoss(), dataset, DATA_CONFIG, torch.device('cpu')
        )
    assert stop.value.code == 2
    assert 'there are 4 class names for 7 classes' in capsys.readouterr().err


@pytest.mark.parametrize('no_prefetcher', [False, True])
def test_random_views_come_as_all_first_then_all_second(parse, pictures, no_prefetcher):
    args = parse(*DAD[:3], '--dad-view', 'random', *(['--no-prefetcher'] if no_prefetcher else []))
    dataset, collate_fn = pair_views(args, create_dataset('', str(pictures), split='train'), DATA_CONFIG, None)
    loader = create_loader(dataset, (3, 32, 32), 4, is_training=True, color_jitter=0.0, num_workers=0,
                           persistent_workers=False, device=torch.device('cpu'), collate_fn=collate_fn,
                           use_prefetcher=not no_prefetcher)  # fmt: skip
    input, target = next(iter(loader))
    assert input.shape == (8, 3, 32, 32)
    assert torch.equal(target[:4], target[4:])
    colours = input.mean(dim=(2, 3))
    for label in target.unique():  # the extra view of an image has the colours of its class
        others = colours[:4][target[:4] != label]
        for second in colours[4:][target[4:] == label]:
            own = torch.cdist(second[None], colours[:4][target[:4] == label]).min()
            assert 0 < own < torch.cdist(second[None], others).min()


def test_views_made_in_the_task_need_nothing_of_the_data(parse):
    without = parse('--no-dad')
    without.dad_dir = 'a set that a --config names'
    for args in (parse(*DAD), without):
        dataset, collate_fn = object(), object()
        assert pair_views(args, dataset, DATA_CONFIG, collate_fn) == (dataset, collate_fn)


def test_pairs_of_a_set_in_the_place_of_timms_splits_and_mixing(parse, pictures, dad_set):
    data = create_dataset('', str(pictures), split='train')
    args = parse('--dad', '--dad-dir', str(dad_set), '--num-classes', '4', '--aug-splits', '3')
    dataset, collate_fn = pair_views(args, AugMixDataset(data, num_splits=3), DATA_CONFIG, None)
    assert isinstance(dataset, DADPairs)
    assert dataset.dataset is data
    assert dataset.views.num_splits == 3
    assert collate_fn is None
    mixing = FastCollateMixup(num_classes=4)
    args = parse('--dad', '--dad-dir', str(dad_set), '--num-classes', '4', '--mixup', '0.3', '--smoothing', '0.2')
    _, collate_fn = pair_views(args, data, DATA_CONFIG, mixing)
    assert isinstance(collate_fn, PairCollateMixup)
    assert (collate_fn.mixup_alpha, collate_fn.label_smoothing) == (0.3, 0.2)


def test_a_set_that_does_not_fit_ends_with_one_line(parse, pictures, dad_set, capsys):
    data = create_dataset('', str(pictures), split='train')
    args = parse('--dad', '--dad-dir', str(dad_set), '--num-classes', '4')
    with pytest.raises(SystemExit):
        pair_views(args, data, {**DATA_CONFIG, 'input_size': (3, 64, 64)}, None)
    error = capsys.readouterr().err
    assert error.startswith(
        f'train.py: error: --dad-dir {dad_set}: its views are 32 x 32, but the student takes 64 x 64'
    )
    assert error.count('\n') == 1


# From outside.


def test_run_tells_the_task_every_epoch_and_takes_the_scripts_own_parts(script, pictures):
    path = script()
    main(['run', path, '--data-dir', str(pictures), *DAD, '--dad-warmup-epochs', '2'])
    *epochs, (eval_batch, task) = seen()
    assert epochs == [(0, 8, 0.0), (1, 8, 0.5), (2, 8, 1.0)]
    assert eval_batch == 8
    torch.testing.assert_close(task.norm.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert sorted(file.name for file in Path(path).parent.iterdir()) == ['train.py']


def test_run_gives_two_random_views_in_training_alone(script, pictures):
    main(['run', script(), '--data-dir', str(pictures), *DAD[:3], '--dad-view', 'random', '--epochs', '1'])
    (_, train_batch, _), (eval_batch, _) = seen()
    assert (train_batch, eval_batch) == (16, 8)


SETS = {
    'plain': ((), 2),
    'one crop': (('--dad-same-crop',), 2),
    'mixing': (('--mixup', '0.8'), 2),
    'splits': (('--aug-splits', '3'), 4),
    'stored': (('--dad-stored-logits', '--no-aug'), 2),
    'no prefetcher': (('--no-prefetcher',), 2),
    'random': (('--dad-view', 'random', '--mixup', '0.8'), 2),
}


@pytest.mark.parametrize('kind', SETS)
def test_pairs_in_both_ways(script, pictures, dad_set, monkeypatch, kind):
    more, views = SETS[kind]
    flags = ['--data-dir', str(pictures), '--dad', *more]
    flags += ['--dad-teacher', 'demo'] if kind == 'random' else ['--dad-dir', str(dad_set)]
    path = script()
    results = []
    for way in ('run', 'patch'):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        if way == 'run':
            main(['run', path, *flags])
            names = vars(sys.modules['__main__'])
        else:
            patch_file(Path(path))
            monkeypatch.setattr(sys, 'argv', [path, *flags])
            names = runpy.run_path(path, run_name='__main__')
        results.append(names['batches'])
        eval_batch, task = names['seen'][-1]
        assert eval_batch == 8  # validation has no pairs
        assert bool(task.teacher) == (kind != 'stored')
        assert task.vqgan is None
    torch.testing.assert_close(*results, rtol=0, atol=0)
    for input, target, result in results[0]:
        assert len(input) == views * 8
        assert result['loss'].isfinite()
        assert result['dad_loss'] > 0
        first, second = to_pixels(input[:8]), to_pixels(input[-8:])
        if kind in ('one crop', 'stored'):  # colours are jittered alike, not in proportion
            assert (second.mean(dim=(1, 2, 3)) < 0.7 * first.mean(dim=(1, 2, 3))).all()
        if kind == 'stored':
            torch.testing.assert_close(second, first / 2, atol=1.1 / 255, rtol=0)
            assert (target >= 0).all()
            assert (target < 24 * 4).all()


def to_pixels(x_norm):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.3, 0.2, 0.1)))
    return x_norm * std + mean


@pytest.mark.parametrize(
    'more', ['--dad-recipe latent --mixup 0.8', '--dad-attack codes --dad-neighbours 8', '--dad-attack disagreement']
)
def test_run_attacks_in_every_space(script, pictures, more):
    main(['run', script(), '--data-dir', str(pictures), *DAD, *more.split(), '--epochs', '1'])
    task = seen()[-1][1]
    assert task.augment.attack.space == ('codes' if 'codes' in more else 'latent')
    assert task.apart == ('recipe' in more)
    for _, _, result in vars(sys.modules['__main__'])['batches']:
        assert result['loss'].isfinite()
        assert result['dad_loss'] > 0


def test_run_without_dad_is_the_script(script, pictures):
    main(['run', script(), '--data-dir', str(pictures), '--epochs', '1'])
    (_, _, dad_weight), (_, task) = seen()
    assert dad_weight is None
    assert type(task) is timm.task.ClassificationTask


def test_run_shows_the_flags_of_the_script_and_ours(script, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['run', script(), '--help'])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert '--naflex-loader' in shown
    assert '--dad-teacher' in shown


@pytest.mark.parametrize('text', [renamed(), OCTOBER])
def test_run_takes_a_script_of_other_names_and_versions(script, pictures, text):
    if text is OCTOBER and not NEW_TIMM:
        pytest.skip('this timm has no poly loss')
    main(['run', script(text), '--data-dir', str(pictures), *DAD, '--dad-warmup-epochs', '2'])
    *epochs, (_, task) = seen()
    assert epochs == [(0, 8, 0.0), (1, 8, 0.5), (2, 8, 1.0)]
    criterion = type(task.loss.criterion).__name__
    assert criterion == ('PolyCrossEntropy' if text is OCTOBER else 'CrossEntropyLoss')


def test_a_task_of_several_labels_is_refused(script, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['run', script(OCTOBER), *DAD, '--task', 'multilabel'])
    assert stop.value.code == 2
    assert '--dad does not go with --task multilabel' in capsys.readouterr().err


def test_run_refuses_a_script_without_the_place_of_a_line(script, capsys):
    path = script(SCRIPT.replace('train_one_epoch(', 'train_it('))
    with pytest.raises(SystemExit) as stop:
        main(['run', path, *DAD])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f'train.py: error: {path} is unchanged: found no call of train_one_epoch')
    assert error.count('\n') == 1


def test_run_takes_a_patched_script_as_it_is(script, pictures):
    path = script()
    patch_file(Path(path))
    main(['run', path, '--data-dir', str(pictures), *DAD, '--epochs', '1'])
    assert seen()[0] == (0, 8, 1.0)


@pytest.mark.slow
def test_run_is_python_script(script, tmp_path):
    before, _, _ = SCRIPT.rpartition('if __name__')
    path = script(before + AS_MAIN)
    (tmp_path / 'beside.py').write_text(
        'import timm\nassert timm.__file__.startswith(__file__.removesuffix("beside.py")), timm.__file__\nVALUE = 7\n'
    )
    (tmp_path / 'timm').symlink_to(Path(timm.__file__).parent)  # a checkout has the script and its timm
    environment = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'timm_dad', 'run', path, '--data-dir', 'nowhere', '--epochs', '1']
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.stdout == f'7|8|9|{path}|{tmp_path}|{path}|--data-dir|nowhere|--epochs|1\n', done.stderr
    assert done.returncode == 1
    # A traceback shows the lines that ran, under a name that no file on the disk has.
    numbered = re.search(rf'File "{path}, patched", line (\d+), in main\n    (.*)\n', done.stderr)
    patch_file(Path(path))
    assert numbered[2] == Path(path).read_text().splitlines()[int(numbered[1]) - 1].strip()
    assert 'create_dataset' in numbered[2]


@pytest.mark.parametrize('argv', [(), ('nothing.py',), ('--dad',)])
def test_run_needs_a_script(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['run', *argv])
    assert stop.value.code == 2
    assert 'timm-dad run: error: ' in capsys.readouterr().err


# timm's own train.py.

needs_timm = pytest.mark.skipif(not TIMM_SRC, reason="TIMM_SRC names no folder with timm's train.py")


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
    """timm's train.py, untouched and patched, each with the timm of the checkout beside if there is one."""
    root = tmp_path_factory.mktemp('scripts')
    for name in ('untouched', 'patched'):
        (root / name).mkdir()
        shutil.copy(Path(TIMM_SRC) / 'train.py', root / name)
        patch_file(root / name, revert=name == 'untouched')
        if (Path(TIMM_SRC) / 'timm').is_dir():
            (root / name / 'timm').symlink_to(Path(TIMM_SRC).resolve() / 'timm')
    return root


@pytest.fixture
def train(scripts, pictures, tmp_path):
    """Train with timm's script in its own process; returns the last checkpoint."""
    python = (sys.executable,)
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    accelerate = (sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
                  '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
                  '--main_process_port', '0')  # fmt: skip
    starts = {'python': python, 'torchrun': torchrun, 'accelerate': accelerate}

    def run(kind, *flags, start='python', check=True):
        script = {
            'patched': (scripts / 'patched' / 'train.py',),
            'untouched': (scripts / 'untouched' / 'train.py',),
            'run': ('-m', 'timm_dad', 'run', scripts / 'untouched' / 'train.py'),
        }[kind]
        output = tmp_path / f'{kind}{len(list(tmp_path.iterdir()))}'
        command = [
            *(*starts[start], *script, '--data-dir', pictures, '--output', output, '--experiment', 'run'),
            *('--model', 'test_resnet', '--num-classes', '4', '--img-size', '32', '--mean', '0.5', '0.5', '0.5'),
            *('--std', '0.5', '0.5', '0.5', '-b', '12', '--workers', '1', '--epochs', '2', '--opt', 'adamw'),
            *('--lr', '0.01', '--warmup-epochs', '0', '--device', 'cpu', *flags),
        ]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO), 'CUDA_VISIBLE_DEVICES': ''}
        done = subprocess.run([str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=300)  # fmt: skip
        if not check:
            return done
        assert done.returncode == 0, done.stderr[-4000:]
        return Run(output / 'run')

    return run


class Run:
    def __init__(self, folder):
        self.folder = folder
        self.checkpoint = torch.load(folder / 'last.pth.tar', weights_only=False)
        with open(folder / 'summary.csv') as file:
            self.rows = list(csv.DictReader(file))

    @property
    def steps(self):
        return {int(state['step']) for state in self.checkpoint['optimizer']['state'].values()}


def assert_equal(run, other):
    names = ('state_dict', 'state_dict_ema', 'optimizer', 'epoch', 'metric')
    checkpoints = [{name: each.checkpoint.get(name) for name in names} for each in (run, other)]
    torch.testing.assert_close(*checkpoints, rtol=0, atol=0)


def differs(run, other):
    weights, others = run.checkpoint['state_dict'], other.checkpoint['state_dict']
    return any(not torch.equal(weights[name], others[name]) for name in weights)


@needs_timm
@pytest.mark.slow
def test_the_patched_script_trains_with_dad_mixup_and_ema_and_resumes(train):
    flags = (*DAD, '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.5', '--dad-warmup-epochs', '1')
    run = train('patched', *flags)
    student = timm.create_model('test_resnet', num_classes=4)
    assert [row['epoch'] for row in run.rows] == ['0', '1']
    for name in ('state_dict', 'state_dict_ema'):
        assert run.checkpoint[name].keys() == student.state_dict().keys()
    resumed = train('patched', *flags, '--resume', run.folder / 'checkpoint-0.pth.tar')
    assert [row['epoch'] for row in resumed.rows] == ['1']
    assert resumed.steps == {4}


@needs_timm
@pytest.mark.slow
def test_run_gives_the_very_checkpoint_of_the_patched_script(train):
    flags = (*DAD, '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.5')
    patched = train('patched', *flags)
    assert_equal(train('run', *flags), patched)
    assert differs(train('run', *flags[5:]), patched)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize('kd', [False, True])
def test_without_dad_both_are_timms_script(train, tmp_path, kd):
    teacher = timm.create_model('test_resnet', num_classes=4)
    save_for_hf(teacher, tmp_path / 'teacher', model_config={'num_classes': 4}, safe_serialization=True)
    flags = ('--model-ema', *(('--kd-model-name', f'local-dir:{tmp_path / "teacher"}') if kd else ()))
    untouched = train('untouched', *flags)
    assert_equal(train('patched', *flags), untouched)
    assert_equal(train('run', *flags), untouched)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--no-prefetcher',), ('--mixup', '0.2', '--aa', 'rand-m9')])
def test_two_random_views_in_both(train, more):
    flags = (*DAD[:3], '--dad-view', 'random', *more)
    assert_equal(train('run', *flags), train('patched', *flags))


@needs_timm
@pytest.mark.slow
def test_augmix_in_both(train):
    flags = (*DAD, '--aug-splits', '3', '--aa', 'augmix-m3-w3', '--jsd-loss', '--split-bn')
    assert_equal(train('run', *flags), train('patched', *flags))


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize(
    'more',
    [
        ('--aa', 'rand-m9-mstd0.5', '--reprob', '0.2'),
        ('--mixup', '0.2', '--cutmix', '1', '--mixup-off-epoch', '1'),
        ('--no-prefetcher', '--dad-same-crop'),
        ('--aug-splits', '3', '--aa', 'augmix-m3-w3', '--jsd-loss', '--split-bn'),
        ('--dad-stored-logits', '--no-aug', '--use-multi-epochs-loader'),
    ],
)
def test_a_dad_set_in_both(train, dad_set, more):
    flags = ('--dad', '--dad-dir', dad_set, *more)
    assert_equal(train('run', *flags), train('patched', *flags))


@needs_timm
@pytest.mark.slow
def test_a_dad_set_in_two_processes(train, dad_set):
    flags = ('--dad', '--dad-dir', dad_set, '--mixup', '0.2', '-b', '6')
    run = train('run', *flags, start='torchrun')
    assert run.steps == {4}
    assert_equal(train('patched', *flags, start='torchrun'), run)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize('start', ['torchrun', 'accelerate'])
def test_two_processes(train, start):
    flags = (*DAD, '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.5', '-b', '6')
    run = train('run', *flags, start=start)
    assert run.steps == {4}  # 2 epochs of 24 images, 12 a step
    assert_equal(train('patched', *flags, start=start), run)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['patched', 'run'])
def test_a_bad_flag_is_one_line(train, kind):
    done = train(kind, '--dad', '--dad-teacher', 'demo', check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f'train.py: error: --dad-vqgan must name the weights of a VQGAN, demo, or one of {", ".join(PRESETS)}\n'
    )
