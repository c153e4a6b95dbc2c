#!/usr/bin/env python3
"""What a DAD set promises, on the demo's pictures: speed of training from it, processes, kills, damage.

Every figure is a ratio, or a count, of one run of this script. ``--only NAME ...`` runs a part of it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
DEMO = '--dataset demo/noto --img-size 32 --dad-teacher demo --dad-vqgan demo --workers 0'.split()


def environment(threads: int) -> dict[str, str]:
    """The environment of a Python process in the repository."""
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(threads)}


def start(argv: list[str], threads: int = 1) -> 'subprocess.Popen[str]':
    """Start a Python process."""
    return subprocess.Popen(
        [sys.executable, *argv], env=environment(threads), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: 'subprocess.Popen[str]') -> str:
    """Output of a process that must succeed."""
    out, err = process.communicate()
    if process.returncode:
        sys.exit(err)
    return out


def generate(folder: Path, *flags: str) -> 'subprocess.Popen[str]':
    """Start ``timm-dad generate`` on the demo."""
    return start(['-m', 'timm_dad', 'generate', *DEMO, '--output', str(folder), *flags])


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def training(folder: Path) -> str:
    """A step of DADTask on pairs of a set against one of timm's LogitDistillationTask on the same views."""
    import harness
    import results
    import timm
    import torch
    from timm.task import LogitDistillationTask

    from timm_dad import DADTask, Teacher, prepare_frozen

    torch.set_num_threads(2)
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    network = timm.create_model('resnet34', num_classes=100)
    teacher = Teacher(network, **norm, input_size=(64, 64), num_classes=100)
    prepare_frozen(teacher)
    students = [timm.create_model('resnet18', num_classes=100) for _ in range(2)]
    tasks = [
        DADTask(students[0], teacher, None, **norm, verbose=False),
        LogitDistillationTask(students[1], network, loss_type='kl', temperature=4.0, verbose=False),
    ]
    optimizers = [torch.optim.SGD(student.parameters(), lr=0.01) for student in students]
    for task in tasks:
        task.train()

    def step(of: int, views: torch.Tensor, target: torch.Tensor) -> float:
        begin = time.perf_counter()
        optimizers[of].zero_grad()
        tasks[of](views, target)['loss'].backward()
        optimizers[of].step()
        return time.perf_counter() - begin

    seconds: list[list[float]] = [[], []]
    for batch in range(40):
        views, target = torch.randn(64, 3, 64, 64).clamp(-1, 1), torch.randint(100, (32,)).repeat(2)
        for of in (0, 1) if batch % 2 else (1, 0):
            seconds[of].append(step(of, views, target))
    ours, timms = (values[4:] for values in seconds)
    figure = results.Figure.of_ratio(
        harness.ratio(timms, ours),
        figure='training from a DAD set, images per second, cpu',
        against="timm's LogitDistillationTask on the same views",
        at_least=0.97,
        detail=f'{median(ours):.3g} against {median(timms):.3g} s a batch of 2 x 32 images at 64 px; {len(ours)} '
        'rounds; resnet18 with resnet34',
    )
    command = 'python benchmarks/dad_set.py --only training'
    results.write(results.RESULTS, 'training', figure, command, results.machine('cpu', 2))
    return f"training: {figure.value:.3f} x the images per second of timm's LogitDistillationTask (to reach: 0.97)"


WORKER = """
import json, sys, time
from pathlib import Path
import torch
from timm_dad.commands.generate import create_claims, parse_args
from timm_dad.commands.generate_job import Job, open_source
ready, count, args = Path(sys.argv[1]), int(sys.argv[2]), parse_args(sys.argv[3:])
source = open_source(args)
job = Job.open(args, source, torch.device('cpu'))
ready.touch()
while len(list(ready.parent.glob('ready-*'))) < count:
    time.sleep(0.01)
begin = time.time()
job.make(create_claims(args), progress=False)
ready.with_suffix('.json').write_text(json.dumps([begin, time.time()]))
"""


def processes(folder: Path) -> str:
    """One process of one thread against two, from the first view to the finished set."""

    def seconds(count: int, name: str) -> float:
        (folder / name).mkdir()
        ready = [folder / name / f'ready-{i}' for i in range(count)]
        flags = [*DEMO, '--output', str(folder / name / 'set'), '--shard-size', '32', '--batch-size', '32']
        for process in [start(['-c', WORKER, str(path), str(count), *flags]) for path in ready]:
            finish(process)
        spans = [json.loads(path.with_suffix('.json').read_text()) for path in ready]
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    import harness
    import results

    one, two = zip(*((seconds(1, f'one-{i}'), seconds(2, f'two-{i}')) for i in range(3)), strict=True)
    figure = results.Figure.of_ratio(
        harness.ratio(one, two),
        figure='making a DAD set, images per second of 2 processes of 1 thread, cpu',
        against='1 process',
        at_least=1.8,
        detail=f'{median(two):.3g} against {median(one):.3g} s, from the first view to the finished set; '
        f"{len(one)} rounds of the demo's 821 pictures",
    )
    command = 'python benchmarks/dad_set.py --only processes'
    results.write(results.RESULTS, 'processes', figure, command, results.machine('cpu', 1))
    return (
        f'processes: 2 of 1 thread are {figure.value:.2f} x one (to reach: 1.8; {figure.low:.2f} to {figure.high:.2f})'
    )


def kills(folder: Path) -> str:
    """Kill -9 at 20 random moments of the work, go on, and compare with an undisturbed run."""
    flags = ('--dad-views', '4', '--shard-size', '16', '--batch-size', '16', '--dad-store-logits', '5')
    finish(generate(folder / 'undisturbed', *flags))
    draw, killed = random.Random(0), 0
    while killed < 20:
        process = generate(folder / 'killed', *flags)
        before = len(list((folder / 'killed').rglob('*')))
        while len(list((folder / 'killed').rglob('*'))) == before and process.poll() is None:
            time.sleep(0.01)  # imports and models: nothing to disturb yet
        time.sleep(draw.uniform(0, 1.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if (folder / 'killed' / 'index.json').exists():
            return f'kills: the set was whole after {killed}: too small for 20'
    parts = len(list((folder / 'killed' / 'manifest').glob('*.jsonl')))
    finish(generate(folder / 'killed', *flags))
    same = tree(folder / 'undisturbed') == tree(folder / 'killed')
    return (
        f'kills: {killed} at random moments, {parts} shards by then; the set is {"" if same else "NOT "}byte-identical'
    )


def damage(folder: Path) -> str:
    """Damage 50 files in 5 ways; ``timm-dad verify`` must name each, and no other."""
    root = folder / 'damaged'
    finish(generate(root, '--format', 'folder'))
    draw = random.Random(0)
    paths = sorted((root / 'view0').rglob('*.png'))
    chosen = draw.sample(paths, 50)
    others = [path.read_bytes() for path in paths if path not in chosen]
    for way, path in zip([way for way in range(5) for _ in range(10)], chosen, strict=True):
        data = path.read_bytes()
        if way == 0:
            path.unlink()
            continue
        place = draw.randrange(len(data))
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        path.write_bytes([data[: draw.randrange(1, len(data))], b'', flipped, draw.choice(others)][way - 1])
    process = start(['-m', 'timm_dad', 'verify', str(root)])
    out, _ = process.communicate()
    named = {line.partition(': ')[2] for line in out.splitlines()}
    found = named & {str(path.relative_to(root)) for path in chosen}
    return f'damage: of 50 files damaged in 5 ways verify names {len(found)}, and {len(named - found)} others'


PARTS: dict[str, Callable[[Path], str]] = {
    'training': training,
    'processes': processes,
    'kills': kills,
    'damage': damage,
}


def main() -> None:
    """Print a line for each part."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='+', choices=tuple(PARTS), default=tuple(PARTS), help='parts to run')
    for name in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(PARTS[name](Path(folder)) + '\n')
            sys.stdout.flush()


if __name__ == '__main__':
    main()
