"""Convert flags to keyword arguments of factories, like timm's ``optimizer_kwargs`` and ``scheduler_kwargs``."""

import argparse
from typing import Any

import torch
from timm.scheduler import scheduler_kwargs

from timm_dad.demo.data import SEEN_STYLES
from timm_dad.flags.task import is_multilabel


def torch_dtype(name: str | None) -> torch.dtype:
    """Return the dtype of ``--model-dtype``; fp32 by default."""
    dtype: torch.dtype = getattr(torch, name or 'float32')
    return dtype


def num_channels(args: argparse.Namespace) -> int:
    """Return the number of image channels: ``--in-chans``, else the one in ``--input-size``, else 3."""
    return int(args.in_chans or (args.input_size[0] if args.input_size else 3))


def mixes(args: argparse.Namespace) -> bool:
    """Return whether images are mixed."""
    return bool(args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None)


def task_loss(args: argparse.Namespace) -> str:
    """Return the task loss by its name in ``--loss``; older flags, all that older scripts have, select two of them."""
    older = 'jsd' if args.jsd_loss else 'bce' if args.bce_loss or is_multilabel(args) else 'ce'
    return getattr(args, 'loss', None) or older


def _pick(args: argparse.Namespace, *same: str, **renamed: str) -> dict[str, Any]:
    """Pick flags under their own names, and under other ones: ``keyword='flag'``."""
    return {name: getattr(args, flag) for name, flag in {**{name: name for name in same}, **renamed}.items()}


# Arguments of timm's ``Mixup``, and the flags that are called otherwise.
MIXING_FLAGS = {
    'mixup_alpha': 'mixup', 'cutmix_alpha': 'cutmix', 'prob': 'mixup_prob', 'switch_prob': 'mixup_switch_prob',
}  # fmt: skip


def mixup_kwargs(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the arguments of timm's ``Mixup``; ``None`` if nothing is mixed."""
    draws = mixing_kwargs(args)
    if draws is None:
        return None
    more = {'multi_label': True} if is_multilabel(args) else {}
    return {**draws, **_pick(args, 'num_classes', mode='mixup_mode', label_smoothing='smoothing'), **more}


def mixing_kwargs(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return those of them that define how two images are mixed."""
    if not mixes(args):
        return None
    return _pick(args, 'cutmix_minmax', **MIXING_FLAGS)


def _loader_kwargs(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: data_config[name] for name in ('input_size', 'mean', 'std')},
        **_pick(args, num_workers='workers', pin_memory='pin_mem'),
        'img_dtype': torch_dtype(args.model_dtype),
        'use_prefetcher': not args.no_prefetcher,
    }


# Arguments of timm's ``create_transform``, and the flags that are called otherwise.
TRANSFORM_FLAGS = {'re_prob': 'reprob', 're_mode': 'remode', 're_count': 'recount', 'auto_augment': 'aa'}


def transform_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of timm's ``create_transform`` that define how one image is augmented."""
    return _pick(
        args, 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob',
        'grayscale_prob', 'gaussian_blur_prob', **TRANSFORM_FLAGS,
    )  # fmt: skip


def train_loader_kwargs(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``create_train_loader``; ``data_config`` is from ``timm.data.resolve_data_config``."""
    picked = _pick(
        args, 'seed', 'batch_size', 'no_aug', 'worker_seeding', re_split='resplit', num_aug_repeats='aug_repeats',
        num_aug_splits='aug_splits',
    )  # fmt: skip
    lives_on = args.use_multi_epochs_loader or args.persistent_workers
    stops_mixing = mixes(args) and args.mixup_off_epoch  # workers that live on would mix on
    return {
        **_loader_kwargs(args, data_config),
        **transform_kwargs(args),
        **_size_kwargs(args),
        **picked,
        'mixup': None if args.no_prefetcher else mixup_kwargs(args),
        'interpolation': (not args.no_aug and args.train_interpolation) or data_config['interpolation'],
        # By default workers start anew in every epoch, as a resumed run does.
        'persistent_workers': lives_on and args.workers > 0 and not stops_mixing,
    }


def _size_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Those of them that say which image size a batch has, where there are several."""
    if not args.train_img_sizes:
        return {}
    return _pick(
        args, input_size_choices='train_img_sizes', batch_choice_weights='train_size_probs',
        batch_choice_schedule='train_size_schedule', batch_schedule_epochs='epochs',
        batch_schedule_spread='train_size_schedule_spread', batch_schedule_random_mix='train_size_random_mix',
    )  # fmt: skip


def eval_loader_kwargs(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``create_eval_loader``, as in ``train_loader_kwargs``."""
    return {
        **_loader_kwargs(args, data_config),
        'batch_size': args.validation_batch_size or args.batch_size,
        'interpolation': data_config['interpolation'],
        'crop_pct': data_config['crop_pct'],
        'persistent_workers': False,
    }


def amp_precision(args: argparse.Namespace) -> str:
    """Return the precision of ``--amp`` and ``--amp-dtype`` by Accelerate's name."""
    return {'float16': 'fp16', 'bfloat16': 'bf16'}[args.amp_dtype] if args.amp else 'no'


def accelerator_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``create_accelerator``."""
    return {
        **_pick(args, 'device', 'seed', 'fuser', 'fast_norm', sync_batch_norm='sync_bn'),
        'precision': amp_precision(args),
        'trackers': [name for name in (*args.log_with.split(','), 'wandb' if args.log_wandb else '') if name],
        'broadcast_buffers': not args.no_ddp_bb,
    }


def batches_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``Batches``."""
    return {
        **_pick(args, 'seed', 'mixup_off_epoch', 'channels_last'),
        'mixup': mixup_kwargs(args) if args.no_prefetcher else None,
        'dtype': torch_dtype(args.model_dtype),
    }


def suites_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``SuitesHook``."""
    return {
        **_pick(args, 'workers', interval='eval_suites_interval'),
        'batch_size': args.validation_batch_size or args.batch_size,
        'use_ema': not args.model_ema_force_cpu,
        'seen': SEEN_STYLES if args.dad_teacher == 'demo' else (),
    }


def checkpoint_kwargs(args: argparse.Namespace, metric: str, num_processes: int, num_batches: int) -> dict[str, Any]:
    """Return the arguments of ``Checkpoints``."""
    return {
        **_pick(args, 'recovery_interval', 'save_epochs', history='checkpoint_hist', accum_steps='grad_accum_steps'),
        'decreasing': metric == 'loss',
        'images_per_batch': args.batch_size * num_processes,
        'num_batches': num_batches,
    }


def schedule_kwargs(args: argparse.Namespace, metric: str, updates_per_epoch: int) -> dict[str, Any]:
    """Return the arguments of ``create_schedule``."""
    return {
        **scheduler_kwargs(args, decreasing_metric=metric == 'loss'),
        **_pick(args, 'stop_epoch'),
        'updates_per_epoch': updates_per_epoch,
    }


def resume_kwargs(args: argparse.Namespace, num_processes: int) -> dict[str, Any]:
    """Return the arguments of ``resume_training``."""
    return {
        **_pick(args, 'start_epoch', accum_steps='grad_accum_steps'),
        'images_per_batch': args.batch_size * num_processes,
        'keep_optimizer': not args.no_resume_opt,
    }
