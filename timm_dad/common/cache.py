"""The place of downloaded and computed files."""

import os
from pathlib import Path

import torch


def cache_dir() -> Path:
    """Return ``TIMM_DAD_CACHE``, or ``timm_dad`` in torch.hub's folder, which ``TORCH_HOME`` and ``set_dir`` move."""
    own = os.environ.get('TIMM_DAD_CACHE')
    return Path(own).absolute() if own else Path(torch.hub.get_dir()).absolute() / 'timm_dad'
