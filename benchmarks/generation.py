#!/usr/bin/env python3
"""Images per second, making DAD images: ours against what the released generator computes (``released.py``).

Same weights, same images, same precision, in turn in one process; the ratio of a round is of calls made one after the
other. Before fp32 is timed, both make views from the same random start, which must be the same up to rounding.
"""

import argparse
from typing import Any

import harness
import results
import torch
import workload
from workload import FAITHFUL, FROM_INPUT, RELEASED, Variant

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


def compare(args: argparse.Namespace, precision: str, views: str) -> dict[str, results.Figure]:
    """Time the variants in one precision; a figure each of ours."""
    device = torch.device(args.device)
    variants = workload.make_variants(args, precision)
    x_pix, target = workload.images(args.batch_size, args.img_size, device)

    def call(variant: Variant) -> Any:
        return lambda: variant(x_pix, target)

    torch.manual_seed(5)
    calls = {name: call(variant) for name, variant in variants.items()}
    taken = harness.in_rounds(calls, args.rounds, device)
    rates = {name: args.batch_size / sorted(values)[len(values) // 2] for name, values in taken.items()}
    figures = {}
    for name, at_least in TO_REACH.items():
        figures[name] = results.Figure.of_ratio(
            harness.ratio(taken[RELEASED], taken[name]),
            figure=f'images per second, making DAD images, {name}, {precision}, {device.type}' + compiled(args),
            against='released.py' + QUANTIZER[args.quantizer],
            at_least=at_least,
            detail=f'{rates[name]:.3g} against {rates[RELEASED]:.3g} images/s; {args.rounds} rounds of batches of '
            f'{args.batch_size} at {args.img_size} px' + (f'; {views}' if name == FAITHFUL and views else ''),
            numbers={'images_per_second': rates[name], 'released': rates[RELEASED]},
        )
    return figures


def main() -> None:
    """Check the views, then time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=5)
    workload.add_flags(parser, batch_size=4)
    precisions = ('fp32', 'bf16')
    parser.add_argument('--precision', nargs='+', choices=precisions, default=precisions, help='of all networks')
    args = parser.parse_args()
    harness.start(args)
    workload.shrink(args)
    for precision in args.precision:
        views = check_views(args) if precision == 'fp32' else ''
        for name, figure in compare(args, precision, views).items():
            key = f'generation, {precision}, {name}, {args.device}' + QUANTIZER[args.quantizer] + compiled(args)
            results.write(args.results, key, figure, harness.command(), results.machine(args.device, args.threads))


if __name__ == '__main__':
    main()
