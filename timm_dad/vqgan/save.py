"""VQGANs as files that ``load_vqgan`` reads."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from timm_dad.vqgan.model import VQGAN


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write weights as safetensors (never half a file under its final name)."""
    temporary = path.with_name(f'{path.name}.tmp')
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in module.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    temporary.chmod(0o644)  # safetensors writes for its owner alone
    os.replace(temporary, path)


def save_vqgan(vqgan: VQGAN, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``NAME.safetensors`` and, beside it, ``NAME.yaml`` in taming's layout: what ``load_vqgan`` reads.

    Args:
        vqgan: The VQGAN.
        path: The weights.
        dtype: Precision on the disk.
    """
    temporary = path.with_name(f'{path.stem}.yaml.tmp')
    temporary.write_text(vqgan.config.to_yaml())
    os.replace(temporary, path.with_suffix('.yaml'))
    write_weights(vqgan, path, dtype)
