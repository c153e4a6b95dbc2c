#!/usr/bin/env python3
"""Peak memory of making DAD images, above what imports, weights and images take; each variant in a process of its own.

On a CPU it is the resident set, whose peak is set back when all is built; on a GPU what torch allocates. Two batches
are made, so that what one leaves behind counts for the next.
"""

import argparse
import json
import sys
from pathlib import Path

import harness
import results
import workload
from workload import FAITHFUL, FROM_INPUT, RELEASED

AT_MOST = 0.6
MEBI = 2**20


def measure(args: argparse.Namespace, name: str) -> None:
    """Print bytes before and at the peak, of one variant in this process."""
    device = harness.start(args)
    workload.shrink(args)
    variant = workload.make_variants(args, args.precision, names=(name,))[name]
    batches = [workload.images(args.batch_size, args.img_size, device) for _ in range(2)]

    def make() -> None:
        for x_pix, target in batches:
            variant(x_pix, target)

    sys.stdout.write(json.dumps(harness.peak_bytes(make, device)) + '\n')


def main() -> None:
    """Measure every variant in a process of its own and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3)
    workload.add_flags(parser, batch_size=8, released=True)
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='of all networks')
    parser.add_argument('--variant', choices=(RELEASED, FAITHFUL, FROM_INPUT), help='measure this one, here')
    args = parser.parse_args()
    if args.variant:
        measure(args, args.variant)
        return
    harness.start(args)
    workload.shrink(args)
    names = (RELEASED, FAITHFUL, FROM_INPUT)
    argv = [str(Path(__file__)), *sys.argv[1:]]
    runs = [{name: harness.in_process([*argv, '--variant', name]) for name in names} for _ in range(args.rounds)]
    above = {name: [run[name][1] - run[name][0] for run in runs] for name in names}
    for name in (FAITHFUL, FROM_INPUT):
        totals = {each: max(run[each][1] for run in runs) for each in (name, RELEASED)}
        figure = results.Figure.of_ratio(
            harness.ratio(above[name], above[RELEASED]),
            figure=f'peak memory, making DAD images, {name}, {args.precision}, {args.device}',
            against='released.py',
            at_most=AT_MOST,
            detail=f'{min(above[name]) / MEBI:.0f} against {min(above[RELEASED]) / MEBI:.0f} MiB above imports, '
            f'weights and images; {totals[name] / MEBI:.0f} against {totals[RELEASED] / MEBI:.0f} MiB in all; '
            f'batches of {args.batch_size} at {args.img_size} px',
            numbers={'above': above[name], 'released_above': above[RELEASED], 'total': totals[name]},
        )
        key = f'memory, {args.precision}, {name}, {args.device}'
        harness.report(args, key, figure)


if __name__ == '__main__':
    main()
