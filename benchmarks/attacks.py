#!/usr/bin/env python3
"""What a DAD view costs by the space of its attack: multiply-adds, and images per second against the attack on pixels.

Same weights and images, in turn in one process. `tiny` is an untrained tiny decoder with the same codebook, which the
gradient goes through (`--dad-gradient-vqgan`); what it costs does not depend on its weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import harness
import results
import torch
import workload
from torch import Tensor

from timm_dad import CodeAttackConfig, DADAugment, LatentAttackConfig, prepare_frozen
from timm_dad.common.macs import count_macs
from timm_dad.method.disagreement import Disagreement
from timm_dad.vqgan_training.distill import create_tiny

PIXELS = 'pixels, from Q(x)'


def make_attacks(args: argparse.Namespace) -> dict[str, DADAugment]:
    """Ways to make a DAD view, by name."""
    vqgan = workload.build_vqgan(args.vqgan, device=args.device)
    teacher = workload.build_teacher(args.teacher, device=args.device)
    tiny = create_tiny(vqgan, args.img_size, workload.TINY_CH)
    for model in (vqgan, tiny):
        prepare_frozen(teacher, model, args.precision, torch.device(args.device), compile=args.compile)
    norm: dict[str, Any] = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    latent, codes = LatentAttackConfig(), CodeAttackConfig()
    disagreeing = DADAugment(teacher, vqgan, **norm, attack=replace(latent, objective='disagreement'))
    student = workload.build_student(args.student).to(args.device).requires_grad_(False)
    disagreeing.disagreement = Disagreement(student, teacher, disagreeing.norm, temperature=4.0)
    return {
        PIXELS: DADAugment(teacher, vqgan, **norm),
        'pixels, from x': DADAugment(teacher, vqgan, **norm, attack_from='input'),
        'latent': DADAugment(teacher, vqgan, **norm, attack=latent),
        'latent, gradient through tiny': DADAugment(teacher, vqgan, **norm, attack=latent, gradient_vqgan=tiny),
        'latent, disagreement': disagreeing,
        'codes': DADAugment(teacher, vqgan, **norm, attack=codes),
        'codes at random': DADAugment(teacher, vqgan, **norm, attack=replace(codes, num_steps=0)),
        'latent noise': DADAugment(teacher, vqgan, **norm, attack=replace(latent, num_steps=0)),
    }


def main() -> None:
    """Count and time all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3)
    workload.add_flags(parser, batch_size=2, student=True)
    parser.add_argument('--precision', choices=('fp32', 'bf16', 'fp16'), default='bf16', help='of all networks')
    args = parser.parse_args()
    device = harness.start(args)
    workload.shrink(args)
    attacks = make_attacks(args)
    x_pix, target = workload.images(args.batch_size, args.img_size, device)

    def call(augment: DADAugment, x_pix: Tensor = x_pix, target: Tensor = target) -> Callable[[], Any]:
        return lambda: augment.make_views(x_pix, target)

    macs = {name: count_macs(call(augment, x_pix[:1], target[:1])) for name, augment in attacks.items()}
    taken = harness.in_rounds({name: call(augment) for name, augment in attacks.items()}, args.rounds, device)
    for name, seconds in taken.items():
        rate = args.batch_size / median(seconds)
        figure = results.Figure.of_ratio(
            harness.ratio(taken[PIXELS], seconds),
            figure=f'images per second, making DAD images, attack on {name}, {args.precision}, {device.type}',
            against=f'attack on {PIXELS}',
            detail=f'{macs[name] / 1e9:.4g} GMACs and {rate:.3g} images/s; {args.rounds} rounds of batches of '
            f'{args.batch_size} at {args.img_size} px',
            numbers={'gmacs': macs[name] / 1e9, 'images_per_second': rate},
        )
        key = f'attacks, {args.precision}, {name}, {args.device}'
        harness.report(args, key, figure)


if __name__ == '__main__':
    main()
