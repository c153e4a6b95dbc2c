"""The flags about the makers of a DAD set's shards: processes that the user starts, or tasks of a Ray cluster."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from timm_dad.dad_sets.claims import KINDS
from timm_dad.dad_sets.store import is_url

ENGINES = ('local', 'ray')


def add_engine_args(group: Any) -> None:
    """Add ``--engine`` and the flags that divide the work among processes."""
    group.add_argument(
        '--engine', choices=ENGINES, default='local',
        help='local: this process and all others started with the same folder and flags; ray: tasks of a Ray '
        'cluster (RAY_ADDRESS, or the one running on this machine; else one is started for this command only), '
        'with identical files (default: local)',
    )  # fmt: skip
    group.add_argument(
        '--claim', choices=KINDS, default='auto',
        help="how processes and machines that share the folder keep out of each other's shards: lock (flock), lease "
        '(files that their holder rewrites, for file systems whose locks are local to a machine), or auto, which '
        'finds out which works (default: auto)',
    )  # fmt: skip
    group.add_argument(
        '--shards', nargs='?', const='auto', metavar='I/N',
        help='make only the shards I, I + N, ..., I from 0; without a value those of this task of a Slurm array, or '
        'process of torchrun or accelerate. The last part to finish, or the same command without --shards, '
        'completes the set',
    )  # fmt: skip


def engine_rules(args: argparse.Namespace, given: Mapping[str, Any]) -> tuple[tuple[Any, str], ...]:
    """Return the rules about these flags, for ``check_rules``."""
    own = 'claim' not in given and args.claim == 'auto'
    if args.engine != 'ray':
        return ((args.shards is None or own, '--claim is for processes that share all shards: leave it out'),)
    return (
        (args.shards is None, '--shards is for processes that you start; --engine ray distributes them: leave it out'),
        (own, '--claim is for processes that you start; --engine ray distributes the shards: leave it out'),
        (not is_url(args.output),
         f'--output must be a folder that all machines of the cluster see, got {args.output}: leave --engine ray out; '
         'processes that you start can make sets at a URL'),
        ('RANK' not in os.environ,
         '--engine ray starts its processes itself: leave the launcher (torchrun, accelerate) out'),
        ('dad_look' not in given or not args.dad_look,
         '--dad-look makes views in this process, but --engine ray leaves that to its tasks: leave it out; timm-dad '
         'preview shows some'),
        (args.device in ('cuda', 'cpu'), f'--device must be cuda or cpu with --engine ray, got {args.device}: Ray sets '
         'which GPU a task gets'),
    )  # fmt: skip
