"""Frozen teachers: any timm model and any open_clip zero-shot classifier, fed with [0, 1] pixels.

The teacher brings its own normalization, input size and interpolation (Zhou et al. 2023, arXiv:2311.01441,
section 3.2).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.common.extras import require_extra
from timm_dad.common.hashing import content_hash
from timm_dad.common.pixels import PixelNorm
from timm_dad.teachers.backbones import load_open_clip, load_timm, open_clip_norm, timm_norm
from timm_dad.teachers.classes import match_classes, resolve_classes, timm_labels
from timm_dad.teachers.zero_shot import DEFAULT_TEMPLATES, ZeroShotClassifier, check_templates, zero_shot_head

_logger = logging.getLogger(__name__)

INTERPOLATIONS = ('bicubic', 'bilinear')


class Teacher(nn.Module):
    """A frozen classifier on [0, 1] pixels of any size.

    Args:
        model: Maps normalized images ``[B, 3, h, w]`` to logits ``[B, C]``.
        mean: Mean that ``model`` was trained with, per channel, in [0, 1] pixel units.
        std: Standard deviation that ``model`` was trained with, per channel, in [0, 1] pixel units.
        input_size: ``(h, w)`` that ``model`` takes; other sizes are resized (antialiased, differentiable).
        num_classes: ``K``, classes of the data.
        interpolation: ``bicubic`` or ``bilinear``, as ``model`` was trained with.
        class_index: The output of ``model`` that each class of the data is ``[K]``; ``None`` if they are the same. The
            other outputs are left out, so the softmax is over the data's classes.

    Raises:
        ValueError: If a ``std`` is not positive, or the interpolation cannot be done.
    """

    class_index: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        num_classes: int,
        interpolation: str = 'bicubic',
        class_index: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation of the teacher must be one of {INTERPOLATIONS}, got {interpolation!r}')
        self.model = model.eval().requires_grad_(False)
        self.input_size, self.num_classes, self.interpolation = input_size, num_classes, interpolation
        self.norm = PixelNorm(mean, std)
        index = None if class_index is None else torch.tensor(class_index)
        self.register_buffer('class_index', index, persistent=False)

    def train(self, mode: bool = True) -> 'Teacher':
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def normalize(self, x_pix: Tensor) -> Tensor:
        """What the network gets of images ``[B, 3, H, W]`` in [0, 1]: its size, its mean and standard deviation."""
        if tuple(x_pix.shape[-2:]) != self.input_size:
            x_pix = F.interpolate(x_pix, self.input_size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return self.norm.normalize(x_pix)

    def select(self, output: Tensor) -> Tensor:
        """Logits ``[B, K]`` of the data's classes in the network's output ``[B, C]``."""
        return output if self.class_index is None else output[:, self.class_index]

    def fingerprint(self) -> str:
        """Hash of all that the logits depend on: weights, classes, normalization and size.

        It is the same on every machine: of a zero-shot head it takes the prompts, not their features.
        """
        tensors = dict(self.model.state_dict())
        facts: dict[str, Any] = {
            'mean': self.norm.mean.flatten().tolist(),
            'std': self.norm.std.flatten().tolist(),
            'class_index': None if self.class_index is None else self.class_index.tolist(),
            **{name: getattr(self, name) for name in ('input_size', 'interpolation', 'num_classes')},
        }
        if isinstance(self.model, ZeroShotClassifier):
            facts.update(prompts=self.model.prompts, logit_scale=self.model.logit_scale)
            if self.model.prompts is None:
                tensors['text_features'] = self.model.text_features
        return content_hash(tensors, facts)

    def forward(self, x_pix: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1]; gradients reach ``x_pix``, never a parameter."""
        with torch.autocast(x_pix.device.type, enabled=False):  # the student's precision is not the teacher's
            return self.select(self.model(self.normalize(x_pix)))


def create_timm_teacher(
    name: str,
    num_classes: int,
    checkpoint_path: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    class_map: Sequence[str] | None = None,
) -> Teacher:
    """Create a frozen teacher from a timm model.

    Args:
        name: timm's name of a model, with its pretrained tag, ``NAME/FILE``, or ``hf-hub:`` / ``local-dir:`` as timm
            takes them.
        num_classes: Classes of the data.
        checkpoint_path: Weights to load in place of the pretrained ones.
        class_names: The data's class folders. Where the teacher has other classes, they are looked up by name
            (WordNet ids, or the names in the model's config).
        class_map: The teacher's class of each class of the data, by index or name, in place of that.

    Raises:
        ValueError: If timm does not know the model, the checkpoint does not fit, or the classes do not match.
    """
    architecture, _, file = (name, '', '') if ':' in name.split('/')[0] else name.partition('/')
    checkpoint_path = checkpoint_path or file
    model = load_timm(architecture, checkpoint_path, num_classes)
    labels = timm_labels(model)
    try:
        if class_map is not None:
            class_index: Sequence[int] | None = resolve_classes(class_map, model.num_classes, labels)
        elif checkpoint_path and model.num_classes == num_classes:
            class_index = None  # fine-tuned on this data, in its order
        else:
            class_index = match_classes(model.num_classes, labels, num_classes, class_names)
    except ValueError as error:
        raise ValueError(f'teacher timm:{name} {error}') from error
    return Teacher(model, **timm_norm(name, model), num_classes=num_classes, class_index=class_index)


def create_open_clip_teacher(
    name: str,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    checkpoint_path: str | None = None,
    *,
    device: torch.device | None = None,
) -> Teacher:
    """Create a frozen zero-shot teacher, on the CPU and without its text tower, from an open_clip model.

    Args:
        name: ``MODEL/PRETRAINED`` (a tag or a file), ``local-dir:DIR`` or ``hf-hub:ORG/REPO``, as open_clip takes them.
        class_names: One name a class, in the order of the labels.
        templates: Prompts with ``{}`` for the class name; their features are averaged.
        checkpoint_path: Weights in place of ``PRETRAINED``.
        device: Where the text head is computed, if it is not in the cache; the CPU by default.

    Raises:
        ValueError: If open_clip does not know the model or the tag, or a template has no ``{}``.
        ImportError: If the extra ``clip`` is not installed.
    """
    open_clip = require_extra('open_clip', 'clip')
    check_templates(templates)
    model, config = load_open_clip(name, checkpoint_path)
    try:
        tokenizer = open_clip.get_tokenizer(name if ':' in name.split('/')[0] else name.partition('/')[0])
    except Exception as error:  # transformers may be missing, or its files
        raise ValueError(f'the tokenizer of open_clip:{name} could not be loaded: {error}') from error
    text_features = zero_shot_head(model, tokenizer, class_names, templates, config, device)
    _logger.info('Zero-shot teacher open_clip:%s: %d classes, %d templates', name, len(class_names), len(templates))
    prompts = [template.format(name) for name in class_names for template in templates]
    classifier = ZeroShotClassifier(model.visual, text_features, model.logit_scale.exp().item(), prompts)
    return Teacher(classifier, **open_clip_norm(model.visual), num_classes=len(class_names))
