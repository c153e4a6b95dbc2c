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
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import train_dad

ROOT = Path(__file__).resolve().parents[1]
DEMO = {
    name: [*'--val-interval 100 --batch-size 32 --eval-suites demo/noto'.split(), *flags.split()]
    for name, flags in {'online': '--epochs 3 --dad-cache 0', 'cached': '--epochs 5 --dad-cache 1'}.items()
}


def run(*argv: str) -> str:
    """Output of a Python process in the repository."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def measured(flags: list[str], batches: int) -> float:
    """Seconds an epoch as ``timm-dad info`` says."""
    report = json.loads(run('-m', 'timm_dad', 'info', '--json', '--batches', str(batches), *flags))
    seconds: float = report['estimate']['seconds_per_epoch']
    return seconds


def trained(flags: list[str]) -> float:
    """Seconds an epoch of a training, median but for the first epoch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'epochs.json'
        run(__file__, '--train', str(path), *flags, '--output', folder)
        return median(json.loads(path.read_text()))


def train(path: Path, flags: list[str]) -> None:
    """Train, and write the seconds from the end of one epoch to that of the next."""
    ends: list[float] = []
    train_dad.main(flags, hooks=[lambda epoch: ends.append(time.perf_counter())])
    path.write_text(json.dumps([end - begin for begin, end in pairwise(ends)]))


def main() -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--rounds', type=int, default=2, help='trainings; one more measurement than that')
    parser.add_argument('--batches', type=int, default=5, help='--batches of timm-dad info')
    parser.add_argument('--train', type=Path, metavar='FILE', help='train here, and write the seconds to this file')
    own, flags = parser.parse_known_args()
    if own.train:
        train(own.train, flags)
        return
    for name, given in ({'these flags': flags} if flags else DEMO).items():
        said, took = [measured(given, own.batches)], []
        for _ in range(own.rounds):
            took.append(trained(given))
            said.append(measured(given, own.batches))
        for what, values in {'info': said, 'training': took}.items():
            rounds = ', '.join(f'{value:.3g}' for value in values)
            sys.stdout.write(f'{name}: {what} {median(values):.4g} s an epoch ({rounds})\n')
        sys.stdout.write(f'{name}: info / training = {median(said) / median(took):.3f}\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
