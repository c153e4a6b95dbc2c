"""Reinforced DAD sets: stored teacher answers on augmented images and DAD views, to train without a teacher.

For each image, ``N`` augmentations are drawn once; training draws one of them and replays exactly that.

Source: Faghri et al. 2023, arXiv:2303.08983 (dataset reinforcement), for the idea.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_dad.common.files import write_file
from timm_dad.common.options import check_types, option
from timm_dad.common.pixels import PixelNorm
from timm_dad.common.progress import progress as progress_bar
from timm_dad.dad_sets.augmented import ReinforcedViews, ReplayedPairs
from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.formats import logits_path, place_of
from timm_dad.dad_sets.generate import computing
from timm_dad.dad_sets.logits import StoredLogits, add_logits, kept_share
from timm_dad.dad_sets.manifest import FORMAT_VERSION, REINFORCED, SETTINGS, ShardManifest
from timm_dad.dad_sets.mixtures import Mixtures
from timm_dad.dad_sets.read import DADSet, SetFolder
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.store_folder import as_root, open_folder
from timm_dad.dad_sets.summary import begin_index, end_index
from timm_dad.data.images import Source
from timm_dad.data.pairs import PairTransform

_logger = logging.getLogger(__name__)
_LITTLE = 0.9  # of an answer


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """How a set is reinforced.

    Args:
        transform: Arguments of timm's ``create_transform``: the augmentation of the images, with ``input_size``,
            ``mean`` and ``std`` of the student.
        same_draws: As in ``PairTransform``.
        base_alone: As in ``PairTransform``.
        mixup: As in ``Mixtures``; ``None`` to ask about single images, which a training may mix.

    Raises:
        ValueError: If a number is out of range.
    """

    transform: Mapping[str, Any]
    same_draws: bool = False
    base_alone: bool = False
    mixup: Mapping[str, Any] | None = None
    repeats: int = option(0, "store the teacher's answers on N augmentations of every image and view", metavar='N')
    top_k: int = option(10, 'number of top classes to keep in each answer', metavar='K')
    temperature: float = 4.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        for name in ('repeats', 'top_k', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be 1 or more, got {getattr(self, name)}')

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that affect the answers, and that a training must share."""
        return {
            'transform': dict(self.transform),
            'pairs': {'same_draws': self.same_draws, 'base_alone': self.base_alone},
            'repeats': self.repeats,
            'logits': {'top_k': self.top_k, 'temperature': self.temperature},
            'seed': self.seed,
            'batch_size': self.batch_size,
            **({} if self.mixup is None else {'mixup': dict(self.mixup)}),  # sets without one stay as they were
        }


def is_reinforced(root: str | Path) -> bool:
    """Return whether a DAD set has answers on augmentations, complete or not."""
    return (Path(root) / REINFORCED / SETTINGS).is_file()


class Reinforcement(SetFolder):
    """The answers of a reinforced set; ``ValueError`` if they are incomplete or belong to another set."""

    def __init__(self, dad_set: DADSet) -> None:
        root = dad_set.root / REINFORCED
        super().__init__(root)
        if self.settings['set'] != dad_set.index['settings']:
            raise ValueError(f'{root} belongs to another set: remove it, and start timm-dad generate --reinforce again')
        self.num_classes: int = dad_set.settings['data']['num_classes']
        self.repeats: int = self.settings['repeats']
        self.seed: int = self.settings['seed']
        self.mixtures: Mixtures | None = None
        if 'mixup' in self.settings:
            alone = self.settings['pairs']['base_alone']
            self.mixtures = Mixtures(self.settings['mixup'], self.seed, dad_set.num_images, alone)

    def stored_logits(self, smoothing: float = 0.0) -> StoredLogits:
        """Return the answers, for ``DADTask(stored=)``."""
        temperature = self.settings['logits']['temperature']
        mixed = self.mixtures is not None
        return StoredLogits(self, self.repeats, self.num_classes, temperature, smoothing, mixed)


class _Augmented(Dataset[tuple[Any, ...]]):
    """Index, image and view, augmented and normalized, by index and number of the augmentation.

    For mixtures, also the label of the partner, and the share of the image itself in each of the two.
    """

    def __init__(self, source: Source, views: ReinforcedViews, config: ReinforceConfig) -> None:
        frame = views.dad_set.frame().transform() if config.same_draws else None
        transform = PairTransform(frame=frame, same_draws=config.same_draws, base_alone=config.base_alone)
        transform.transform = create_transform(**config.transform, is_training=True, use_prefetcher=False)
        mixtures = config.mixup and Mixtures(config.mixup, config.seed, len(source), config.base_alone)
        self.pairs = ReplayedPairs(source, views, transform, mixtures or None)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, ...]:
        own, _ = self.pairs.augmented(*place)
        if self.pairs.mixtures is None:
            return place[0], *own
        mixed, partner, share = self.pairs.mixed(*place, own)
        return place[0], *mixed, partner, share, 1.0 if self.pairs.views.base_alone else share


def reinforce(
    source: Source,
    dad_set: DADSet,
    ask_teacher: Callable[[Tensor], Tensor],
    config: ReinforceConfig,
    *,
    device: torch.device | None = None,
    workers: int = 0,
    progress: bool = True,
    claims: Callable[[Any], Claims] | None = None,
    place: Path | str | None = None,
) -> Reinforcement | None:
    """Store the teacher's answers on augmentations of a set, or continue; return as ``generate`` does.

    Any number of processes may share the work and be stopped at any time.

    Args:
        source: The data set that the DAD set was made from; not a stream.
        dad_set: The set; if it contains codes, it needs its ``decoder``.
        ask_teacher: Returns logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1].
        config: Settings of the reinforcement.
        device: Where the teacher is; the CPU by default.
        workers: Number of processes that load and augment.
        progress: Whether to show a progress bar.
        claims: As in ``generate``.
        place: The original place of the set, if it was fetched from a URL.

    Returns:
        The answers; ``None`` if the rest is left to other processes (``Part``, ``Shards``), or they are at a URL.

    Raises:
        ValueError: If the data are a stream or not the set's, or the set was reinforced in another way.
    """
    if source.streams:
        raise ValueError('a set of a stream cannot be reinforced: its images have no index to seed augmentations by')
    device = device or torch.device('cpu')
    settings = {'format_version': FORMAT_VERSION, 'set': dad_set.index['settings'], **config.settings}
    settings['shard_size'] = dad_set.shard_size
    root = as_root(f'{place or dad_set.root}/{REINFORCED}')
    data = _Augmented(source, ReinforcedViews(dad_set, source, config.seed, config.repeats), config)
    norm = PixelNorm(config.transform['mean'], config.transform['std']).to(device)

    def ask(x_norm: Tensor) -> Tensor:
        return ask_teacher(norm.to_pixels(x_norm.to(device)))

    opened = open_folder(root, settings, dad_set.num_images, dad_set.shard_size, claims)
    with computing(root, device), opened as folder:
        bar = progress_bar(
            total=dad_set.num_images, initial=folder.images_done(), unit='img', show=progress, desc='Answers'
        )
        with bar:
            while pending := folder.pending():
                if not any(folder.claim(shard) for shard in pending):
                    time.sleep(folder.claims.pause)  # others are at the rest, or gone: then their shards come free
                    continue
                loader = DataLoader(
                    data, batch_sampler=_claimed_places(folder, pending, config), num_workers=workers,
                    prefetch_factor=1 if workers else None,  # what is loaded ahead is claimed
                )  # fmt: skip
                with folder.until_whole():
                    for shard, answers in _answers(folder, loader, ask, config):
                        _write(folder, shard, answers)
                        bar.update(len(folder.shard_range(shard)))
        if folder.missing():
            return None
        with folder.finishing() as first:
            if first:
                end_index(folder, begin_index(folder), {})
    return Reinforcement(dad_set) if isinstance(root, Path) else None


def _claimed_places(
    folder: ShardedFolder, shards: Sequence[int], config: ReinforceConfig
) -> Iterator[list[tuple[int, int]]]:
    """Yield images and augmentations of claimed shards, batch by batch."""
    for shard in shards:
        if folder.claim(shard):
            places = [(index, turn) for index in folder.shard_range(shard) for turn in range(config.repeats)]
            yield from (places[i : i + config.batch_size] for i in range(0, len(places), config.batch_size))


def _answers(
    folder: ShardedFolder, loader: Any, ask: Callable[[Tensor], Tensor], config: ReinforceConfig
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield shards and the tensors of their files, ``[items, repeats, ...]``."""
    found: dict[str, list[Tensor]] = {}
    count, told = 0, False
    for indices, clean, second, *mixture in loader:
        logits = ask(torch.cat([clean, second])).cpu()
        if not told:
            told = True
            _tell_kept(kept_share(logits, config.top_k, config.temperature), config)
        for of, own in zip(('clean', 'dad'), logits.chunk(2), strict=True):
            add_logits(found, of, own, config.top_k, config.temperature)
        for name, part in zip(('partner', 'clean_share', 'dad_share'), mixture, strict=False):
            found.setdefault(name, []).append(part.int() if name == 'partner' else part.float())
        count += len(indices)
        shard = int(indices[0]) // folder.shard_size
        items = len(folder.shard_range(shard))
        if count == items * config.repeats:
            yield shard, {name: torch.cat(parts).unflatten(0, (items, config.repeats)) for name, parts in found.items()}
            found, count = {}, 0


def _tell_kept(share: float, config: ReinforceConfig) -> None:
    """Log how much of the teacher's answers is kept per class, and what to do if that is little."""
    advice = '' if share >= _LITTLE else '; more classes or a lower --dad-temperature keep more of it'
    _logger.info(
        "Answers: --reinforce-top-k %d keeps %.0f%% of the teacher's softmax at temperature %g per class, and all "
        'others share the rest equally%s', config.top_k, 100 * share, config.temperature, advice,
    )  # fmt: skip


def _write(folder: ShardedFolder, shard: int, answers: dict[str, Tensor]) -> None:
    path, data = logits_path(shard), save({name: part.contiguous() for name, part in answers.items()})
    write_file(folder.root / path, data, sync=True, work=folder.work(f'{shard:06d}'))
    own = folder.shard_range(shard)
    header = {'shard': shard, 'first': own.start, 'items': len(own), 'settings': folder.settings_id}
    folder.commit(shard, ShardManifest({**header, 'files': [place_of(path, data)]}, []))
