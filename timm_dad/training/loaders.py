"""timm's data loaders, as its ``train.py`` builds them, sharded over processes by Accelerate."""

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader
from torch.utils.data import IterableDataset

from timm_dad.data.datasets import collate_views
from timm_dad.flags.pairs import uses_pairs


def mixes(args: argparse.Namespace) -> bool:
    """Whether images are mixed."""
    return bool(args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None)


def _mixup_config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        'mixup_alpha': args.mixup,
        'cutmix_alpha': args.cutmix,
        'cutmix_minmax': args.cutmix_minmax,
        'prob': args.mixup_prob,
        'switch_prob': args.mixup_switch_prob,
        'mode': args.mixup_mode,
        'label_smoothing': args.smoothing,
        'num_classes': args.num_classes,
    }


class PairMixup(Mixup):  # type: ignore[misc]
    """Mixup / CutMix of a batch of two views: both views of an image get one partner, weight and box.

    Clean images are mixed with clean ones and second views with second ones.
    """

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix ``[2B, 3, H, W]`` and ``[2B]`` to ``[2B, 3, H, W]`` and soft targets ``[2B, K]``."""
        # As channels of one image, what happens to one view happens to the other.
        mixed, soft = super().__call__(torch.cat(input.chunk(2), dim=1), target[: len(target) // 2])
        return torch.cat(mixed.chunk(2, dim=1)), torch.cat([soft, soft])


class PairCollateMixup(FastCollateMixup):  # type: ignore[misc]
    """``PairMixup`` while collating, for loaders with timm's prefetcher."""

    def __call__(self, batch: Any, _: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix pairs of two views ``[3, H, W]`` uint8 and a class index to ``[2B, 3, H, W]`` and ``[2B, K]``."""
        stacked = [(torch.cat([torch.as_tensor(view) for view in views]), target) for views, target in batch]
        mixed, soft = super().__call__(stacked)
        return torch.cat(mixed.chunk(2, dim=1)), torch.cat([soft, soft])


def create_mixup(args: argparse.Namespace) -> Mixup | None:
    """Create Mixup / CutMix for batches, where the loader does not mix.

    Args:
        args: Flags.

    Returns:
        timm's ``Mixup``, or one for two views.
    """
    if not mixes(args) or not args.no_prefetcher:
        return None
    return (PairMixup if uses_pairs(args) else Mixup)(**_mixup_config(args))


def stop_mixup(loader: Any, mixup_fn: Mixup | None) -> None:
    """No mixing from here on, whoever does it."""
    if mixup_fn is not None:
        mixup_fn.mixup_enabled = False
    elif hasattr(loader, 'mixup_enabled'):
        loader.mixup_enabled = False


def create_collate(args: argparse.Namespace) -> Any:
    """What collates training images where timm's default does not: with mixing, and views without its prefetcher."""
    if args.no_prefetcher:
        return collate_views if args.aug_splits or uses_pairs(args) else None
    if not mixes(args):
        return None
    return (PairCollateMixup if uses_pairs(args) else FastCollateMixup)(**_mixup_config(args))


def create_train_loader(args: argparse.Namespace, accelerator: Accelerator, dataset: Any, data_config: Any) -> Any:
    """Create timm's training loader.

    Args:
        args: Flags.
        accelerator: Processes and device.
        dataset: Training data, of ``pair_dataset`` where flags ask for pairs; its ``transform`` is set.
        data_config: Size and normalization, of ``timm.data.resolve_data_config``.

    Returns:
        The loader. With several processes each has the batches of its own; together they are the batches that one
        process with as many times the batch size has.

    Raises:
        ValueError: If the data cannot give one batch, or repeated augmentation is asked of one process.
    """
    streams = isinstance(dataset, IterableDataset)
    if args.aug_repeats and (streams or accelerator.num_processes == 1):
        raise ValueError(f'--aug-repeats needs several processes and data with an index, got {args.aug_repeats}')
    if args.aug_splits and streams:
        raise ValueError('--aug-splits needs data with an index, not a stream')
    by_timm = streams or bool(args.aug_repeats)
    if args.aug_splits and not uses_pairs(args):
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    loader = create_loader(
        dataset,
        input_size=data_config['input_size'],
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits,
        interpolation=data_config['interpolation'] if args.no_aug else args.train_interpolation,
        collate_fn=create_collate(args),
        worker_seeding=args.worker_seeding,
        # By default workers start anew, seeded, in every epoch: a resumed run equals an undisturbed one.
        persistent_workers=args.use_multi_epochs_loader and args.workers > 0,
        distributed=by_timm and accelerator.num_processes > 1,
        **_common(args, accelerator, data_config),
    )
    if not by_timm:
        loader = _shard(accelerator, loader)
    if not len(loader):
        images = len(dataset) // accelerator.num_processes
        raise ValueError(f'--batch-size must be at most the {images} training images, got {args.batch_size}')
    return loader


def create_eval_loader(
    args: argparse.Namespace, accelerator: Accelerator, dataset: Any, data_config: Any, distributed: bool = True
) -> Any:
    """Create timm's evaluation loader."""
    return create_loader(
        dataset,
        input_size=data_config['input_size'],
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        persistent_workers=False,
        distributed=distributed and accelerator.num_processes > 1,
        **_common(args, accelerator, data_config),
    )


def _common(args: argparse.Namespace, accelerator: Accelerator, data_config: Any) -> dict[str, Any]:
    from timm_dad.flags.timm import torch_dtype

    return {
        'mean': data_config['mean'],
        'std': data_config['std'],
        'num_workers': args.workers,
        'pin_memory': args.pin_mem,
        'img_dtype': torch_dtype(args.model_dtype),
        'device': accelerator.device,
        'use_prefetcher': not args.no_prefetcher,
    }


def _shard(accelerator: Accelerator, loader: Any) -> Any:
    """Let Accelerate order and shard the loader, inside timm's prefetcher if there is one.

    NOTE: timm's train.py takes torch's DistributedSampler, whose order is another one than that of one process.
    """
    if hasattr(loader, 'loader'):
        loader.loader = accelerator.prepare_data_loader(loader.loader, device_placement=False)
        return loader
    return accelerator.prepare_data_loader(loader, device_placement=False)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell whatever orders the data which epoch it is."""
    inner = getattr(loader, 'loader', loader)
    parts: list[Any] = [loader.dataset, inner, getattr(inner, 'sampler', None)]
    for part in parts:
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
