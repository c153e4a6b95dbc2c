"""Extra views of noto's training pictures: made once for all students and seeds, or by each student for itself."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import to_tensor
from PIL import Image
from torch import Tensor, nn

from timm_dad import VQGAN, AttackConfig, DADAugment, LatentAttackConfig, Teacher
from timm_dad.common.files import replacing
from timm_dad.method.attack import ascend
from timm_dad.method.augment import AnyAttack
from timm_dad.method.disagreement import Disagreement
from timm_dad.method.loss import teacher_cross_entropy

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Views:
    """What extra views are.

    Args:
        kind: ``dad``; ``reconstruction``, ``Q(x)``; or ``noise``, the picture plus noise as long as ``x_dad - x`` is.
        count: Views of each picture.
        start: Where the attack starts: ``Q(x)`` or ``x``.
        keep_label: The label filter of ``--dad-keep-label``.
        attack: The attack, in any space; the released one by default.
    """

    kind: str = 'dad'
    count: int = 4
    start: str = 'Q(x)'
    keep_label: bool = False
    attack: AnyAttack = field(default_factory=AttackConfig)

    def key(self, *more: object) -> str:
        """Name of these views in the cache."""
        text = json.dumps([asdict(self), *more], sort_keys=True)
        return f'{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def make_views(views: Views, x: np.ndarray, y: np.ndarray, models: tuple[Teacher, VQGAN], path: Path) -> Tensor:
    """Views ``[N, count, S, S, 3]`` uint8 of pictures ``[N, S, S, 3]``; from ``path`` if they are there."""
    if not path.is_file():
        torch.manual_seed(0)
        made = []
        for start in range(0, len(x), BATCH_SIZE):
            x_pix = to_tensor(x[start : start + BATCH_SIZE])
            target = torch.from_numpy(y[start : start + BATCH_SIZE])
            made.append(torch.stack(_views_of_batch(views, x_pix, target, *models), dim=1))
        array = torch.cat(made).mul(255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy()
        with replacing(path) as temporary:
            np.save(temporary, array)
    return torch.from_numpy(np.load(path))


def _views_of_batch(views: Views, x_pix: Tensor, target: Tensor, teacher: Teacher, vqgan: VQGAN) -> list[Tensor]:
    zero_one = {'mean': (0, 0, 0), 'std': (1, 1, 1)}
    augment = DADAugment(teacher, vqgan, **zero_one, attack=views.attack, keep_label=views.keep_label)
    if views.kind == 'reconstruction':
        return [vqgan(x_pix)]
    centre = augment.find_centre(x_pix, target)
    if views.start == 'x':
        centre = replace(centre, x0=x_pix)
    found = [augment.attack_centre(centre, target).x_dad for _ in range(views.count)]
    if views.kind == 'noise':
        return [add_noise(x_pix, (x_dad - x_pix).flatten(1).norm(dim=1)) for x_dad in found]
    return found


def add_noise(x_pix: Tensor, length: Tensor) -> Tensor:
    """Pictures plus Gaussian noise of a given L2 norm ``[B]``, clipped to [0, 1]."""
    noise = torch.randn_like(x_pix)
    unit = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x_pix + length.view(-1, 1, 1, 1) * unit).clamp(0, 1)


def student_views(
    student: nn.Module, x: np.ndarray, y: np.ndarray, x_vq: Tensor, vqgan: VQGAN, attack: AttackConfig
) -> Tensor:
    """DAT's views ``[N, 1, S, S, 3]`` uint8: the attack ascends the student's own loss (Mao et al. 2022).

    Args:
        student: Takes pictures with mean and standard deviation 0.5.
        x: Pictures ``[N, S, S, 3]``.
        y: Labels ``[N]``.
        x_vq: Their reconstructions ``[N, 1, S, S, 3]`` uint8.
        vqgan: The VQGAN.
        attack: DAT's attack.
    """
    made = []
    for start in range(0, len(x), BATCH_SIZE):
        target = torch.from_numpy(y[start : start + BATCH_SIZE])
        batch = to_tensor(x_vq[start : start + BATCH_SIZE, 0].numpy())
        x_adv = ascend(
            lambda pixels, label=target: teacher_cross_entropy(student((pixels - 0.5) / 0.5), label), batch, attack
        )
        made.append(vqgan.reconstruct(x_adv)[0])
    return torch.cat(made).mul(255).round().byte().permute(0, 2, 3, 1)[:, None].contiguous()


class MadeViews:
    """The extra view is one of those made before, drawn anew at every access; a ``ExtraViews`` for the trainer.

    Args:
        images: Views ``[N, K, S, S, 3]`` uint8 of the training pictures.
    """

    dad_set = None

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, index: int | None, image: Image.Image, label: int) -> tuple[Image.Image, int]:
        """A view of the picture, and its label."""
        views = self.images[index]
        return Image.fromarray(views[random.randrange(len(views))].numpy()), label


def disagreement_views(
    student: nn.Module, x: np.ndarray, y: np.ndarray, models: tuple[Teacher, VQGAN], temperature: float
) -> Tensor:
    """Views ``[N, 1, S, S, 3]`` uint8 of latents moved to where teacher and student differ most.

    Args:
        student: Takes pictures with mean and standard deviation 0.5.
        x: Pictures ``[N, S, S, 3]``.
        y: Labels ``[N]``.
        models: Teacher and VQGAN.
        temperature: Distillation temperature.
    """
    half: dict[str, Any] = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    augment = DADAugment(*models, **half, attack=LatentAttackConfig(objective='disagreement'))
    augment.disagreement = Disagreement(student, models[0], augment.norm, temperature)
    made = []
    for start in range(0, len(x), BATCH_SIZE):
        target = torch.from_numpy(y[start : start + BATCH_SIZE])
        made.append(augment.make_views(to_tensor(x[start : start + BATCH_SIZE]), target).x_dad)
    return torch.cat(made).mul(255).round().byte().permute(0, 2, 3, 1)[:, None].contiguous()


class StudentViews(MadeViews):
    """Views that depend on ``student``, which is set once it is built, made anew every so many epochs.

    Args:
        make: Makes views ``[N, 1, S, S, 3]`` uint8 of the training pictures, given the student in evaluation mode.
        interval: Epochs.
        seed: Seed of the run.
    """

    student: nn.Module

    def __init__(self, make: Callable[[nn.Module], Tensor], interval: int, seed: int) -> None:
        super().__init__(torch.empty(0))
        self.make, self.interval, self.seed = make, interval, seed
        self.epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Make new views, if it is time."""
        is_new, self.epoch = epoch != self.epoch, epoch
        if not is_new or epoch % self.interval:
            return
        torch.manual_seed(1000 * self.seed + epoch)
        self.student.eval()
        self.images = self.make(self.student)
        self.student.train()


RELEASED = AttackConfig()
DAT_ATTACK = replace(RELEASED, step_size=0.1)  # Mao et al. 2022: as DAD's, but for the step
