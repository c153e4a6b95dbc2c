"""Find out which precision is faster here: it is measured, because a device's name does not tell."""

import copy
import logging
import math
from statistics import median

import torch
from torch import Tensor, nn

from timm_dad.common.timing import clock
from timm_dad.frozen.prepare import round_weights
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

_logger = logging.getLogger(__name__)

# bf16 loses digits; it must be faster by this much to be worth it.
_WORTH = 1.1
_ROUNDS = 3


def fastest_precision(
    teacher: Teacher, vqgan: VQGAN | None, image_size: tuple[int, int], device: torch.device, batch_size: int = 2
) -> str:
    """Time the VQGAN's encoder, or else the teacher; return ``bf16`` if it is 10 % faster or more, else ``fp32``."""
    network, batch = _most_of_the_work(teacher, vqgan, image_size)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rounded = copy.deepcopy(network)
    round_weights(rounded, torch.bfloat16)  # as it will be
    batch = batch.expand(batch_size, *batch.shape[1:]).to(device, memory_format=torch.channels_last)
    rounds = [(_time(network, batch, False), _time(rounded, batch, True)) for _ in range(1 + _ROUNDS)]
    fp32, bf16 = (median(seconds) for seconds in zip(*rounds[1:], strict=True))
    chosen = 'bf16' if fp32 > _WORTH * bf16 else 'fp32'
    _logger.info('--dad-precision auto: bf16 is %.2f times as fast as fp32 here, so %s is used', fp32 / bf16, chosen)
    return chosen


def _most_of_the_work(teacher: Teacher, vqgan: VQGAN | None, image_size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """Return the network that takes most of the time, and one image as its input."""
    if vqgan is None:
        first: Teacher = teacher.teachers[0] if isinstance(teacher, TeacherEnsemble) else teacher  # type: ignore[assignment]
        return first.model, first.normalize(torch.rand(1, 3, *image_size).to(first.norm.mean.device))
    sides = [math.ceil(side / vqgan.config.factor) * vqgan.config.factor for side in image_size]
    return vqgan.encoder, torch.rand(1, 3, *sides) * 2 - 1


@torch.inference_mode()
def _time(network: nn.Module, batch: Tensor, bf16: bool) -> float:
    begin = clock(batch.device)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        network(batch)
    return clock(batch.device) - begin
