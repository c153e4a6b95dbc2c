#!/usr/bin/env python3
"""Compare what ``timm-dad info`` says of an epoch with what a training then takes, on the same machine.

Measure, train, measure, train ..., each in a process of its own; medians of each. Flags are those of
``timm-dad train``; the defaults are the demo's student, teacher and VQGAN, online and with ``--dad-cache``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
# Times of the epochs of a real training: from one beginning to the next, with validation and checkpoint.
TRAIN = """
import json, sys, time
import train_dad
marks = []
def one_epoch(run, epoch, train=train_dad.train_one_epoch):
    marks.append(time.perf_counter())
    return train(run, epoch)
def suites(run):
    marks.append(time.perf_counter())
    return {}
train_dad.train_one_epoch, train_dad.evaluate_suites = one_epoch, suites
train_dad.main(sys.argv[2:])
json.dump([end - begin for begin, end in zip(marks, marks[1:])], open(sys.argv[1], 'w'))
"""
DEMO = {
    'online': '--epochs 3 --val-interval 1 --batch-size 32 --eval-suites demo/noto --dad-cache 0',
    'cached': '--epochs 5 --val-interval 1 --batch-size 32 --eval-suites demo/noto --dad-cache 1',
}


def run(argv: list[str]) -> str:
    """Output of a Python process in the repository."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def measured(flags: list[str], mode: str, batches: int) -> float:
    """Seconds an epoch as ``timm-dad info`` says."""
    report = json.loads(run(['-m', 'timm_dad', 'info', '--json', '--batches', str(batches), *flags]))
    seconds: float = report['modes'][mode]['estimate']['seconds_per_epoch']
    return seconds


def trained(flags: list[str], folder: str) -> float:
    """Seconds an epoch of a training, median but for the first epoch."""
    path = Path(folder) / 'epochs.json'
    name = f'run-{len(list(Path(folder).iterdir()))}'
    run(['-c', TRAIN, str(path), *flags, '--output', folder, '--experiment', name])
    return median(json.loads(path.read_text())[1:])


def main() -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--mode', choices=('online', 'cached', 'training'), help='default: online, then cached')
    parser.add_argument('--rounds', type=int, default=2, help='trainings; one more measurement than that')
    parser.add_argument('--batches', type=int, default=5, help='--batches of timm-dad info')
    own, flags = parser.parse_known_args()
    if flags and not own.mode:
        parser.error('--mode must say which way these flags train: online, cached or training')
    for mode in [own.mode] if own.mode else list(DEMO):
        chosen = flags or DEMO[mode].split()
        said, took = [measured(chosen, mode, own.batches)], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(own.rounds):
                took.append(trained(chosen, folder))
                said.append(measured(chosen, mode, own.batches))
        values = {'info': said, 'training': took}
        for name, seconds in values.items():
            rounds = ', '.join(f'{value:.3g}' for value in seconds)
            sys.stdout.write(f'{mode}: {name} {median(seconds):.4g} s an epoch ({rounds})\n')
        sys.stdout.write(f'{mode}: info / training = {median(said) / median(took):.3f}\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
