"""A batch with its DAD view and the steps on the way to it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """``Q(x)`` ``[B, 3, H, W]`` in [0, 1], and its codes ``[B, h, w]``."""

    x_vq: Tensor
    codes: Tensor


@dataclass(frozen=True)
class DADViews:
    """A batch with its DAD view and the steps on the way to it; pixels ``[B, 3, H, W]`` in [0, 1].

    Args:
        x0: Where the attack starts: reconstructions ``Q(x)`` or, with ``attack_from`` input, the images; for an attack
            on latents, the latents ``[B, D, h, w]``, and for one on codes, the codes ``[B, h, w]`` of ``Q(x)``.
        x_adv: The perturbed ``x0``, before discretization.
        distance: Its distance from ``x0`` ``[B]``, in the unit of the attack's ``eps``.
        x_dad: The DAD view.
        dad_codes: Codes of the DAD view ``[B, h, w]``.
        dad_logits: Teacher's logits ``[B, K]`` on ``x_dad``.
        kept: Where the teacher predicts the label on the discretized ``x_adv`` ``[B]``, bool.
        clean_logits: Teacher's logits ``[B, K]`` on the images, with ``attack_from`` input or ``label_free``.
        dad_features: Teacher's pooled features ``[B, D]`` of ``x_dad``, if it gives them.
    """

    x0: Tensor
    x_adv: Tensor
    distance: Tensor
    x_dad: Tensor
    dad_codes: Tensor
    dad_logits: Tensor
    kept: Tensor
    clean_logits: Tensor | None = None
    dad_features: Tensor | None = None
