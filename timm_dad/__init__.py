"""Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441) for timm.

One way through: ``train_dad.py``, ``task.py``, ``attack.py``, ``discretize.py``, ``loss.py``.
"""

from timm_dad.common.version import __version__ as __version__
from timm_dad.flags.dad import add_dad_args
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig, ascend
from timm_dad.method.augment import DADAugment, DADViews
from timm_dad.method.loss import DADLoss, DADLossConfig
from timm_dad.method.task import DADTask
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher, create_timm_teacher
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN, VQGANConfig, nearest_codes

__all__ = [
    'VQGAN',
    'AttackConfig',
    'DADAugment',
    'DADLoss',
    'DADLossConfig',
    'DADTask',
    'DADViews',
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
