"""The images of the shards that a process claims while it goes through a data set."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.data.images import FramedImages, LoadedImage, Source


def _claimed_batches(folder: ShardedFolder, shards: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of claimed shards, batch by batch."""
    for shard in shards:
        if folder.claim(shard):
            indices = list(folder.shard_range(shard))
            yield from (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))


def _claimed_stream(folder: ShardedFolder, images: FramedImages, batch_size: int) -> Iterator[list[LoadedImage]]:
    """Batches of claimed shards of a stream: every process reads all of it and takes what it claims."""
    batch, claimed, index = list[LoadedImage](), False, -1
    for index, (picture, label) in enumerate(images.source.dataset):
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
            batch.append(images.load(index, image))
    if index + 1 != folder.num_images:  # before the last shard is made
        more = 'more' if index >= folder.num_images else f'{index + 1} that decode'
        raise ValueError(
            f'the stream must hold the {folder.num_images} images that it announces, it has {more}: mend it, or its '
            '_info.json or --train-num-samples, and name an empty folder'
        )
    if batch:
        yield batch


def claimed_images(
    folder: ShardedFolder, images: FramedImages, shards: Sequence[int], batch_size: int, workers: int
) -> Iterator[list[LoadedImage]]:
    """Claim shards, as they come free, and load their images.

    Args:
        folder: Where shards are claimed.
        images: The data set.
        shards: Shards that are not done, in the order to try them in; a stream comes in its own.
        batch_size: Images a batch; no batch has images of two shards.
        workers: Processes that load; none for a stream.

    Yields:
        Batches, shard by shard.

    Raises:
        ValueError: If an image does not decode, or a stream is not as long as it says.
    """
    if images.source.streams:
        yield from _reading(_claimed_stream(folder, images, batch_size))
        return
    loader = DataLoader(
        images,
        batch_sampler=_claimed_batches(folder, shards, batch_size),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=1 if workers else None,  # what is loaded ahead is claimed, and no other process makes it
    )
    for batch in _reading(iter(loader)):
        for image in batch:
            if isinstance(image, ValueError):
                raise image
        yield batch


def _reading(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; an error of the system while they are read is one of the data, not of the folder."""
    try:
        yield from batches
    except OSError as error:
        raise ValueError(f'the data set cannot be read: {error}') from error
