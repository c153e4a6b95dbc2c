"""The steps from one image to its DAD view, with measurements (Zhou et al. 2023, arXiv:2311.01441, section 3.3)."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import mean

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from timm_dad.common.pixels import psnr
from timm_dad.method.augment import AnyAttack, DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig

# Name of the distance that an attack moved an image, by space; the page explains them.
_MEASURES = {'pixels': 'L2', 'latent': 'L2 / ||z||', 'codes': 'codes replaced'}


def share(mask: Tensor) -> float:
    """Return the fraction of a mask that is set."""
    return mask.double().mean().item()


@dataclass(frozen=True, kw_only=True)
class PreviewImage:
    """One image, its views ``[3, H, W]`` in [0, 1], their codes ``[h, w]`` and the teacher's answers; on the CPU."""

    title: str
    labels: Sequence[int]  # or, without labels, the teacher's answer on x
    multi_label: bool = False
    label_free: bool = False
    x_pix: Tensor
    x_vq: Tensor  # Q(x)
    x0: Tensor  # start of the attack, in its space: Q(x), x itself, latents or codes
    x_adv: Tensor
    distance: float  # of x_adv from x0
    space: str  # of the attack: pixels, latent or codes
    x_dad: Tensor
    vq_codes: Tensor  # of x_vq
    dad_codes: Tensor  # of x_dad
    calm_codes: Tensor  # of x_dad without an attack
    factor: int  # pixels of one code along a side
    probs: dict[str, Tensor]  # the teacher's softmax (with several labels: sigmoids) [K] on x, Q(x) and x_dad

    @property
    def label_is(self) -> str:
        """Name of ``labels`` for readers."""
        return "teacher's answer on x" if self.label_free else 'labels' if self.multi_label else 'label'

    def named(self, class_names: Sequence[str]) -> str:
        """Return the title and the names of the labels."""
        return f'{self.title}, {self.label_is}: {", ".join(class_names[label] for label in self.labels) or "none"}'

    @property
    def perturbation(self) -> Tensor:
        """The attack's change ``[3, H, W]``: to ``x0`` before discretization or, outside pixel space, to ``Q(x)``."""
        return self.x_adv - self.x0 if self.space == 'pixels' else self.x_dad - self.x_vq

    @property
    def measure(self) -> str:
        """Name of ``distance``."""
        return _MEASURES[self.space]

    @property
    def changed(self) -> Tensor:
        """Mask ``[h, w]``, bool, of codes of ``x_dad`` that differ from those of ``Q(x)``."""
        return self.vq_codes != self.dad_codes

    @property
    def changed_by_attack(self) -> Tensor:
        """Mask ``[h, w]``, bool, of codes of ``x_dad`` that differ from those without an attack.

        Encoding ``Q(x)`` need not return the codes that it was decoded from; this may explain most changed codes.
        """
        return self.calm_codes != self.dad_codes

    @property
    def psnr_vq(self) -> float:
        """PSNR of ``x`` and ``Q(x)``, in dB."""
        return psnr(self.x_pix, self.x_vq).item()

    @property
    def psnr_dad(self) -> float:
        """PSNR of ``x`` and ``x_dad``, in dB."""
        return psnr(self.x_pix, self.x_dad).item()

    def top(self, view: str, count: int = 3) -> list[tuple[int, float]]:
        """Return the teacher's top ``count`` classes on a view (``x``, ``Q(x)`` or ``x_dad``), with probabilities."""
        values, classes = self.probs[view].topk(min(count, len(self.probs[view])))
        return list(zip(classes.tolist(), values.tolist(), strict=True))

    def is_right(self, view: str) -> bool:
        """Return whether the teacher's top-1 class on a view is a label."""
        return self.top(view, 1)[0][0] in self.labels


@torch.no_grad()
def preview_image(augment: DADAugment, x_pix: Tensor, label: int | Tensor, *, title: str, seed: int) -> PreviewImage:
    """Make the DAD view of one image ``[3, H, W]`` in [0, 1], on any device; its label is a class or multi-hot ``[K]``.

    The result depends neither on other images nor on torch's global generator: ``seed`` sets the attack's random
    start.

    Raises:
        ValueError: If the label is not one of the teacher's classes, or the VQGAN does not accept the size.
    """
    teacher, vqgan, targets = augment.teacher, augment.vqgan, augment.targets
    if not isinstance(label, Tensor) and not 0 <= label < teacher.num_classes:
        raise ValueError(f'labels must be from 0 to {teacher.num_classes - 1}, {title} has {label}')
    device = vqgan.codebook.device
    batch, target = x_pix.to(device)[None], torch.as_tensor(label, device=device)[None]
    centre = augment.find_centre(batch, target)
    # The generator is on the CPU, so that every device draws the same numbers.
    views = augment.attack_centre(centre, target, generator=[torch.Generator().manual_seed(seed)])
    x_vq, vq_codes, calm_codes = augment.unattacked(centre, views)
    target = target if centre.label is None else centre.label
    clean_logits = teacher(batch) if centre.logits is None else centre.logits
    logits = {'x': clean_logits, 'Q(x)': teacher(x_vq), 'x_dad': views.dad_logits}
    probs = {view: targets.probabilities(own[0]).cpu() for view, own in logits.items()}
    images = {'x_pix': batch, 'x_vq': x_vq, 'x0': centre.x0, 'x_adv': views.x_adv, 'x_dad': views.x_dad}
    codes = {'vq_codes': vq_codes, 'dad_codes': views.dad_codes, 'calm_codes': calm_codes}
    tensors = {name: own[0].cpu() for name, own in {**images, **codes}.items()}
    return PreviewImage(
        title=title,
        labels=targets.labels(target[0]),
        multi_label=targets.multi_label,
        label_free=augment.label_free,
        factor=vqgan.config.factor,
        probs=probs,
        distance=views.distance.item(),
        space=augment.attack.space,
        **tensors,
    )


def describe_settings(augment: DADAugment) -> str:
    """Describe attack and codebook in one line."""
    config = augment.vqgan.config
    codes = f'{config.n_embed} codes of {config.factor} x {config.factor} pixels'
    return f'attack: {describe_attack(augment)}; VQGAN: {codes}'


def describe_attack(augment: DADAugment) -> str:
    """Describe the attack in plain words."""
    origin = '' if augment.attack_from == 'reconstruction' else ', from the input'
    lost = 'the label'
    if augment.label_free or augment.targets.multi_label:
        lost = 'its answer'
    kept = f'; where the teacher loses {lost} x_dad is Q(x)' if augment.keep_label else ''
    through = '' if augment.gradient_vqgan is None else ', gradient through another VQGAN'
    return f'{_describe_config(augment.attack)}{origin}{through}{kept}'


def _describe_config(attack: AnyAttack) -> str:
    if isinstance(attack, CodeAttackConfig):
        which = 'that raise the loss most' if attack.num_steps else 'at random'
        return (
            f'codes, {attack.eps:g} of them replaced by ones of the {attack.neighbours} nearest, {which}, at '
            f'{attack.candidates:g} of the positions'
        )
    steps = f'{attack.num_steps} step{"" if attack.num_steps == 1 else "s"} of {attack.step_size:g}'
    start = f'random start with probability {attack.random_start:g}'
    if not isinstance(attack, LatentAttackConfig):
        return f'{attack.norm}, eps {attack.eps:g}, {steps}, {start}'
    towards = ', towards disagreement with the student' if attack.objective == 'disagreement' else ''
    return f'latents, {attack.norm}, eps {attack.eps:g}, {steps}{towards}, {start} at {attack.start_size:g} of eps'


def describe_means(images: Sequence[PreviewImage]) -> str:
    """Describe all images in one line: means, and how often the teacher predicts the label."""
    numbers = [
        (own.psnr_vq, own.psnr_dad, own.distance, share(own.changed), share(own.changed_by_attack)) for own in images
    ]
    psnr_vq, psnr_dad, distance, changed, by_attack = (mean(values) for values in zip(*numbers, strict=True))
    right = [f'{view} {sum(own.is_right(view) for own in images)}' for view in ('x', 'Q(x)', 'x_dad')]
    what, right = ('keeps its answer', right[1:]) if images[0].label_free else ('right', right)
    return (
        f'mean of {len(images)}: PSNR to x of Q(x) {psnr_vq:.1f} dB, of x_dad {psnr_dad:.1f} dB; '
        f'{images[0].measure} {distance:.3f}; codes changed {changed:.1%}, by the attack {by_attack:.1%}; '
        f'teacher {what} on {", ".join(right)}'
    )


def shown_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return class names for readers: WordNet ids as words, numbers if the classes have no names."""
    if not class_names:
        return [str(label) for label in range(num_classes)]
    names = list(class_names)
    info = ImageNetInfo()
    for label, name in enumerate(names):
        if re.fullmatch(r'n\d{8}', name):
            with suppress(KeyError):
                names[label] = info.label_name_to_description(name).split(',')[0]
    return names
