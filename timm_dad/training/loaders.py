"""timm's data loaders, built as in its ``train.py`` and sharded over processes by Accelerate."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader
from timm.data.mixup import mixup_target
from torch.utils.data import IterableDataset, default_collate

from timm_dad.dad_sets.logits import mix_targets
from timm_dad.data.datasets import collate_views
from timm_dad.data.pairs import PairTransform, pair_views
from timm_dad.data.seeded import OfProcess, Positions, SeededErasing, SeededSamples, Shuffled
from timm_dad.flags.rules import check_rules

Settings = Mapping[str, Any]


class PairMixup(Mixup):  # type: ignore[misc]
    """Mixup / CutMix of a batch of two views: both views of an image get the same partner, weight and box.

    Clean images are mixed with clean ones and extra views with extra ones; with ``base_alone`` the latter are not
    mixed.
    """

    base_alone = coded = False

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix ``[2B, 3, H, W]`` and labels ``[2B]`` or ``[2B, K]`` to images and soft targets ``[2B, K]``."""
        (clean, extra), label = input.chunk(2), target[: len(target) // 2]
        given = mixable(self, label)
        if self.base_alone:
            mixed, soft = super().__call__(clean, given)
            return torch.cat([mixed, extra]), torch.cat([as_targets(self, soft, label), unmixed(self, label)])
        # As channels of one image, what happens to one view happens to the other.
        mixed, soft = super().__call__(torch.cat([clean, extra], dim=1), given)
        soft = as_targets(self, soft, label)
        return torch.cat(mixed.chunk(2, dim=1)), torch.cat([soft, soft])


class PairCollateMixup(FastCollateMixup):  # type: ignore[misc]
    """``PairMixup`` while collating, for loaders with timm's prefetcher."""

    base_alone = coded = False

    def __call__(self, batch: Any, _: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix pairs of two views ``[3, H, W]`` uint8 and a label to ``[2B, 3, H, W]`` and ``[2B, K]``."""
        views = [[torch.as_tensor(view) for view in own] for own, _ in batch]
        label = default_collate([target for _, target in batch])
        given = mixable(self, label)
        if self.base_alone:
            mixed, soft = super().__call__([(clean, target) for (clean, _), target in zip(views, given, strict=True)])
            extra = torch.stack([view for _, view in views])
            return torch.cat([mixed, extra]), torch.cat([as_targets(self, soft, label), unmixed(self, label)])
        mixed, soft = super().__call__([(torch.cat(own), target) for own, target in zip(views, given, strict=True)])
        soft = as_targets(self, soft, label)
        return torch.cat(mixed.chunk(2, dim=1)), torch.cat([soft, soft])


def mixable(mixup: Any, label: torch.Tensor) -> torch.Tensor:
    """Return what timm mixes as class indices ``[B]``: labels or, for coded targets, their places in the batch."""
    if not mixup.coded:
        return label
    mixup.num_classes, mixup.label_smoothing = len(label), 0.0
    return torch.arange(len(label), device=label.device)


def as_targets(mixup: Any, soft: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the targets of mixed images, from what timm made of ``mixable``."""
    return mix_targets(soft, label) if mixup.coded else soft


def unmixed(mixup: Any, label: torch.Tensor) -> torch.Tensor:
    """Return targets of unmixed images in the format of mixed ones: soft targets ``[B, K]`` for labels."""
    if mixup.coded:
        return mix_targets(torch.eye(len(label), device=label.device), label)
    several = {'multi_label': True} if getattr(mixup, 'multi_label', False) else {}  # timm before 1.0.31 has no such
    soft: torch.Tensor = mixup_target(label, mixup.num_classes, 1.0, mixup.label_smoothing, **several)
    return soft


def create_mixup(mixup: Settings | None, pairs: PairTransform | None) -> Mixup | None:
    """Create the object that mixes batches, if the loader does not.

    Args:
        mixup: Arguments of timm's ``Mixup``; ``None`` for no mixing.
        pairs: How pairs of views are augmented, if batches contain them.
    """
    return _create(Mixup, PairMixup, mixup, pairs)


def create_collate(mixup: Settings | None, pairs: PairTransform | None, *, views: bool, prefetcher: bool) -> Any:
    """Create the collate function if timm's default does not suffice: for mixing, or several views of an image.

    Args:
        mixup: Arguments of timm's ``Mixup``; ``None`` for no mixing.
        pairs: How pairs of views are augmented, if samples are pairs.
        views: Whether samples consist of several views, such as pairs.
        prefetcher: Whether timm's prefetcher takes the batches; without it, mixing comes after collating.
    """
    if not prefetcher:
        return collate_views if views else None
    return _create(FastCollateMixup, PairCollateMixup, mixup, pairs)


def _create(one: Any, two: Any, mixup: Settings | None, pairs: PairTransform | None) -> Any:
    if mixup is None or (pairs is not None and pairs.mixed):
        return None
    if pairs is None:
        return one(**mixup)
    mixing = two(**mixup)
    mixing.base_alone, mixing.coded = pairs.base_alone, pairs.coded
    return mixing


def create_train_loader(
    dataset: Any,
    accelerator: Accelerator,
    *,
    seed: int,
    mixup: Settings | None = None,
    num_aug_repeats: float = 0,
    num_aug_splits: int = 0,
    use_prefetcher: bool = True,
    **settings: Any,
) -> Any:
    """Create timm's training loader, with samples seeded by (seed, epoch, index).

    Args:
        dataset: Training data, from ``pair_dataset`` if batches are to contain pairs; its ``transform`` is set.
        accelerator: Processes and device.
        seed: Seed of the run.
        mixup: Arguments of timm's ``Mixup``, which mixes in the loader; ``None`` for no mixing there.
        num_aug_repeats: Number of copies of each sample in an epoch (several processes only).
        num_aug_splits: Number of augmentation splits of each sample.
        use_prefetcher: Whether to normalize and erase on the device.
        **settings: Passed on to timm's ``create_loader``.

    Returns:
        The loader. Each of several processes gets its own batches; together they equal the batches of one process
        with as many times the batch size.

    Raises:
        ValueError: If the data has less than one batch, or an argument does not fit the data or the number of
            processes.
    """
    streams = isinstance(dataset, IterableDataset)
    pairs = pair_views(dataset)
    sizes = 'input_size_choices' in settings
    _check_settings(dataset, accelerator, sizes=sizes, repeats=num_aug_repeats, splits=num_aug_splits, **settings)
    if sizes:
        num_batches = len(dataset) // (settings['batch_size'] * accelerator.num_processes)
        settings.update(num_batches=num_batches, batch_choice_seed=seed)
    by_timm = streams or bool(num_aug_repeats)
    if num_aug_splits and pairs is None:
        dataset = AugMixDataset(dataset, num_splits=num_aug_splits)
    if not streams:
        dataset = SeededSamples(dataset, seed)
    views = bool(num_aug_splits) or pairs is not None
    loader = create_loader(
        dataset,
        is_training=True,
        num_aug_repeats=num_aug_repeats,
        num_aug_splits=num_aug_splits,
        use_prefetcher=use_prefetcher,
        collate_fn=create_collate(mixup, pairs, views=views, prefetcher=use_prefetcher),
        distributed=by_timm and accelerator.num_processes > 1,
        device=accelerator.device,
        **settings,
    )
    processes = (accelerator.process_index, accelerator.num_processes)
    if num_aug_repeats:
        batches = unwrapped(loader).batch_sampler
        batches.sampler = Positions(batches.sampler, *processes)
    if getattr(loader, 'random_erasing', None) is not None:
        num_views = (num_aug_splits or 1) + (pairs is not None)
        spared = int(pairs is not None and pairs.base_alone)
        loader.random_erasing = SeededErasing(loader.random_erasing, seed, num_views, *processes, spared=spared)
    if not by_timm:
        order = Shuffled(len(dataset), seed)
        sampler = OfProcess(order, settings['batch_size'], *processes) if sizes else order
        unwrapped(loader).batch_sampler.sampler = sampler
    if not by_timm and not sizes:
        loader = _shard(accelerator, loader)
    if not len(loader):
        raise ValueError(_too_few(dataset, accelerator, settings['batch_size']))
    return loader


def _too_few(dataset: Any, accelerator: Accelerator, batch_size: int) -> str:
    images = len(dataset) // accelerator.num_processes
    return f'--batch-size must be at most the {images} training images, got {batch_size}'


def _check_settings(
    dataset: Any,
    accelerator: Accelerator,
    *,
    sizes: bool,
    repeats: float,
    splits: int,
    batch_size: int,
    **settings: Any,
) -> None:
    streams, num_processes = isinstance(dataset, IterableDataset), accelerator.num_processes
    check_rules((
        (not repeats or (not streams and num_processes > 1),
         f'--aug-repeats needs several processes and data with an index, got {repeats}'),
        (not (splits and streams), '--aug-splits needs data with an index, not a stream'),
        (not (sizes and streams), '--train-img-sizes needs data with an index, not a stream'),
        (settings.get('worker_seeding', 'all') == 'all' or streams,
         '--worker-seeding part is for streams: samples with an index are seeded one by one, whichever worker loads '
         'them; leave it out'),
        (not sizes or len(dataset) >= batch_size * num_processes, _too_few(dataset, accelerator, batch_size)),
    ))  # fmt: skip


def create_eval_loader(dataset: Any, accelerator: Accelerator, **settings: Any) -> Any:
    """Create timm's evaluation loader; each process gets every ``num_processes``-th image. ``None`` without data."""
    if dataset is None:
        return None
    return create_loader(dataset, distributed=accelerator.num_processes > 1, device=accelerator.device, **settings)


def unwrapped(loader: Any) -> Any:
    """Return the loader inside timm's prefetcher, or the loader itself."""
    return getattr(loader, 'loader', loader)


def _shard(accelerator: Accelerator, loader: Any) -> Any:
    """Let Accelerate order and shard the loader, inside timm's prefetcher if there is one.

    NOTE: timm's train.py uses torch's DistributedSampler, whose order differs from that of one process.
    """
    if hasattr(loader, 'loader'):
        loader.loader = accelerator.prepare_data_loader(loader.loader, device_placement=False)
        return loader
    return accelerator.prepare_data_loader(loader, device_placement=False)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the object that orders the data which epoch it is."""
    inner = unwrapped(loader)
    parts: list[Any] = [loader.dataset, inner, getattr(inner, 'sampler', None), inner.batch_sampler]
    for part in parts:
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
