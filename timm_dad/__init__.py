"""Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441) for timm.

Read ``train_dad.py``, then ``method/``: ``task.py``, ``augment.py``, ``attack.py``, ``loss.py``. Names are imported
when they are used: a command line that only prints its help loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from timm_dad.common.version import __version__ as __version__

if TYPE_CHECKING:
    from timm_dad.dad_sets.read import DADSet
    from timm_dad.data.pairs import DADPairs
    from timm_dad.flags.dad import add_dad_args
    from timm_dad.frozen.prepare import prepare_frozen
    from timm_dad.method.attack import AttackConfig, ascend
    from timm_dad.method.augment import DADAugment, DADViews
    from timm_dad.method.code_space import CodeAttackConfig
    from timm_dad.method.latent_space import LatentAttackConfig
    from timm_dad.method.loss import DADLoss, DADLossConfig
    from timm_dad.method.task import DADTask
    from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher, create_timm_teacher
    from timm_dad.vqgan.load import load_vqgan
    from timm_dad.vqgan.model import VQGAN, VQGANConfig
    from timm_dad.vqgan.nearest import nearest_codes

__all__ = [
    'VQGAN',
    'AttackConfig',
    'CodeAttackConfig',
    'DADAugment',
    'DADLoss',
    'DADLossConfig',
    'DADPairs',
    'DADSet',
    'DADTask',
    'DADViews',
    'LatentAttackConfig',
    'Teacher',
    'VQGANConfig',
    'add_dad_args',
    'ascend',
    'create_open_clip_teacher',
    'create_timm_teacher',
    'load_vqgan',
    'nearest_codes',
    'prepare_frozen',
]

_MODULES = {
    'dad_sets.read': ('DADSet',),
    'data.pairs': ('DADPairs',),
    'flags.dad': ('add_dad_args',),
    'frozen.prepare': ('prepare_frozen',),
    'method.attack': ('AttackConfig', 'ascend'),
    'method.augment': ('DADAugment', 'DADViews'),
    'method.code_space': ('CodeAttackConfig',),
    'method.latent_space': ('LatentAttackConfig',),
    'method.loss': ('DADLoss', 'DADLossConfig'),
    'method.task': ('DADTask',),
    'teachers.teacher': ('Teacher', 'create_open_clip_teacher', 'create_timm_teacher'),
    'vqgan.load': ('load_vqgan',),
    'vqgan.model': ('VQGAN', 'VQGANConfig'),
    'vqgan.nearest': ('nearest_codes',),
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f'{__name__}.{module}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *__all__])
