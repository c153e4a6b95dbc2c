"""Images in [0, 1]: conversion for networks, and similarity of two images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """Convert between [0, 1] pixels and a network's normalized tensors, on the device it was last used on.

    Args:
        mean: The network's mean, per channel, in [0, 1] pixel units.
        std: The network's standard deviation, per channel, in [0, 1] pixel units.

    Raises:
        ValueError: If ``mean`` or ``std`` is not one number per channel, or is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (('mean', mean), ('std', std)):
            try:
                found = torch.as_tensor(values, dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise ValueError(f'{name} must be 3 numbers, one per channel, got {values!r}') from error
            if found.shape != (3,):
                raise ValueError(f'{name} must be 3 numbers, one per channel, such as (0.5, 0.5, 0.5), got {values!r}')
            least = 0 if name == 'mean' else torch.finfo(torch.float32).tiny
            if not ((found >= least) & (found <= 1)).all():
                rule = 'from 0' if name == 'mean' else 'positive, up'
                raise ValueError(
                    f'{name} must be {rule} to 1 ([0, 1] pixel units), got {tuple(values)} (of pixels from 0 to 255? '
                    'divide it by 255)'
                )
            self.register_buffer(name, found.clone().view(1, -1, 1, 1), persistent=False)
        self._range_seen = False

    def _move(self, like: Tensor) -> None:
        if self.mean.device != like.device:
            self.to(like.device)

    def equals(self, other: 'PixelNorm') -> bool:
        """Return whether both normalize alike."""
        return torch.equal(self.mean.cpu(), other.mean.cpu()) and torch.equal(self.std.cpu(), other.std.cpu())

    def check(self, x_norm: Tensor) -> None:
        """Raise ``ValueError`` unless a batch consists of normalized images ``[B, 3, H, W]``.

        Type and shape are checked every time, values only in the first batch because that waits for the device.
        """
        check_images(x_norm, 'normalized images')
        if self._range_seen or not len(x_norm) or torch.compiler.is_compiling():
            return
        self._move(x_norm)
        low, high = (value.item() for value in x_norm.detach().aminmax())
        # Random erasing leaves the range: its noise has a standard deviation of 1.
        most = max(10.0, 2 * (torch.maximum(self.mean, 1 - self.mean) / self.std).max().item())
        if not (-most <= low and high <= most):  # false for NaN, too
            raise ValueError(
                f'images must be normalized, (pixels in [0, 1] - mean) / std, got values from {low:.4g} to {high:.4g} '
                '(pixels from 0 to 255? divide them by 255, then normalize)'
            )
        self._range_seen = True

    def to_pixels(self, x_norm: Tensor) -> Tensor:
        """Convert normalized ``[B, 3, H, W]`` to [0, 1] pixels, fp32, clipped (random erasing leaves the range)."""
        self._move(x_norm)
        return (x_norm.float() * self.std + self.mean).clamp(0, 1)

    def normalize(self, x_pix: Tensor) -> Tensor:
        """Convert [0, 1] pixels ``[B, 3, H, W]`` to normalized ones, fp32."""
        self._move(x_pix)
        return (x_pix - self.mean) / self.std


def check_images(images: Tensor, what: str) -> None:
    """Raise ``ValueError`` unless ``images`` is a floating-point batch ``[B, 3, H, W]``; values are not checked."""
    if not isinstance(images, Tensor):
        raise TypeError(f'{what} must be a tensor [B, 3, H, W], got {type(images).__name__}')
    if images.ndim != 4 or images.shape[1] != 3:
        last = images.ndim == 4 and images.shape[-1] == 3
        hint = 'channels last: permute(0, 3, 1, 2)' if last else 'grey images: expand(-1, 3, -1, -1)'
        hint = f' ({hint})' if last or (images.ndim == 4 and images.shape[1] == 1) else ''
        raise ValueError(f'{what} must be [B, 3, H, W], got shape {tuple(images.shape)}{hint}')
    if not images.is_floating_point():
        raise ValueError(f'{what} must be floating-point, got {images.dtype}: divide pixels by 255')


def psnr(x_pix: Tensor, y_pix: Tensor, most: float = math.inf) -> Tensor:
    """Compute the peak signal-to-noise ratio of images.

    Args:
        x_pix: Images ``[..., 3, H, W]``, range [0, 1].
        y_pix: The images to compare them with, same shape and range.
        most: Upper limit in dB, which equal images get.

    Returns:
        One number per image ``[...]``, in dB, fp64.
    """
    mse = (x_pix - y_pix).double().square().mean(dim=(-3, -2, -1))
    return (-10 * mse.log10()).clamp_max(most)
