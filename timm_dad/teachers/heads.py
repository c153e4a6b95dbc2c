"""A linear head on an image tower: what ``timm-dad probe`` writes, and CLIPs fine-tuned with a head.

A file contains ``head.weight [K, D]``, optionally ``head.bias [K]``, and optionally ``visual.*``, the weights of
open_clip's image tower if it was fine-tuned. The head takes features of unit length, like CLIP's own text head.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from timm_dad.common.files import replacing
from timm_dad.common.hashing import content_hash
from timm_dad.common.tf32 import without_tf32
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.teachers.backbones import load_open_clip, load_timm, open_clip_norm, timm_norm
from timm_dad.teachers.classes import match_classes, resolve_classes
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.trained import find_run
from timm_dad.teachers.zero_shot import unit_features

_METADATA = ('tower', 'tower_sha256', 'class_names', 'facts')  # of a file, beside its tensors


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A head and its metadata; ``ValueError`` if the shapes do not fit each other."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    visual: Mapping[str, Tensor] = field(default_factory=dict)  # weights of the image tower, if it was fine-tuned
    tower: str = ''  # SPEC of the image tower that it was fitted on: timm:..., open_clip:...
    tower_sha256: str = ''  # of that tower's weights
    class_names: Sequence[str] | None = None  # the classes' folders
    facts: Mapping[str, Any] = field(default_factory=dict)  # how it was fitted, how good it is

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            shapes = tuple(self.weight.shape), tuple(self.bias.shape)
            raise ValueError(f'head.weight must be [K, D] and head.bias [K], got {shapes[0]} and {shapes[1]}')


class _LinearInFp32(nn.Linear):
    """A linear layer that runs in fp32, without TF32, under any autocast; ``round_weights`` leaves it unchanged."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False), without_tf32():
            return super().forward(input)


class HeadClassifier(nn.Module):
    """An image tower, to features ``[B, D]``, with a linear head on them at unit length."""

    def __init__(self, visual: nn.Module, head: LinearHead) -> None:
        super().__init__()
        self.visual = visual
        self.head = _LinearInFp32(head.weight.shape[1], head.weight.shape[0])
        self.head.load_state_dict({'weight': head.weight, 'bias': head.bias})

    def forward(self, x_norm: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of normalized images ``[B, 3, h, w]``: the head's own, without CLIP's scale."""
        return self.forward_head(self.forward_features(x_norm))

    def forward_features(self, x_norm: Tensor) -> Tensor:
        """Return features ``[B, D]`` of unit length, fp32, of normalized images ``[B, 3, h, w]``."""
        return unit_features(self.visual, x_norm)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits ``[B, K]`` of features ``[B, D]`` or, with ``pre_logits`` as in timm's models, the features."""
        logits: Tensor = features if pre_logits else self.head(features)
        return logits


def read_head(path: str | Path) -> LinearHead | None:
    """Read a head, maybe under ``state_dict``; ``None`` if a file has other weights, ``ValueError`` if it has none."""
    metadata: dict[str, str] = {}
    try:
        if str(path).endswith('.safetensors'):
            with safe_open(path, framework='pt') as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}
        else:
            content = read_checkpoint(path)
            state = content.get('state_dict', content)
    except ValueError:
        raise
    except Exception as error:  # safetensors raises what it likes on broken files; others hold no weights by name
        raise ValueError(f'{path} is not a file of weights: {error}') from error
    state = clean_state_dict(state)
    if 'head.weight' not in state:
        return None
    weight = state['head.weight']
    known = json.loads(metadata.get('timm_dad', '{}'))
    return LinearHead(
        weight=weight,
        bias=state.get('head.bias', torch.zeros(weight.shape[:1])),
        visual={name.removeprefix('visual.'): value for name, value in state.items() if name.startswith('visual.')},
        **{name: known[name] for name in _METADATA if name in known},
    )


def save_head(path: str | Path, head: LinearHead) -> None:
    """Write a head as safetensors, with its metadata."""
    known = {name: getattr(head, name) for name in _METADATA}
    tensors = {'head.weight': head.weight.contiguous(), 'head.bias': head.bias.contiguous()}
    tensors.update({f'visual.{name}': value.contiguous() for name, value in head.visual.items()})
    with replacing(path) as temporary:
        save_file(tensors, temporary, {'timm_dad': json.dumps(known)})


def load_tower(spec: str, weights: bool = True, checkpoint_path: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load the image tower (to features ``[B, D]``) of a SPEC, and its normalization for ``Teacher``.

    Args:
        spec: The SPEC.
        weights: Whether to load weights, or only build it.
        checkpoint_path: Weights in place of those of an open_clip tag, which then states activation and normalization.

    Raises:
        ValueError: If it cannot be loaded, or the SPEC is of another kind.
    """
    source, _, name = spec.partition(':')
    if source == 'open_clip':
        visual = load_open_clip(name, checkpoint_path, weights)[0].visual
        return visual.eval(), open_clip_norm(visual)
    if source in ('timm', 'run'):
        model = load_timm(*find_run(name)) if source == 'run' else load_timm(name)
        norm = timm_norm(name, model)
        model.reset_classifier(0)
        return model.eval(), norm
    raise ValueError(f'an image tower is timm:MODEL, run:FOLDER or open_clip:MODEL/PRETRAINED, got {spec!r}')


def create_head_teacher(
    head: LinearHead,
    spec: str,
    num_classes: int,
    *,
    checkpoint_path: str | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Sequence[str] | None = None,
) -> Teacher:
    """Create a frozen teacher with the head's own logits; ``ValueError`` if tower, head or classes do not fit.

    ``spec`` names the tower, and ``checkpoint_path`` the file of its weights, if ``spec`` names a tag beside it.

    If the data's class names differ from the head's, they are looked up there, unless there is a class map.
    """
    visual, norm = load_tower(spec, not head.visual, checkpoint_path)
    try:
        if head.visual:
            visual.load_state_dict(head.visual)
        elif head.tower_sha256 and content_hash(visual.state_dict()) != head.tower_sha256:
            raise ValueError(f'was fitted on weights that differ from those of {spec}: fit it again')
        model = HeadClassifier(visual, head)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *norm['input_size']))
    except RuntimeError as error:
        raise ValueError(f'does not fit the image tower {spec}: {error}') from error
    count = len(head.weight)
    if class_map is None:
        index = match_classes(count, head.class_names, num_classes, class_names)
    else:
        index = resolve_classes(class_map, count, head.class_names)
    return Teacher(model, **norm, num_classes=num_classes, class_index=index)
