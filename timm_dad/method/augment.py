"""``DADAugment``: a batch augmentation that adds the DAD view (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from timm_dad.common.pixels import PixelNorm, check_images
from timm_dad.method.attack import AttackConfig, Generators
from timm_dad.method.chunked import Chunked
from timm_dad.method.code_space import CodeAttackConfig, CodeSpace
from timm_dad.method.disagreement import Disagreement
from timm_dad.method.latent_space import LatentAttackConfig, LatentSpace
from timm_dad.method.parts import check_kinds, describe_teacher, describe_vqgan
from timm_dad.method.pixel_space import PixelSpace
from timm_dad.method.space import Centre, Space
from timm_dad.method.targets import SingleLabel, Targets
from timm_dad.method.views import DADViews, Reconstruction
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

AnyAttack = AttackConfig | CodeAttackConfig


def _same_codes(one: VQGAN, other: VQGAN) -> bool:
    same_factor = one.config.factor == other.config.factor
    return same_factor and torch.equal(one.codebook.cpu(), other.codebook.cpu())


class DADAugment:
    """Make DAD views of a batch, and use them like ``timm.data.Mixup``.

    Args:
        teacher: Frozen teacher.
        vqgan: Frozen VQGAN.
        mean: Normalization of the batches, per channel, in [0, 1] pixel units.
        std: Normalization of the batches, per channel, in [0, 1] pixel units.
        attack: Attack settings; their class selects the space: ``AttackConfig`` (pixels, by default),
            ``LatentAttackConfig`` or ``CodeAttackConfig``.
        keep_label: Keep the attacked image only where the teacher still predicts the label on it, else take ``Q(x)``.
            NOTE: the released code's own check compares with a method and so never fires.
        attack_from: For an attack on pixels. ``reconstruction``: attack ``Q(x)``, as in the paper. ``input``: attack
            ``x`` itself, which saves a pass through the VQGAN, and take the gradient of the first step at ``x``, before
            the random start: it reuses the teacher forward on ``x`` that distillation needs anyway.
        gradient_vqgan: Frozen VQGAN with the same codebook, through whose decoder the gradient of an attack on latents
            or codes flows; a tiny one is cheaper. ``vqgan`` by default.
        micro_batch: Images per forward; 0: as many as fit in memory.
        label_free: Use the teacher's top-1 class on the image in place of its label, which is not read. Its soft
            answer would not work as a target: on the image itself the divergence from it and its gradient are zero.
        targets: The kind of targets, ``SingleLabel()`` by default; ``MultiLabel()`` keeps a view if the teacher answers
            it with the same set of classes as the image.

    Raises:
        ValueError: If ``attack_from`` or ``micro_batch`` is out of range, or the VQGANs do not fit the attack.
        TypeError: If ``teacher``, a VQGAN or ``attack`` is of the wrong type.

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
        attack: AnyAttack | None = None,
        keep_label: bool = False,
        attack_from: str = 'reconstruction',
        gradient_vqgan: VQGAN | None = None,
        micro_batch: int = 0,
        label_free: bool = False,
        targets: Targets | None = None,
    ) -> None:
        check_kinds(teacher=(teacher, Teacher), vqgan=(vqgan, VQGAN), gradient_vqgan=(gradient_vqgan, VQGAN | None))
        if not isinstance(attack, AnyAttack | None):
            kinds = 'AttackConfig, LatentAttackConfig or CodeAttackConfig'
            raise TypeError(f'attack must be an {kinds}, got {type(attack).__name__}')
        self.teacher = teacher
        self.vqgan = vqgan
        self.gradient_vqgan = gradient_vqgan
        self.norm = PixelNorm(mean, std)
        self.keep_label = keep_label
        self.attack_from = attack_from
        self.label_free = label_free
        self.targets = targets or SingleLabel()
        self.chunked = Chunked(micro_batch)
        self.disagreement: Disagreement | None = None
        self.space = self._create_space(attack or AttackConfig())
        self._is_first = True

    def _create_space(self, attack: AnyAttack) -> Space:
        if isinstance(attack, AttackConfig) and not isinstance(attack, LatentAttackConfig):
            if self.gradient_vqgan is not None:
                raise ValueError('gradient_vqgan is for attacks on latents or codes: attacks on pixels do not use it')
            return PixelSpace(self.teacher, self.vqgan, attack, self._ascended, self.attack_from, self.targets)
        if self.attack_from != 'reconstruction':
            raise ValueError(f'attack_from is for attacks on pixels: leave it out for an attack on {attack.space}')
        decoder = self.gradient_vqgan
        if decoder is not None and not _same_codes(decoder, self.vqgan):
            raise ValueError(
                'gradient_vqgan must have the codebook and factor of the VQGAN: make one with timm-dad vqgan distill'
            )
        if isinstance(attack, LatentAttackConfig):
            return LatentSpace(self.vqgan, attack, self._ascended, decoder)
        return CodeSpace(self.vqgan, attack, self._ascended, decoder)

    def __repr__(self) -> str:
        parts = [f'teacher={describe_teacher(self.teacher)}', f'vqgan={describe_vqgan(self.vqgan)}']
        if self.gradient_vqgan is not None:
            parts.append(f'gradient_vqgan={describe_vqgan(self.gradient_vqgan)}')
        names = ('attack', 'keep_label', 'attack_from', 'label_free')
        return f'DADAugment({", ".join([*parts, *(f"{name}={getattr(self, name)!r}" for name in names)])})'

    @property
    def attack(self) -> AnyAttack:
        """The attack; it can be replaced by another one in the same space."""
        attack: AnyAttack = self.space.config
        return attack

    @attack.setter
    def attack(self, attack: AnyAttack) -> None:
        if attack.space != self.attack.space:
            raise ValueError(
                f'the attack is on {self.attack.space}, got one on {attack.space}: create another DADAugment'
            )
        self.space.config = attack

    def _ascended(self, x_pix: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each image ``[B]`` that the attack ascends."""
        if not self._ascends_disagreement:
            return self.targets.attack_loss(self.teacher(x_pix), target)
        if self.disagreement is None:
            raise ValueError('objective disagreement needs the student: create the DADTask before making views')
        return self.disagreement(x_pix)

    @property
    def _ascends_disagreement(self) -> bool:
        return getattr(self.attack, 'objective', '') == 'disagreement'

    def make_views(self, x_pix: Tensor, target: Tensor, eps: Tensor | None = None) -> DADViews:
        """Reconstruct, attack and discretize.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]``, or soft or multi-hot targets ``[B, K]``.
            eps: One radius per image ``[B]`` in place of the configured one.

        Returns:
            The DAD view and the intermediate results, all detached.

        Raises:
            ValueError: If images are not floating-point ``[B, 3, H, W]``, or the VQGAN does not accept their values or
                (with its ``strict_size``) their size.
        """
        return self.attack_centre(self.find_centre(x_pix, target), target, eps)

    def ask_teacher(self, x_pix: Tensor) -> Tensor:
        """Return the teacher's logits ``[B, K]`` on images ``[B, 3, H, W]`` in [0, 1], in chunks as for views."""
        logits: Tensor = self.chunked(self.teacher, x_pix)
        return logits

    @torch.no_grad()
    def unattacked(self, centre: Centre, views: DADViews) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the result would be without an attack.

        Args:
            centre: From ``find_centre``.
            views: From ``attack_centre``.

        Returns:
            ``Q(x)`` ``[B, 3, H, W]``, its codes ``[B, h, w]``, and the codes of a DAD view without an attack: if the
            attack starts at ``Q(x)``, those of ``Q(x)`` encoded once more, which may differ; but those of ``Q(x)``
            where ``keep_label`` put it in place of the view, whatever the attack did.
        """
        x_vq, codes, calm_codes = self._unattacked(centre)
        if self.keep_label:
            calm_codes = calm_codes.where(views.kept[:, None, None], codes)
        return x_vq, codes, calm_codes

    def _unattacked(self, centre: Centre) -> tuple[Tensor, Tensor, Tensor]:
        if self._starts_at_reconstruction(centre):
            assert centre.codes is not None
            return centre.x0, centre.codes, self.chunked(self.vqgan.encode_to_codes, centre.x0)
        found: Reconstruction = self.chunked(
            lambda part: Reconstruction(*self.space.discretize(part.x0, part.size)),
            centre,
            pixels=math.prod(centre.size),
        )
        return found.x_vq, found.codes, found.codes

    def _starts_at_reconstruction(self, centre: Centre) -> bool:
        """Return whether ``centre.x0`` is ``Q(x)``, and ``centre.codes`` are its codes."""
        return isinstance(self.space, PixelSpace) and centre.codes is not None

    @torch.no_grad()
    def find_centre(self, x_pix: Tensor, target: Tensor) -> Centre:
        """Compute what the views of an image share: where its attack starts.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]`` or soft targets ``[B, K]``.

        Returns:
            The centre of each image's ball, detached.

        Raises:
            ValueError: As in ``make_views``.
        """
        check_images(x_pix, 'x_pix')
        if not self.label_free:
            self.targets.check(target)
            if not self.targets.needs_clean_logits:
                return self.chunked(self.space.find_centre, x_pix, target)
        logits = self.ask_teacher(x_pix)
        label = self.targets.answer(logits) if self.label_free else None
        centre = self.chunked(self.space.find_centre, x_pix, target if label is None else label)
        return replace(centre, label=label, logits=logits)

    @torch.no_grad()
    def attack_centre(
        self, centre: Centre, target: Tensor, eps: Tensor | None = None, generator: Generators = None
    ) -> DADViews:
        """Attack and discretize.

        Args:
            centre: From ``find_centre``.
            target: Class indices ``[B]``, or soft or multi-hot targets ``[B, K]``.
            eps: One radius per image ``[B]`` in place of the configured one.
            generator: Source of randomness, as ``ascend`` takes it.

        Returns:
            The DAD view and the intermediate results, all detached.

        Raises:
            ValueError: If the attack moves no image of the first batch because its gradients are zero or not finite.
        """
        target = target if centre.label is None else centre.label
        # Drawn for all images at once: no view depends on the size of the pieces.
        start = self.space.start(centre, eps, generator)
        views = self.chunked(self._attack, centre, start, target, eps, pixels=math.prod(centre.size))
        if self._is_first and eps is None:  # a look waits for the device
            self._is_first = False
            if self.space.is_stuck(centre, start, views.x_adv):
                raise ValueError(
                    "the attack moves no image: the gradients of the teacher's loss are zero or not finite; use bf16 "
                    'or fp32 instead of fp16, and check that teacher and VQGAN are trained'
                )
        return views

    def _attack(self, centre: Centre, start: Tensor, target: Tensor, eps: Tensor | None) -> DADViews:
        space = self.space
        disagreement = self.disagreement if self._ascends_disagreement else None
        evaluating = contextlib.nullcontext() if disagreement is None else disagreement.evaluating()
        with torch.autocast(centre.x0.device.type, enabled=False):
            with evaluating:
                x_adv = space.attack(centre, start, target, eps)
            x_dad, dad_codes = space.discretize(x_adv, centre.size)
            answer = self.teacher.answer(x_dad)
            kept = self.targets.keeps(answer.logits, target, centre.logits)
            # The host waits for the device here, once for each piece of a batch.
            if self.keep_label and len(lost := (~kept).nonzero().flatten()):
                if self._starts_at_reconstruction(centre):
                    assert centre.codes is not None
                    x_vq, codes = centre.x0[lost], centre.codes[lost]
                else:
                    x_vq, codes = space.discretize(centre.x0[lost], centre.size)
                x_dad[lost], dad_codes[lost] = x_vq, codes
                answer.put(lost, self.teacher.answer(x_vq))
        distance = space.distance(centre, x_adv)
        return DADViews(
            centre.x0, x_adv, distance, x_dad, dad_codes, answer.logits, kept, centre.logits, answer.features
        )

    def __call__(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Append the DAD view of every image, in the layout of timm's augmentation splits.

        Args:
            input: Normalized images ``[B, 3, H, W]``.
            target: Class indices ``[B]`` or soft targets ``[B, K]``.

        Returns:
            ``[2B, 3, H, W]``, normalized: all clean images, then all DAD views; and the targets, repeated.

        Raises:
            ValueError: If images are not floating-point ``[B, 3, H, W]``, or the first batch is not normalized.
        """
        self.norm.check(input)
        views = self.make_views(self.norm.to_pixels(input), target)
        x_dad = self.norm.normalize(views.x_dad).to(input.dtype)
        return torch.cat([input, x_dad]), torch.cat([target, target])
