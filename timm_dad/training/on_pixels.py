"""A student in training, on the [0, 1] pixels of ``--eval-suites``, and what size it takes them at."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_dad.common.pixels import PixelNorm
from timm_dad.evaluation.suites.suite import Suite

_logger = logging.getLogger(__name__)

FLAG = '--eval-suites'


class OnPixels(nn.Module):
    """A network in training, on [0, 1] pixels; nothing of it is changed or frozen.

    Args:
        network: Maps normalized images to logits.
        mean: Its normalization.
        std: Its normalization.
        size: Height and width that images of another size get, as a teacher's do; by default they go in as they are.
        interpolation: How they get it: ``bilinear``, all else is ``bicubic``.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        interpolation: str = 'bicubic',
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.interpolation = 'bilinear' if interpolation == 'bilinear' else 'bicubic'
        self.norm = PixelNorm(mean, std)

    def forward(self, x_pix: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1]."""
        dtype = next(self.network.parameters()).dtype
        if self.size is not None and tuple(x_pix.shape[-2:]) != self.size:
            x_pix = F.interpolate(x_pix, self.size, mode=self.interpolation, antialias=True).clamp(0, 1)
        logits: Tensor = self.network(self.norm.normalize(x_pix).to(dtype))
        return logits


def fixed_size(network: nn.Module, suites: Sequence[Suite], size: tuple[int, int]) -> tuple[int, int] | None:
    """What ``OnPixels`` must resize images to, where suites go in as they are and a network takes one size alone.

    Args:
        network: A network of timm: its ``fixed_input_size`` decides. One that has none is tried out, as a copy.
        suites: The suites.
        size: Height and width of its validation images, to which the other suites are cut.

    Returns:
        ``size``, after a warning; ``None`` if all go in as they are.
    """
    others = {height_width for height_width in _uncut_sizes(suites).values() if height_width != size}
    cfg: Any = getattr(network, 'pretrained_cfg', None) or {}
    if not others or not (cfg.get('fixed_input_size') or any(not _takes(network, other) for other in others)):
        return None
    for note in resize_notes(suites, size):
        _logger.warning('%s: %s', FLAG, note)
    return size


def _uncut_sizes(suites: Sequence[Suite]) -> dict[str, tuple[int, int]]:
    """Height and width of the pictures of suites that go in as they are; opening has checked that they have one."""
    found = {}
    for suite in suites:
        if not suite.resize:
            width, height = suite.parts[0].dataset[0][0].size
            found[suite.name] = height, width
    return found


def _takes(network: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a network takes images of this height and width."""
    trial, weight = copy.deepcopy(network).eval(), next(network.parameters())
    try:
        with torch.no_grad():
            trial(torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device))
    except (AssertionError, RuntimeError, ValueError):  # what the networks of timm and torch raise
        return False
    return True


def resize_notes(suites: Sequence[Suite], size: tuple[int, int] | None) -> list[str]:
    """Sentences on the suites that go in as they are elsewhere, and are resized here.

    Args:
        suites: The suites.
        size: Of ``fixed_size``.
    """
    if size is None:
        return []
    return [
        f'{name} holds pictures of {width} x {height}, which go in uncut; the student takes {size[1]} x {size[0]} '
        'alone, and they are resized to that.'
        for name, (height, width) in _uncut_sizes(suites).items()
        if (height, width) != size
    ]
