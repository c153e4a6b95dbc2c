"""Device, processes and precision of a training."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from timm import utils
from timm.layers import set_fast_norm


def _check_device(device: str) -> None:
    for kind in ('FSDP', 'DEEPSPEED', 'MEGATRON_LM', 'PARALLELISM_CONFIG'):
        if os.environ.get(f'ACCELERATE_USE_{kind}', '').lower() in ('1', 'true'):
            raise ValueError(
                f"Accelerate's configuration asks for {kind}, but the student is trained only with data parallelism: "
                'run `accelerate config` and choose multi-GPU, without it'
            )
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'--device {device}: there is no CUDA device; use --device cpu')


def create_accelerator(
    project_dir: Path,
    *,
    device: str,
    precision: str = 'no',
    trackers: Sequence[str] = (),
    seed: int = 0,
    sync_batch_norm: bool = False,
    broadcast_buffers: bool = True,
    fuser: str = '',
    fast_norm: bool = False,
) -> Accelerator:
    """Create the ``Accelerator`` and set the switches of torch and timm.

    Args:
        project_dir: Folder that trackers write to.
        device: ``cuda``, ``cuda:N`` or ``cpu``.
        precision: The student's: ``no``, ``fp16`` or ``bf16``.
        trackers: Names of trackers.
        seed: Seed of the order of the data.
        sync_batch_norm: Whether to synchronize batch norm, which a CPU cannot.
        broadcast_buffers: Whether processes share the student's buffers at each forward.
        fuser: TorchScript fuser to select.
        fast_norm: Whether to use timm's fast normalization layers.

    Raises:
        ValueError: If the device is missing, or Accelerate is configured for something this trainer does not support.
    """
    _check_device(device)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if fuser:
        utils.set_jit_fuser(fuser)
    if fast_norm:
        set_fast_norm()
    if device.startswith('cuda:'):
        torch.cuda.set_device(device)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=device == 'cpu',
            log_with=list(trackers) or None,
            project_dir=project_dir,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=broadcast_buffers)],
        )
    except ValueError as error:
        raise ValueError(f'--log-with / --amp: Accelerate reports: {error}') from error
    if sync_batch_norm and accelerator.device.type == 'cpu':
        raise ValueError('--sync-bn needs GPUs: PyTorch synchronizes batch norm only on GPUs')
    missing = {name for name in trackers if name not in {tracker.value for tracker in accelerator.log_with}}
    if missing:
        raise ValueError(f'--log-with: {", ".join(sorted(missing))} is not installed, or no tracker of Accelerate')
    accelerator.native_amp = precision != 'no'  # Accelerate leaves fp16 out on a CPU without a word; torch can do it
    return accelerator
