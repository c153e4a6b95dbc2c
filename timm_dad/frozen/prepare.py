"""Frozen models under Accelerate, in a precision of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from timm_dad.frozen.compiled import compile_network
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

PRECISIONS = {'fp32': 'no', 'bf16': 'bf16', 'fp16': 'fp16'}
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


@contextmanager
def _own_accelerator(precision: str) -> Iterator[Accelerator]:
    """An ``Accelerator`` that leaves the process-wide one, and its precision, as they were.

    Accelerate keeps one precision a process and refuses a second ``Accelerator`` with another. What a model is
    prepared with is fixed while it is prepared, so the state is set aside for that long and put back.
    """
    shared, gradient_state = AcceleratorState._shared_state, GradientState._shared_state
    before, gradient_before = dict(shared), dict(gradient_state)
    shared.clear()
    try:
        accelerator = Accelerator(mixed_precision=PRECISIONS[precision])
        if precision != 'fp32':
            # Accelerate runs fp16 on a CPU in fp32 without a word; torch's autocast can do it.
            accelerator.native_amp = True
        yield accelerator
    finally:
        for state, content in ((shared, before), (gradient_state, gradient_before)):
            state.clear()
            state.update(content)


def prepare_frozen(
    teacher: Teacher,
    vqgan: VQGAN | None = None,
    precision: str = 'fp32',
    device: torch.device | None = None,
    *,
    compile: bool = False,
) -> None:
    """Freeze teacher and VQGAN in place and let Accelerate run their networks in ``precision``.

    Resizing, normalization, codebook search and losses stay in fp32; networks return fp32. Nothing is wrapped for
    distributed training, and an autocast of the caller does not reach inside.

    Args:
        teacher: The teacher.
        vqgan: The VQGAN, if there is one.
        precision: ``fp32``, ``bf16`` or ``fp16``; independent of the student's.
        device: Where they run; Accelerate's device by default.
        compile: Compile the networks (``torch.compile``, inductor), one graph for one shape of a batch.

    Raises:
        ValueError: If the precision is unknown, a network was prepared in another one before, or this machine cannot
            compile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {tuple(PRECISIONS)}, got {precision!r}')
    with _own_accelerator(precision) as accelerator:
        networks: list[nn.Module] = [teacher.model]
        if vqgan is not None:
            networks += [vqgan.encoder, vqgan.decoder]
        before = {network.dad_precision for network in networks if hasattr(network, 'dad_precision')}
        if before - {precision}:
            raise ValueError(
                f'precision {precision}: the networks were prepared in {before.pop()} before; load them again'
            )
        for module in (teacher, vqgan):
            if module is not None:
                module.eval().requires_grad_(False).to(device or accelerator.device)
        for network in networks:
            network.to(memory_format=torch.channels_last)
            round_weights(network, DTYPES[precision])
            accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
            if compile and not hasattr(network, 'dad_precision'):
                compile_network(network)
            network.dad_precision = precision  # type: ignore[assignment]


def own_precision(network: nn.Module) -> torch.autocast:
    """The precision that a network was prepared in, for calls of its parts: its forward has it already.

    Args:
        network: Of ``prepare_frozen``; any other one is in fp32.

    Returns:
        A context.
    """
    precision = getattr(network, 'dad_precision', 'fp32')
    dtype = DTYPES[precision] if precision != 'fp32' else None
    return torch.autocast(next(network.parameters()).device.type, dtype, enabled=dtype is not None)


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices and kernels as autocast would round them at every call: it rounds frozen ones again and again.

    Args:
        network: Changed in place.
        dtype: Floating dtype.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
