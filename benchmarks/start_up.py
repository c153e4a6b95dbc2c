#!/usr/bin/env python3
"""Time to start: ``import timm_dad`` against ``import timm``, and the demo up to its first step.

Every measurement is a Python process of its own, from its start to its end, in turn. A start ends where the first batch
is handed to the task. It is held against a process that imports the trainer and loads the weights of teacher and VQGAN,
and nothing else. ``timm-dad demo`` begins with its arm without DAD, which loads no weights.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from statistics import median

import harness
import results
import torch

IMPORT_AT_MOST, START_AT_MOST = 1.10, 1.3

FIRST_STEP = """
import os, sys
from timm.task import TrainingTask
from torch.nn.modules.module import register_module_forward_pre_hook
from timm_dad.cli import main
register_module_forward_pre_hook(lambda module, _: os._exit(0) if isinstance(module, TrainingTask) else None)
main(sys.argv[1:])
sys.exit('there was no step')
"""
IMPORTS = """
import os
import train_dad
import taming.modules.diffusionmodules.model
"""
WEIGHTS = """
from timm_dad.demo.data import DEMO_VQGAN, class_names
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec
from timm_dad.vqgan.load import load_vqgan
names = class_names()
create_teacher_by_spec('demo', DataClasses(num_classes=len(names), class_names=names))
load_vqgan(DEMO_VQGAN)
"""
EXIT = 'os._exit(0)\n'


def run(code: str, argv: tuple[str, ...], threads: int) -> None:
    """Run code in a process, until it ends."""
    environment = {**os.environ, 'PYTHONPATH': str(harness.HERE.parent), 'OMP_NUM_THREADS': str(threads)}
    done = subprocess.run([sys.executable, '-c', code, *argv], env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr)


def measure(codes: Mapping[str, tuple[str, ...]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a process for each code and its arguments, in each round."""
    calls = {
        name: (lambda code=code, argv=argv: run(code, argv, args.threads)) for name, (code, *argv) in codes.items()
    }
    return harness.in_rounds(calls, args.rounds, torch.device('cpu'), warmup=0 if args.quick else 1)


def figure(taken: dict[str, list[float]], what: str, against: str, at_most: float) -> results.Figure:
    """The ratio of two of the measurements."""
    detail = f'{median(taken[what]):.3g} against {median(taken[against]):.3g} s; {len(taken[what])} rounds'
    ratio = harness.ratio(taken[what], taken[against])
    return results.Figure.of_ratio(ratio, figure=what, against=against, at_most=at_most, detail=detail)


def main() -> None:
    """Measure imports, then starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=15, on_gpu=False)
    args = parser.parse_args()
    harness.start(args)
    ours, timms = 'python -c "import timm_dad"', 'python -c "import timm"'
    train = 'start to the first step, timm-dad train --dad-cache 0 (the demo, online)'
    demo = 'start to the first step, timm-dad demo'
    loaded, imported = 'imports and weight loading', 'imports'
    with tempfile.TemporaryDirectory() as folder:
        online = ('train', '--dad-cache', '0', '--output', folder, '--experiment', 'x')
        codes = {
            ours: ('import timm_dad',),
            timms: ('import timm',),
            train: (FIRST_STEP, *online),
            loaded: (IMPORTS + WEIGHTS + EXIT,),
            demo: (FIRST_STEP, 'demo', '--output', f'{folder}/demo'),
            imported: (IMPORTS + EXIT,),
        }
        taken = measure(codes, args)
    figures = {
        'start-up, import': figure(taken, ours, timms, IMPORT_AT_MOST),
        'start-up, train': figure(taken, train, loaded, START_AT_MOST),
        'start-up, demo': figure(taken, demo, imported, START_AT_MOST),
    }
    for key, found in figures.items():
        harness.report(args, key, found)


if __name__ == '__main__':
    main()
