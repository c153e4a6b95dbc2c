"""Estimate how long the training proposed by ``timm-dad init`` takes here, from some of its steps."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch.nn import functional as F

from timm_dad.commands.init_proposal import VQGAN_BATCH, Proposal
from timm_dad.common.timing import clock
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.augment import DADAugment
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.load import load_vqgan

_PICTURES, _TIMES = 8, 3  # pictures at a time, and repeats: the fastest counts, as the machine may be busy
_GREY: dict[str, Any] = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds per picture."""

    student: float  # a training step, forward and backward
    teacher: float  # a forward pass
    view: float  # making a DAD view
    vqgan: float  # a training step, forward and backward

    def of_steps(self, proposal: Proposal, count: int) -> dict[str, float]:
        """Return seconds for training teacher, VQGAN and student on ``count`` pictures, without program start."""
        views = proposal.views * count if proposal.views else proposal.epochs * count
        pass_with_dad = 2 * (self.student + self.teacher)
        return {
            'teacher': proposal.epochs * count * self.student,
            'vqgan': proposal.vqgan_steps * VQGAN_BATCH * self.vqgan,
            'student': views * self.view + proposal.epochs * count * pass_with_dad,
        }


def measure(proposal: Proposal, num_classes: int, device: torch.device, augment: DADAugment | None = None) -> Seconds:
    """Measure with ``augment`` or, if teacher and VQGAN do not exist yet, with stand-ins of the same cost.

    Raises:
        ImportError: If the extra ``vqgan`` is not installed.
    """
    augment = augment or _stand_in(proposal, num_classes, device)
    size = (proposal.img_size, proposal.img_size)
    student = timm.create_model(proposal.model, num_classes=num_classes).to(device)
    trained = load_vqgan(DEMO_VQGAN).to(device).requires_grad_(True)
    x_pix = torch.rand(_PICTURES, 3, *size, device=device)
    target = torch.zeros(_PICTURES, dtype=torch.long, device=device)
    return Seconds(
        student=_time(lambda: F.cross_entropy(student(x_pix), target).backward(), device),
        teacher=_time(lambda: augment.ask_teacher(x_pix), device),
        view=_time(lambda: augment.make_views(x_pix, target), device),
        vqgan=_time(lambda: trained.decode(trained.encode(x_pix)).sum().backward(), device),
    )


def _stand_in(proposal: Proposal, num_classes: int, device: torch.device) -> DADAugment:
    """Build an augmentation with an untrained student as teacher, and the VQGAN of the demo."""
    network = timm.create_model(proposal.model, num_classes=num_classes)
    size = (proposal.img_size, proposal.img_size)
    teacher, vqgan = Teacher(network, input_size=size, num_classes=num_classes, **_GREY), load_vqgan(DEMO_VQGAN)
    prepare_frozen(teacher, vqgan, precision='fp32', device=device)
    return DADAugment(teacher, vqgan, attack=LatentAttackConfig(), **_GREY)


def _time(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds per picture of a step."""
    clocks = []
    for _ in range(1 + _TIMES):
        step()
        clocks.append(clock(device))
    return min(after - before for before, after in itertools.pairwise(clocks)) / _PICTURES
