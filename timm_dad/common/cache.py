"""Where downloads and computed files are kept."""

from pathlib import Path

import torch


def cache_dir() -> Path:
    """Return the folder ``timm_dad`` in torch.hub's, which ``TORCH_HOME`` and ``torch.hub.set_dir`` move."""
    return Path(torch.hub.get_dir()).absolute() / 'timm_dad'
