#!/usr/bin/env python3
"""What other precisions, layouts and compiled networks change, against eager fp32 networks without TF32, laid out NCHW.

Same weights and images for all. Codes and views of lower precisions differ where two codes are about as near; so the
decoder gets the codes of fp32, and the view of an attack is compared by its codes, too. Other ways in fp32 must agree.
"""

import argparse
import copy
import sys
from typing import Any

import harness
import results
import torch
import torch.nn.functional as F
import workload
from torch import Tensor

from timm_dad import VQGAN, AttackConfig, DADAugment, Teacher, prepare_frozen
from timm_dad.method.attack import input_gradient

WAYS = {
    'fp32, channels-last': ('fp32', False),
    'tf32': ('tf32', False),
    'bf16': ('bf16', False),
    'fp16': ('fp16', False),
    'fp32, compiled': ('fp32', True),  # last, for compiling takes longest
    'bf16, compiled': ('bf16', True),
}
# What fp32 must reach however it is computed.
SAME_CODES, LOGITS_APART = 0.98, 1e-3
NORM: dict[str, Any] = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}


@torch.no_grad()
def answers(teacher: Teacher, vqgan: VQGAN, x_pix: Tensor, target: Tensor, codes: Tensor | None) -> dict[str, Tensor]:
    """Codes, the picture of given codes (its own by default), logits, the attack's gradient, and codes of the view."""
    own = vqgan.encode_to_codes(x_pix)
    attack = AttackConfig(random_start=0.0)
    views = DADAugment(teacher, vqgan, **NORM, attack=attack).make_views(x_pix, target)
    return {
        'codes': own,
        'pictures': vqgan.decode_codes(own if codes is None else codes),
        'logits': teacher(x_pix),
        'gradient': input_gradient(lambda x: F.cross_entropy(teacher(x), target, reduction='none'), x_pix),
        'view codes': views.dad_codes,
    }


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How alike the answers are."""
    same = {name: found[name] == expected[name] for name in ('codes', 'view codes')}
    apart = {name: found[name] - expected[name] for name in ('logits', 'pictures')}
    gradients = [own['gradient'].flatten(1) for own in (found, expected)]
    numbers = {
        'equal codes': same['codes'],
        'equal codes of views': same['view codes'],
        'pictures apart': apart['pictures'].abs(),
        'logits apart': apart['logits'].norm() / expected['logits'].norm(),
        'same class': found['logits'].argmax(1) == expected['logits'].argmax(1),
        'cosine of gradients': F.cosine_similarity(*gradients),
    }
    return {name: value.double().mean().item() for name, value in numbers.items()}


def check(way: str, row: dict[str, float]) -> None:
    """End with an error where fp32 is not what it was, or a number is not finite."""
    if not all(torch.tensor(list(row.values())).isfinite()):
        raise SystemExit(f'{way}: not finite: {row}')
    if way.startswith('fp32') and (row['equal codes'] < SAME_CODES or row['logits apart'] > LOGITS_APART):
        raise SystemExit(f'{way} is not what fp32 is: {row}')


def main() -> None:
    """Compare all ways, and write what was found after each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser)
    workload.add_flags(parser, batch_size=16, compile=False)
    parser.add_argument('--only', nargs='+', choices=tuple(WAYS), default=tuple(WAYS), help='ways to compare')
    args = parser.parse_args()
    args.results = args.results or (None if args.quick else harness.HERE / 'precisions.json')
    device = harness.start(args)
    torch.backends.cudnn.benchmark = False  # nothing is timed
    workload.shrink(args)
    teacher = workload.build_teacher(args.teacher, device=args.device).to(device)
    vqgan = workload.build_vqgan(args.vqgan, device=args.device).to(device)
    models = teacher, vqgan
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    harness.set_precision('fp32')
    expected = answers(*models, x_pix, target, None)
    for way in args.only:
        precision, compile = WAYS[way]
        teacher, vqgan = copy.deepcopy(models)
        prepare_frozen(teacher, vqgan, harness.set_precision(precision), device, compile=compile)
        row = compare(answers(teacher, vqgan, x_pix, target, expected['codes']), expected)
        sys.stdout.write(f'{way}: ' + ', '.join(f'{name} {value:.4g}' for name, value in row.items()) + '\n')
        if args.results is not None:
            results.store(args.results, way, row)
        check(way, row)


if __name__ == '__main__':
    main()
