"""Metrics of VQGANs: means over the images of all processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from timm_dad.vqgan.model import VQGAN

# A mean squared error of 1e-10, in dB: a picture that is reconstructed exactly has no finite PSNR.
MOST_PSNR = 100.0


@torch.no_grad()
def mean_over_images(
    vqgan: VQGAN,
    measure: Callable[[Tensor], Mapping[str, Tensor]],
    names: Sequence[str],
    loader: Any,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Measure images with a VQGAN in evaluation mode.

    Args:
        vqgan: The VQGAN; its mode is restored afterwards.
        measure: Maps images ``[B, 3, H, W]`` in [0, 1] to one number per image ``[B]``, by name.
        names: The names, because a process may have no image.
        loader: Batches of images and labels, only of this process.
        accelerator: Device and processes.

    Returns:
        Means over the images of all processes, by name.
    """
    mode = vqgan.training
    vqgan.eval()
    sums = torch.zeros(1 + len(names), dtype=torch.float64, device=accelerator.device)
    for x_pix, _ in loader:
        values = measure(x_pix.to(accelerator.device))
        sums[0] += len(x_pix)
        sums[1:] += torch.stack([values[name].double().sum() for name in names])
    vqgan.train(mode)
    count, *totals = accelerator.reduce(sums, reduction='sum').tolist()
    return {name: total / count for name, total in zip(names, totals, strict=True)}
