"""Hints about valid flags that hardly make sense, as warnings before a training begins."""

import argparse
from collections.abc import Iterator

from timm.optim import get_optimizer_info

from timm_dad.flags.rules import written

LOOKAHEAD = 'lookahead_'  # timm's prefix of any optimizer, which its list does not have

_LARGE_RATE = 100.0


def hints(args: argparse.Namespace) -> Iterator[str]:
    """Yield a line about every flag that has no effect or an absurd value; ``args`` are already checked."""
    if args.warmup_epochs >= args.epochs and not args.warmup_prefix:
        yield (
            f'--warmup-epochs {args.warmup_epochs:g} covers all of --epochs {args.epochs}, so the learning rate never '
            'reaches --lr: give fewer'
        )
    end = args.stop_epoch or args.epochs
    late = [str(epoch) for epoch in args.decay_milestones if args.sched == 'multistep' and epoch > end]
    if late:
        yield f'--decay-milestones {" ".join(late)}: the rate does not fall there, for this run ends after {end} epochs'
    if (args.lr or 0) > _LARGE_RATE:
        yield f'--lr {args.lr:g} is so large that weights will overflow: timm uses rates below 10'
    info = get_optimizer_info(args.opt.lower().removeprefix(LOOKAHEAD))
    for name, has in (('opt_betas', info.has_betas), ('opt_eps', info.has_eps)):
        if getattr(args, name) is not None and not has:
            yield f'{written(name)} has no effect: --opt {args.opt} has no such setting'
