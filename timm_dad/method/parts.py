"""The frozen parts of the method: checking their types, describing them, and keeping them out of the state dict."""

from typing import Any, get_args

from timm.utils.model import unwrap_model
from torch import nn

from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.targets import Targets
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

FROZEN = ('teacher', 'vqgan', 'gradient_vqgan')
_MADE_BY: dict[type, str] = {
    Teacher: ': Teacher(net, mean=..., std=..., input_size=..., num_classes=...)',
    VQGAN: ': load_vqgan(PATH)',
}


def check_kinds(**parts: tuple[Any, Any]) -> None:
    """Raise ``TypeError`` unless each part, given by name, is of its class (``Teacher``, or ``Teacher | None``)."""
    for name, (part, kind) in parts.items():
        if not isinstance(part, kind):
            (wanted, *_) = get_args(kind) or (kind,)
            how = _MADE_BY.get(wanted, '')
            raise TypeError(f'{name} must be a timm_dad.{wanted.__name__}{how}, got {type(part).__name__}')


def check_parts(
    teacher: Teacher | None,
    stored: Any,
    augment: Any,
    targets: Targets,
    *,
    apart: bool,
    loss: DADLossConfig,
    schedule: DADSchedule,
) -> None:
    """Raise ``ValueError`` if parts of a ``DADTask``, named as it names them, do not go together."""
    makes, replays = augment is not None, bool(schedule.replay)
    rules = (
        ((teacher is None) != (stored is None),
         'the logits to distil come from a teacher or are stored: pass either teacher or stored'),
        (stored is None or not makes,
         'stored logits belong to views made earlier: pass no augment with them'),
        (not apart or makes, 'apart selects the images that augment makes DAD views from: pass augment with it'),
        (not replays or makes, 'replay keeps DAD views made in the training step: pass augment with it'),
        (not (replays and loss.extra_task_weight),
         'replay keeps views without labels: extra_task_weight must be 0 with it'),
        (not makes or augment.label_free == loss.label_free,
         'label_free must be the same for augment and loss: both read the labels, or neither does'),
        (stored is None or not targets.multi_label, 'stored logits are single-label: pass no MultiLabel'),
        (not makes or augment.targets == targets, 'targets must be the same for augment and task'),
        (not loss.feature_weight or stored is None,
         'stored answers are logits without features: feature_weight must be 0 with them'),
        (not loss.feature_weight or (teacher is not None and teacher.feature_dim),
         "feature_weight needs the teacher's features: call its with_features() before prepare_frozen"),
    )  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def describe_student(student: nn.Module) -> str:
    """Describe a student in a few words."""
    network = unwrap_model(student)  # of DistributedDataParallel and torch.compile
    return f'{type(network).__name__}({sum(parameter.numel() for parameter in network.parameters()):,} parameters)'


def describe_teacher(teacher: Teacher | None) -> str:
    """Describe a teacher in a few words."""
    if teacher is None:
        return 'None'
    if isinstance(teacher, TeacherEnsemble):
        members: list[Any] = list(teacher.teachers)
        return f'TeacherEnsemble({", ".join(map(describe_teacher, members))})'
    height, width = teacher.input_size
    kind, network = type(teacher).__name__, type(teacher.classifier).__name__
    return f'{kind}({network}, {width} x {height}, {teacher.num_classes} classes)'


def describe_vqgan(vqgan: VQGAN | None) -> str:
    """Describe a VQGAN in a few words."""
    if vqgan is None:
        return 'None'
    config = vqgan.config
    return f'VQGAN({config.n_embed} codes of {config.embed_dim}, factor {config.factor})'


def frozen_parts(task: nn.Module) -> dict[str, nn.Module]:
    """Return the frozen networks that a task has, by name."""
    return {name: part for name in FROZEN if (part := getattr(task, name)) is not None}


def keep_student_alone(task: nn.Module) -> None:
    """Leave the frozen networks of a task out of its ``state_dict``, and do not require them in ``load_state_dict``."""
    task.register_state_dict_post_hook(_leave_out)
    task.register_load_state_dict_pre_hook(_put_in)


def _leave_out(task: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    of_frozen = tuple(f'{prefix}{name}.' for name in FROZEN)
    for name in [name for name in state if name.startswith(of_frozen)]:
        del state[name]


def _put_in(task: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    # States of before hold frozen networks, too; what counts are those that the task was made with.
    _leave_out(task, state, prefix)
    for name, frozen in frozen_parts(task).items():
        state.update({f'{prefix}{name}.{key}': value for key, value in frozen.state_dict().items()})
