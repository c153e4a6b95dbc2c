#!/usr/bin/env python3
"""What the networks wait for while a DAD set is made: images per second with and without the threads beside them.

JPEG pictures are read, framed, and made to PNG views at 224 px by small networks of one thread; without the threads the
same process reads, encodes and writes between its batches. ``dad_set.py --only processes`` compares processes.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import harness
import results
import torch
import workload
from timm.data import create_dataset
from torchvision.transforms.functional import to_pil_image

from timm_dad import VQGAN, AttackConfig, DADAugment, VQGANConfig, prepare_frozen
from timm_dad.dad_sets import generate as generating
from timm_dad.dad_sets import maker
from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import FORMAT_VERSION
from timm_dad.data.images import Frame, Source

BESIDE, BETWEEN = 'beside', 'between'
MOST_WAITING = 0.05


class Between(Executor):
    """In the place of threads: does what it is given at once."""

    def __init__(self, _: int) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it."""
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


def when_asked(items: Iterable[Any]) -> Iterator[Any]:
    """In the place of ``read_ahead``."""
    yield from items


class Waited(logging.Handler):
    """Hears what share of the time the networks waited."""

    shares: list[float]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if str(record.msg).startswith('The networks waited') and isinstance(record.args, tuple):
            self.shares.append(float(str(record.args[0])) / 100)


def write_pictures(root: Path, count: int) -> Source:
    """An image folder of JPEG files, of two classes."""
    pictures, _ = workload.images(count, 320, torch.device('cpu'))
    for index, picture in enumerate(pictures):
        path = root / 'train' / f'{index % 2}' / f'{index}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(picture).save(path, quality=90)
    return Source(create_dataset('', root=str(root), split='train'))


def create_augment(args: argparse.Namespace, device: torch.device) -> DADAugment:
    """A teacher and a VQGAN of factor 8 that are small enough for a CPU, or those of the paper in bf16."""
    if args.full:
        teacher = workload.build_teacher('vit_large_patch14_clip_224', device=args.device)
        vqgan = workload.build_vqgan('openimages-f8-16384', device=args.device)
        prepare_frozen(teacher, vqgan, 'bf16', device)
        return DADAugment(teacher, vqgan, mean=[0] * 3, std=[1] * 3)
    ddconfig = {**workload.vqgan_config('tiny').ddconfig, 'ch': 32, 'ch_mult': [1, 1, 1, 1], 'num_res_blocks': 0}
    torch.manual_seed(0)
    vqgan = VQGAN(VQGANConfig(ddconfig=ddconfig, n_embed=256, embed_dim=4)).eval()
    teacher = workload.build_teacher('test_vit3')
    prepare_frozen(teacher, vqgan, device=device)
    return DADAugment(teacher, vqgan, mean=[0] * 3, std=[1] * 3, attack=AttackConfig(num_steps=1))


def main() -> None:
    """Make sets in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3)
    parser.set_defaults(threads=1)
    parser.add_argument('--images', type=int, default=48, help='images of a set')
    parser.add_argument('--batch-size', type=int, default=8, help='images of a batch')
    parser.add_argument('--full', action='store_true', help='networks as large as those of the paper, in bf16')
    args = parser.parse_args()
    device = harness.start(args)
    size, args.images = (32, 8) if args.quick else (224, args.images)
    heard, logger = Waited(), logging.getLogger('timm_dad.dad_sets.generate')
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    files = FormatConfig()
    config = GenerateConfig(
        frame=Frame(size=(size, size)), files=files, batch_size=args.batch_size, shard_size=args.images // 3
    )
    with tempfile.TemporaryDirectory() as folder:
        source, augment = write_pictures(Path(folder), args.images), create_augment(args, device)
        data = {'num_images': len(source), 'num_classes': workload.NUM_CLASSES, 'class_names': ['0', '1'], 'split': ''}

        def make() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                settings = {'format_version': FORMAT_VERSION, 'data': {**data, 'identified_by': 'file'}}
                generating.generate(source, augment, Path(root, 'set'), config, settings, device=device, progress=False)

        def make_between() -> None:
            with ExitStack() as stack:
                stack.enter_context(patch.object(maker, 'ThreadPoolExecutor', Between))
                stack.enter_context(patch.object(generating, 'read_ahead', when_asked))
                make()

        shares: dict[str, list[float]] = {BESIDE: [], BETWEEN: []}

        def call(name: str, function: Callable[[], None]) -> Callable[[], None]:
            def called() -> None:
                heard.shares = []
                function()
                shares[name] += heard.shares

            return called

        calls = {BESIDE: call(BESIDE, make), BETWEEN: call(BETWEEN, make_between)}
        taken = harness.in_rounds(calls, args.rounds, device)
    waited = {name: own[-args.rounds :] for name, own in shares.items()}
    rates = {name: args.images / median(own) for name, own in taken.items()}
    networks = "networks of the paper's size in bf16" if args.full else 'networks of one thread'
    about = f'{args.rounds} rounds of {args.images} JPEG pictures to PNG views of {size} px, {networks}'
    figures = {
        'speed': results.Figure.of_ratio(
            harness.ratio(taken[BETWEEN], taken[BESIDE]),
            figure=f'images per second, making a DAD set, reading, encoding and writing beside the networks, {device}',
            against='between the batches',
            detail=f'{rates[BESIDE]:.3g} against {rates[BETWEEN]:.3g} images/s; {about}',
            numbers={'images_per_second': rates},
        ),
        'waiting': results.Figure(
            figure=f'time in which the networks wait, making a DAD set, {device}', against='the whole time',
            value=median(waited[BESIDE]), low=min(waited[BESIDE]), high=max(waited[BESIDE]), at_most=MOST_WAITING,
            detail=f'{median(waited[BETWEEN]):.1%} where all is done between the batches; {about}',
            numbers={'waited': waited},
        ),
    }  # fmt: skip
    for key, figure in figures.items():
        harness.report(args, f'generator, {key}, {device}', figure)


if __name__ == '__main__':
    main()
