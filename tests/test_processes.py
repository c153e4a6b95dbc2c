"""Several processes, and processes that are killed: real launchers, gloo on the CPU."""

import contextlib
import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from folders import write_pictures

import train_dad
from timm_dad.flags import kwargs

SCRIPT = Path(train_dad.__file__)
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(SCRIPT.parent)}
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
# On a machine without a GPU `--multi_gpu` is Accelerate's way to several processes; the trainer takes the CPU.
ACCELERATE = (
    *(sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2'),
    *('--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0'),
)
DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--dad-eps', '2', '--dad-step-size', '2')
# Nothing is drawn for a batch, and there are no batch statistics: what differs is the number of processes alone. SGD,
# because AdamW makes a full step of the rounding error where a gradient is zero (the bias of an attention's keys).
EXACT = ('--model', 'test_vit', '--dad-random-start', '0', '--opt', 'sgd', '--lr', '0.05', '--aa', 'rand-m9-mstd0.5',
         '--reprob', '0.5')  # fmt: skip


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=(3, 3, 3, 2))


def flags(pictures, output, *more):
    return [
        *('--data-dir', str(pictures), '--output', str(output), '--experiment', 'run', '--model', 'test_resnet'),
        *('--num-classes', '4', '--img-size', '32', '--mean', '0.5', '0.5', '0.5', '--std', '0.5', '0.5', '0.5'),
        *('--batch-size', '4', '--workers', '0', '--epochs', '2', '--opt', 'adamw', '--lr', '0.003'),
        *('--warmup-epochs', '0', *more),
    ]


def run(launcher, argv, check=True, timeout=180):
    done = subprocess.run(
        [*launcher, str(SCRIPT), *argv], env=ENV, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def summary(output):
    with open(output / 'run' / 'summary.csv') as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])


def checkpoint(output):
    return torch.load(output / 'run' / 'last.pth.tar', weights_only=False)


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.slow
@pytest.mark.parametrize('launcher', [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_twice_the_batch(launcher, pictures, tmp_path):
    more = (*DAD, *EXACT, '--model-ema', '--model-ema-decay', '0.5')
    run([sys.executable], flags(pictures, tmp_path / 'one', *more, '--batch-size', '8'))
    run(launcher, flags(pictures, tmp_path / 'two', *more))
    one, two = summary(tmp_path / 'one'), summary(tmp_path / 'two')
    assert one.shape == two.shape == (2, 10)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    for name in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(checkpoint(tmp_path / 'one')[name], checkpoint(tmp_path / 'two')[name])
    top1 = one[-1, 7] * 11 / 100
    assert top1 == pytest.approx(round(top1))  # a whole number of the 11 images: nothing padded is counted


@pytest.mark.slow
def test_an_error_is_one_line_and_no_process_hangs(pictures, tmp_path):
    run(TORCHRUN, flags(pictures, tmp_path, '--epochs', '1'))
    done = run(TORCHRUN, flags(pictures, tmp_path, '--epochs', '1'), check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if 'train_dad.py: error' in line]
    assert len(lines) == 1
    assert 'contains an older run; choose another folder, or --resume auto' in lines[0]
    assert 'train_dad.py", line' not in done.stderr  # no traceback of ours


@pytest.mark.slow
def test_a_non_finite_loss_of_one_process_stops_all_and_is_named(pictures, tmp_path):
    (tmp_path / 'poisoned.py').write_text(
        'import os, torch, train_dad\n'
        'forward = torch.nn.CrossEntropyLoss.forward\n'
        'calls = []\n'
        'def poisoned(self, *args):\n'
        '    calls.append(1)\n'
        "    return forward(self, *args) * (float('nan') if os.environ['RANK'] == '1' and len(calls) == 2 else 1.0)\n"
        'torch.nn.CrossEntropyLoss.forward = poisoned\n'
        'train_dad.main()\n'
    )
    argv = flags(pictures, tmp_path / 'out', '--smoothing', '0')
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / 'poisoned.py'), *argv], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert 'the loss is not finite in epoch 0, batch 1, process 1' in done.stderr
    assert 'Connection closed by peer' not in done.stderr


@pytest.mark.slow
def test_flags_of_several_processes_change_something(pictures, tmp_path):
    states = {}
    for name, more in {'base': (), 'bn': ('--dist-bn', ''), 'repeats': ('--aug-repeats', '2')}.items():
        run(TORCHRUN, flags(pictures, tmp_path / name, *DAD, '--epochs', '1', *more))
        states[name] = checkpoint(tmp_path / name)['state_dict']
    means = [name for name in states['base'] if 'running_mean' in name]
    parameters = [name for name in states['base'] if name.endswith('conv1.weight')]
    assert any(not torch.equal(states['base'][name], states['bn'][name]) for name in means)
    assert all(torch.equal(states['base'][name], states['bn'][name]) for name in parameters)
    assert any(not torch.equal(states['base'][name], states['repeats'][name]) for name in parameters)


PLAIN_SCRIPT = """
import timm, torch, torch.distributed as dist
from timm_dad import Teacher, prepare_frozen

network = timm.create_model('test_vit', num_classes=4)
teacher = Teacher(network, mean=[0.5] * 3, std=[0.5] * 3, input_size=(160, 160), num_classes=4)
prepare_frozen(teacher, precision='bf16')
assert not dist.is_initialized()
dist.init_process_group('gloo')
found = [None, None]
logits = teacher(torch.rand(1, 3, 32, 32, device=teacher.norm.mean.device))
dist.all_gather_object(found, (dist.get_rank(), logits.dtype))
assert found == [(0, torch.float32), (1, torch.float32)], found
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_plain_torchrun_script_starts_its_own_process_group_after_prepare_frozen(tmp_path):
    (tmp_path / 'plain.py').write_text(PLAIN_SCRIPT)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / 'plain.py')], env=ENV, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_ddp_bb_reaches_ddp(tmp_path):
    for more, broadcast in (((), True), (('--no-ddp-bb',), False)):
        args = train_dad.parse_args(['--data-dir', 'x', *more])
        accelerator = train_dad.create_accelerator(tmp_path, **kwargs.accelerator_kwargs(args))
        assert accelerator.ddp_handler.broadcast_buffers is broadcast


@pytest.mark.parametrize('kind', ['FSDP', 'DEEPSPEED', 'MEGATRON_LM'])
def test_other_kinds_of_parallelism_are_refused(kind, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f'ACCELERATE_USE_{kind}', 'true')
    with pytest.raises(SystemExit):
        train_dad.main(flags(pictures, tmp_path / 'out', *DAD))
    assert f"Accelerate's configuration asks for {kind}" in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_fsdp_by_the_configuration_of_accelerate_is_refused(pictures, tmp_path):
    content = {'num_processes': 2, 'num_machines': 1, 'mixed_precision': 'no', 'distributed_type': 'FSDP'}
    (tmp_path / 'accelerate.yaml').write_text(yaml.safe_dump({**content, 'fsdp_config': {'fsdp_version': 2}}))
    launcher = (sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(tmp_path / 'accelerate.yaml'))
    done = run(launcher, flags(pictures, tmp_path / 'out', *DAD), check=False)
    assert done.returncode != 0
    assert "Accelerate's configuration asks for FSDP" in done.stderr


# --- resume ---------------------------------------------------------------------------------------------------------


def assert_same_end(a, b):
    first, second = checkpoint(a), checkpoint(b)
    for name in ('state_dict', 'state_dict_ema'):
        assert_same_bits(first[name], second[name])
    states = [state['optimizer']['state'] for state in (first, second)]
    assert states[0].keys() == states[1].keys()
    for key, entries in states[0].items():
        assert_same_bits(entries, states[1][key])
    assert (a / 'run' / 'summary.csv').read_bytes() == (b / 'run' / 'summary.csv').read_bytes()


LONG = ('--epochs', '5', '--recovery-interval', '1', '--model-ema', '--mixup', '0.2', '--drop-path', '0.2', '--reprob',
        '0.3', '--sched-on-updates', '--resume', 'auto')  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('launcher', 'workers', 'kills'), [((sys.executable,), '0', 10), (TORCHRUN, '2', 3)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(launcher, workers, kills, pictures, tmp_path):
    more = (*DAD, *LONG, '--workers', workers)
    run(launcher, flags(pictures, tmp_path / 'whole', *more))
    rng = random.Random(0)
    argv = [*launcher, str(SCRIPT), *flags(pictures, tmp_path / 'killed', *more)]
    folder = tmp_path / 'killed' / 'run'

    def written():
        return {path.name for path in folder.glob('*.pth.tar')} if folder.exists() else set()

    killed = 0
    while killed < kills:
        before = written()
        process = subprocess.Popen(argv, env=ENV, stderr=subprocess.DEVNULL)
        # Die at a random moment after the next file is there: each life gets somewhere, none gets far.
        while process.poll() is None and written() <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        for victim in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.wait()
        killed += 1
    assert killed >= min(kills, 3)
    run(launcher, flags(pictures, tmp_path / 'killed', *more))
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')
    assert not list(folder.glob('recovery*'))


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_an_epoch(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    more = (*DAD, *LONG, '--epochs', '3', '--grad-accum-steps', '2', '--aa', 'rand-m9-mstd0.5')
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    update = train_dad.update

    def die(*args):
        if args[4] == 6:  # the last update of epoch 1
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(train_dad, 'update', die)
    with pytest.raises(KeyboardInterrupt):
        train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    monkeypatch.undo()
    assert (tmp_path / 'broken' / 'run' / 'recovery-1-3.pth.tar').exists()
    train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    assert_same_end(tmp_path / 'whole', tmp_path / 'broken')


@pytest.mark.slow
@pytest.mark.parametrize('launchers', [((sys.executable,), TORCHRUN), (TORCHRUN, (sys.executable,))])
def test_a_run_goes_on_at_the_right_sample_with_another_number_of_processes(launchers, pictures, tmp_path):
    """6 pictures a class: 24, in 3 updates of 8; dead before the last update of epoch 1."""
    more = (*DAD, *EXACT, '--recovery-interval', '1', '--model-ema', '--resume', 'auto')
    dying = tmp_path / 'dying.py'
    dying.write_text(
        'import train_dad\n'
        'update = train_dad.update\n'
        'def die(*args):\n'
        '    if args[4] == 6:\n'
        '        raise SystemExit(3)\n'
        '    return update(*args)\n'
        'train_dad.update = die\n'
        'train_dad.main()\n'
    )
    sizes = {(sys.executable,): '8', TORCHRUN: '4'}
    run((sys.executable,), flags(pictures, tmp_path / 'whole', *more, '--batch-size', '8'))
    argv = flags(pictures, tmp_path / 'broken', *more, '--batch-size', sizes[launchers[0]])
    done = subprocess.run([*launchers[0], str(dying), *argv], env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert (tmp_path / 'broken' / 'run' / 'recovery-1-1.pth.tar').exists(), done.stderr
    refused = run(launchers[1], [*argv, '--batch-size', '12'], check=False)
    assert '--resume: ' in refused.stderr
    assert 'was written after 16 images of epoch 1' in refused.stderr
    run(launchers[1], flags(pictures, tmp_path / 'broken', *more, '--batch-size', sizes[launchers[1]]))
    np.testing.assert_allclose(summary(tmp_path / 'broken'), summary(tmp_path / 'whole'), rtol=1e-5)
    for name in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(checkpoint(tmp_path / 'broken')[name], checkpoint(tmp_path / 'whole')[name])


@pytest.mark.slow
def test_processes_make_and_share_the_views_of_the_cache(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, 'TMPDIR', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    run(TORCHRUN, flags(pictures, tmp_path, *DAD, '--dad-cache', '2', '--epochs', '1'))
    assert summary(tmp_path).shape == (1, 10)
    assert not list((tmp_path / 'temporary').glob('timm_dad-cache*'))


def test_a_run_killed_after_the_short_last_update_of_an_epoch_goes_on(pictures, tmp_path, monkeypatch):
    """6 batches in updates of 4: the second has 2."""
    more = (
        '--grad-accum-steps',
        '4',
        '--recovery-interval',
        '1',
        '--resume',
        'auto',
        '--sched-on-updates',
        '--model-ema',
    )
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    monkeypatch.setattr(train_dad, 'validate_task', lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_dad.main(flags(pictures, tmp_path / 'killed', *more))
    monkeypatch.undo()
    assert (tmp_path / 'killed' / 'run' / 'recovery-0-5.pth.tar').exists()
    train_dad.main(flags(pictures, tmp_path / 'killed', *more))
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize('accum_steps', [1, 3])
def test_processes_meet_and_the_host_waits_once_an_update(accum_steps, pictures, tmp_path, monkeypatch):
    """Not once a micro-batch: 24 images, in micro-batches of 4."""
    calls = []
    reduce = Accelerator.reduce
    monkeypatch.setattr(
        Accelerator, 'reduce', lambda self, *args, **more: calls.append(1) or reduce(self, *args, **more)
    )
    more = ('--epochs', '1', '--val-split', '', '--grad-accum-steps', str(accum_steps))
    train_dad.main(flags(pictures, tmp_path, *more))
    assert len(calls) == 6 // accum_steps + 1  # and the means of the epoch


def test_flags_that_cannot_change_are_refused_before_models_are_built(pictures, tmp_path, monkeypatch, capsys, caplog):
    train_dad.main(flags(pictures, tmp_path, '--epochs', '1'))
    monkeypatch.setattr(train_dad, 'create_student', lambda args: pytest.fail('a model was built'))
    for more, flag in (
        (('--model', 'test_vit'), '--model'), (('--num-classes', '5'), '--num-classes'), (('--opt', 'sgd'), '--opt')
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            train_dad.main(flags(pictures, tmp_path, *more, '--resume', 'auto'))
        assert f'error: {flag} must be' in capsys.readouterr().err
    monkeypatch.undo()
    caplog.set_level('INFO', logger='timm_dad')
    train_dad.main(flags(pictures, tmp_path, '--lr', '0.001', '--resume', 'auto'))
    assert 'Flags that changed since: --epochs 1 -> 2, --lr 0.003 -> 0.001' in caplog.text
    assert (tmp_path / 'run' / 'args-1.yaml').exists()
