"""The student of a task, optionally with a linear adapter from its pooled features to the teacher's."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_dad.common.pixels import PixelNorm
from timm_dad.method.extra import Prepared
from timm_dad.teachers.features import check_features


def find_norm(student: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, augment: Any) -> PixelNorm:
    """Return the normalization of a student's images: as given, else from its ``pretrained_cfg``.

    Raises:
        ValueError: If there is none, or ``augment`` has another.
    """
    cfg = getattr(student, 'pretrained_cfg', None) or {}
    mean, std = (cfg.get(name) if own is None else own for name, own in (('mean', mean), ('std', std)))
    if mean is None or std is None:
        raise ValueError('the student has no pretrained_cfg with mean and std: pass mean and std')
    norm = PixelNorm(mean, std)
    if augment is not None and not augment.norm.equals(norm):
        raise ValueError('augment must have the normalization of the student: pass both the same mean and std')
    return norm


def distributed(module: nn.Module, device: torch.device, device_ids: list[Any] | None, **ddp_kwargs: Any) -> nn.Module:
    """Wrap the trained module in ``DistributedDataParallel``, which gets the remaining arguments.

    NOTE: timm's train.py always passes the device, but ``DistributedDataParallel`` rejects it on a CPU.
    """
    device_ids = None if device.type == 'cpu' else device_ids
    return DistributedDataParallel(module, device_ids=device_ids, **ddp_kwargs)


def compiled(module: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Compile the trained module and the student on its own, with ``options`` of ``torch.compile``."""
    adapted = _adapted(module)
    student: Any = torch.compile(module if adapted is None else adapted.student, **options)
    trained: Any = student if adapted is None else torch.compile(adapted, **options)
    return trained, student


def without_adapter(module: nn.Module | None) -> Any:
    """Return the student in the trained module."""
    adapted = _adapted(module)
    return module if adapted is None else adapted.student


def adapter_state(module: nn.Module | None) -> dict[str, Any]:
    """Return the state of the adapter under timm's name for it; empty without an adapter."""
    adapted = _adapted(module)
    return {} if adapted is None else {'projection': adapted.projection.state_dict()}


def load_adapter(module: nn.Module | None, state: Any, strict: bool) -> None:
    """Load a state from ``adapter_state``; an adapter missing in it stays unchanged."""
    adapted = _adapted(module)
    if adapted is not None and state and 'projection' in state:
        adapted.projection.load_state_dict(state['projection'], strict=strict)


def clip_parameters(module: nn.Module, exclude_head: bool) -> list[nn.Parameter]:
    """Return the parameters whose gradients are clipped; ``exclude_head`` omits the student's last two."""
    adapted = _adapted(module)
    parameters = list((module if adapted is None else adapted.student).parameters())
    of_adapter = [] if adapted is None else adapted.projection.parameters()
    return [*(parameters[:-2] if exclude_head else parameters), *of_adapter]


def _adapted(module: nn.Module | None) -> Any:
    """Return the unwrapped module from ``with_adapter``; ``None`` if ``module`` is only a student, or ``None``."""
    network = None if module is None else unwrap_model(module)
    return network if isinstance(network, FeatureDistillationTrainableModule) else None


def with_adapter(student: nn.Module, feature_dim: int) -> nn.Module:
    """Combine a student and a linear adapter from its features to the teacher's in timm's module for both.

    Args:
        student: Maps images to logits, with ``forward_features``, ``forward_head`` and ``num_features`` like
            timm's models.
        feature_dim: ``D`` of the teacher.

    Returns:
        A module that returns ``(logits [B, K], features [B, D])`` from one pass, except for the head.

    Raises:
        ValueError: If the student has no pooled features.
    """
    check_features(student, 'the student')
    like = next(student.parameters())
    adapter = nn.Linear(_width(student), feature_dim, device=like.device, dtype=like.dtype)
    module: nn.Module = FeatureDistillationTrainableModule(student, adapter)
    return module


def _width(student: Any) -> int:
    """Return the width of the pre-logits, from a linear classifier (correct for any pooling), else from the model."""
    classifier = student.get_classifier() if hasattr(student, 'get_classifier') else None
    if isinstance(classifier, nn.Linear):
        return classifier.in_features
    width = getattr(student, 'head_hidden_size', None) or getattr(student, 'num_features', None)
    if width is None:
        raise ValueError(f'the student must have num_features, like timm models: {type(student).__name__} does not')
    return int(width)


def feature_pairs(of_student: Tensor | None, prepared: Prepared) -> list[tuple[Tensor, Tensor]]:
    """Return features ``[B, D]`` of student and teacher for the clean view and, if there is one, the extra view.

    Args:
        of_student: Features of all views of a batch, the clean one first and the extra one last; ``None``: no pairs.
        prepared: The teacher's answers on the batch.
    """
    if of_student is None:
        return []
    assert prepared.features is not None
    count = len(prepared.features)
    pairs = [(of_student[:count], prepared.features)]
    if prepared.extra is not None and prepared.extra.features is not None:
        pairs.append((of_student[-count:], prepared.extra.features))
    return pairs
