"""Frozen teachers: any timm model and any open_clip zero-shot classifier, fed with [0, 1] pixels.

The teacher brings its own normalization and input size (Zhou et al. 2023, arXiv:2311.01441, section 3.2).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn

from timm_dad.extras import require_extra

_logger = logging.getLogger(__name__)

DEFAULT_TEMPLATES = ('a photo of a {}.',)


class Teacher(nn.Module):
    """A frozen classifier on [0, 1] pixels of any size.

    Args:
        model: Maps normalized images ``[B, 3, h, w]`` to logits ``[B, K]``.
        mean: Mean that ``model`` was trained with, per channel, in [0, 1] pixel units.
        std: Standard deviation that ``model`` was trained with, per channel, in [0, 1] pixel units.
        input_size: ``(h, w)`` that ``model`` takes; other sizes are resized (bicubic, antialiased, differentiable).
        num_classes: ``K``.

    Raises:
        ValueError: If a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f'std of the teacher must be positive, got {tuple(std)}')
        self.model = model.eval().requires_grad_(False)
        self.input_size = input_size
        self.num_classes = num_classes
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> 'Teacher':
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def forward(self, x_pix: Tensor) -> Tensor:
        """Logits of images.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], any size.

        Returns:
            Logits ``[B, K]``, before any distillation temperature. Gradients reach ``x_pix``, never a parameter.
        """
        if tuple(x_pix.shape[-2:]) != self.input_size:
            x_pix = F.interpolate(x_pix, self.input_size, mode='bicubic', antialias=True).clamp(0, 1)
        with torch.autocast(x_pix.device.type, enabled=False):  # the student's precision is not the teacher's
            logits: Tensor = self.model((x_pix - self.mean) / self.std)
        return logits


class ZeroShotClassifier(nn.Module):
    """Image tower of a CLIP with a fixed text head: ``logit_scale * cos(image, text)``.

    Args:
        visual: Maps normalized images ``[B, 3, h, w]`` to features ``[B, D]``.
        text_features: Unit-length text features, one column a class ``[D, K]``.
        logit_scale: Factor of the cosines (CLIP's learned one, after ``exp``).

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.
    """

    text_features: Tensor

    def __init__(self, visual: nn.Module, text_features: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.visual = visual
        self.logit_scale = logit_scale
        self.register_buffer('text_features', text_features, persistent=False)

    def forward(self, x_norm: Tensor) -> Tensor:
        """Logits ``[B, K]`` of normalized images ``[B, 3, h, w]``."""
        features = self.visual(x_norm)
        features = features[0] if isinstance(features, tuple) else features  # CoCa also returns its tokens
        with torch.autocast(x_norm.device.type, enabled=False):  # cosines times 100 need more than 8 bits
            logits: Tensor = self.logit_scale * F.normalize(features.float(), dim=-1) @ self.text_features
        return logits


def create_timm_teacher(name: str, num_classes: int, checkpoint_path: str | None = None) -> Teacher:
    """Create a teacher from a timm model.

    Args:
        name: timm's name of a model, with its pretrained tag, or ``hf-hub:`` / ``local-dir:`` as timm takes them.
        num_classes: Classes of the data.
        checkpoint_path: Weights to load in place of the pretrained ones; its head has ``num_classes`` outputs.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: If timm does not know the model, the checkpoint does not fit, or the class counts differ.
    """
    if '/' not in name and ':' not in name and not timm.is_model(name.split('.')[0]):
        close = timm.list_models(f'*{name.split(".")[0].split("_")[0]}*')[:5]
        raise ValueError(f'timm has no model {name!r} (timm.list_models() names them; close: {close})')
    try:
        if checkpoint_path:
            model = timm.create_model(name, num_classes=num_classes, checkpoint_path=checkpoint_path)
        else:
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, torch and safetensors raise what they like on broken weights
        raise ValueError(f'teacher timm:{name} could not be loaded: {error}') from error
    if model.num_classes != num_classes:
        raise ValueError(
            f'teacher timm:{name} has {model.num_classes} classes and the data {num_classes}; '
            'they must be the same classes in the same order (give a checkpoint fine-tuned on this data)'
        )
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('mean') or not cfg.get('std'):
        raise ValueError(f'teacher timm:{name} does not say its normalization (pretrained_cfg with mean and std)')
    data_config = resolve_data_config({}, model=model)
    return Teacher(
        model,
        mean=data_config['mean'],
        std=data_config['std'],
        input_size=tuple(data_config['input_size'][-2:]),
        num_classes=num_classes,
    )


def create_open_clip_teacher(
    name: str,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    checkpoint_path: str | None = None,
) -> Teacher:
    """Create a zero-shot teacher from an open_clip model.

    Args:
        name: ``MODEL/PRETRAINED`` (a tag or a file), ``local-dir:DIR`` or ``hf-hub:ORG/REPO``, as open_clip takes them.
        class_names: One name a class, in the order of the labels.
        templates: Prompts with ``{}`` for the class name; their features are averaged.
        checkpoint_path: Weights in place of ``PRETRAINED``.

    Returns:
        The frozen teacher; its text tower is dropped.

    Raises:
        ValueError: If open_clip does not know the model or the tag, or a template has no ``{}``.
        ImportError: If the extra ``clip`` is not installed.
    """
    open_clip = require_extra('open_clip', 'clip')
    bad = [template for template in templates if '{}' not in template]
    if bad or not templates:
        raise ValueError(f'a template needs {{}} where the class name goes, got {bad or list(templates)}')
    architecture, pretrained = name, None
    if not name.startswith(('local-dir:', 'hf-hub:')):
        architecture, _, tag = name.partition('/')
        pretrained = checkpoint_path or tag
        _check_open_clip_name(open_clip, architecture, pretrained)
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, require_pretrained=True).eval()
        if checkpoint_path:
            open_clip.load_checkpoint(model, checkpoint_path)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, torch and safetensors raise what they like on broken weights
        raise ValueError(f'teacher open_clip:{name} could not be loaded: {error}') from error
    text_features = open_clip.build_zero_shot_classifier(model, tokenizer, list(class_names), list(templates))
    visual = model.visual
    size = visual.image_size if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    _logger.info('Zero-shot teacher open_clip:%s: %d classes, %d templates', name, len(class_names), len(templates))
    return Teacher(
        ZeroShotClassifier(visual, text_features, model.logit_scale.exp().item()),
        mean=visual.preprocess_cfg['mean'],
        std=visual.preprocess_cfg['std'],
        input_size=(int(size[0]), int(size[1])),
        num_classes=len(class_names),
    )


def _check_open_clip_name(open_clip: object, architecture: str, pretrained: str | None) -> None:
    models: list[str] = open_clip.list_models()  # type: ignore[attr-defined]
    if architecture not in models:
        raise ValueError(
            f'open_clip has no model {architecture!r} (open_clip.list_models() names them, such as ViT-L-14)'
        )
    tags: list[str] = open_clip.list_pretrained_tags_by_model(architecture)  # type: ignore[attr-defined]
    if not pretrained or (pretrained not in tags and not Path(pretrained).is_file()):
        raise ValueError(
            f'open_clip:{architecture}/PRETRAINED takes a file or one of {tags}, got {pretrained or "nothing"!r}'
        )
