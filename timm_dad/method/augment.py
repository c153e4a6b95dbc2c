"""``DADAugment``: a batch augmentation that adds the DAD view (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_dad.common.pixels import PixelNorm
from timm_dad.method.attack import AttackConfig, Generators, ascend, input_gradient, radii, random_start
from timm_dad.method.chunked import Chunked
from timm_dad.method.loss import hard_labels, teacher_cross_entropy
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

ATTACK_FROM = ('reconstruction', 'input')


@dataclass(frozen=True)
class Centre:
    """What all DAD views of a batch share.

    Args:
        x0: Centres of the balls ``[B, 3, H, W]`` in [0, 1]: ``Q(x)`` or, with ``attack_from`` input, ``x``.
        codes: Codes of ``Q(x)`` ``[B, h, w]``, where ``x0`` is that.
        logits: Teacher's logits ``[B, K]`` on ``x``, where ``x0`` is that.
        gradient: Gradient of the teacher's loss there, as ``ascend`` takes it, if the attack has a step.
    """

    x0: Tensor
    codes: Tensor | None = None
    logits: Tensor | None = None
    gradient: Tensor | None = None

    def __len__(self) -> int:
        """Images."""
        return len(self.x0)


@dataclass(frozen=True)
class DADViews:
    """A batch on its way from the image to its DAD view; pixels ``[B, 3, H, W]`` in [0, 1].

    Args:
        x0: Where the attack starts: reconstructions ``Q(x)`` or, with ``attack_from`` input, the images.
        x_adv: The perturbed ``x0``, before it is discretized.
        x_dad: The DAD view.
        dad_codes: Codes of the DAD view ``[B, h, w]``.
        dad_logits: Teacher's logits ``[B, K]`` on ``x_dad``.
        kept: Where the teacher predicts the label on ``Q(x_adv)`` ``[B]``, bool.
        clean_logits: Teacher's logits ``[B, K]`` on the images, with ``attack_from`` input.
    """

    x0: Tensor
    x_adv: Tensor
    x_dad: Tensor
    dad_codes: Tensor
    dad_logits: Tensor
    kept: Tensor
    clean_logits: Tensor | None = None


class DADAugment:
    """Make DAD views of a batch, and use them like ``timm.data.Mixup``.

    Args:
        teacher: Frozen teacher.
        vqgan: Frozen VQGAN.
        mean: Normalization of the batches, per channel, in [0, 1] pixel units.
        std: Normalization of the batches, per channel, in [0, 1] pixel units.
        attack: Attack settings.
        keep_label: Keep ``Q(x_adv)`` only where the teacher still predicts the label, else take ``Q(x)``.
        attack_from: ``reconstruction``: attack ``Q(x)``, as the paper. ``input``: attack ``x`` itself, which saves a
            pass through the VQGAN, and takes the gradient of the first step at ``x``, before the random start: it comes
            of the forward that ``x`` needs for its distillation anyway.
        micro_batch: Images at a time; 0: as many as fit in memory.

    Raises:
        ValueError: If ``attack_from`` or ``micro_batch`` is out of range.

    Example:
        >>> dad = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> views, targets = dad(input, target)   # [2B, 3, H, W]: all clean images, then all DAD views
    """

    def __init__(
        self,
        teacher: Teacher,
        vqgan: VQGAN,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        attack: AttackConfig | None = None,
        keep_label: bool = False,
        attack_from: str = 'reconstruction',
        micro_batch: int = 0,
    ) -> None:
        if attack_from not in ATTACK_FROM:
            raise ValueError(f'attack_from must be one of {ATTACK_FROM}, got {attack_from!r}')
        self.teacher = teacher
        self.vqgan = vqgan
        self.norm = PixelNorm(mean, std)
        self.attack = attack or AttackConfig()
        self.keep_label = keep_label
        self.attack_from = attack_from
        self.chunked = Chunked(micro_batch)

    def make_views(self, x_pix: Tensor, target: Tensor, eps: Tensor | None = None) -> DADViews:
        """Reconstruct, attack, discretize.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]`` or soft targets ``[B, K]``.
            eps: One radius per image ``[B]``, in place of the configured one.

        Returns:
            The DAD view and what was on the way to it, all detached.

        Raises:
            ValueError: If the VQGAN does not take the size (with its ``strict_size``), or the values.
        """
        return self.attack_centre(self.find_centre(x_pix, target), target, eps)

    def ask_teacher(self, x_pix: Tensor) -> Tensor:
        """The teacher's logits ``[B, K]`` on images ``[B, 3, H, W]`` in [0, 1], made as the views are: in pieces."""
        logits: Tensor = self.chunked(self.teacher, x_pix)
        return logits

    @torch.no_grad()
    def reconstruct(self, x_pix: Tensor) -> Centre:
        """``Q(x)`` of images ``[B, 3, H, W]`` in [0, 1] and its codes, as the centre of an attack from it."""
        return self.chunked(self._centre_at_reconstruction, x_pix)

    @torch.no_grad()
    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """What several views of one image share: where its attack starts.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]`` or soft targets ``[B, K]``.

        Returns:
            The centre of each image's ball, detached.

        Raises:
            ValueError: As ``make_views``.
        """
        if self.attack_from == 'reconstruction':
            return self.reconstruct(x_pix)
        return self.chunked(self._centre_at_input, x_pix, target)

    def _centre_at_reconstruction(self, x_pix: Tensor) -> Centre:
        x_vq, codes = self.vqgan.reconstruct(x_pix)
        return Centre(x_vq, codes=codes)

    def _centre_at_input(self, x_pix: Tensor, target: Tensor) -> Centre:
        x_pix = x_pix.detach().float()
        if not self.attack.num_steps:
            return Centre(x_pix, logits=self.teacher(x_pix))
        answers = []

        def loss_fn(x: Tensor) -> Tensor:
            answers.append(self.teacher(x))
            return teacher_cross_entropy(answers[0], target)

        with torch.autocast(x_pix.device.type, enabled=False):
            gradient = input_gradient(loss_fn, x_pix)
        return Centre(x_pix, logits=answers[0].detach(), gradient=gradient)

    @torch.no_grad()
    def attack_centre(
        self, centre: Centre, target: Tensor, eps: Tensor | None = None, generator: Generators = None
    ) -> DADViews:
        """Attack and discretize.

        Args:
            centre: From ``find_centre``.
            target: Class indices ``[B]`` or soft targets ``[B, K]``.
            eps: One radius per image ``[B]``, in place of the configured one.
            generator: Source of randomness, as ``ascend`` takes it.

        Returns:
            The DAD view and what was on the way to it, all detached.
        """
        # Drawn for all images at once: no view depends on the size of the pieces.
        start = random_start(centre.x0.float(), radii(centre.x0, self.attack, eps), self.attack, generator)
        return self.chunked(self._attack, centre, start, target, eps)

    def _attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> DADViews:
        x0 = centre.x0
        with torch.autocast(x0.device.type, enabled=False):
            x_adv = ascend(
                lambda x: teacher_cross_entropy(self.teacher(x), target),
                x0,
                self.attack,
                eps=eps,
                start=start,
                gradient=centre.gradient,
            )
            x_dad, dad_codes = self.vqgan.reconstruct(x_adv)
            dad_logits = self.teacher(x_dad)
            kept = dad_logits.argmax(dim=-1) == hard_labels(target)
            if self.keep_label and not bool(kept.all()):
                lost = ~kept
                x_vq, codes = (
                    self.vqgan.reconstruct(x0[lost]) if centre.codes is None else (x0[lost], centre.codes[lost])
                )
                x_dad[lost], dad_codes[lost], dad_logits[lost] = x_vq, codes, self.teacher(x_vq)
        return DADViews(x0, x_adv, x_dad, dad_codes, dad_logits, kept, centre.logits)

    def __call__(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Append the DAD view of every image, in the layout of timm's augmentation splits.

        Args:
            input: Normalized images ``[B, 3, H, W]``.
            target: Class indices ``[B]`` or soft targets ``[B, K]``.

        Returns:
            ``[2B, 3, H, W]``, normalized: all clean images, then all DAD views; and the targets, twice.
        """
        views = self.make_views(self.norm.to_pixels(input), target)
        x_dad = self.norm.normalize(views.x_dad).to(input.dtype)
        return torch.cat([input, x_dad]), torch.cat([target, target])
