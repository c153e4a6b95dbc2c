"""Training from the teacher's logits that a DAD set holds: no teacher is loaded (Zhou et al. 2023, section 3.3).

Which view of which image is in a batch must reach the task, through samplers, collates and prefetchers of timm that
pass on images and class indices and nothing else. So the data set gives one number for all of it in place of the class
index: ``(index * num_views + view) * num_classes + label``, an int64, and the task takes it apart.
"""

import math

import torch
from safetensors.torch import load_file
from torch import Tensor

from timm_dad.dad_sets.formats import logits_path
from timm_dad.dad_sets.read import DADSet

_PARTS = ('values', 'classes', 'rest')


def sparse_logits(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the largest of logits ``[..., K]``, and one value for all others.

    The softmax over logits / temperature stays: exactly for the largest, and the sum of the others, in equal parts.

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


def dense_logits(values: Tensor, classes: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Logits ``[..., K]``, fp32, of what ``sparse_logits`` kept of them."""
    logits = rest.float()[..., None].expand(*rest.shape, num_classes).clone()
    return logits.scatter_(-1, classes.long(), values.float())


def encode_target(dad_set: DADSet, index: int, view: int, label: int) -> int:
    """One number for index and label of an image and the number of its view."""
    num_classes: int = dad_set.settings['data']['num_classes']
    return (index * dad_set.num_views + view) * num_classes + label


class StoredLogits:
    """Take the targets of ``encode_target`` apart, and read the logits that they stand for."""

    def __init__(self, dad_set: DADSet) -> None:
        if dad_set.logits is None:
            raise ValueError(
                f'{dad_set.root} has no logits: timm-dad generate --dad-store-logits makes a set with them'
            )
        self.dad_set = dad_set
        self.num_classes: int = dad_set.settings['data']['num_classes']
        self._shards: dict[int, dict[str, Tensor]] = {}  # mapped files: the system keeps in memory what is read

    def labels(self, coded: Tensor) -> Tensor:
        """Class indices of targets ``[B]``."""
        return coded % self.num_classes

    def read(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher's logits of the images and of their views ``[B, K]``, fp32, up to a constant for each."""
        clean, second = [], []
        places: list[int] = (coded // self.num_classes).tolist()
        for place in places:
            index, view = divmod(place, self.dad_set.num_views)
            shard, row = self._shard(index // self.dad_set.shard_size), index % self.dad_set.shard_size
            clean.append([shard[f'clean_{part}'][row] for part in _PARTS])
            second.append([shard[f'dad_{part}'][row, view] for part in _PARTS])
        return self._dense(clean, coded.device), self._dense(second, coded.device)

    def _dense(self, rows: list[list[Tensor]], device: torch.device) -> Tensor:
        values, classes, rest = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
        return dense_logits(values, classes, rest, self.num_classes)

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            path = logits_path(shard)
            self.dad_set.check_file(shard, path)
            self._shards[shard] = load_file(self.dad_set.root / path)
        return self._shards[shard]
