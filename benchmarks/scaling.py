#!/usr/bin/env python3
"""Cost as work grows: images per second, making DAD images, against batch, resolution, teacher, codebook, processes.

Writes ``scaling.json`` beside this file and draws ``docs/speed.png`` from it; ``--draw`` draws alone,
``--only NAME ...`` measures a part anew. The VQGAN has the public f8 architecture throughout.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import nearest_code
import results
import torch
import workload
from plot import draw
from workload import FAITHFUL, FROM_INPUT, RELEASED

Series = dict[str, list[float]]
NAMES = (RELEASED, FAITHFUL, FROM_INPUT)


def rates(args: argparse.Namespace) -> dict[str, float]:
    """Images per second of the three variants: the fastest of the rounds."""
    device = torch.device(args.device)
    variants = workload.make_variants(args, args.precision)
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    calls = {name: (lambda variant=variant: variant(x_pix, target)) for name, variant in variants.items()}
    taken = harness.in_rounds(calls, args.rounds, device)
    return {name: args.batch_size / min(values) for name, values in taken.items()}


def sweep(args: argparse.Namespace, flag: str, values: list[Any]) -> Series:
    """The three variants, with one flag at each of the values."""
    series: Series = {name: [] for name in NAMES}
    for value in values:
        changed = argparse.Namespace(**{**vars(args), flag: value})
        for name, rate in rates(changed).items():
            series[name].append(rate)
        sys.stdout.write(f'{flag} {value}: { ({name: round(of[-1], 3) for name, of in series.items()}) }\n')
        sys.stdout.flush()
    return series


def over_batch(args: argparse.Namespace) -> dict[str, Any]:
    """Batch size."""
    return {'x': args.batches, 'y': sweep(args, 'batch_size', args.batches)}


def over_resolution(args: argparse.Namespace) -> dict[str, Any]:
    """Side of the images, one image at a time; the teacher takes its own size."""
    args.batch_size = 1
    return {'x': args.sizes, 'y': sweep(args, 'img_size', args.sizes)}


def over_teacher(args: argparse.Namespace) -> dict[str, Any]:
    """Teachers, one image at a time at 224 px."""
    args.batch_size, args.img_size = 1, args.teacher_size
    return {'x': args.teachers, 'y': sweep(args, 'teacher', args.teachers)}


def over_codebook(args: argparse.Namespace) -> dict[str, Any]:
    """Searches for the nearest code, in images of 28 x 28 codes per second."""
    device = torch.device(args.device)
    series: Series = {name: [] for name in (nearest_code.ONE_HOT, nearest_code.OURS)}
    for codes in args.codebooks:
        sizes = argparse.Namespace(device=args.device, batch_size=8, embed_dim=4, side=28, codes=codes)
        taken = harness.in_rounds(nearest_code.build(sizes, list(series)), args.rounds, device)
        for name, values in taken.items():
            series[name].append(sizes.batch_size / min(values))
    return {'x': args.codebooks, 'y': series}


def over_processes(args: argparse.Namespace) -> dict[str, Any]:
    """Processes of one thread each (on GPUs: one a GPU), all at once; images per second of all together."""
    series: Series = {name: [] for name in (FAITHFUL, FROM_INPUT)}
    for count in args.processes:
        for name, found in series.items():
            found.append(sum(together(args, name, count)))
    return {'x': args.processes, 'y': series}


def together(args: argparse.Namespace, name: str, count: int) -> list[float]:
    """Images per second of each of some processes, all of which work until the last has done its rounds."""
    spawn = torch.multiprocessing.get_context('spawn')
    ready, done, queue = spawn.Barrier(count), spawn.Semaphore(0), spawn.Queue()
    for rank in range(count):
        spawn.Process(target=work, args=(args, name, rank, count, ready, done, queue), daemon=True).start()
    return [queue.get() for _ in range(count)]


def work(args: argparse.Namespace, name: str, rank: int, count: int, ready: Any, done: Any, queue: Any) -> None:
    """One process: its rounds while all others work, too."""
    torch.set_num_threads(1)
    args.device = f'cuda:{rank % torch.cuda.device_count()}' if args.device.startswith('cuda') else args.device
    device = torch.device(args.device)
    variant = workload.make_variants(args, args.precision, names=(name,))[name]
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    variant(x_pix, target)
    ready.wait()
    begin = time.perf_counter()
    for _ in range(args.rounds + 1):
        variant(x_pix, target)
    harness.wait(device)
    queue.put((args.rounds + 1) * args.batch_size / (time.perf_counter() - begin))
    done.release()
    while done.get_value() < count:  # keep the machine as busy for those that are slower
        variant(x_pix, target)


SWEEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    'batch': over_batch,
    'resolution': over_resolution,
    'teacher': over_teacher,
    'codebook': over_codebook,
    'processes': over_processes,
}


def create_parser() -> argparse.ArgumentParser:
    """Flags; the defaults take a CPU some minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=2)
    workload.add_flags(parser, batch_size=4)
    parser.set_defaults(img_size=128, teacher='vit_base_patch16_clip_224')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='of all networks')
    parser.add_argument('--only', nargs='+', choices=tuple(SWEEPS), default=tuple(SWEEPS), help='sweeps to measure')
    parser.add_argument('--draw', action='store_true', help='measure nothing; draw what was measured')
    parser.add_argument('--output', type=Path, default=harness.HERE / 'scaling.json', help='measurements, one JSON')
    parser.add_argument('--plot', type=Path, default=harness.HERE.parent / 'docs' / 'speed.png', help='the picture')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4, 8, 16], help='batch sizes')
    sizes = [64, 96, 128, 192, 224, 256, 320, 384]
    parser.add_argument('--sizes', type=int, nargs='+', default=sizes, help='sides of the images')
    codebooks = [256, 1024, 4096, 16384, 65536]
    parser.add_argument('--codebooks', type=int, nargs='+', default=codebooks, help='numbers of codes')
    teachers = ['vit_base_patch32_clip_224', 'vit_base_patch16_clip_224', 'vit_large_patch14_clip_224']
    parser.add_argument('--teachers', nargs='+', default=teachers, help="timm's names, small to large")
    parser.add_argument('--teacher-size', type=int, default=224, help='side of the images, for the teachers')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='numbers of processes')
    return parser


def shrink(args: argparse.Namespace) -> None:
    """The tiny sizes of ``--quick``."""
    if args.quick:
        workload.shrink(args)
        args.batches, args.sizes, args.codebooks = [1, 2], [64, 96], [64, 256]
        args.img_size = args.teacher_size = 64
        args.teachers = ['test_vit', 'test_vit3']


def main() -> None:
    """Measure, write, draw."""
    parser = create_parser()
    args = parser.parse_args()
    if args.quick and args.output == parser.get_default('output'):
        parser.error('--quick needs --output and --plot, or it would write over what was measured')
    harness.start(args)
    shrink(args)
    for name in () if args.draw else args.only:
        changed = copy.copy(args)
        measured = SWEEPS[name](changed)
        about = {'command': harness.command(), 'machine': results.machine(args.device, args.threads)}
        about |= {'versions': results.versions(), 'precision': changed.precision, 'batch_size': changed.batch_size}
        about |= {'img_size': changed.img_size, 'teacher': changed.teacher}
        results.store(args.output, name, {**measured, **about})
    draw(json.loads(args.output.read_text()), args.plot)
    sys.stdout.write(f'{args.plot}\n')


if __name__ == '__main__':
    main()
