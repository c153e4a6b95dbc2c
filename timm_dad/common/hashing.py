"""One hash for weights and facts."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def content_hash(tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of tensors (names, types, shapes and bytes) and of plain facts."""
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f'\0{name} {value.dtype} {tuple(value.shape)}\0'.encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
