"""The distillation temperature that makes a teacher's answers as soft as wanted, whatever the scale of its logits.

The logits of a zero-shot CLIP, of a sigmoid model such as SigLIP and of a fine-tuned network differ in scale, so the
same temperature softens their answers differently. Temperature: Hinton et al. 2015, arXiv:1503.02531.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from timm_dad.common.tf32 import without_tf32
from timm_dad.teachers.teacher import Teacher

# Entropy wanted, as a part of log K: 0 is one class alone, 1 all K alike. At T 4, the default, the demo's CLIP has 0.94
# of it; docs/teachers.md says why a little less.
TARGET = 0.9
_LEAST, _MOST = 1e-4, 1e6
_HALVINGS = 60


@torch.no_grad()
def fit_temperature(teacher: Teacher, batches: Iterable[Tensor], target: float = TARGET) -> float:
    """Find the temperature at which a teacher's mean entropy on some images equals the target.

    Args:
        teacher: The teacher.
        batches: Images ``[B, 3, H, W]`` in [0, 1], on its device; 1,000 are enough.
        target: As in ``match_entropy``.

    Raises:
        ValueError: As in ``match_entropy``.
    """
    with without_tf32():
        return match_entropy(torch.cat([teacher(x_pix).float().cpu() for x_pix in batches]), target)


def match_entropy(logits: Tensor, target: float = TARGET) -> float:
    """Find the temperature ``T`` at which the mean entropy of ``softmax(logits / T)`` equals the target.

    Args:
        logits: ``[N, K]``.
        target: Fraction of the largest entropy, log K: above 0 and below 1.

    Returns:
        ``T``, with three digits: enough to hide rounding differences between machines.

    Raises:
        ValueError: If ``target`` is out of range, or no temperature reaches it because the logits of all classes are
            alike.
    """
    if not 0 < target < 1:
        raise ValueError(f'target is a fraction of the entropy of a uniform answer, above 0 and below 1, got {target}')
    logits = logits.double()
    low, high = _LEAST, _MOST
    if not _softness(logits, low) < target < _softness(logits, high):
        raise ValueError(
            f'no temperature from {_LEAST:g} to {_MOST:g} gives answers on {len(logits)} images {target:g} of the '
            f'entropy of a uniform one: at {low:g} they have {_softness(logits, low):.2f} of it; are all logits alike?'
        )
    for _ in range(_HALVINGS):  # an answer's entropy never falls as T rises: dH/dT = Var(logits) / T^3
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _softness(logits, middle) < target else (low, middle)
    return float(f'{high:.3g}')


def _softness(logits: Tensor, temperature: float) -> float:
    """Return the mean entropy of ``softmax(logits / temperature)``, as a fraction of log K."""
    log_p = (logits / temperature).log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).mean().item()
    return entropy / math.log(logits.shape[-1])
