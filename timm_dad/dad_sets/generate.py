"""Make the DAD views of a data set once (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

Views are made shard by shard, each shard in its own batches and each view with its own seed, so the content of a shard
depends neither on the processes that share the work nor on interruptions.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from timm_dad.common.progress import progress as progress_bar
from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.maker import GenerateConfig, ShardMaker
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.store_folder import as_root, check_place, open_folder
from timm_dad.dad_sets.summary import finish
from timm_dad.dad_sets.verify import clear_damage
from timm_dad.data.ahead import read_ahead
from timm_dad.data.images import FramedImages, LoadedImage, Source
from timm_dad.data.pictures import NOTHING_READ
from timm_dad.method.augment import DADAugment

_logger = logging.getLogger(__name__)


def generate(
    source: Source,
    augment: DADAugment,
    root: str | Path,
    config: GenerateConfig,
    settings: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    progress: bool = True,
    one_thread: bool = True,
    repair: bool = False,
    answers: bool = True,
    claims: Callable[[Any], Claims] | None = None,
) -> dict[str, Any] | None:
    """Make or continue a DAD set; return when it is finished, or when this process's part of it is.

    Args:
        source: The data set.
        augment: Makes the views; its models are on ``device``.
        root: The folder, empty or with a set of the same settings; or a URL in an object store.
        config: Settings of the generation.
        settings: Everything else that affects the files (data, teacher, VQGAN, attack); stored in the set and compared.
        device: Where the models are; the CPU by default.
        rank: Number of this process among ``world_size``, which decides where it starts.
        world_size: Number of processes started together. Others may come and go.
        workers: Number of processes that load images.
        progress: Whether to show a progress bar.
        one_thread: Whether to compute with one thread on a CPU, so that the files do not depend on the number of
            threads.
        repair: Whether to look first for missing or altered items of a set, and make exactly those again.
        answers: Whether stored answers that ``repair`` finds damaged will be made again (by ``reinforce``).
        claims: Creates the claims on shards for the folder or URL; native locks or leases by default.

    Returns:
        The summary: ``images``, ``views``, ``teacher_kept``, ``l2``, ``codebook_used``, ``bytes_per_view`` and
        ``kept_by_class``; ``None`` if the rest is left to other processes (``Part``, ``Shards``).

    Raises:
        ValueError: If the folder has other settings, an image cannot be read, or the disk or a GPU's memory is full.
    """
    device = device or torch.device('cpu')
    maker = ShardMaker(source, augment, config, device)
    try:
        with computing(root, device, one_thread=one_thread):
            place, all_settings = as_root(root), {**settings, **config.settings}
            if repair:
                clear_damage(place, all_settings, progress, answers=answers)
            check_place(place, all_settings)  # before anything is written into it
            with open_folder(place, all_settings, len(source), config.shard_size, claims) as folder:
                done = folder.images_done()
                with progress_bar(total=len(source), initial=done, unit='img', show=progress, desc='DAD views') as bar:
                    while pending := folder.pending():
                        start = len(pending) * rank // world_size  # processes begin at different places
                        with folder.until_whole():
                            _make_shards(folder, maker, pending[start:] + pending[:start], workers, bar)
                    bar.update(folder.images_done() - bar.n)
                if maker.clock.total:
                    waited, total = maker.clock.waited, maker.clock.total
                    _logger.info('The networks waited %.1f %% of %.0f s for images and the disk', 100 * waited, total)
                return None if folder.missing() else finish(folder, source, config.frame, augment)
    finally:
        maker.close()


@contextmanager
def computing(root: str | Path, device: torch.device, *, one_thread: bool = True) -> Iterator[None]:
    """Compute a folder's content, with one thread on a CPU; a full disk or GPU raises ``ValueError`` with the fix."""
    threads = torch.get_num_threads()
    if one_thread and device.type == 'cpu':
        torch.set_num_threads(1)  # sums over threads round otherwise than those of one: more processes are faster, too
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            'the GPU does not have enough memory for so many images at once: give --dad-micro-batch (or a smaller '
            '--batch-size) and another folder, because this changes the last bits of a set'
        ) from error
    except OSError as error:
        raise ValueError(
            f'{root} cannot be written ({error.strerror or error}): provide the space or permission and start the '
            'same command again to continue; files get their final names only when complete'
        ) from error
    finally:
        torch.set_num_threads(threads)


def _make_shards(folder: ShardedFolder, maker: ShardMaker, shards: Sequence[int], workers: int, bar: Any) -> None:
    """Go through the data set once and make the shards that no other process is making."""
    if not any(folder.claim(shard) for shard in shards):
        time.sleep(folder.claims.pause)  # others are at the rest, or gone: then their shards come free
        return
    images, config, looked = FramedImages(maker.source, maker.config.frame), maker.config, time.monotonic()
    claimed = map(maker.stack, _claimed_images(folder, images, shards, config.batch_size, workers))
    with maker.clock.working(), closing(read_ahead(claimed)) as batches:
        try:
            for batch, pixels in batches:
                maker.add(batch, pixels)
                bar.update(len(batch))
                shard = batch[0].index // config.shard_size
                if len(maker.images) == len(folder.shard_range(shard)):
                    maker.write(folder, shard)
                    if time.monotonic() - looked > 2:  # at what others have done
                        looked = time.monotonic()
                        bar.update(max(0, folder.images_done() - bar.n))
        finally:
            maker.settle()


def _claimed_images(
    folder: ShardedFolder, images: FramedImages, shards: Sequence[int], batch_size: int, workers: int
) -> Iterator[list[LoadedImage]]:
    """Claim shards as they become free, in this order (for a stream, its own), and load them in one-shard batches."""
    if images.dataset.streams:
        return _claimed_stream(folder, images, batch_size)
    loader = DataLoader(
        images,
        batch_sampler=_claimed_batches(folder, shards, batch_size),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=1 if workers else None,  # what is loaded ahead is claimed, and no other process makes it
    )
    # This call starts the processes, and not whoever reads ahead: those that another thread starts end with 1.
    return map(_loaded, iter(loader))


def _loaded(batch: list[Any]) -> list[LoadedImage]:
    """Return a batch of images, or raise the error of one of them."""
    for image in batch:
        if isinstance(image, ValueError):
            raise image
    return batch


def _claimed_batches(folder: ShardedFolder, shards: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of claimed shards, batch by batch."""
    for shard in shards:
        if folder.claim(shard):
            indices = list(folder.shard_range(shard))
            yield from (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))


def _claimed_stream(folder: ShardedFolder, images: FramedImages, batch_size: int) -> Iterator[list[LoadedImage]]:
    """Yield batches of claimed shards of a stream: every process reads all of it and keeps what it claims."""
    batch, claimed, index = list[LoadedImage](), False, -1
    for index, (picture, label) in enumerate(_read_stream(images.dataset.dataset)):
        if index >= folder.num_images:
            break
        image = Source.of_pixels(picture, label)
        shard = index // folder.shard_size
        if index == folder.shard_range(shard).start:
            folder.check_first(shard, image.sha256)
            claimed = folder.claim(shard)
        if claimed:
            if len(batch) == batch_size or (batch and index == folder.shard_range(shard).start):
                yield batch
                batch = []
            batch.append(images.load(index, *image))
    if index < 0:
        raise ValueError(NOTHING_READ)
    if index + 1 != folder.num_images:  # before the last shard is made
        more = 'more' if index >= folder.num_images else f'{index + 1} that decode'
        raise ValueError(
            f'the stream must contain the {folder.num_images} images it announces, but it has {more}: fix it, or its '
            '_info.json or --train-num-samples, and choose an empty folder'
        )
    if batch:
        yield batch


def _read_stream(stream: Iterable[Any]) -> Iterator[Any]:
    """Yield the images of a stream, so that a read error is reported for the data, not for the output folder."""
    try:
        yield from stream
    except OSError as error:
        raise ValueError(f'the data set cannot be read: {error}') from error
