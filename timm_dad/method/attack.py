"""Attack: ascend any per-image loss inside an L2 or Linf ball (Zhou et al. 2023, arXiv:2311.01441, section 3.3).

It depends on no model and no space. DAD passes it the teacher's cross-entropy, DAT (Mao et al. 2022, arXiv:2209.07735)
the student's. The ball contains images, in [0, 1] pixel units, or a VQGAN's latents, as fractions of their length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from timm_dad.common.options import check_types, option
from timm_dad.common.transfer import to_device

NORMS = ('l2', 'linf')


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Attack on images, in [0, 1] pixel units; the defaults follow the released generator.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a numeric value is not a number, or ``norm`` is not a string.

    NOTE: the released online variant (``evaluate.py``) takes steps of 0.1, or of 0.01 to 0.2 depending on the epoch.

    Source: lapisrocks/DiscreteAdversarialDistillation, ``generate_examples.py``.
    """

    eps: float = option(0.1, 'radius of the attack, in [0, 1] pixel units; for l2 over the whole [3, H, W] image')
    step_size: float = option(0.01, 'length of one step, in the same norm and units')
    num_steps: int = option(1, 'ascent steps; 0 keeps the random start as it is')
    norm: str = option('l2', 'norm of the attack', choices=NORMS)
    random_start: float = option(0.8, 'probability that an image starts from a random point of the ball')

    space: ClassVar[str] = 'pixels'
    unit: ClassVar[str] = '[0, 1] pixel units'

    def __post_init__(self) -> None:
        check_types(self)
        if self.norm not in NORMS:
            raise ValueError(f'norm must be one of {NORMS}, got {self.norm!r}')
        for name in ('eps', 'step_size'):
            self.check_length(name, getattr(self, name))
        if self.num_steps < 0:
            raise ValueError(f'num_steps must be 0 or more, got {self.num_steps}')
        if not 0 <= self.random_start <= 1:
            raise ValueError(f'random_start is a probability, from 0 to 1, got {self.random_start}')

    @property
    def ascends(self) -> bool:
        """Whether gradients move the image."""
        return self.num_steps > 0 and self.eps > 0 and self.step_size > 0

    @property
    def max_eps(self) -> float:
        """Largest radius that makes sense."""
        return {'l2': 5.0, 'linf': 1.0}[self.norm]

    def check_length(self, name: str, value: float) -> None:
        """Raise ``ValueError`` unless a radius or step is in range."""
        if not 0 <= value <= self.max_eps:
            in_bytes = f' ({value:g}/255 = {value / 255:.3f}?)' if self.max_eps < value <= 255 else ''
            raise ValueError(
                f'{name} is in {self.unit}, from 0 to {self.max_eps:g} for {self.norm}, got {value}{in_bytes}'
            )

    def scaled(self, eps: float) -> 'AttackConfig':
        """Return the same attack with another radius and a proportional step."""
        return replace(self, eps=eps, step_size=self.step_size * eps / self.eps if self.eps else 0.0)

    def lengths(self, centre: Tensor) -> Tensor:
        """Return what radii are relative to, per image: 1 for pixels ``[B, 1, 1, 1]``."""
        return torch.ones(len(centre), 1, 1, 1, device=centre.device)

    def start_radius(self, radius: Tensor) -> Tensor:
        """Return the distance of a random start from its centre, in a ball of the given radius."""
        return radius

    def step_length(self, radius: Tensor) -> Tensor:
        """Return the length of a step in a ball of the given radius, with which it scales."""
        return radius * (self.step_size / self.eps) if self.eps else torch.zeros_like(radius)

    def clip(self, point: Tensor) -> Tensor:
        """Clip a point to the space: images have values in [0, 1]."""
        return point.clamp(0, 1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``[B]`` to ``[B, 1, 1, 1]`` on the device of ``like``."""
    return values.to(like.device, torch.float32).view(-1, 1, 1, 1)


def unit(direction: Tensor, norm: str) -> Tensor:
    """Return the steepest-ascent direction of length 1 for each image; zero (or not finite) becomes zero.

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


def project(point: Tensor, centre: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Project a point onto the ball around ``centre``.

    Args:
        point: Points ``[B, C, H, W]``.
        centre: Centres, same shape.
        radius: Radii ``[B, 1, 1, 1]``.
        norm: ``l2`` or ``linf``.

    Returns:
        Points, same shape.
    """
    delta = point - centre
    if norm == 'linf':
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
        delta = delta * (radius / length.clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=1.0)
    return centre + delta


# Source of randomness: one for the batch, or one an image, so that an image's draw does not depend on its batch.
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(sample: Callable[..., Tensor], shape: Sequence[int], device: torch.device, generator: Generators) -> Tensor:
    """Call ``sample`` for ``shape`` ``[B, ...]``, with one generator on the device or one per image on any device."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(tuple(shape), device=device, generator=generator)
    draws = [sample(tuple(shape[1:]), device=own.device, generator=own) for own in generator]
    return to_device(torch.stack(draws), device)


def random_start(centre: Tensor, radius: Tensor, config: AttackConfig, generator: Generators) -> Tensor:
    """Move each image, with probability ``config.random_start``, to a random point of its ball.

    The point lies on a sphere for ``l2`` (as in the released code, the ball's) and is uniform in the cube for ``linf``.

    NOTE: the released code draws once per batch: either all images start from random points, or none does.

    Args:
        centre: Images ``[B, 3, H, W]`` in [0, 1], or whatever ``config`` attacks.
        radius: Radii ``[B, 1, 1, 1]``, from ``radii``.
        config: Norm and probability.
        generator: Source of randomness on the device of ``centre``, or a list with one per image, on any device;
            torch's global generator by default.

    Returns:
        Points, same shape and range.
    """
    if config.norm == 'linf':
        noise = draw(torch.rand, centre.shape, centre.device, generator) * 2 - 1
    else:
        noise = unit(draw(torch.randn, centre.shape, centre.device, generator), 'l2')
    moved = draw(torch.rand, centre.shape[:1], centre.device, generator) < config.random_start
    return config.clip(centre + per_image(moved, centre) * config.start_radius(radius) * noise)


def input_gradient(loss_fn: Callable[[Tensor], Tensor], x_pix: Tensor) -> Tensor:
    """Return the direction in which each image's loss grows fastest, up to a positive factor per image.

    Args:
        loss_fn: As ``ascend`` takes it.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1], or latents.

    Returns:
        Gradients of log(loss), same shape.

    Raises:
        ValueError: If ``loss_fn`` does not return ``[B]``.
    """
    x_pix = x_pix.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = loss_fn(x_pix.view_as(x_pix))  # torch's FLOP counter does not take a leaf as input of a module
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    if loss.shape != (len(x_pix),):
        raise ValueError(f'loss_fn must return one loss per image [{len(x_pix)}], got shape {tuple(loss.shape)}')
    # NOTE: the released code differentiates the loss itself. An image's gradient is normalized right after, so its
    # scale is free: we take that of log(loss), which a half-precision backward can hold however small the loss is.
    weight = 1 / loss.detach().abs().clamp(1e-8, 1e8)
    (gradient,) = torch.autograd.grad(loss, x_pix, grad_outputs=weight)
    return gradient


def radii(centre: Tensor, config: AttackConfig, eps: Tensor | None = None) -> Tensor:
    """Return the radius of each image's ball.

    Args:
        centre: Images ``[B, 3, H, W]``, or whatever ``config`` attacks.
        config: The attack; its ``eps`` is the default.
        eps: One radius per image ``[B]``, in the unit of ``config``.

    Returns:
        Radii ``[B, 1, 1, 1]``, fp32, on the device of ``centre``.

    Raises:
        ValueError: If ``centre`` is not 4-D, or ``eps`` is not ``[B]`` or is out of range.
    """
    if centre.ndim != 4:
        raise ValueError(f'images must be [B, 3, H, W], got shape {tuple(centre.shape)}')
    if eps is None:
        return config.eps * config.lengths(centre)
    check_budget(eps, len(centre), config.max_eps, config.unit)
    if not config.eps and bool((eps > 0).any()) and config.num_steps:
        raise ValueError('eps per image scales the step by eps / config.eps, so config.eps must not be 0')
    return per_image(eps, centre) * config.lengths(centre)


def check_budget(eps: Tensor, count: int, most: float, unit: str) -> None:
    """Raise ``ValueError`` unless ``eps`` holds one budget per image ``[B]``, from 0 to ``most``."""
    if eps.shape != (count,):
        raise ValueError(f'eps must hold one value per image [{count}], got shape {tuple(eps.shape)}')
    if not ((eps >= 0) & (eps <= most)).all():
        raise ValueError(f'eps is in {unit}, from 0 to {most:g}, got {eps.tolist()}')


def ascend(
    loss_fn: Callable[[Tensor], Tensor],
    centre: Tensor,
    config: AttackConfig,
    *,
    eps: Tensor | None = None,
    generator: Generators = None,
    start: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Ascend ``loss_fn`` inside the ball around ``centre``.

    Args:
        loss_fn: Maps ``[B, 3, H, W]`` in [0, 1] to one loss per image ``[B]``, differentiable in its argument. The
            gradient is taken relative to the loss, so in fp16 the loss should vanish no faster than its gradient.
        centre: Images ``[B, 3, H, W]``, range [0, 1], any memory format; with a ``LatentAttackConfig``, latents
            ``[B, D, h, w]``, which ``loss_fn`` then takes.
        config: Radius, steps and norm.
        eps: One radius per image ``[B]`` in place of ``config.eps``; ``config.step_size`` scales with it, so
            ``config.eps`` must not be 0.
        generator: Source of randomness on the device of ``centre``, or a list with one per image, on any device;
            torch's global generator by default.
        start: Where each image starts, inside its ball; drawn by ``random_start`` by default.
        gradient: From ``input_gradient`` at ``centre``, if known: the first step uses it, even though a random start
            is away from ``centre``.

    Returns:
        Perturbed images, same shape, memory format and range, fp32, detached.

    Raises:
        ValueError: If ``centre`` is not 4-D, ``eps`` is not ``[B]`` or is out of range, or ``loss_fn`` does not return
            ``[B]``.

    Source: Zhou et al. 2023, arXiv:2311.01441, section 3.3.
    """
    radius = radii(centre, config, eps)
    centre = centre.detach().float()
    step = config.step_length(radius)
    point = random_start(centre, radius, config, generator) if start is None else start
    for index in range(config.num_steps):
        if index or gradient is None:
            gradient = input_gradient(loss_fn, point)
        point = config.clip(project(point + step * unit(gradient, config.norm), centre, radius, config.norm))
    return point.detach()
