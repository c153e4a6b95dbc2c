"""Logits of many classes in little room: the largest ones, and one value for all others."""

import math

import torch
from torch import Tensor


def sparse_logits(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logits, and one value for all others.

    Args:
        logits: ``[..., K]``.
        top_k: How many are kept.
        temperature: The softmax over logits / temperature is what is kept: exactly for the largest, and the sum of
            the others, in equal parts.

    Returns:
        Values ``[..., top_k]`` and rest ``[...]``, fp16, relative to the largest logit, and classes ``[..., top_k]``,
        int32; in between: ``(values, classes, rest)``.
    """
    logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    top_k, num_classes = min(top_k, logits.shape[-1]), logits.shape[-1]
    values, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf)
    rest = torch.zeros(logits.shape[:-1])
    if top_k < num_classes:
        mean = (others / temperature).logsumexp(dim=-1) - math.log(num_classes - top_k)
        rest = temperature * mean
    values, rest = (part.clamp_min(torch.finfo(torch.float16).min).half().cpu() for part in (values, rest))
    return values, classes.int().cpu(), rest


def dense_logits(values: Tensor, classes: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Logits ``[..., K]``, fp32, of what ``sparse_logits`` kept of them."""
    logits = rest.float()[..., None].expand(*rest.shape, num_classes).clone()
    return logits.scatter_(-1, classes.long(), values.float())
