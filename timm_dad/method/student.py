"""The student of a task: alone, or with a linear adapter from its pooled features to the teacher's, trained as one."""

from functools import partial
from typing import Any

import torch
from timm.task import TrainingTask
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_dad.method.extra import Prepared
from timm_dad.teachers.features import check_features


class StudentTask(TrainingTask):  # type: ignore[misc]
    """What a training asks of a task about its student: to wrap it, compile it, clip its gradients, and save it.

    ``trainable_module`` is the student, or what ``with_adapter`` makes of it. What is evaluated and saved as the model
    is the student alone; training checkpoints keep the adapter beside it, as timm's do.
    """

    trainable_module: nn.Module
    eval_model: nn.Module

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'StudentTask':
        """Wrap the student, and nothing frozen, in ``DistributedDataParallel``.

        Args:
            device_ids: Devices of this process, as ``DistributedDataParallel`` takes them.
            **ddp_kwargs: Passed on to ``DistributedDataParallel``.

        Returns:
            The task.
        """
        if self.device.type == 'cpu':
            device_ids = None  # timm's train.py names the device always; DistributedDataParallel refuses it on a CPU
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the student, for training and evaluation.

        Args:
            backend: Backend of ``torch.compile``.
            mode: Mode of ``torch.compile``.
            **compile_kwargs: Passed on to ``torch.compile``.

        Returns:
            The compiled student.
        """
        compiled: Any = partial(torch.compile, backend=backend, mode=mode, **compile_kwargs)
        adapted = _adapted(self.trainable_module)
        self.eval_model = compiled(self.trainable_module if adapted is None else adapted.student)
        self.trainable_module = self.eval_model if adapted is None else compiled(adapted)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """The student or, with ``ema``, its moving average, without an adapter."""
        model = super().get_eval_model(module, ema)
        adapted = _adapted(model)
        return model if adapted is None else adapted.student

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """State of the adapter, by the name that timm has for it; empty without one."""
        adapted = _adapted(module or self.get_trainable_module(ema))
        return {} if adapted is None else {'projection': adapted.projection.state_dict()}

    def load_task_state(
        self, state: Any, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Load what ``get_task_state`` gave; an adapter that the state lacks stays as it is."""
        adapted = _adapted(module or self.get_trainable_module(ema))
        if adapted is not None and state and 'projection' in state:
            adapted.projection.load_state_dict(state['projection'], strict=strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """Parameters whose gradients are clipped; ``exclude_head`` leaves the student's last two out, as timm does."""
        adapted = _adapted(self.trainable_module)
        if adapted is None:
            return super().get_clip_parameters(exclude_head)
        parameters = list(adapted.student.parameters())
        return [*(parameters[:-2] if exclude_head else parameters), *adapted.projection.parameters()]


def _adapted(module: nn.Module | None) -> Any:
    """What ``with_adapter`` made, in whatever wraps it; ``None`` where it is the student alone, or nothing."""
    network = None if module is None else unwrap_model(module)
    return network if isinstance(network, FeatureDistillationTrainableModule) else None


def with_adapter(student: nn.Module, feature_dim: int) -> nn.Module:
    """Put a student and a linear adapter from its features to the teacher's into timm's module for both.

    Args:
        student: Maps images to logits, with ``forward_features``, ``forward_head`` and ``num_features`` as timm's
            models have them.
        feature_dim: ``D`` of the teacher.

    Returns:
        A module that gives ``(logits [B, K], features [B, D])``, of one pass but for the head.

    Raises:
        ValueError: If the student has no pooled features.
    """
    check_features(student, 'the student')
    like = next(student.parameters())
    adapter = nn.Linear(_width(student), feature_dim, device=like.device, dtype=like.dtype)
    module: nn.Module = FeatureDistillationTrainableModule(student, adapter)
    return module


def _width(student: Any) -> int:
    """Width of the pre-logits: a linear classifier says it, whatever the pooling, and else the model."""
    classifier = student.get_classifier() if hasattr(student, 'get_classifier') else None
    if isinstance(classifier, nn.Linear):
        return classifier.in_features
    width = getattr(student, 'head_hidden_size', None) or getattr(student, 'num_features', None)
    if width is None:
        raise ValueError(f'the student must have num_features, as timm models have: {type(student).__name__} has not')
    return int(width)


def feature_pairs(of_student: Tensor | None, prepared: Prepared) -> list[tuple[Tensor, Tensor]]:
    """Features ``[B, D]`` of student and teacher: of the clean view and, if there is one, of the extra view.

    Args:
        of_student: Of all views of a batch, the clean one first and the extra one last; ``None``: no pairs.
        prepared: What the teacher says of the batch.
    """
    if of_student is None:
        return []
    assert prepared.features is not None
    count = len(prepared.features)
    pairs = [(of_student[:count], prepared.features)]
    if prepared.extra is not None and prepared.extra.features is not None:
        pairs.append((of_student[-count:], prepared.extra.features))
    return pairs
