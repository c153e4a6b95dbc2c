"""The attack: ascend any per-image loss inside an L2 or Linf ball (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

It knows no model. DAD gives it the teacher's cross-entropy, DAT (Mao et al. 2022, arXiv:2209.07735) the student's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_dad.common.options import option

NORMS = ('l2', 'linf')
# Largest radius that makes sense in [0, 1] pixel units, per norm.
_MAX_RADIUS = {'l2': 5.0, 'linf': 1.0}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Attack settings, in [0, 1] pixel units; the defaults are DAD's released ones.

    Raises:
        ValueError: If a value is out of range.

    Source: lapisrocks/DiscreteAdversarialDistillation, ``generate_examples.py``.
    """

    eps: float = option(0.1, 'radius of the attack, in [0, 1] pixel units; for l2 over the whole [3, H, W] image')
    step_size: float = option(0.01, 'length of one step, in the same norm and units')
    num_steps: int = option(1, 'ascent steps; 0 leaves the random start alone')
    norm: str = option('l2', 'norm of the attack', choices=NORMS)
    random_start: float = option(0.8, 'probability that an image starts from a random point of the ball')

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f'norm must be one of {NORMS}, got {self.norm!r}')
        for name in ('eps', 'step_size'):
            value, limit = getattr(self, name), _MAX_RADIUS[self.norm]
            if not 0 <= value <= limit:
                raise ValueError(
                    f'{name} is in [0, 1] pixel units, from 0 to {limit:g} for {self.norm}, got {value} '
                    f'({value:g}/255 = {value / 255:.3f}?)'
                )
        if self.num_steps < 0:
            raise ValueError(f'num_steps must be 0 or more, got {self.num_steps}')
        if not 0 <= self.random_start <= 1:
            raise ValueError(f'random_start is a probability, from 0 to 1, got {self.random_start}')


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1, 1]`` on the device of ``like``."""
    return values.to(like.device, torch.float32).view(-1, 1, 1, 1)


def unit(direction: Tensor, norm: str) -> Tensor:
    """Steepest-ascent direction of length 1 for each image; zero (or not finite) stays zero.

    Args:
        direction: Gradients or noise ``[B, 3, H, W]``.
        norm: ``l2`` (divide by the norm over the whole image) or ``linf`` (the sign).

    Returns:
        Directions, same shape, fp32.
    """
    direction = torch.nan_to_num(direction.float(), nan=0.0, posinf=0.0, neginf=0.0)
    if norm == 'linf':
        return direction.sign()
    # Divide by the largest entry first: squares of tiny gradients would underflow.
    direction = direction / direction.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    length: Tensor = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    return direction / length.clamp_min(1.0)


def project(x_adv: Tensor, x_pix: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Nearest point of the ball around ``x_pix``, then clipped to [0, 1].

    Args:
        x_adv: Images ``[B, 3, H, W]``, any range.
        x_pix: Centres ``[B, 3, H, W]``, range [0, 1].
        eps: Radii ``[B, 1, 1, 1]``, in [0, 1] pixel units.
        norm: ``l2`` or ``linf``.

    Returns:
        Images, same shape, range [0, 1]. Clipping moves a pixel towards its centre, so the result stays in the ball.
    """
    delta = x_adv - x_pix
    if norm == 'linf':
        delta = torch.minimum(torch.maximum(delta, -eps), eps)
    else:
        length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
        delta = delta * (eps / length.clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=1.0)
    return (x_pix + delta).clamp(0, 1)


# Source of randomness: one for the batch, or one an image, so that an image's draw does not depend on its batch.
Generators = torch.Generator | Sequence[torch.Generator] | None


def _draw(sample: Callable[..., Tensor], shape: Sequence[int], device: torch.device, generator: Generators) -> Tensor:
    """``sample`` of ``shape`` ``[B, ...]``, from one generator on the device or one an image on any device."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(tuple(shape), device=device, generator=generator)
    draws = [sample(tuple(shape[1:]), device=own.device, generator=own) for own in generator]
    return torch.stack(draws).to(device)


def random_start(x_pix: Tensor, eps: Tensor, config: AttackConfig, generator: Generators) -> Tensor:
    """Move each image, with probability ``config.random_start``, to a random point of its ball.

    The point is on the sphere for ``l2`` (as released) and uniform in the cube for ``linf``.

    Args:
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].
        eps: Radii ``[B, 1, 1, 1]``, in [0, 1] pixel units.
        config: Norm and probability.
        generator: Source of randomness on the device of ``x_pix``, or a list of one an image, on any device; torch's
            global one by default.

    Returns:
        Images, same shape, range [0, 1].
    """
    if config.norm == 'linf':
        noise = _draw(torch.rand, x_pix.shape, x_pix.device, generator) * 2 - 1
    else:
        noise = unit(_draw(torch.randn, x_pix.shape, x_pix.device, generator), 'l2')
    moved = _draw(torch.rand, x_pix.shape[:1], x_pix.device, generator) < config.random_start
    return (x_pix + _per_image(moved, x_pix) * eps * noise).clamp(0, 1)


def input_gradient(loss_fn: Callable[[Tensor], Tensor], x_pix: Tensor) -> Tensor:
    """Direction in which each image's loss grows fastest, up to a positive factor an image.

    Args:
        loss_fn: Maps ``[B, 3, H, W]`` in [0, 1] to one loss per image ``[B]``, differentiable in its argument.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].

    Returns:
        Gradients of log(loss), same shape.

    Raises:
        ValueError: If ``loss_fn`` does not return ``[B]``.
    """
    x_pix = x_pix.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = loss_fn(x_pix)
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    if loss.shape != (len(x_pix),):
        raise ValueError(f'loss_fn must return one loss per image [{len(x_pix)}], got shape {tuple(loss.shape)}')
    # NOTE: the released code differentiates the loss itself. An image's gradient is normalized right after, so its
    # scale is free: we take that of log(loss), which a half-precision backward can hold however small the loss is.
    weight = 1 / loss.detach().abs().clamp(1e-8, 1e8)
    (gradient,) = torch.autograd.grad(loss, x_pix, grad_outputs=weight)
    return gradient


def radii(x_pix: Tensor, config: AttackConfig, eps: Tensor | None = None) -> Tensor:
    """Radius of each image's ball.

    Args:
        x_pix: Images ``[B, 3, H, W]``.
        config: The attack; its ``eps`` is taken by default.
        eps: One radius per image ``[B]``, in [0, 1] pixel units.

    Returns:
        Radii ``[B, 1, 1, 1]``, fp32, on the device of ``x_pix``.

    Raises:
        ValueError: If ``x_pix`` is not 4-D, or ``eps`` is not ``[B]`` or is out of range.
    """
    if x_pix.ndim != 4:
        raise ValueError(f'x_pix must be [B, 3, H, W], got shape {tuple(x_pix.shape)}')
    if eps is None:
        return torch.full((len(x_pix), 1, 1, 1), config.eps, device=x_pix.device)
    if eps.shape != (len(x_pix),):
        raise ValueError(f'eps must hold one radius per image [{len(x_pix)}], got shape {tuple(eps.shape)}')
    limit = _MAX_RADIUS[config.norm]
    if not ((eps >= 0) & (eps <= limit)).all():
        raise ValueError(f'eps is in [0, 1] pixel units, from 0 to {limit:g} for {config.norm}, got {eps.tolist()}')
    if not config.eps and bool((eps > 0).any()) and config.num_steps:
        raise ValueError('eps per image scales the step by eps / config.eps, so config.eps must not be 0')
    return _per_image(eps, x_pix)


def ascend(
    loss_fn: Callable[[Tensor], Tensor],
    x_pix: Tensor,
    config: AttackConfig,
    *,
    eps: Tensor | None = None,
    generator: Generators = None,
    start: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Ascend ``loss_fn`` inside the ball around ``x_pix``.

    Args:
        loss_fn: Maps ``[B, 3, H, W]`` in [0, 1] to one loss per image ``[B]``, differentiable in its argument. Its
            gradient is taken relative to its value, so in fp16 it should vanish no faster than its gradient does.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1], any memory format.
        config: Radius, steps and norm, in pixel units.
        eps: One radius per image ``[B]`` in place of ``config.eps``; ``config.step_size`` scales along, so
            ``config.eps`` must not be 0.
        generator: Source of randomness on the device of ``x_pix``, or a list of one an image, on any device; torch's
            global one by default.
        start: Where each image begins, inside its ball; drawn by ``random_start`` by default.
        gradient: From ``input_gradient`` at ``x_pix``, if it is known: the first step takes it, though a random start
            begins beside ``x_pix``.

    Returns:
        Perturbed images, same shape, memory format and range, fp32, detached.

    Raises:
        ValueError: If ``x_pix`` is not 4-D, ``eps`` is not ``[B]`` or is out of range, or ``loss_fn`` does not return
            ``[B]``.

    Source: Zhou et al. 2023, arXiv:2311.01441, section 3.3.
    """
    radius = radii(x_pix, config, eps)
    x_pix = x_pix.detach().float()
    step = radius * (config.step_size / config.eps) if config.eps else torch.zeros_like(radius)
    x_adv = random_start(x_pix, radius, config, generator) if start is None else start
    for index in range(config.num_steps):
        if index or gradient is None:
            gradient = input_gradient(loss_fn, x_adv)
        x_adv = project(x_adv + step * unit(gradient, config.norm), x_pix, radius, config.norm)
    return x_adv.detach()
