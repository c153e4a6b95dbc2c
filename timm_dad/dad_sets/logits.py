"""Train from the teacher's logits stored in a DAD set, without loading a teacher (Zhou et al. 2023, section 3.3).

The task must know which view of which image is in a batch, but timm's samplers, collates and prefetchers pass on only
images and class indices. So the data set replaces the class index by one number for all of it:
``(index * num_views + view) * num_classes + label``, an int64, which the task decodes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from timm_dad.common.transfer import to_device
from timm_dad.dad_sets.formats import logits_path
from timm_dad.dad_sets.read import DADSet, SetFolder

_PARTS = ('values', 'classes', 'rest')


def sparse_logits(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the largest of logits ``[..., K]``, and one value for all others.

    This preserves the softmax over logits / temperature: exactly for the largest, and the total of the others.

    Returns:
        Values ``[..., top_k]``, fp16 and relative to the largest logit, their classes ``[..., top_k]``, int32, and the
        value of the rest ``[...]``, fp16.
    """
    logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    top_k, num_classes = min(top_k, logits.shape[-1]), logits.shape[-1]
    values, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf)
    rest = torch.zeros(logits.shape[:-1])
    if top_k < num_classes:
        rest = temperature * ((others / temperature).logsumexp(dim=-1) - math.log(num_classes - top_k))
    values, rest = (part.clamp_min(torch.finfo(torch.float16).min).half().cpu() for part in (values, rest))
    return values, classes.int().cpu(), rest


def add_logits(found: dict[str, list[Tensor]], of: str, logits: Tensor, top_k: int, temperature: float) -> None:
    """Add the kept part of logits ``[B, ..., K]`` to a shard's file contents, by name; ``of`` is clean or dad."""
    for name, part in zip(_PARTS, sparse_logits(logits, top_k, temperature), strict=True):
        found.setdefault(f'{of}_{name}', []).append(part)


def kept_share(logits: Tensor, top_k: int, temperature: float) -> float:
    """Return the mean share, 0 to 1, of the softmax over logits ``[B, K]`` / temperature in the largest ``top_k``."""
    p = (logits.float() / temperature).softmax(dim=-1)
    return p.topk(min(top_k, p.shape[-1])).values.sum(dim=-1).mean().item()


def dense_logits(values: Tensor, classes: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Rebuild logits ``[..., K]``, fp32, from what ``sparse_logits`` kept."""
    logits = rest.float()[..., None].expand(*rest.shape, num_classes).clone()
    return logits.scatter_(-1, classes.long(), values.float())


def encode_target(index: int, turn: int, turns: int, label: int, num_classes: int) -> int:
    """Encode index, label and turn of an image (one of its ``turns`` views or augmentations) as one number."""
    return (index * turns + turn) * num_classes + label


def mix_targets(weights: Tensor, coded: Tensor) -> Tensor:
    """Return the targets of mixed images.

    Args:
        weights: ``[N, B]``: the share of each image of the batch in each mixed one; timm mixes the ``i``-th with the
            ``i``-th last.
        coded: Targets ``[B]`` from ``encode_target``.

    Returns:
        ``[N, 3]``, float64: both targets, and the share of the first.
    """
    count = len(weights)
    return torch.stack([coded[:count].double(), coded.flip(0)[:count].double(), weights.diagonal().double()], dim=1)


class StoredLogits:
    """Decode the targets of ``encode_target`` or ``mix_targets``, and read the logits that they stand for.

    Args:
        folder: A DAD set with logits of its unaugmented images and views, or its ``Reinforcement``.
        turns: Number of views, or augmentations, of each image there.
        num_classes: Number of classes of the data.
        temperature: Distillation temperature at which the answers of mixed images are mixed.
        smoothing: Label smoothing of mixed labels.
        mixed: Whether the answers are for mixtures, so that a target stands for two labels.
    """

    def __init__(
        self,
        folder: SetFolder,
        turns: int,
        num_classes: int,
        temperature: float,
        smoothing: float = 0.0,
        mixed: bool = False,
    ) -> None:
        self.folder, self.turns, self.num_classes = folder, turns, num_classes
        self.temperature, self.smoothing, self.mixed = temperature, smoothing, mixed
        self._shards: dict[int, dict[str, NDArray[Any]]] = {}  # mapped: the system keeps in memory what is read

    @classmethod
    def of_views(cls, dad_set: DADSet) -> 'StoredLogits':
        """Return those of unaugmented images and views; raise ``ValueError`` if the set has none."""
        if dad_set.logits is None:
            raise ValueError(f'{dad_set.root} has no logits: make a set with timm-dad generate --dad-store-logits')
        return cls(dad_set, dad_set.num_views, dad_set.settings['data']['num_classes'], dad_set.logits['temperature'])

    def labels(self, coded: Tensor) -> Tensor:
        """Return the class indices of targets ``[2B]`` as in ``read``; soft targets ``[2B, K]`` for mixed ones."""
        if coded.ndim == 1 and not self.mixed:
            return coded % self.num_classes
        if self.mixed:
            halves = zip(('clean', 'dad'), coded.cpu().chunk(2), strict=True)
            parts = zip(*(self._rows(own, ('partner', f'{of}_share')) for of, own in halves), strict=True)
            first, (second, weight) = coded, (to_device(torch.cat(part), coded.device) for part in parts)
        else:
            first, second, weight = coded.unbind(dim=1)
        off = self.smoothing / self.num_classes
        one, two = (
            torch.full((len(coded), self.num_classes), off, device=coded.device).scatter_(
                1, (codes.long() % self.num_classes)[:, None], 1.0 - self.smoothing + off
            )
            for codes in (first, second)
        )
        share = weight.float()[:, None]
        return one * share + two * (1 - share)

    def read(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits ``[B, K]``, fp32, up to a constant each, on images and on their extra views.

        NOTE: the answer on an image mixed in training is the mean of the answers on its two parts, whereas a teacher
        would see the mixed pixels. For mixtures of the set, it did.

        Args:
            coded: Targets of the images followed by those of the extra views, ``[2B]`` or ``[2B, 3]``.
        """
        clean, second = coded.cpu().chunk(2)  # the host waits for a GPU here alone
        return self._answers('clean', clean, coded.device), self._answers('dad', second, coded.device)

    def _answers(self, of: str, coded: Tensor, device: torch.device) -> Tensor:
        if coded.ndim == 1:
            return self._look_up(of, coded, device)
        # A batch is mixed with itself: what is one image's own is its partner's other, and is looked up once.
        codes, places = coded[:, :2].long().unique(return_inverse=True)
        found = (self._look_up(of, codes, device) / self.temperature).softmax(dim=1)
        one, two = found[to_device(places, device)].unbind(dim=1)
        share = to_device(coded[:, 2].float()[:, None], device)
        return self.temperature * (one * share + two * (1 - share)).clamp_min(torch.finfo(torch.float32).tiny).log()

    def _look_up(self, of: str, coded: Tensor, device: torch.device) -> Tensor:
        rows = self._rows(coded, [f'{of}_{part}' for part in _PARTS])
        values, classes, rest = (to_device(part, device) for part in rows)
        return dense_logits(values, classes, rest, self.num_classes)

    def _rows(self, coded: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Return parts ``[B, ...]`` of the shards' files for targets ``[B]``."""
        rows = []
        for place in (coded // self.num_classes).tolist():
            index, turn = divmod(place, self.turns)
            shard, row = divmod(index, self.folder.shard_size)
            parts = self._shard(shard)
            rows.append([parts[name][row, turn] for name in names])
        return [torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)]

    def _shard(self, shard: int) -> dict[str, NDArray[Any]]:
        """Return parts ``[items, turns, ...]`` by name, as numpy arrays, which look up a row faster than torch."""
        if shard not in self._shards:
            path = logits_path(shard)
            self.folder.check_file(shard, path)
            parts = load_file(self.folder.root / path)
            if parts['clean_rest'].ndim == 1:  # a set as it is: one answer, whichever of its views is beside the image
                for name in (f'clean_{part}' for part in _PARTS):
                    parts[name] = parts[name][:, None].expand(-1, self.turns, *parts[name].shape[1:])
            self._shards[shard] = {name: part.numpy() for name, part in parts.items()}
        return self._shards[shard]
