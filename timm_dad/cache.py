"""DAD views made once: with a frozen teacher they depend on no student and no epoch (Zhou et al. 2023, section 3.3).

This is the paper's own mode, kept in memory: for data sets that fit there.
"""

import logging
import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from timm_dad.augment import DADAugment

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
        x_vq = augment.vqgan(augment.norm.to_pixels(input))
        if not start:
            views = torch.empty((len(loader.dataset), num_views, *x_vq.shape[2:], 3), dtype=torch.uint8)
            _logger.info('DAD views: %d a picture, %.1f GiB in memory', num_views, views.nbytes / 2**30)
        for view in range(num_views):
            x_dad = augment.attack_reconstruction(x_vq, target).x_dad
            views[start : start + len(x_vq), view] = x_dad.mul(255).round().byte().permute(0, 2, 3, 1).cpu()
        start += len(x_vq)
    return views


class DADPairs(Dataset[tuple[Any, int]]):
    """Give every image together with one of its DAD views, each under its own random transform.

    timm's collate lays a batch out as ``[all images; all DAD views]``, as for ``AugMixDataset``.

    Args:
        dataset: A data set with an index, of images; set ``transform`` here, not there.
        dad_images: ``[N, K, H, W, 3]`` uint8, in the order of ``dataset``.

    Raises:
        ValueError: If there is not one row of DAD images for every image.
    """

    def __init__(self, dataset: Any, dad_images: Tensor) -> None:
        if len(dataset) != len(dad_images):
            raise ValueError(f'there must be DAD images for all {len(dataset)} images, got {len(dad_images)}')
        self.dataset = dataset
        self.dad_images = dad_images.numpy()
        dataset.transform = None
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """A pair of transformed images and their label."""
        image, target = self.dataset[index]
        variants = self.dad_images[index]
        dad_image = Image.fromarray(variants[random.randrange(len(variants))])
        return (self.transform(image), self.transform(dad_image)) if self.transform else (image, dad_image), target
