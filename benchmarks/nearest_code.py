#!/usr/bin/env python3
"""The search for the nearest code against ``VectorQuantizer`` of taming-transformers: time, and peak memory.

Both take latents ``[B, D, h, w]`` to quantized latents. Memory is measured in a process each, above latents and codes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import harness
import results
import torch
from released import LookupQuantizer, OneHotQuantizer
from torch import Tensor

from timm_dad import nearest_codes

OURS, ONE_HOT, LOOKUP = 'nearest_codes', 'VectorQuantizer', 'released quantizer'
FASTER, LESS_MEMORY = 5.0, 0.1
MEBI = 2**20


def quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Ours: quantized latents and codes ``[B * h * w]``."""
    rows = z.permute(0, 2, 3, 1)
    codes = nearest_codes(rows.reshape(-1, z.shape[1]), codebook)
    return torch.nn.functional.embedding(codes.view(rows.shape[:-1]), codebook).permute(0, 3, 1, 2).contiguous(), codes


def build(args: argparse.Namespace, names: list[str]) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """The searches, on the same latents and codes, both normally distributed."""
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(args.batch_size, args.embed_dim, args.side, args.side, generator=generator).to(device)
    codebook = torch.randn(args.codes, args.embed_dim, generator=generator).to(device)
    searches: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {OURS: lambda: quantize(z, codebook)}
    for name, module in ((ONE_HOT, OneHotQuantizer), (LOOKUP, LookupQuantizer)):
        options = {'beta': 0.25} if module is OneHotQuantizer else {}
        with torch.device('meta'):
            quantizer = module(args.codes, args.embed_dim, **options)
        quantizer.embedding.weight = torch.nn.Parameter(codebook)
        searches[name] = lambda quantizer=quantizer: quantizer(z)
    return {name: torch.no_grad()(searches[name]) for name in names}


def check(searches: dict[str, Callable[[], tuple[Tensor, Tensor]]]) -> float:
    """Share of codes that ours and taming's agree on; all but ties."""
    codes = {name: search()[1] for name, search in searches.items()}
    same = (codes[OURS] == codes[ONE_HOT]).float().mean().item()
    if same < 0.999:
        raise SystemExit(f'only {same:.2%} of the codes are the same')
    return same


def compare(args: argparse.Namespace) -> dict[str, results.Figure]:
    """Time both in turn; memory of each in its own process."""
    device = torch.device(args.device)
    names = [OURS, ONE_HOT, LOOKUP]
    searches = build(args, names)
    same = check(searches)
    taken = harness.in_rounds(searches, args.rounds, device)
    middle = {name: median(values) for name, values in taken.items()}
    peaks: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(min(3, args.rounds)):
        for name in names:
            before, peak = harness.in_process([str(Path(__file__)), *sys.argv[1:], '--variant', name])
            peaks[name].append(peak - before)
    size = f'{args.codes} codes, {args.side} x {args.side}, batch {args.batch_size}'
    common: dict[str, Any] = {'against': "taming's VectorQuantizer"}
    least = {name: min(values) / MEBI for name, values in peaks.items()}
    speed, memory = harness.ratio(taken[ONE_HOT], taken[OURS]), harness.ratio(peaks[OURS], peaks[ONE_HOT])
    return {
        'time': results.Figure.of_ratio(
            speed,
            figure=f'nearest-code search, speed, {args.device}',
            **common,
            at_least=FASTER,
            detail=f'{middle[OURS]:.3g} against {middle[ONE_HOT]:.3g} s ({middle[LOOKUP]:.3g} s by the released '
            f'quantizer); {size}; {same:.3%} of the codes equal',
            numbers=middle,
        ),
        'memory': results.Figure.of_ratio(
            memory,
            figure=f'nearest-code search, peak memory, {args.device}',
            **common,
            at_most=LESS_MEMORY,
            detail=f'{least[OURS]:.0f} against {least[ONE_HOT]:.0f} MiB ({least[LOOKUP]:.0f} MiB by the released '
            f'quantizer), above latents and codes; {size}',
            numbers=peaks,
        ),
    }


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=7)
    parser.add_argument('--codes', type=int, default=16384, help='codes of the codebook')
    parser.add_argument('--embed-dim', type=int, default=4, help='channels of a code')
    parser.add_argument('--side', type=int, default=28, help='codes along a side of an image')
    parser.add_argument('--batch-size', type=int, default=64, help='images; taming takes 0.2 GiB each')
    parser.add_argument('--variant', choices=(OURS, ONE_HOT, LOOKUP), help='measure the memory of this one, here')
    args = parser.parse_args()
    device = harness.start(args)
    if args.quick:
        args.batch_size, args.codes = 2, 1024
    if args.variant:
        search = build(args, [args.variant])[args.variant]
        sys.stdout.write(json.dumps(harness.peak_bytes(search, device)) + '\n')
        return
    for name, figure in compare(args).items():
        key = f'nearest code, {name}, {args.device}'
        harness.report(args, key, figure)


if __name__ == '__main__':
    main()
