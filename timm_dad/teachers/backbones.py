"""Networks of timm and open_clip by name or file, and how their images must look."""

from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import load_state_dict

from timm_dad.common.extras import require_extra


def load_timm(name: str, checkpoint_path: str | None = None, num_classes: int | None = None) -> Any:
    """Load a timm model with its pretrained weights or a checkpoint; ``ValueError`` if it is unknown or does not fit.

    The checkpoint's head tells how many classes it has, or else ``num_classes``.
    """
    if '/' not in name and ':' not in name and not timm.is_model(name.split('.')[0]):
        close = timm.list_models(f'*{name.split(".")[0].split("_")[0]}*')[:5]
        raise ValueError(f'timm has no model {name!r} (timm.list_models() names them; close: {close})')
    try:
        if checkpoint_path:
            head = _head_size(name, checkpoint_path) or num_classes
            return timm.create_model(name, num_classes=head, checkpoint_path=checkpoint_path)
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, torch and safetensors raise what they like on broken weights
        raise ValueError(f'teacher timm:{name} could not be loaded: {error}') from error


def _head_size(name: str, checkpoint_path: str) -> int | None:
    cfg = None if ':' in name else timm.get_pretrained_cfg(name.split('.')[0])
    head = cfg.classifier if cfg else None
    weight = load_state_dict(checkpoint_path).get(f'{head[0] if isinstance(head, tuple) else head}.weight')
    return None if weight is None else len(weight)


def timm_norm(name: str, model: Any) -> dict[str, Any]:
    """Mean, standard deviation, size and interpolation of a timm model for ``Teacher``; ``ValueError`` without them."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('mean') or not cfg.get('std'):
        raise ValueError(f'teacher timm:{name} does not say its normalization (pretrained_cfg with mean and std)')
    config = resolve_data_config({}, model=model)
    size = tuple(config['input_size'][-2:])
    return {**{key: config[key] for key in ('mean', 'std', 'interpolation')}, 'input_size': size}


def load_open_clip(name: str, checkpoint_path: str | None = None, weights: bool = True) -> tuple[Any, dict[str, Any]]:
    """Load an open_clip model, named as for ``create_open_clip_teacher``.

    Returns:
        The model in evaluation mode, and what it was made from.

    Raises:
        ValueError: If open_clip does not know the model or the tag, or the weights do not fit.
        ImportError: If the extra ``clip`` is not installed.
    """
    open_clip = require_extra('open_clip', 'clip')
    architecture, pretrained = name, None
    tag_cfg: dict[str, Any] = {}
    if not name.startswith(('local-dir:', 'hf-hub:')):
        architecture, _, tag = name.partition('/')
        pretrained = checkpoint_path or tag
        _check_open_clip_name(open_clip, architecture, pretrained)
        tag_cfg = open_clip.get_pretrained_cfg(architecture, tag) or {}
    # NOTE: open_clip only warns where the weights of a tag (openai's) want another activation than the model's config.
    quick_gelu = bool(tag_cfg.get('quick_gelu'))
    try:
        model = open_clip.create_model(
            architecture,
            pretrained=pretrained if weights else None,
            load_weights=weights,
            require_pretrained=weights,
            force_quick_gelu=quick_gelu,
            force_preprocess_cfg={key: tag_cfg[key] for key in ('mean', 'std', 'interpolation') if key in tag_cfg},
        ).eval()
        if checkpoint_path and weights:
            open_clip.load_checkpoint(model, checkpoint_path)
        config = dict(open_clip.get_model_config(architecture), force_quick_gelu=quick_gelu)
    except Exception as error:  # open_clip, torch and safetensors raise what they like on broken weights
        raise ValueError(f'teacher open_clip:{name} could not be loaded: {error}') from error
    return model, config


def open_clip_norm(visual: Any) -> dict[str, Any]:
    """Mean, standard deviation, size and interpolation of open_clip's image tower, as ``Teacher`` takes them."""
    size = visual.image_size if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    cfg = visual.preprocess_cfg
    return {**{key: cfg[key] for key in ('mean', 'std', 'interpolation')}, 'input_size': (int(size[0]), int(size[1]))}


def _check_open_clip_name(open_clip: Any, architecture: str, pretrained: str | None) -> None:
    if architecture not in open_clip.list_models():
        raise ValueError(
            f'open_clip has no model {architecture!r} (open_clip.list_models() names them, such as ViT-L-14)'
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not pretrained or (pretrained not in tags and not Path(pretrained).is_file()):
        raise ValueError(
            f'open_clip:{architecture}/PRETRAINED takes a file or one of {tags}, got {pretrained or "nothing"!r}'
        )
