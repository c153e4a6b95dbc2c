"""Frozen models in their own precision: their networks run under autocast, optionally compiled, and return fp32."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}

# With and without a gradient these are 8 graphs, all that torch keeps of a function (``recompile_limit``).
_HALVINGS = 3


def prepare_frozen(
    teacher: Teacher,
    vqgan: VQGAN | None = None,
    precision: str = 'fp32',
    device: torch.device | None = None,
    *,
    compile: bool = False,
) -> None:
    """Freeze teacher and VQGAN in place and run their networks in ``precision``.

    Resizing, normalization, codebook search and losses stay in fp32; networks return fp32. The caller's autocast has no
    effect inside. Nothing is wrapped for distributed training, and neither Accelerate nor a process group is
    initialized.

    Args:
        teacher: The teacher.
        vqgan: The VQGAN, if there is one.
        precision: ``fp32``, ``bf16`` or ``fp16``; independent of the student's.
        device: Where they run. By default the device of the process's ``Accelerator``; without one, the GPU of
            ``LOCAL_RANK`` or the current one, or the CPU if there is no GPU.
        compile: Compile the networks (``torch.compile``, inductor), with one graph per batch shape; on a GPU,
            calls without a gradient are replayed as CUDA graphs.

    Raises:
        ValueError: If the precision is unknown, a network was already prepared in another one, or this machine cannot
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
            raise ValueError(f'precision {precision}: the networks are already prepared in {before}; load them again')
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

    An object rather than a closure, so that a copy or pickle of the network runs its own weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.forward = network, network.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with own_precision(self.network):
            return convert_to_fp32(self.forward(*args, **kwargs))


def own_precision(network: nn.Module) -> torch.autocast:
    """Return the autocast of the precision a network was prepared in, for calls of its parts; fp32 if unprepared."""
    precision = getattr(network, 'dad_precision', 'fp32')
    dtype = PRECISIONS[precision] if precision != 'fp32' else None
    return torch.autocast(next(network.parameters()).device.type, dtype, enabled=dtype is not None)


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Store matrices and kernels as autocast would round them at every call: it re-rounds frozen weights each time.

    Only layers with the forward of ``nn.Linear`` or ``nn.Conv2d`` are rounded. Others may first compute something from
    their weights, or run outside autocast.
    """
    for module in network.modules():
        if type(module).forward in (nn.Linear.forward, nn.Conv2d.forward):
            module.to(dtype)


class FixedBatch:
    """Call a function that maps rows to rows with only a few batch sizes: pad other batches, then cut the result.

    It may take several tensors, each with one row per image.

    A compiled function is recompiled for every new shape, such as the last batch of a data set. The sizes are that of
    the largest batch so far, its half, quarter and eighth (rounded up); a size that fails, for example because memory
    runs out, is forgotten.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.size = 0

    def __call__(self, *batches: Tensor) -> Tensor:
        """Call the function."""
        count = len(batches[0])
        size = self._size_for(count)
        try:
            found = self.function(*(_filled(batch, size) for batch in batches))
        except RuntimeError:
            self.size = 0
            raise
        self.size = max(self.size, size)
        return found[:count]

    def _size_for(self, count: int) -> int:
        largest = max(self.size, count)
        sizes = [math.ceil(largest / (1 << halved)) for halved in range(_HALVINGS + 1)]
        return min(size for size in sizes if size >= count)


def _filled(rows: Tensor, size: int) -> Tensor:
    missing = size - len(rows)
    if missing:
        rows = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    # Strides are part of what a function is compiled for.
    return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows


class Compiled:
    """Call a compiled function; on a GPU, where no gradient is asked for, replay it as a CUDA graph.

    A graph writes its result where it wrote the one before, so the result is copied. What a gradient goes back through
    must outlive the next network's call, as the decoder's in an attack on latents does: there it is compiled alone.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self.compiled = torch.compile(function, dynamic=False)
        self.replayed = (
            torch.compile(function, dynamic=False, mode='reduce-overhead') if device.type == 'cuda' else None
        )

    def __call__(self, *batches: Tensor) -> Tensor:
        """Call the function."""
        if self.replayed is None or torch.is_grad_enabled():
            return self.compiled(*batches)
        return self.replayed(*batches).clone()


def compile_network(network: nn.Module) -> None:
    """Compile the forward of a network in place, for one image size; raise ``ValueError`` if this machine cannot."""
    device = next(network.parameters()).device
    check_compiler(device)
    network.forward = FixedBatch(Compiled(network.forward, device))


def check_compiler(device: torch.device) -> None:
    """Raise ``ValueError`` unless a compiler works: ``torch.compile`` needs a C++ one on a CPU, Triton on a GPU."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # inductor raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'torch.compile does not work on this machine (is a compiler missing?): {reason}') from error
