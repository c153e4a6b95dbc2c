#!/usr/bin/env python3
"""The commands of ``same_outputs.py``, run in one process with whatever ``timm_dad`` is on ``PYTHONPATH``.

``python output_commands.py FOLDER NAME ...`` writes pictures into ``FOLDER/data``, and what a command writes and prints
into ``FOLDER/NAME``. Paths are relative to FOLDER, so that no file holds the name of a temporary folder.
"""

import contextlib
import io
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from timm.models import save_for_hf
from timm.utils import random_seed
from torch.optim.optimizer import register_optimizer_step_pre_hook

CLASSES = ('cat', 'dog', 'fish', 'tree')

IMAGES = '--data-dir data --img-size 32 --workers 0 --device cpu'
STUDENT = 'timm:local-dir:data/student'  # not one that was trained: it is the same at all commits
DEMO = '--dad-teacher demo --dad-vqgan demo'
TRAIN = (
    f'train {IMAGES} --experiment run --model test_resnet --num-classes 4 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 '
    '--batch-size 8 --epochs 2 --opt adamw --lr 0.01 --warmup-epochs 0 --checkpoint-hist 1 --output {name}'
)
GENERATE = f'generate {IMAGES} {DEMO} --batch-size 8 --shard-size 10 --output {{name}}'
VQGAN = f'{IMAGES} --batch-size 8 --perceptual none --output {{name}}'
SMALL = '--ch 32 --ch-mult 1 2 --num-res-blocks 1 --z-channels 4 --n-embed 32 --embed-dim 4 --attn-resolutions'


@dataclass(frozen=True, kw_only=True)
class Command:
    """One or several command lines whose outputs are compared.

    Args:
        lines: Command lines of ``timm-dad``; ``{name}`` is the folder that they write into.
        needs: Commands whose outputs they read.
        stop_at: Optimizer step in which the first line is interrupted; what it leaves is kept as ``stopped``.
    """

    lines: Sequence[str]
    needs: Sequence[str] = ()
    stop_at: int = 0


def _resumed(line: str, stop_at: int) -> Command:
    return Command(lines=(f'{line} --recovery-interval 1', f'{line} --resume auto'), stop_at=stop_at)


EXACT = '--no-aug --smoothing 0'
COMMANDS = {
    'train': Command(lines=(f'{TRAIN} --sched step --decay-epochs 1 --clip-grad 1 --smoothing 0',)),
    'train-dad': Command(
        lines=(
            f'{TRAIN} --dad {DEMO} --eval-suites again=data/validation --eval-suites-interval 1 '
            '--dad-preview-interval 1 --dad-eps 0.3 --dad-warmup-epochs 1',
        )
    ),
    # Nothing is drawn for a sample or a batch: equal also between commits that seed them otherwise.
    'train-exact': Command(lines=(f'{TRAIN} {EXACT} --model-ema --grad-accum-steps 2 --clip-grad 1',)),
    'train-dad-exact': Command(
        lines=(f'{TRAIN} {EXACT} --dad {DEMO} --dad-random-start 0 --dad-keep-label --dad-attack-from input',)
    ),
    'train-mixup-ema': Command(
        lines=(
            f'{TRAIN} --dad {DEMO} --mixup 0.2 --cutmix 1 --model-ema --model-ema-decay 0.9 --workers 2 '
            '--aa rand-m9-mstd0.5-inc1 --reprob 0.3 --grad-accum-steps 2',
        )
    ),
    'train-cache': Command(lines=(f'{TRAIN} --dad {DEMO} --dad-cache 2',)),
    'train-splits': Command(
        lines=(f'{TRAIN} --dad {DEMO} --aug-splits 2 --split-bn --aa rand-m9-mstd0.5-inc1 --dad-attack-from input',)
    ),
    'train-replay': Command(lines=(f'{TRAIN} --dad {DEMO} --dad-every 2 --dad-replay 16 --dad-micro-batch 3',)),
    'train-ensemble': Command(
        lines=(
            f'{TRAIN} --dad --dad-vqgan demo --dad-teacher demo {STUDENT} --dad-teacher-weights 1 2 --amp '
            '--amp-dtype bfloat16 --dad-precision bf16 --channels-last',
        )
    ),
    'train-resume': _resumed(f'{TRAIN} --dad {DEMO} --model-ema', stop_at=6),
    'generate-folder': Command(
        lines=(f'{GENERATE} --format folder --dad-views 2 --dad-store-logits 3', 'verify {name}')
    ),
    'generate-wds': Command(lines=(f'{GENERATE} --format wds --image-format webp --dad-norm linf', 'verify {name}')),
    'generate-codes': Command(lines=(f'{GENERATE} --format codes --dad-keep-label --seed 1', 'verify {name}')),
    'train-folder': Command(lines=(f'{TRAIN} --dad --dad-dir generate-folder',), needs=('generate-folder',)),
    'train-wds': Command(lines=(f'{TRAIN} --dad --dad-dir generate-wds --workers 2',), needs=('generate-wds',)),
    'train-codes': Command(lines=(f'{TRAIN} --dad --dad-dir generate-codes',), needs=('generate-codes',)),
    'train-stored': Command(
        lines=(f'{TRAIN} --dad --dad-dir generate-folder --dad-stored-logits --no-aug',), needs=('generate-folder',)
    ),
    'evaluate': Command(
        lines=(
            f'evaluate --model fixed={STUDENT} dad=run:train-dad/run --suite val=data/validation '
            '--corrupt gaussian_noise --severity 3 --attack fgsm --bootstrap 20 --batch-size 8 --workers 0 '
            '--device cpu --output {name}',
        ),
        needs=('train-dad',),
    ),
    'preview': Command(
        lines=(f'preview --data-dir data --img-size 32 {DEMO} --images 3 --device cpu --output {{name}}',)
    ),
    'diagnose': Command(
        lines=(
            f'diagnose {IMAGES} {DEMO} --student {STUDENT} --ood shifted=data/train --images 12 --batch-size 6 '
            '--splits 1 --output {name}',
        ),
    ),
    'probe': Command(
        lines=(
            f'probe --data-dir data --teacher {STUDENT} --workers 0 --device cpu --output {{name}}/head.safetensors',
        )
    ),
    'vqgan-train': _resumed(f'vqgan train {VQGAN} {SMALL} --epochs 2 --restart-interval 2', stop_at=5),
    'vqgan-distill': Command(lines=(f'vqgan distill {VQGAN} --vqgan demo --ch 8 --steps 4',)),
    'info': Command(lines=(f'info --json --batches 1 {TRAIN.removeprefix("train ")} --dad {DEMO} --dad-cache 1',)),
}


def with_needs(names: Sequence[str]) -> list[str]:
    """Commands and those that they need, in an order in which they can run."""
    wanted = {*names, *(needed for name in names for needed in COMMANDS[name].needs)}
    return [name for name in COMMANDS if name in wanted]


def write_data(root: Path) -> None:
    """Write an image folder of 4 classes, 24 pictures to train on and 12 to validate, 40 x 36 px; and a student."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('validation', 3)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                blocks = rng.integers(0, 200, (9, 10, 3)) + np.eye(4, 3)[label] * 55
                Image.fromarray(blocks.astype(np.uint8).repeat(4, 0).repeat(4, 1)).save(folder / f'{index}.png')
    torch.manual_seed(0)
    student = timm.create_model('test_resnet', num_classes=len(CLASSES))
    torch.nn.init.normal_(student.get_classifier().weight, std=5.0)
    save_for_hf(student, root / 'student')


@contextlib.contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Stop, as Ctrl-C does, in an optimizer step; 0: never."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(count)
    try:
        yield
        if step:
            raise ValueError(f'there was no step {step} to stop in, but {steps} steps')
    except KeyboardInterrupt:
        if steps != step:
            raise
    finally:
        handle.remove()


def run(name: str, command: Command) -> None:
    """Run the lines of a command in the current folder."""
    from timm_dad.cli import main  # of the commit that runs

    printed = io.StringIO()
    for number, line in enumerate(command.lines):
        random_seed(0)
        stop_at = command.stop_at if number == 0 else 0
        with contextlib.redirect_stdout(printed), interrupted(stop_at):
            main(shlex.split(line.format(name=name)))
        AcceleratorState._reset_state(reset_partial_state=True)
        if stop_at:
            shutil.copytree(name, f'{name}/stopped')
    Path(name, 'printed.txt').write_text(printed.getvalue())


def main() -> None:
    """Run commands; one that fails says so in its folder, and those that follow run all the same."""
    import timm_dad

    root, *names = sys.argv[1:]
    if not timm_dad.__file__.startswith(os.environ['PYTHONPATH'] + os.sep):
        sys.exit(f'timm_dad is imported from {timm_dad.__file__}, not from PYTHONPATH')
    torch.set_num_threads(1)
    os.chdir(root)
    write_data(Path('data'))
    for name in names:
        begin = time.perf_counter()
        Path(name).mkdir()
        try:
            run(name, COMMANDS[name])
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            message = Path('log.txt').read_text().splitlines()[-1]
            Path(name, 'failed.txt').write_text(f'{type(error).__name__}: {message}\n')
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        sys.stderr.write(f'{name}: {time.perf_counter() - begin:.1f} s\n')


if __name__ == '__main__':
    main()
