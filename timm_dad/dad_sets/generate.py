"""Make the DAD views of a data set once (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

Views are made shard by shard, a shard in batches of its own and each view under a seed of its own: what a shard holds
depends neither on the processes that share the work nor on how often they were stopped.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from timm_dad.dad_sets.claims import claimed_images
from timm_dad.dad_sets.maker import GenerateConfig, ShardMaker
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.summary import finish
from timm_dad.data.images import FramedImages, Source
from timm_dad.method.augment import DADAugment


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
) -> dict[str, Any]:
    """Make a DAD set, or go on with one; returns when it is whole, whoever made the last shard.

    Args:
        source: The data set.
        augment: Makes the views; its models are frozen and on ``device``.
        root: The folder, empty or of the same settings.
        config: How.
        settings: What else decides the bytes of the set (data, teacher, VQGAN, attack); kept in it and compared.
        device: Where the models are; the CPU by default.
        rank: Which of ``world_size`` processes this is: where it begins.
        world_size: Processes that were started together. Others may come and go.
        workers: Processes that load images.
        progress: Show a progress bar.

    Returns:
        The summary: ``images``, ``views``, ``teacher_kept``, ``l2``, ``codebook_used``, ``bytes_per_view``, and
        ``kept_by_class``.

    Raises:
        ValueError: If the folder is of other settings, an image cannot be read, or the disk or a GPU's memory is full.
    """
    settings = {**settings, **config.settings}
    device = device or torch.device('cpu')
    maker = ShardMaker(source, augment, config, device)
    threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)  # sums over threads round otherwise than those of one: more processes are faster, too
    try:
        folder = ShardedFolder(Path(root), settings, len(source), config.shard_size)
        try:
            done = folder.images_done()
            with tqdm(total=len(source), initial=done, unit='img', disable=not progress, desc='DAD views') as bar:
                while pending := folder.pending():
                    start = len(pending) * rank // world_size  # processes begin at different places
                    _make_shards(folder, maker, pending[start:] + pending[:start], workers, bar)
                bar.update(len(source) - bar.n)
            return finish(folder, source, config.frame, augment)
        finally:
            folder.release()
    except torch.OutOfMemoryError as error:
        raise ValueError(
            'the memory of the GPU does not hold so many images at once: give --dad-micro-batch (or a smaller '
            '--batch-size), and another folder, for sets differ by it in the last bits'
        ) from error
    except NotImplementedError as error:  # of filelock
        raise ValueError(f'{root} is on a file system without locks (flock): name a folder on another one') from error
    except OSError as error:
        raise ValueError(
            f'{root} cannot be written ({error.strerror or error}): free the room or the right it needs and start the '
            'same command again, it goes on; nothing half-written has a final name'
        ) from error
    finally:
        torch.set_num_threads(threads)


def _make_shards(
    folder: ShardedFolder, maker: ShardMaker, shards: Sequence[int], workers: int, bar: 'tqdm[NoReturn]'
) -> None:
    """Go through the data set once and make the shards that no other process is at."""
    if not any(folder.claim(shard) for shard in shards):
        time.sleep(0.1)  # others are at the rest, or gone: then their shards come free
        return
    images, config, looked = FramedImages(maker.source, maker.config.frame), maker.config, time.monotonic()
    for batch in claimed_images(folder, images, shards, config.batch_size, workers):
        maker.add(batch)
        bar.update(len(batch))
        shard = batch[0].index // config.shard_size
        if len(maker.items) == len(folder.shard_range(shard)):
            maker.write(folder, shard)
            if time.monotonic() - looked > 2:  # at what others have done
                looked = time.monotonic()
                bar.update(folder.images_done() - bar.n)
