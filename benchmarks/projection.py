#!/usr/bin/env python3
"""A PROJECTION, not a measurement: what DAD takes for ImageNet on 1, 8 and 64 GPUs.

``hours = images * 2 * GMACs / (TFLOP/s of a GPU * efficiency * GPUs * scaling)``. Multiply-adds are counted here, on
the real networks. The efficiency is the share of its own large matrix product that a machine keeps while it makes DAD
images: measured here where there is no ``--efficiency``, on whatever machine this is. That a GPU keeps the same share
is an assumption, as is ``--scaling`` (made once, processes share nothing: 1).

The TFLOP/s of a GPU are a flag. The default is the A100's dense bf16 peak, 312, of NVIDIA's data sheet as quoted at
glennklockwood.com/garden/processors/A100; on a CUDA device without the flag its own matrix product is measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import harness
import results
import torch
import workload
from workload import FAITHFUL, FROM_INPUT

from timm_dad.common.files import write_file
from timm_dad.common.macs import count_macs, count_model_macs

IMAGES = 1_281_167  # training images of ImageNet-1k
A100_TFLOPS = 312.0
GPUS = (1, 8, 64)


def count_gmacs(args: argparse.Namespace) -> dict[str, float]:
    """Multiply-adds of one image through each part, in units of 1e9."""
    vqgan, teacher = workload.build_vqgan(args.vqgan).requires_grad_(False), workload.build_teacher(args.teacher)
    x_pix, _ = workload.images(1, args.img_size, torch.device('cpu'))
    codes = vqgan.encode_to_codes(x_pix)
    of_teacher = count_model_macs(teacher, x_pix, backward='input')
    of_student = count_model_macs(workload.build_student(args.student), x_pix, backward='parameters')
    macs = {
        'VQGAN, encode': count_macs(lambda: vqgan.encode_to_codes(x_pix)),
        'VQGAN, decode': count_macs(lambda: vqgan.decode_codes(codes)),
        'teacher, forward': of_teacher['forward'],
        'teacher, backward to the input': of_teacher['backward'],
        'student, forward and backward': of_student['forward'] + of_student['backward'],
    }
    return {name: count / 1e9 for name, count in macs.items()}


def gmacs_by_work(gmacs: dict[str, float]) -> dict[str, float]:
    """Multiply-adds of an image for each kind of work; an online step has two views for the student."""
    encode, decode, forward, backward, student = gmacs.values()
    vqgan = encode + decode
    made = {FAITHFUL: 2 * vqgan + 2 * forward + backward, FROM_INPUT: vqgan + 2 * forward + backward}
    return {
        f'making one DAD view of each image, {FAITHFUL}': made[FAITHFUL],
        f'making one DAD view of each image, {FROM_INPUT}': made[FROM_INPUT],
        f'one epoch online, {FAITHFUL}': made[FAITHFUL] + forward + 2 * student,
        f'one epoch online, {FROM_INPUT}': made[FROM_INPUT] + 2 * student,
        'one epoch on a DAD set, logits computed': 2 * forward + 2 * student,
        'one epoch on a DAD set, logits stored': 2 * student,
    }


def matmul_rate(args: argparse.Namespace, side: int) -> float:
    """FLOP/s of a large matrix product in the given precision."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.precision == 'bf16' else torch.float32
    one, other = torch.randn(2, side, side, device=device, dtype=dtype)
    taken = harness.in_rounds({'product': lambda: one @ other}, max(5, args.rounds), device, warmup=2)
    return 2 * side**3 / min(taken['product'])


def making_rate(args: argparse.Namespace, gmacs: dict[str, float]) -> float:
    """FLOP/s of making DAD images from Q(x), as counted."""
    device = torch.device(args.device)
    make = workload.make_variants(args, args.precision, names=(FAITHFUL,))[FAITHFUL]
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    taken = harness.in_rounds({'make': lambda: make(x_pix, target)}, args.rounds, device)
    flops = 2e9 * gmacs_by_work(gmacs)[f'making one DAD view of each image, {FAITHFUL}']
    return args.batch_size * flops / min(taken['make'])


def project(args: argparse.Namespace) -> dict[str, Any]:
    """All that the tables are made from."""
    gmacs = count_gmacs(args)
    measured: dict[str, float] = {}
    if args.efficiency is None:
        side = 512 if args.quick else 8192 if args.device.startswith('cuda') else 4096
        measured = {'matrix product, FLOP/s': matmul_rate(args, side), 'making, FLOP/s': making_rate(args, gmacs)}
        args.efficiency = measured['making, FLOP/s'] / measured['matrix product, FLOP/s']
    if args.tflops is None:
        own = args.device.startswith('cuda') and measured
        args.tflops = measured['matrix product, FLOP/s'] / 1e12 if own else A100_TFLOPS
    rate = args.tflops * 1e12 * args.efficiency
    hours = {
        name: {str(gpus): args.images * 2e9 * count / (rate * gpus * args.scaling) / 3600 for gpus in GPUS}
        for name, count in gmacs_by_work(gmacs).items()
    }
    assumed = {name: getattr(args, name) for name in ('images', 'tflops', 'efficiency', 'scaling', 'precision')}
    machine = results.machine(args.device, args.threads)
    return {'gmacs': gmacs, 'gpus': list(GPUS), 'hours': hours, 'assumed': assumed, 'measured': measured} | {
        'command': harness.command(), 'machine': machine, 'versions': results.versions()
    }  # fmt: skip


def main() -> None:
    """Count, measure, project, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3)
    workload.add_flags(parser, batch_size=4, student=True)
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='bf16', help='of all networks')
    parser.add_argument('--images', type=int, default=IMAGES, help='training images')
    parser.add_argument('--tflops', type=float, help='TFLOP/s of one GPU')
    parser.add_argument('--efficiency', type=float, help='share of them that is kept (default: measured here)')
    parser.add_argument('--scaling', type=float, default=1.0, help='share of it that is kept with more GPUs')
    parser.add_argument('--output', type=Path, default=harness.HERE / 'projection.json', help='all of it, one JSON')
    args = parser.parse_args()
    if args.quick and args.output == parser.get_default('output'):
        parser.error('--quick needs --output, or it would write over the last projection')
    harness.start(args)
    workload.shrink(args)
    projection = project(args)
    write_file(args.output, json.dumps(projection, indent=1) + '\n')
    for table in results.projection_tables(projection).values():
        sys.stdout.write(f'{table}\n\n')


if __name__ == '__main__':
    main()
