"""Files that commit cba02a1 wrote are read: a run is evaluated and resumed, DAD sets are verified and trained from.

``made_at_cba02a1/README.md`` says how they were made; ``expected.json`` is what that commit made of them.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from timm_dad.cli import main

MADE = Path(__file__).parent / 'made_at_cba02a1'
STUDENT = {'growth_rate': 4, 'block_config': (1, 1)}
TRAIN = (
    'train --data-dir pictures --output . --model densenet121 --model-kwargs growth_rate=4 block_config=(1,1) '
    '--num-classes 4 --img-size 32 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --workers 0 --device cpu --warmup-epochs 0 '
    '--dad'
).split()
# As the run was started.
ONLINE = '--batch-size 4 --lr 0.1 --model-ema --model-ema-decay 0.5 --dad-teacher demo --dad-vqgan demo'.split()
# One update of all pictures as they are: which of two views is drawn changes its losses by less than 1e-3, and no other
# random number does.
ONE_UPDATE = '--batch-size 12 --epochs 1 --no-aug --initial-checkpoint run/last.pth.tar'.split()


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """The files, copied to where the test runs."""
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def expected():
    return json.loads((MADE / 'expected.json').read_text())


def rows(folder):
    with open(Path(folder) / 'summary.csv') as file:
        return list(csv.DictReader(file))


def load(path):
    return torch.load(path, weights_only=False)


# The run.


def test_a_run_is_evaluated_as_then(expected):
    models = 'best=run:run last=run:run/last.pth.tar teacher=teacher:run'.split()
    more = '--suite val=pictures/validation --bootstrap 0 --workers 0 --device cpu --output evaluated'.split()
    main(['evaluate', '--model', *models, *more])
    figures = json.loads(Path('evaluated/report.json').read_text())['figures']
    assert set(figures) == set(expected['figures'])
    for model, values in expected['figures'].items():
        found = {name: figures[model]['val']['*'][name]['value'] for name in values}
        assert found == pytest.approx(values, abs=1e-3), model


def first_step(resume):
    """Go on with the run up to its first update; returns the optimizer and its learning rate, just before."""
    seen = []

    def stop(optimizer, *_):
        seen.extend((optimizer, optimizer.param_groups[0]['lr']))
        raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            main([*TRAIN, *ONLINE, '--experiment', 'run', '--epochs', '4', '--resume', resume])
    finally:
        handle.remove()
    return seen


def parameter_names():
    return [name for name, _ in timm.create_model('densenet121', num_classes=4, **STUDENT).named_parameters()]


def in_any_order(tensors):
    return sorted(tensor.flatten().tolist() for tensor in tensors)


FILES = {'auto': 'run/recovery-2-1.pth.tar', 'run/last.pth.tar': 'run/last.pth.tar'}


@pytest.mark.slow
@pytest.mark.parametrize('resume', FILES)
def test_a_resumed_run_starts_with_what_was_saved(expected, resume):
    checkpoint = load(FILES[resume])
    optimizer, lr = first_step(resume)
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    saved = checkpoint['state_dict']
    assert in_any_order(parameters) == in_any_order(saved[name] for name in parameter_names())
    momentum = [optimizer.state[parameter]['momentum_buffer'] for parameter in parameters]
    states = checkpoint['optimizer']['state'].values()
    assert in_any_order(momentum) == in_any_order(state['momentum_buffer'] for state in states)
    assert lr == pytest.approx(expected['lr'][resume])


@pytest.mark.slow
@pytest.mark.parametrize(('resume', 'updates'), [('auto', 1 + 3), ('run/last.pth.tar', 3 + 3)])
def test_a_resumed_run_goes_on_where_it_stopped(resume, updates):
    steps, before, checkpoint = [], rows('run'), load(FILES[resume])
    handle = register_optimizer_step_pre_hook(lambda *_: steps.append(1))
    try:
        main([*TRAIN, *ONLINE, '--experiment', 'run', '--epochs', '4', '--resume', resume])
    finally:
        handle.remove()
    assert len(steps) == updates
    assert [row['epoch'] for row in rows('run')] == ['0', '1', '2', '3']
    assert rows('run')[:2] == before
    last = load('run/last.pth.tar')
    assert last['epoch'] == 3
    assert set(last['state_dict']) == set(last['state_dict_ema']) == set(checkpoint['state_dict'])
    batches = 'features.norm0.num_batches_tracked'
    assert last['state_dict'][batches] - checkpoint['state_dict'][batches] == updates


@pytest.mark.slow
def test_the_moving_average_goes_on():
    """With a decay of 1 it stays what was saved."""
    saved = load(FILES['auto'])
    main([*TRAIN, *ONLINE, '--experiment', 'run', '--epochs', '3', '--resume', 'auto', '--model-ema-decay', '1'])
    last = load('run/last.pth.tar')
    assert last['epoch'] == 2
    for name in parameter_names():
        assert torch.equal(last['state_dict_ema'][name], saved['state_dict_ema'][name])
        assert not torch.equal(last['state_dict'][name], saved['state_dict'][name])


# The sets.


def view_pixels(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


VIEWS = sorted(path.relative_to(MADE / 'folder/view0') for path in (MADE / 'folder/view0').rglob('*.png'))


def train_on(dad_set, *flags):
    """Train one update from a set; returns the summary of it, and the student's input ``[N, 32, 32, 3]``, 0 to 255."""
    seen = []

    def look(module, args):
        if isinstance(module, timm.models.DenseNet) and module.training:
            seen.append(args[0].detach())

    handle = register_module_forward_pre_hook(look)
    try:
        main([*TRAIN, *ONE_UPDATE, '--dad-dir', dad_set, '--experiment', 'from_set', *flags])
    finally:
        handle.remove()
    assert len(seen) == 1
    pixels = ((seen[0] * 0.5 + 0.5) * 255).round().permute(0, 2, 3, 1).int().numpy()
    return rows('from_set')[0], pixels


@pytest.mark.parametrize('dad_set', ['folder', 'wds', 'codes'])
def test_a_set_is_whole_and_trained_from(expected, capsys, dad_set):
    main(['verify', dad_set])
    assert capsys.readouterr().out.split() == [dad_set, 'is', 'whole']
    row, seen = train_on(dad_set)
    assert len(seen) == 2 * len(VIEWS) == 24
    clean, views = seen[:12], seen[12:]
    assert abs(clean[:, None] - views).mean(axis=(2, 3, 4)).argmin(axis=0).tolist() == list(range(12))
    for view in VIEWS:  # codes are decoded, which may round otherwise
        choices = [
            view_pixels(MADE / 'folder' / name / view) for name in ('view0', 'view1')[: 1 + (dad_set == 'folder')]
        ]
        distance = min(abs(views - choice).max(axis=(1, 2, 3)).min() for choice in choices)
        assert distance <= (1 if dad_set == 'codes' else 0), view
    for name, value in expected['losses'][dad_set].items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3), name


def test_stored_logits_are_read(expected):
    row, _ = train_on('wds', '--dad-stored-logits')
    for name, value in expected['losses']['stored'].items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3), name
