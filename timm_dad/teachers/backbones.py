"""Networks of timm and open_clip by name or file, and the image format they expect."""

import contextlib
import difflib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from torch import nn

from timm_dad.common.extras import require_extra
from timm_dad.common.hub import quiet_hub
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.teachers.hub import load_error
from timm_dad.teachers.trained import read_trained

_logger = logging.getLogger(__name__)

INTERPOLATIONS = ('bicubic', 'bilinear')  # what a teacher can resize tensors with
_PREPROCESS = ('mean', 'std', 'interpolation', 'resize_mode')


def load_timm(
    name: str,
    checkpoint_path: str | None = None,
    num_classes: int | None = None,
    *,
    img_size: int | None = None,
    use_ema: bool = True,
) -> Any:
    """Load a timm model with its pretrained weights, or a checkpoint with the network and image format of its training.

    Args:
        name: timm's name of a model, or ``MODEL/FILE``.
        checkpoint_path: Weights in place of the pretrained ones.
        num_classes: Number of classes of the checkpoint, if its head does not tell.
        img_size: Side of its images, overriding model and checkpoint.
        use_ema: Use the moving average of a checkpoint's weights, if there is one.

    Returns:
        The model; its ``pretrained_cfg`` describes the image format.

    Raises:
        ValueError: If the model is unknown, its weights do not fit or are not finite, or it does not accept that size.
    """
    architecture, _, file = (name, '', '') if ':' in name.split('/')[0] else name.partition('/')
    if ':' not in architecture and not timm.is_model(architecture.split('.')[0]):
        close = difflib.get_close_matches(architecture.split('.')[0], timm.list_models(), n=5)
        hint = f'; close: {", ".join(close)}' if close else ''
        raise ValueError(f'timm has no model {architecture!r} (timm.list_models() names them{hint})')
    try:
        if checkpoint_path or file:
            model, source = _load_checkpoint(architecture, checkpoint_path or file, num_classes, img_size, use_ema)
        else:
            with quiet_hub():
                model, source = timm.create_model(architecture, pretrained=True), ''
        _set_size(model, img_size)
    except Exception as error:  # timm, torch and safetensors raise what they like on broken weights
        raise ValueError(f'timm:{name} could not be loaded: {load_error(error)}') from error
    norm = timm_norm(name, model)
    log_input(f'timm:{name}', norm, f'--dad-teacher-img-size; {source or "timm"}' if img_size else source or 'timm')
    return model


def _load_checkpoint(
    name: str, path: str, num_classes: int | None, img_size: int | None, use_ema: bool
) -> tuple[Any, str]:
    """Return a timm model with weights from a file, built as in its training, and where that was read."""
    if Path(path).suffix.lower() in ('.npz', '.npy'):  # of JAX: timm knows how to read them
        return timm.create_model(name, num_classes=num_classes, checkpoint_path=path), ''
    architecture = '' if ':' in name else name.split('.')[0]
    trained = read_trained(path, architecture, use_ema)
    if architecture and trained.model.split('.')[0] == architecture:
        name = trained.model  # with the tag that the training began with, which has a normalization
    cfg = timm.get_pretrained_cfg(architecture) if architecture else None
    head = cfg.classifier if cfg else timm.create_model(name, **trained.model_kwargs).pretrained_cfg.get('classifier')
    weight = trained.state.get(f'{head[0] if isinstance(head, list | tuple) else head}.weight')
    count = num_classes if weight is None else len(weight)
    model = timm.create_model(name, **{**trained.model_kwargs, 'num_classes': count})
    try:
        model.load_state_dict(trained.state)
    except RuntimeError as error:
        if not hasattr(model, 'set_input_size'):
            raise
        if not img_size:
            raise ValueError(
                f'give --dad-teacher-img-size if its weights are for another size; {load_error(error)}'
            ) from error
        model.set_input_size(img_size=(img_size, img_size))  # positions of weights that were trained at this size
        model.load_state_dict(trained.state)
    model.pretrained_cfg = trained.images(model.pretrained_cfg)
    return model, trained.source


def _set_size(model: Any, img_size: int | None) -> None:
    """Let a model take images of another size, if it can; its positional embeddings are interpolated."""
    if not img_size:
        return
    size = (img_size, img_size)
    own = tuple(model.pretrained_cfg['input_size'][-2:])
    if not takes_any_size(model) and getattr(getattr(model, 'patch_embed', None), 'img_size', own) != size:
        if not hasattr(model, 'set_input_size'):
            raise ValueError(f'it takes only images of {own[0]}x{own[1]}: leave --dad-teacher-img-size out')
        model.set_input_size(img_size=size)
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, *size), 'test_input_size': None}


def takes_any_size(network: nn.Module) -> bool:
    """Return whether a network takes images of any size: not if timm's config or patch embedding fixes it."""
    cfg: Any = getattr(network, 'pretrained_cfg', None)  # open_clip's have none, and take one size
    strict = any(
        getattr(module, 'strict_img_size', False) and getattr(module, 'img_size', None) is not None
        for module in network.modules()
    )
    return bool(cfg) and not cfg.get('fixed_input_size') and not strict


def timm_norm(name: str, model: Any) -> dict[str, Any]:
    """Return a timm model's mean, std, size and interpolation for ``Teacher``; raise ``ValueError`` without them."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('mean') or not cfg.get('std'):
        raise ValueError(f'timm:{name} does not state its normalization (pretrained_cfg with mean and std)')
    config = resolve_data_config({}, model=model)
    size = tuple(config['input_size'][-2:])
    how = config['interpolation'] if config['interpolation'] in INTERPOLATIONS else 'bicubic'
    return {'mean': config['mean'], 'std': config['std'], 'interpolation': how, 'input_size': size}


def log_input(spec: str, norm: Mapping[str, Any], source: str) -> None:
    """Log a model's image format, and where it was read."""
    mean, std = (', '.join(f'{value:.3g}' for value in norm[name]) for name in ('mean', 'std'))
    height, width = norm['input_size']
    how = f'mean {mean}, std {std}, {norm["interpolation"]}'
    _logger.info('%s: images of %dx%d, %s (from %s)', spec, height, width, how, source)


def load_open_clip(name: str, checkpoint_path: str | None = None, weights: bool = True) -> tuple[Any, dict[str, Any]]:
    """Load an open_clip model, named as for ``create_open_clip_teacher``.

    Returns:
        The model in evaluation mode, and the config it was built from.

    Raises:
        ValueError: If open_clip does not know the model or the tag, or the weights do not fit.
        ImportError: If the extra ``clip`` is not installed.
    """
    open_clip = require_extra('open_clip', 'clip')
    architecture, pretrained = name, None
    tag_cfg: Mapping[str, Any] = {}
    if not name.startswith(('local-dir:', 'hf-hub:')):
        architecture, _, tag = name.partition('/')
        pretrained = checkpoint_path or tag
        _check_open_clip_name(open_clip, architecture, pretrained)
        tag_cfg = open_clip.get_pretrained_cfg(architecture, tag) or _of_all_tags(open_clip, architecture, name)
    # NOTE: open_clip only warns where the weights of a tag (openai's) want another activation than the model's config.
    quick_gelu = bool(tag_cfg.get('quick_gelu'))
    file = next((path for path in (checkpoint_path, pretrained) if path and Path(path).is_file()), None)
    try:
        with quiet_hub(), _readable(file) as weights_file:
            model = open_clip.create_model(
                architecture,
                pretrained=(weights_file or pretrained) if weights and pretrained else None,
                load_weights=weights,
                require_pretrained=weights,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg={key: tag_cfg[key] for key in _PREPROCESS if key in tag_cfg},
            ).eval()
            if checkpoint_path and weights and not pretrained:
                open_clip.load_checkpoint(model, weights_file or checkpoint_path)
            config = dict(open_clip.get_model_config(architecture), force_quick_gelu=quick_gelu)
    except Exception as error:  # open_clip, torch and safetensors raise what they like on broken weights
        raise ValueError(f'open_clip:{name} could not be loaded: {load_error(error)}') from error
    log_input(f'open_clip:{name}', open_clip_norm(model.visual), 'open_clip')
    return model, config


def _of_all_tags(open_clip: Any, architecture: str, name: str) -> dict[str, Any]:
    """Return the image format for weights from a file: that of all tags of the architecture, if they agree."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    cfgs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    said = [{key: cfg[key] for key in _PREPROCESS if cfg.get(key) is not None} for cfg in cfgs]
    if said and all(cfg == said[0] for cfg in said):
        return said[0]
    why = f'the tags of {architecture} disagree on it' if tags else f'{architecture} has no tags, which would state it'
    _logger.warning(
        "open_clip:%s: %s, so CLIP's normalization is used; if the weights need another, name the tag they started "
        'with: --dad-teacher open_clip:%s/TAG --dad-teacher-checkpoint FILE',
        *(name, why, architecture),
    )
    return {}


@contextlib.contextmanager
def _readable(file: str | None) -> Iterator[str | None]:
    """Yield a file that open_clip can read: itself or, for a compiled model, a copy with the original names."""
    if file is None or Path(file).suffix in ('.safetensors', '.npz', '.npy'):
        yield file
        return
    content = read_checkpoint(file, mmap=True)
    state = content.get('state_dict', content) if isinstance(content, dict) else {}
    if not any('_orig_mod.' in str(name) for name in state):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({'state_dict': clean_state_dict(state)}, f'{folder}/weights.pt')
        yield f'{folder}/weights.pt'


def open_clip_norm(visual: Any) -> dict[str, Any]:
    """Return mean, std, size and interpolation of open_clip's image tower, as ``Teacher`` takes them."""
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
