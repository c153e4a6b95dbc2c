"""The learning rate schedule: timm's flags, and which of them go together."""

import argparse
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.flags.rules import check_rules, flag_errors

# What timm's create_scheduler_v2 knows; it takes any other name without a word.
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant')
_NEW_SCHEDULES = SCHEDULES[6:]
_WITH_DECAY = ('wsd', 'rsqrt')


def add_schedule_args(group: Any) -> None:
    """Add the flags to a group of a parser, with the names, defaults and meanings of timm's ``train.py``."""
    group.add_argument('--sched', default='cosine', metavar='SCHEDULER', help='schedule')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule at each update')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate, overrides --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='rate at --lr-base-size images a step')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='DIV', help='batch size of --lr-base')
    group.add_argument(
        '--lr-base-scale', default='', choices=('', 'linear', 'sqrt'), metavar='SCALE',
        help='scaling with batch size: linear or sqrt (default: by --opt)',
    )  # fmt: skip
    group.add_argument('--lr-noise', type=float, nargs='+', metavar='PCT', help='noise on/off, fractions of the epochs')
    group.add_argument('--lr-noise-pct', type=float, default=0.67, metavar='PERCENT', help='limit of the noise')
    group.add_argument('--lr-noise-std', type=float, default=1.0, metavar='STDDEV', help='its standard deviation')
    group.add_argument('--lr-cycle-mul', type=float, default=1.0, metavar='MULT', help='growth of cycle lengths')
    group.add_argument('--lr-cycle-decay', type=float, default=0.5, metavar='MULT', help='decay of each cycle')
    group.add_argument('--lr-cycle-limit', type=int, default=1, metavar='N', help='cycles')
    group.add_argument('--lr-k-decay', type=float, default=1.0, help='k-decay of cosine and poly')
    group.add_argument(
        '--lr-decay-fn', choices=('linear', '1-sqrt', 'cosine', 'power', 'exp'),
        help='decay function of wsd and rsqrt (default: 1-sqrt, linear)',
    )  # fmt: skip
    group.add_argument('--lr-stable-timescale', type=float, metavar='N', help='epochs of rsqrt (default: the warm-up)')
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='first learning rate')
    group.add_argument('--min-lr', type=float, default=0, metavar='LR', help='lowest learning rate')
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='epochs')
    group.add_argument(
        '--stop-epoch', type=int, metavar='N', help='stop after N epochs of a schedule that covers all --epochs'
    )
    group.add_argument('--epoch-repeats', type=float, default=0.0, metavar='N', help='passes per epoch, for streams')
    group.add_argument('--start-epoch', type=int, metavar='N', help='start at this epoch, whatever a checkpoint says')
    group.add_argument(
        '--decay-milestones', default=[90, 180, 270], type=int, nargs='+', metavar='N', help='epochs of multistep'
    )
    group.add_argument(
        '--decay-epochs', type=float, metavar='N',
        help='epochs between steps (default: 90), or the length of the decay of wsd and rsqrt, or its fraction (0.2)',
    )  # fmt: skip
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up')
    group.add_argument('--warmup-prefix', action='store_true', help='add the warm-up to the epochs')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at --min-lr at the end')
    group.add_argument('--patience-epochs', type=int, default=10, metavar='N', help='patience of plateau')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='decay of the rate')


def check_schedule_args(args: argparse.Namespace) -> None:
    """Check the flags before anything is built, and fill in schedule-dependent values, which timm 1.0.28 does not.

    Raises:
        ValueError: If a flag does not fit the schedule, or timm is too old for it.
    """
    sched = args.sched
    rules = (
        (NEW_TIMM or sched not in _NEW_SCHEDULES, needs_new_timm(f'--sched {sched}')),
        (not args.lr_decay_fn or sched in _WITH_DECAY, f'--lr-decay-fn needs --sched wsd or rsqrt, got {sched}'),
        (args.lr_stable_timescale is None or sched == 'rsqrt',
         f'--lr-stable-timescale needs --sched rsqrt, got {sched}'),
        (sched != 'rsqrt' or args.warmup_epochs or args.lr_stable_timescale,
         '--sched rsqrt without --warmup-epochs needs --lr-stable-timescale'),
        (sched != 'plateau' or not args.sched_on_updates,
         '--sched plateau works by epochs: leave --sched-on-updates out'),
        (sched != 'plateau' or args.decay_rate < 1,
         f'--decay-rate must be less than 1 with --sched plateau, got {args.decay_rate}'),
        (sched != 'plateau' or getattr(args, 'val_interval', 1) == 1 or not (args.stop_epoch or args.save_epochs),
         '--stop-epoch and --save-epochs validate when they stop or save, which affects --sched plateau: give '
         '--val-interval 1'),
        (args.decay_milestones == sorted(set(args.decay_milestones)) and min(args.decay_milestones) > 0,
         f'--decay-milestones must be 1 or more and rise, got {args.decay_milestones}'),
        (min(args.save_epochs or [1]) > 0, f'--save-epochs must be 1 or more, got {args.save_epochs}'),
    )  # fmt: skip
    check_rules(rules)
    args.save_epochs = args.save_epochs or []  # a config of timm's train.py may say null
    if args.decay_epochs is None:
        args.decay_epochs = 0.2 if sched in _WITH_DECAY else 90
    length = args.epochs - (0 if args.warmup_prefix else args.warmup_epochs)
    decay = args.decay_epochs * (length if args.decay_epochs < 1 else 1)
    if sched in _WITH_DECAY and not (0 if args.sched_on_updates else 0.5) < decay <= length:
        raise ValueError(
            f'--decay-epochs must leave --sched {sched} at least one epoch and at most the {length} after the warm-up, '
            f'got {args.decay_epochs}'
        )
    _check_last_epochs(args)


def _check_last_epochs(args: argparse.Namespace) -> None:
    wanted = {'--stop-epoch': args.stop_epoch or 0, '--save-epochs': max(args.save_epochs, default=0)}
    if not any(wanted.values()):
        return
    of_nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with flag_errors('--sched and its flags'):
        num_epochs = create_scheduler_v2(of_nothing, **scheduler_kwargs(args), updates_per_epoch=1)[1]
    for flag, epoch in wanted.items():
        if epoch > num_epochs:
            raise ValueError(f'{flag} must be at most the {num_epochs} epochs of the training, got {epoch}')
