"""benchmarks/on_gpu.sh: all that is to be known of a GPU, here on a CPU with tiny networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / 'benchmarks' / 'on_gpu.sh'
PARTS = (
    'tests', 'kernels', 'step', 'generation', 'cost', 'precisions', 'files', 'training', 'compiled_tests', 'compiled',
)  # fmt: skip


def run(python, *flags):
    return subprocess.run([SCRIPT, *flags], capture_output=True, text=True, env={**os.environ, 'PYTHON': str(python)})


def python_that(path, commands):
    """A Python that only does what a line of shell says."""
    path.write_text(f'#!/bin/sh\n{commands}\n')
    path.chmod(0o755)
    return path


def lines(done):
    return [line.rpartition(' in ')[0] for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_part_passes_on_a_cpu(tmp_path):
    done = run(sys.executable, '--quick', '--device', 'cpu', '--output', str(tmp_path), '--commit', 'abc')
    assert lines(done) == [f'part {name}: ok' for name in PARTS], (tmp_path / 'log.txt').read_text()[-3000:]
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        'results.json', 'precisions.json', 'table.md', 'parts.txt', 'log.txt',
    }  # fmt: skip
    found = json.loads((tmp_path / 'results.json').read_text())
    for key in (
        'generation, fp16, attack on latents, cpu, batch 3',
        'generation, tf32, attack from Q(x), tiny VQGAN, cpu, batch 2',
        'generation, bf16, attack from x, cpu, compiled, batch 3',
        'kernels, attack on latents, bf16, cpu',
        'step, bf16, attack from Q(x), cpu',
        'online cost, bf16, DAD from Q(x), cpu',
        'generator, waiting, cpu',
        'training, reinforced',
    ):
        assert found[key]['value'] > 0
    precisions = json.loads((tmp_path / 'precisions.json').read_text())
    assert precisions['fp32, channels-last']['equal codes'] == 1
    assert 0 < precisions['bf16']['logits apart'] < 0.1
    page = (tmp_path / 'table.md').read_text()
    for text in ('Commit abc.', '| images per second (x released.py) |', '| against fp32 |', '| command | date |'):
        assert text in page


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path):
    failing = python_that(tmp_path / 'python', 'case "$*" in *precisions.py*) exit 3 ;; esac')
    done = run(failing, '--quick', '--device', 'cpu', '--output', str(tmp_path / 'out'))
    assert lines(done) == [f'part {name}: {"failed" if name == "precisions" else "ok"}' for name in PARTS]
    assert done.returncode == 1
    assert (tmp_path / 'out' / 'parts.txt').read_text() == done.stdout


def test_parts_by_name(tmp_path):
    noting = python_that(tmp_path / 'python', 'exit 0')
    done = run(noting, '--quick', '--only', 'step compiled', '--output', str(tmp_path / 'out'))
    assert lines(done) == ['part step: ok', 'part compiled: ok']
    again = run(noting, '--quick', '--only', 'cost', '--output', str(tmp_path / 'out'))
    assert (tmp_path / 'out' / 'parts.txt').read_text() == done.stdout + again.stdout


def test_a_killed_part_ran_out_of_time_or_memory(tmp_path):
    killed = python_that(tmp_path / 'python', 'case "$*" in *step.py*) exit 124 ;; esac')
    done = run(killed, '--quick', '--output', str(tmp_path / 'out'))
    assert 'part step: timed out' in lines(done)
    assert done.returncode == 1


def test_wheels_come_from_their_folder_alone(tmp_path):
    (tmp_path / 'wheels').mkdir()
    (tmp_path / 'wheels' / 'a.whl').touch()
    noting = python_that(tmp_path / 'python', f'echo "$*" >>{tmp_path}/calls')
    assert run(noting, '--quick', '--wheels', str(tmp_path / 'wheels'), '--output', str(tmp_path / 'o')).returncode == 0
    first = (tmp_path / 'calls').read_text().splitlines()[0]
    assert first.startswith('-m pip install -q --no-index --no-deps')
    assert first.endswith(f'{tmp_path}/wheels/a.whl')


@pytest.mark.parametrize('flags', [('--device',), ('--fast',), ('--only', 'tests stepp')])
def test_wrong_arguments(flags):
    done = run('false', *flags)
    assert done.returncode == 2
    assert done.stderr.startswith('on_gpu.sh: ')


def test_table_of_batches():
    from results import generation_table

    def entry(rate, value, peak):
        return {'value': value, 'numbers': {'images_per_second': rate, 'peak': peak, 'released_peak': 2 * 2**20}}

    table = generation_table({
        'generation, bf16, attack from x, cuda, batch 64': entry(100.0, 2.5, 2**20),
        'generation, bf16, attack from x, cuda, batch 8': entry(50.0, 2.0, 0),
        'generation, fp32, attack from x, cuda, batch 8': entry(10.0, 1.5, 2**20),
        'step, bf16, attack from x, cuda': {},
    })  # fmt: skip
    assert table.splitlines()[2:] == [
        '| bf16, attack from x, cuda | 50 (2 x) | 100 (2.5 x) | 1 against 2 |',
        '| fp32, attack from x, cuda | 10 (1.5 x) |  | 1 against 2 |',
    ]


def test_what_does_not_fit_in_memory_has_no_peak():
    from generation import gpu_peak

    def too_large():
        raise torch.OutOfMemoryError

    assert gpu_peak(too_large, torch.device('cpu')) is None
    assert gpu_peak(lambda: None, torch.device('cpu')) >= 0


def test_tf32_is_off_in_fp32_also_in_convolutions():
    from harness import set_precision

    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    try:
        assert [set_precision(name) for name in ('tf32', 'bf16')] == ['fp32', 'bf16']
        assert (matmul.allow_tf32, convolutions.allow_tf32) == (True, True)
        assert set_precision('fp32') == 'fp32'
        assert (matmul.allow_tf32, convolutions.allow_tf32) == (False, False)
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
