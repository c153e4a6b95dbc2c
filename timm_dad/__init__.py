"""Discrete Adversarial Distillation (Zhou et al. 2023, arXiv:2311.01441) for timm.

``DADTask`` is the training step, ``DADAugment`` makes DAD views, ``Teacher`` and ``VQGAN`` are the frozen models. In
your own loop::

    import timm, torch
    from timm_dad import DADAugment, DADTask, DataClasses, create_teacher_by_spec, load_vqgan
    from timm_dad.demo.data import DEMO_VQGAN, class_names  # small models of the package, in place of yours

    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}  # of your batches
    student = timm.create_model('test_resnet', num_classes=16)
    teacher = create_teacher_by_spec('demo', DataClasses(num_classes=16, class_names=class_names()))
    task = DADTask(student, teacher, DADAugment(teacher, load_vqgan(DEMO_VQGAN), **norm), **norm).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for images, labels in [(torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8))]:  # your loader
        loss = task(images, labels)['loss']
        optimizer.zero_grad(), loss.backward(), optimizer.step()

Teachers: ``create_teacher_by_spec`` (with ``DataClasses``) creates them from the values of ``--dad-teacher``,
``create_timm_teacher`` and ``create_open_clip_teacher`` those of one kind, ``TeacherEnsemble`` averages several,
``WiseTeacher`` interpolates the weights of two, ``fit_temperature`` finds a distillation temperature. VQGANs:
``load_vqgan``; ``VQGANConfig``, ``nearest_codes``. ``prepare_frozen`` puts both on a device, in their own precision.
``DADSet`` reads the sets of ``timm-dad generate``, ``DADPairs`` pairs a data set with its views (docs/generate.md).
Settings: ``AttackConfig``, ``LatentAttackConfig`` and ``CodeAttackConfig``, ``DADLossConfig``, ``DADSchedule``;
``MultiLabel`` for several labels per image. Pieces: ``ascend`` is the attack itself, ``DADLoss`` the loss,
``DADViews`` the result of ``DADAugment.make_views``; ``add_dad_args`` adds the flags to a parser.

To read the code: ``train_dad.py``, then ``method/``: ``task.py``, ``augment.py``, ``attack.py``, ``loss.py``. Names
are imported when used: a command line that only prints its help does not load torch.
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
    from timm_dad.method.augment import DADAugment
    from timm_dad.method.code_space import CodeAttackConfig
    from timm_dad.method.latent_space import LatentAttackConfig
    from timm_dad.method.loss import DADLoss, DADLossConfig
    from timm_dad.method.schedule import DADSchedule
    from timm_dad.method.targets import MultiLabel
    from timm_dad.method.task import DADTask
    from timm_dad.method.views import DADViews
    from timm_dad.teachers.ensemble import TeacherEnsemble
    from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec
    from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher, create_timm_teacher
    from timm_dad.teachers.temperature import fit_temperature
    from timm_dad.teachers.wise import WiseTeacher
    from timm_dad.vqgan.config import VQGANConfig
    from timm_dad.vqgan.load import load_vqgan
    from timm_dad.vqgan.model import VQGAN
    from timm_dad.vqgan.nearest import nearest_codes

__all__ = [
    'VQGAN',
    'AttackConfig',
    'CodeAttackConfig',
    'DADAugment',
    'DADLoss',
    'DADLossConfig',
    'DADPairs',
    'DADSchedule',
    'DADSet',
    'DADTask',
    'DADViews',
    'DataClasses',
    'LatentAttackConfig',
    'MultiLabel',
    'Teacher',
    'TeacherEnsemble',
    'VQGANConfig',
    'WiseTeacher',
    'add_dad_args',
    'ascend',
    'create_open_clip_teacher',
    'create_teacher_by_spec',
    'create_timm_teacher',
    'fit_temperature',
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
    'method.augment': ('DADAugment',),
    'method.code_space': ('CodeAttackConfig',),
    'method.latent_space': ('LatentAttackConfig',),
    'method.loss': ('DADLoss', 'DADLossConfig'),
    'method.schedule': ('DADSchedule',),
    'method.targets': ('MultiLabel',),
    'method.task': ('DADTask',),
    'method.views': ('DADViews',),
    'teachers.ensemble': ('TeacherEnsemble',),
    'teachers.spec': ('DataClasses', 'create_teacher_by_spec'),
    'teachers.teacher': ('Teacher', 'create_open_clip_teacher', 'create_timm_teacher'),
    'teachers.temperature': ('fit_temperature',),
    'teachers.wise': ('WiseTeacher',),
    'vqgan.config': ('VQGANConfig',),
    'vqgan.load': ('load_vqgan',),
    'vqgan.model': ('VQGAN',),
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
