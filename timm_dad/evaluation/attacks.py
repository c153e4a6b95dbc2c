"""Adversarial attacks of the evaluation: FGSM, PGD-20 and AutoAttack, in [0, 1] pixel units.

FGSM and PGD are this project's own ``attack.ascend`` with their published settings; AutoAttack is its authors' package.
"""

import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_dad.common.extras import require_extra
from timm_dad.common.options import check_types
from timm_dad.method.attack import AttackConfig, ascend

ATTACKS = ('fgsm', 'pgd', 'autoattack')
# AutoAttack's targeted DLR loss divides by a difference of the first, third and fourth largest logit.
_MIN_AUTOATTACK_CLASSES = 4
_AUTOATTACK_TARGETS = 9
_AUTOATTACK_NORMS = {'linf': 'Linf', 'l2': 'L2'}

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class EvalAttackConfig:
    """Threat model and PGD's settings, in [0, 1] pixel units.

    Args:
        eps: Radius of the ball around the image; for ``l2`` over the whole ``[3, H, W]`` tensor. The default is
            RobustBench's for ImageNet.
        norm: ``linf`` or ``l2``.
        num_steps: Number of steps of ``pgd``.
        step_size: Length of a step of ``pgd``, in the same norm; a quarter of ``eps`` by default.

    Raises:
        ValueError: If a value is out of range.

    Source: RobustBench ``model_info/imagenet/Linf`` (``eps``); Madry et al. 2018, arXiv:1706.06083, and
    MadryLab/cifar10_challenge ``config.json`` (cross-entropy, random start, a step of 2 for an ``eps`` of 8).
    """

    eps: float = 4 / 255
    norm: str = 'linf'
    num_steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not self.eps > 0:
            raise ValueError(f'eps of an attack must be above 0, got {self.eps}; without attacks, leave it out')
        if self.num_steps < 1:
            raise ValueError(f'num_steps of pgd must be 1 or more, got {self.num_steps}')
        self.ascent('pgd')  # checks the rest

    def ascent(self, name: str) -> AttackConfig:
        """Return the ascent of ``fgsm`` (one step of ``eps`` from the image) or ``pgd`` (from a random point)."""
        if name == 'fgsm':
            return AttackConfig(eps=self.eps, step_size=self.eps, num_steps=1, norm=self.norm, random_start=0.0)
        step_size = self.eps / 4 if self.step_size is None else self.step_size
        return AttackConfig(
            eps=self.eps, step_size=step_size, num_steps=self.num_steps, norm=self.norm, random_start=1.0
        )


def run_attack(
    name: str,
    model: Classifier,
    x_pix: Tensor,
    target: Tensor,
    config: EvalAttackConfig,
    seed: int = 0,
    *,
    index: Sequence[int] | None = None,
) -> Tensor:
    """Attack the images that ``model`` classifies correctly.

    ``fgsm`` and ``pgd`` use a separate generator for each image, seeded by ``seed`` and its ``index``: the result does
    not depend on the batch. AutoAttack draws for all remaining images of a batch: another batch size may change single
    images.

    Args:
        name: ``fgsm`` (Goodfellow et al. 2015, arXiv:1412.6572), ``pgd`` (Madry et al. 2018, arXiv:1706.06083) or
            ``autoattack`` (Croce & Hein 2020, arXiv:2003.01690, standard version).
        model: Maps images ``[B, 3, H, W]`` in [0, 1] to logits ``[B, K]``, normalization inside.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].
        target: Labels ``[B]``.
        config: Threat model and steps.
        seed: Source of all randomness, 0 or more; torch's global generator is left unchanged.
        index: Number of each image in its data set ``[B]``; from 0 by default.

    Returns:
        Images of the same shape and range, fp32: the adversarial ones if the attack turned a right answer into a wrong
        one, all others unchanged. The accuracy on them is the robust accuracy, and never above the clean one.

    Raises:
        ValueError: If the name is unknown, the shapes do not fit, or AutoAttack is requested with fewer than 4 classes.
        ImportError: If AutoAttack is requested and the extra ``eval`` is not installed.
    """
    if name not in ATTACKS:
        raise ValueError(f'attack must be one of {", ".join(ATTACKS)}, got {name!r}')
    index = range(len(x_pix)) if index is None else index
    if x_pix.ndim != 4 or target.shape != (len(x_pix),) or len(index) != len(x_pix):
        raise ValueError(
            f'an attack needs images [B, 3, H, W], one label and one index per image, got shapes {tuple(x_pix.shape)}, '
            f'{tuple(target.shape)} and {len(index)} indices'
        )
    x_pix = x_pix.detach().float()
    with torch.no_grad():
        logits = model(x_pix)
    check_classes(name, logits.shape[1])
    right = (logits.argmax(dim=1) == target).nonzero().flatten()
    if not len(right):
        return x_pix
    x, y = x_pix[right], target[right]
    if name == 'autoattack':
        x_adv = _autoattack(model, x, y, config, _image_seed(seed, name, index[0]), logits.shape[1])
    else:
        x_adv = ascend(
            lambda x_adv: F.cross_entropy(model(x_adv), y, reduction='none'),
            x,
            config.ascent(name),
            generator=[torch.Generator().manual_seed(_image_seed(seed, name, index[i])) for i in right.tolist()],
        )
    with torch.no_grad():
        fooled = model(x_adv).argmax(dim=1) != y
    return x_pix.index_copy(0, right[fooled], x_adv[fooled])


def check_classes(name: str, num_classes: int) -> None:
    """Raise a ``ValueError`` if an attack is not defined for this number of classes."""
    if name == 'autoattack' and num_classes < _MIN_AUTOATTACK_CLASSES:
        raise ValueError(
            f'autoattack needs {_MIN_AUTOATTACK_CLASSES} classes or more (its targeted DLR loss compares as many '
            f'logits), got {num_classes}; use pgd'
        )


def _image_seed(seed: int, name: str, index: int) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), index]).generate_state(1)[0])


def _autoattack(
    model: Classifier, x_pix: Tensor, target: Tensor, config: EvalAttackConfig, seed: int, num_classes: int
) -> Tensor:
    """Run AutoAttack's standard version: APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on what is left."""
    library = require_extra('pyautoattack', 'eval')
    with _undisturbed(x_pix.device):
        norm = _AUTOATTACK_NORMS[config.norm]
        adversary = library.AutoAttack(
            model, norm=norm, eps=config.eps, seed=seed, version='standard', device=x_pix.device
        )
        # The standard version takes the 9 most likely wrong classes as targets; with fewer classes, all of them.
        targets = min(_AUTOATTACK_TARGETS, num_classes - 1)
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
        x_adv: Tensor = adversary.run_standard_evaluation(x_pix, target, batch_size=len(x_pix))[0]
    return x_adv


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Undo AutoAttack's effects on its process: it seeds torch, takes the trace function and logs every batch.

    Its warnings concern whole data sets, such as that Square found 0.2 % more: in a batch, one image is more than that.
    """
    logger, trace = logging.getLogger('auto-attack'), sys.gettrace()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            yield
    finally:
        logger.setLevel(level)
        sys.settrace(trace)
