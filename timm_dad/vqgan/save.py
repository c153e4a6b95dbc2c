"""Save VQGANs as files that ``load_vqgan`` reads."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from timm_dad.common.files import replacing, write_file
from timm_dad.vqgan.model import VQGAN


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write weights as safetensors."""
    state = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in module.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(state, temporary)


def save_vqgan(vqgan: VQGAN, path: Path) -> None:
    """Write ``NAME.safetensors`` and, beside it, ``NAME.yaml`` in taming's layout, for ``load_vqgan``."""
    write_file(path.with_suffix('.yaml'), vqgan.config.to_yaml())
    write_weights(vqgan, path)
