"""Distance of pictures from their targets: L1 with L2 or LPIPS."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import VGG16_Weights

from timm_dad.common.extras import require_extra
from timm_dad.common.torch_files import MoreThanWeightsError, read_checkpoint

Perceptual = Callable[[Tensor, Tensor], Tensor]


def create_lpips(device: torch.device) -> Perceptual:
    """Create LPIPS from the package ``lpips`` on VGG16, as used to train taming's VQGANs.

    NOTE: taming's own copy downloads its linear weights, and its package ``taming.modules.losses`` needs more packages
    than it declares; ``lpips`` includes those weights. VGG16 is torchvision's, downloaded once.

    Args:
        device: Device that it runs on.

    Returns:
        Mean distance of two batches ``[B, 3, H, W]`` in [0, 1].

    Raises:
        ImportError: If ``lpips`` is not installed.
        ValueError: If its weights cannot be loaded.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """
    try:
        lpips = require_extra('lpips', 'vqgan')
    except ImportError as error:
        raise ImportError('--perceptual lpips needs the package lpips; run: pip install lpips') from error
    check_vgg16()
    try:
        network = lpips.LPIPS(net='vgg', verbose=False).to(device).eval().requires_grad_(False)
    except Exception as error:  # no network, a broken file: torch and torchvision raise what they like
        raise ValueError(f'--perceptual lpips: its VGG16 could not be loaded: {error}') from error

    def distance(output: Tensor, x_pix: Tensor) -> Tensor:
        value: Tensor = network(output, x_pix, normalize=True).mean()
        return value

    return distance


def check_vgg16() -> None:
    """Read the VGG16 in torch's cache without running code: lpips would unpickle any file there.

    A missing file is downloaded by torchvision, which compares its hash.

    Raises:
        ValueError: If the file is damaged, or contains more than weights.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(VGG16_Weights.IMAGENET1K_V1.url).name
    if not path.is_file():
        return
    try:
        read_checkpoint(path, mmap=True)
    except MoreThanWeightsError as error:
        raise ValueError(
            f"--perceptual lpips: {path} is not torchvision's VGG16, which contains no {error.found}: delete it to "
            'download it again'
        ) from error
    except ValueError as error:
        raise ValueError(f'--perceptual lpips: {error}; delete it to download it again') from error


def picture_loss(
    output: Tensor, target: Tensor, perceptual: Perceptual | None, perceptual_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute L1 + weighted LPIPS or, without LPIPS, L1 + L2.

    Args:
        output: Pictures ``[B, 3, H, W]``, nominally [0, 1].
        target: The target pictures, same shape.
        perceptual: From ``create_lpips``, if used.
        perceptual_weight: Weight of LPIPS.

    Returns:
        The loss, and its parts before their weights: ``l1``, and ``perceptual`` or ``l2``; scalars.
    """
    l1 = F.l1_loss(output, target)
    if perceptual is None:
        l2 = F.mse_loss(output, target)
        return l1 + l2, {'l1': l1, 'l2': l2}
    distance = perceptual(output, target)
    return l1 + perceptual_weight * distance, {'l1': l1, 'perceptual': distance}
