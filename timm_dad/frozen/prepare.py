"""Frozen models in a precision of their own: their networks run under autocast and return fp32."""

import os
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import convert_to_fp32
from torch import nn

from timm_dad.frozen.compiled import compile_network
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def prepare_frozen(
    teacher: Teacher,
    vqgan: VQGAN | None = None,
    precision: str = 'fp32',
    device: torch.device | None = None,
    *,
    compile: bool = False,
) -> None:
    """Freeze teacher and VQGAN in place and run their networks in ``precision``.

    Resizing, normalization, codebook search and losses stay in fp32; networks return fp32. An autocast of the caller
    does not reach inside. Nothing is wrapped for distributed training, and neither Accelerate nor a process group is
    initialized.

    Args:
        teacher: The teacher.
        vqgan: The VQGAN, if there is one.
        precision: ``fp32``, ``bf16`` or ``fp16``; independent of the student's.
        device: Where they run. By default the device of the process's ``Accelerator``; without one, the GPU of
            ``LOCAL_RANK`` or the current one, or the CPU where there is no GPU.
        compile: Compile the networks (``torch.compile``, inductor), one graph for one shape of a batch.

    Raises:
        ValueError: If the precision is unknown, a network was prepared in another one before, or this machine cannot
            compile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {tuple(PRECISIONS)}, got {precision!r}')
    networks = [*teacher.model.children()] if isinstance(teacher, TeacherEnsemble) else [teacher.model]
    if vqgan is not None:
        networks += [vqgan.encoder, vqgan.decoder]
    for network in networks:
        before = getattr(network, 'dad_precision', precision)
        if before != precision:
            raise ValueError(f'precision {precision}: the networks were prepared in {before} before; load them again')
    for module in (teacher, vqgan):
        if module is not None:
            module.eval().requires_grad_(False).to(device or _default_device())
    for network in networks:
        network.to(memory_format=torch.channels_last)
        round_weights(network, PRECISIONS[precision])
        if not hasattr(network, 'dad_precision'):
            network.dad_precision = precision  # type: ignore[assignment]
            network.forward = _OwnPrecision(network)
            if compile:
                compile_network(network)


def _default_device() -> torch.device:
    if is_initialized():
        device: torch.device = AcceleratorState().device
        return device
    if not torch.cuda.is_available():
        return torch.device('cpu')
    index = int(os.environ.get('LOCAL_RANK', torch.cuda.current_device()))
    return torch.device('cuda', index % torch.cuda.device_count())


class _OwnPrecision:
    """The forward of a network in its own precision, with outputs in fp32.

    An object rather than a closure: a copy or pickle of the network then runs its own weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.forward = network, network.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with own_precision(self.network):
            return convert_to_fp32(self.forward(*args, **kwargs))


def own_precision(network: nn.Module) -> torch.autocast:
    """The precision that a network was prepared in, for calls of its parts: its forward has it already.

    Args:
        network: Of ``prepare_frozen``; any other one is in fp32.

    Returns:
        A context.
    """
    precision = getattr(network, 'dad_precision', 'fp32')
    dtype = PRECISIONS[precision] if precision != 'fp32' else None
    return torch.autocast(next(network.parameters()).device.type, dtype, enabled=dtype is not None)


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices and kernels as autocast would round them at every call: it rounds frozen ones again and again.

    Only layers with the forward of ``nn.Linear`` or ``nn.Conv2d`` are rounded. Others may compute something of their
    weights first, or run outside autocast.

    Args:
        network: Changed in place.
        dtype: Floating dtype.
    """
    for module in network.modules():
        if type(module).forward in (nn.Linear.forward, nn.Conv2d.forward):
            module.to(dtype)
