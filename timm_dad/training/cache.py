"""DAD views made once: with a frozen teacher they depend on no student and no epoch (Zhou et al. 2023, section 3.3).

This is the paper's own mode, kept in memory: for data sets that fit there.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from timm_dad.method.augment import DADAugment

_logger = logging.getLogger(__name__)


def make_dad_images(augment: DADAugment, loader: Any, num_views: int, progress: bool = True) -> Tensor:
    """Make DAD views of a whole data set.

    Args:
        augment: Makes the views.
        loader: Batches of normalized images ``[B, 3, H, W]`` and class indices ``[B]``, without augmentation, in order.
        num_views: Views of each image; they differ where the attack starts at random.
        progress: Show a progress bar.

    Returns:
        Images ``[N, num_views, H, W, 3]``, uint8, on the CPU.
    """
    views = torch.empty(0)
    start = 0
    for input, target in tqdm(loader, desc='DAD views', disable=not progress, leave=False):
        centre = augment.find_centre(augment.norm.to_pixels(input), target)
        if not start:
            views = torch.empty((len(loader.dataset), num_views, *input.shape[2:], 3), dtype=torch.uint8)
            _logger.info('DAD views: %d a picture, %.1f GiB in memory', num_views, views.nbytes / 2**30)
        for view in range(num_views):
            x_dad = augment.attack_centre(centre, target).x_dad
            views[start : start + len(input), view] = x_dad.mul(255).round().byte().permute(0, 2, 3, 1).cpu()
        start += len(input)
    return views
