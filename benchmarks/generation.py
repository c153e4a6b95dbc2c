#!/usr/bin/env python3
"""Images per second, making DAD images: ours against what the released generator computes (``released.py``).

Same weights, same images, same precision, in turn in one process; the ratio of a round is of calls made one after the
other. Before fp32 is timed, both make views from the same random start, which must be the same up to rounding.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import harness
import results
import torch
import workload
from workload import FAITHFUL, FROM_INPUT, LATENT, RELEASED, TINY, Variant

QUANTIZER = {'lookup': '', 'one-hot': " with taming's VectorQuantizer"}
# How many times the images per second of released.py.
TO_REACH = {FAITHFUL: 1.5, FROM_INPUT: 2.5}
# Of the codes of our views, how many must be the released ones, and how far pixels may be apart where all of them are.
SAME_CODES, SAME_PIXELS = 0.98, 1e-3


def compiled(args: argparse.Namespace) -> str:
    """What is said of ``--compile``."""
    return ', compiled' if args.compile else ''


def check_views(args: argparse.Namespace) -> str:
    """Compare our faithful view with the released one, from the same random start, in fp32; what was found."""
    # NOTE: the released start is drawn for a batch, ours for an image: at probability 1 both draw the same noise.
    variants = workload.make_variants(args, 'fp32', names=(RELEASED, FAITHFUL), random_start=1.0)
    x_pix, target = workload.images(args.batch_size, args.img_size, torch.device(args.device))
    made = {}
    for name, variant in variants.items():
        torch.manual_seed(4)
        made[name] = workload.view_and_codes(variant(x_pix, target))
    (ours, codes), (theirs, their_codes) = made[FAITHFUL], made[RELEASED]
    same = (codes.flatten() == their_codes.flatten()).float().mean().item()
    apart = (ours - theirs).abs().mean().item()
    used = len(codes.unique())
    found = f'{same:.2%} of {codes.numel()} codes equal ({used} different ones), pixels apart by {apart:.1e} on average'
    if same < SAME_CODES or (same == 1 and apart > SAME_PIXELS):
        raise SystemExit(f'the views are not the same: {found}')
    return found


def gpu_peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call takes on a GPU, once its kernels are chosen, which takes memory, too; ``None`` if too many."""
    try:
        call()
        before, peak = harness.peak_bytes(call, device)
        return peak - before
    except torch.OutOfMemoryError:
        return None


def compare(
    args: argparse.Namespace, precision: str, views: str, variants: dict[str, Variant], batch_size: int
) -> dict[str, results.Figure]:
    """Time the variants in one precision; a figure each of ours, none where the released one does not fit in memory."""
    device = torch.device(args.device)
    x_pix, target = workload.images(batch_size, args.img_size, device)

    def call(variant: Variant) -> Any:
        return lambda: variant(x_pix, target)

    torch.manual_seed(5)
    calls = {name: call(variant) for name, variant in variants.items()}
    peaks = {name: gpu_peak(calls[name], device) for name in calls} if device.type == 'cuda' else {}
    for name in [name for name, peak in peaks.items() if peak is None]:
        torch.cuda.empty_cache()
        sys.stdout.write(f'{name}, {precision}, batches of {batch_size}: out of memory\n')
        del calls[name]
    if RELEASED not in calls:
        return {}
    taken = harness.in_rounds(calls, args.rounds, device)
    rates = {name: batch_size / median(values) for name, values in taken.items()}
    figures = {}
    for name in [name for name in taken if name != RELEASED]:
        memory = f'; {peaks[name] / 2**20:.0f} against {peaks[RELEASED] / 2**20:.0f} MiB at its peak' if peaks else ''
        figures[name] = results.Figure.of_ratio(
            harness.ratio(taken[RELEASED], taken[name]),
            figure=f'images per second, making DAD images, {name}, {precision}, {device.type}' + compiled(args),
            against='released.py' + QUANTIZER[args.quantizer],
            at_least=TO_REACH.get(name),
            detail=f'{rates[name]:.3g} against {rates[RELEASED]:.3g} images/s; {args.rounds} rounds of batches of '
            f'{batch_size} at {args.img_size} px' + memory + (f'; {views}' if name == FAITHFUL and views else ''),
            numbers={
                'images_per_second': rates[name],
                'released': rates[RELEASED],
                **({'peak': peaks[name], 'released_peak': peaks[RELEASED]} if peaks else {}),
            },
        )
    return figures


def seconds_of(figures: dict[str, results.Figure], batch_size: int, rounds: int) -> float:
    """What batches of another size will take, one for memory and one to warm up beside the rounds; none: for ever."""
    if not figures:
        return float('inf')
    rates = [figure.numbers['images_per_second'] for figure in figures.values()]
    rates.append(next(iter(figures.values())).numbers['released'])
    return (rounds + 2) * sum(batch_size / rate for rate in rates)


def measure(args: argparse.Namespace, precision: str, names: tuple[str, ...]) -> None:
    """Compare in one precision, with one size of a batch after the other as long as there is time."""
    own = harness.set_precision(precision)
    views = check_views(args) if precision == 'fp32' else ''
    variants = workload.make_variants(args, own, names=names)
    begin = time.perf_counter()
    for place, batch_size in enumerate(args.batches or [args.batch_size]):
        figures = compare(args, precision, views, variants, batch_size)
        for name, figure in figures.items():
            key = f'generation, {precision}, {name}, {args.device}' + QUANTIZER[args.quantizer] + compiled(args)
            key += f', batch {batch_size}' if args.batches else ''
            harness.report(args, key, figure)
        if args.batches and place + 1 < len(args.batches):
            coming = args.batches[place + 1]
            if time.perf_counter() - begin + seconds_of(figures, coming, args.rounds) > args.seconds:
                sys.stdout.write(f'{precision}: no time for batches of {coming} and more\n')
                return


def main() -> None:
    """Check the views, then time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=5)
    workload.add_flags(parser, batch_size=4, released=True)
    parser.add_argument(
        '--precision', nargs='+', choices=harness.PRECISIONS, default=('fp32', 'bf16'), help='of all networks'
    )
    parser.add_argument('--batches', type=int, nargs='+', help='sizes of batches to time, growing; each has a figure')
    parser.add_argument('--seconds', type=float, default=float('inf'), help='time for the batches of a precision')
    parser.add_argument('--more', action='store_true', help='the attack on latents and a tiny VQGAN, too')
    args = parser.parse_args()
    harness.start(args)
    workload.shrink(args)
    if args.quick and args.batches:
        args.batches = [2, 3]
    for precision in args.precision:
        measure(args, precision, (RELEASED, FAITHFUL, FROM_INPUT, *((LATENT, TINY) if args.more else ())))


if __name__ == '__main__':
    main()
