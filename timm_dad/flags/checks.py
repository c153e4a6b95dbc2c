"""Rules for the flags of a training, checked before anything is built."""

import argparse
import os

import torch
from timm.optim import list_optimizers

from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.data.images import MAX_CROP_PCT
from timm_dad.flags.attack import DISAGREEMENT
from timm_dad.flags.augmentation import INTERPOLATIONS, check_augmentation_args
from timm_dad.flags.execution import device_rule
from timm_dad.flags.hints import LOOKAHEAD
from timm_dad.flags.kwargs import mixes, num_channels
from timm_dad.flags.losses import check_loss_args
from timm_dad.flags.parser import did_you_mean
from timm_dad.flags.rules import check_file_args, check_rules, check_values, written
from timm_dad.flags.schedule import SCHEDULES, check_schedule_args
from timm_dad.flags.sizes import check_size_args
from timm_dad.flags.timm import REFUSED

_AT_LEAST_1 = """batch_size validation_batch_size grad_accum_steps epochs log_interval val_interval checkpoint_hist
    num_classes img_size stop_epoch""".split()
_AT_LEAST_0 = """warmup_epochs cooldown_epochs start_epoch workers recovery_interval mixup_off_epoch lr
    lr_base weight_decay clip_grad warmup_lr min_lr aug_repeats dad_preview_interval eval_suites_interval""".split()
_FRACTIONS = 'smoothing model_ema_decay drop drop_path drop_block'.split()
_LENGTHS = {'mean': 3, 'std': 3, 'opt_betas': 2}
_NULL = {'eval_metric': 'top1', 'smoothing': 0.1}  # what timm's train.py uses for null, as in its configs


def check_ranges(args: argparse.Namespace) -> None:
    """Check timm's numeric flags; ``ValueError`` names flag, rule and value."""
    channels = num_channels(args)
    rules = (
        (_AT_LEAST_1, '1 or more', lambda value: value >= 1),
        (_AT_LEAST_0, '0 or more', lambda value: value >= 0),
        (_FRACTIONS, 'from 0 to 1', lambda value: 0 <= value <= 1),
        (['in_chans', 'train_num_samples', 'val_num_samples'], '1 or more', lambda value: value >= 1),
        (['opt_eps'], '0 or more', lambda value: value >= 0),
        (['momentum'], 'from 0 to 1', lambda value: 0 <= value <= 1),
        (['opt_betas'], 'from 0 to less than 1', lambda value: all(0 <= beta < 1 for beta in value)),
        (['input_size'], 'positive', lambda value: min(value) > 0),
        (['decay_epochs', 'lr_stable_timescale'], 'more than 0', lambda value: value > 0),
        (['crop_pct'], f'more than 0 and at most {MAX_CROP_PCT}', lambda value: 0 < value <= MAX_CROP_PCT),
        (['interpolation'], f'one of {INTERPOLATIONS}', lambda value: value in INTERPOLATIONS),
    )
    check_values(args, rules)
    check_augmentation_args(args)
    for name, length in _LENGTHS.items():
        value, lengths = getattr(args, name), {length, channels} if length == 3 else {length}
        if value is not None and len(value) not in lengths:
            raise ValueError(f'{written(name)} takes {length} numbers, got {value}')


def check_args(args: argparse.Namespace, chosen: set[str]) -> None:
    """Check timm's flags before anything is built; ``chosen`` are those that differ from their default.

    Raises:
        ValueError: If a flag makes no sense here, has a bad value, or lacks the one it depends on.
    """
    for name, (_, reason, fix) in REFUSED.items():
        if name in chosen:
            raise ValueError(f'{written(name)} does not work here: {reason}; {fix}')
    vars(args).update({name: default for name, default in _NULL.items() if getattr(args, name) is None})
    check_ranges(args)
    for name, known in (('opt', list_optimizers()), ('sched', SCHEDULES)):
        if getattr(args, name).lower().removeprefix(LOOKAHEAD) not in known:
            few = f'one of {", ".join(known)}' if len(known) < 20 else f'one of the {len(known)} that timm has'
            near = did_you_mean(getattr(args, name), known)
            raise ValueError(f'--{name} must be {few}, got {getattr(args, name)!r}{near}')
    check_schedule_args(args)
    check_loss_args(args, chosen)
    check_size_args(args, chosen)
    splits, mixing, size = args.aug_splits, mixes(args), f'--in-chans {args.in_chans}, --input-size {args.input_size}'
    rules = (
        (splits in (0, *range(2, 100)), f'--aug-splits must be 0, or 2 or more, got {splits}'),
        (not (splits and mixing),
         f'--aug-splits does not mix images: leave --mixup and --cutmix out, got --aug-splits {splits}'),
        (not args.split_bn or splits or args.resplit or args.dad,
         '--split-bn needs splits: --aug-splits, --resplit or --dad'),
        (not mixing or args.batch_size % 2 == 0,
         f'--mixup and --cutmix need an even --batch-size, got {args.batch_size}'),
        (not (args.split_bn and args.sync_bn), '--split-bn and --sync-bn exclude each other: leave one out'),
        (not args.amp or args.model_dtype in (None, 'float32'),
         f'--amp needs --model-dtype float32, got {args.model_dtype}'),
        (args.resume != 'auto' or args.experiment,
         '--resume auto needs --experiment: without it every run gets a folder of its own, named after the time'),
        (not args.wandb_resume_id or args.resume, '--wandb-resume-id needs --resume'),
        (not args.eval_suites_interval or args.eval_suites, '--eval-suites-interval needs --eval-suites'),
        (not args.eval_suites or num_channels(args) == 3, f'--eval-suites needs images of 3 channels, got {size}'),
        ('local_rank' not in chosen or str(args.local_rank) == os.environ.get('LOCAL_RANK'),
         f'--local_rank must match the launcher (LOCAL_RANK), got {args.local_rank}; use torchrun'),
        (args.drop_connect is None, '--drop-connect is deprecated in timm and does nothing there: use --drop-path'),
        device_rule(args.device),
        (NEW_TIMM or args.workers or not args.dataset.startswith('wds'),
         needs_new_timm(f'--workers 0 with --dataset {args.dataset}')),
        (not args.model_ema_force_fp32 or (args.model_ema and args.model_dtype == 'bfloat16'),
         '--model-ema-force-fp32 needs --model-ema and --model-dtype bfloat16'),
        (not args.model_ema_force_fp32 or NEW_TIMM, needs_new_timm('--model-ema-force-fp32')),
        (args.data in (None, args.data_dir),
         f'{args.data} and --data-dir {args.data_dir} both name the data: leave one of them out'),
    )  # fmt: skip
    check_rules(rules)
    if args.resume != 'auto':
        check_file_args(args, 'resume', what='a checkpoint')
    if args.torchcompile:
        backends = torch.compiler.list_backends(exclude_tags=())
        if args.torchcompile not in backends:
            raise ValueError(f'--torchcompile must be one of {", ".join(backends)}; got {args.torchcompile!r}')


def check_extra_args(args: argparse.Namespace) -> None:
    """Check that previews have DAD views to show; ``ValueError`` if not."""
    if not (args.dad and args.dad_preview_interval):
        return
    rules = (
        (args.dad_view == 'dad',
         '--dad-preview-interval shows DAD views, but --dad-view random makes none: leave one of them out'),
        (not args.dad_dir,
         '--dad-preview-interval shows views made in training, but --dad-dir already contains its views: leave it out, '
         'and look at that data with timm-dad preview'),
        (args.val_split, '--dad-preview-interval shows validation images: it needs --val-split'),
        (args.dad_attack != DISAGREEMENT,
         '--dad-preview-interval shows views without a student: leave it out with --dad-attack disagreement'),
    )  # fmt: skip
    check_rules(rules)
