"""Images in [0, 1]: how networks take them, and how alike two are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """Between [0, 1] pixels and a network's normalized tensors; on the device that it was last used on.

    Args:
        mean: The network's mean, per channel, in [0, 1] pixel units.
        std: The network's standard deviation, per channel, in [0, 1] pixel units.

    Raises:
        ValueError: If they are not finite numbers, 3 each, or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for what, values in (('mean', mean), ('std', std)):
            if not _three_numbers(values):
                raise ValueError(f'{what} must be 3 finite numbers, one a channel, got {values!r}')
        if min(std) <= 0:
            raise ValueError(f'std must be positive, got {tuple(std)}')
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def _move(self, like: Tensor) -> None:
        if self.mean.device != like.device:
            self.to(like.device)

    def equals(self, other: 'PixelNorm') -> bool:
        """Whether both normalize alike."""
        return torch.equal(self.mean.cpu(), other.mean.cpu()) and torch.equal(self.std.cpu(), other.std.cpu())

    def to_pixels(self, x_norm: Tensor) -> Tensor:
        """Normalized ``[B, 3, H, W]`` to [0, 1] pixels, fp32, clipped (random erasing leaves the range)."""
        self._move(x_norm)
        return (x_norm.float() * self.std + self.mean).clamp(0, 1)

    def normalize(self, x_pix: Tensor) -> Tensor:
        """[0, 1] pixels ``[B, 3, H, W]`` to normalized, fp32."""
        self._move(x_pix)
        return (x_pix - self.mean) / self.std


def _three_numbers(values: object) -> bool:
    """Whether these are numbers for the channels of a colour image."""
    try:
        numbers = [float(value) for value in values]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False
    return len(numbers) == 3 and all(map(math.isfinite, numbers))


def psnr(x_pix: Tensor, y_pix: Tensor, most: float = math.inf) -> Tensor:
    """Peak signal-to-noise ratio of images.

    Args:
        x_pix: Images ``[..., 3, H, W]``, range [0, 1].
        y_pix: The images to compare them with, same shape and range.
        most: What equal images get, and all that are more alike than this, in dB.

    Returns:
        One number an image ``[...]``, in dB, fp64.
    """
    mse = (x_pix - y_pix).double().square().mean(dim=(-3, -2, -1))
    return (-10 * mse.log10()).clamp_max(most)
