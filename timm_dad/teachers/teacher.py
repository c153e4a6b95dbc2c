"""Frozen teachers: any timm model and any open_clip zero-shot classifier, fed with [0, 1] pixels.

It is robust, stays frozen and labels what the student learns (Zhou et al. 2023, arXiv:2311.01441, section 3.2).

NOTE: it has its own normalization, input size and interpolation, whereas the released code feeds it the student's
batch unchanged, in [0, 1].
"""

import logging
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_dad.common.extras import require_extra
from timm_dad.common.hashing import content_hash
from timm_dad.common.hub import quiet_hub
from timm_dad.common.listing import some
from timm_dad.common.pixels import PixelNorm
from timm_dad.teachers.backbones import INTERPOLATIONS, load_open_clip, load_timm, open_clip_norm, timm_norm
from timm_dad.teachers.classes import match_classes, resolve_classes, timm_labels
from timm_dad.teachers.features import Answer, WithFeatures
from timm_dad.teachers.hub import load_error
from timm_dad.teachers.zero_shot import DEFAULT_TEMPLATES, ZeroShotClassifier, check_templates, zero_shot_head

_logger = logging.getLogger(__name__)


class Teacher(nn.Module):
    """A frozen classifier on [0, 1] pixels of any size.

    Args:
        model: Maps normalized images ``[B, 3, h, w]`` to logits ``[B, C]``.
        mean: Mean used to train ``model``, per channel, in [0, 1] pixel units.
        std: Standard deviation used to train ``model``, per channel, in [0, 1] pixel units.
        input_size: ``(h, w)`` of the images ``model`` takes; others are resized (antialiased, differentiable).
        num_classes: ``K``, the number of classes of the data.
        interpolation: ``bicubic`` or ``bilinear``, as used to train ``model``.
        class_index: The output of ``model`` for each class of the data ``[K]``; ``None`` if they are the same. The
            other outputs are dropped, so the softmax is over the data's classes.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If a value is out of range, the interpolation is not supported, or a weight is not finite; in a call
            (on a GPU, only the first), if the logits are not finite or not ``num_classes`` many.
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
        if not isinstance(model, nn.Module):
            raise TypeError(f'model of the teacher must be a torch.nn.Module, got {type(model).__name__}')
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation of the teacher must be one of {INTERPOLATIONS}, got {interpolation!r}')
        self.input_size, self.num_classes, self.interpolation = _size(input_size), num_classes, interpolation
        _check_classes(num_classes, class_index)
        _check_finite(model)
        self.model = model.eval().requires_grad_(False)
        self.norm = PixelNorm(mean, std)
        self.feature_dim = 0
        self._logits_seen = False
        index = None if class_index is None else torch.tensor(class_index)
        self.register_buffer('class_index', index, persistent=False)

    def __repr__(self) -> str:
        height, width = self.input_size
        mean, std = (
            [round(value, 4) for value in getattr(self.norm, name).flatten().tolist()] for name in ('mean', 'std')
        )
        return (
            f'{type(self).__name__}({type(self.classifier).__name__}, {self.num_classes} classes, {height}x{width}, '
            f'mean={mean}, std={std}, {self.interpolation})'
        )

    @property
    def classifier(self) -> nn.Module:
        """The network that returns only logits, even if ``model`` returns more."""
        return self.model.classifier if isinstance(self.model, WithFeatures) else self.model

    def train(self, mode: bool = True) -> 'Teacher':
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def normalize(self, x_pix: Tensor) -> Tensor:
        """Resize images ``[B, 3, H, W]`` in [0, 1] to the network's size and apply its mean and standard deviation."""
        if tuple(x_pix.shape[-2:]) != self.input_size:
            x_pix = F.interpolate(x_pix, self.input_size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return self.norm.normalize(x_pix)

    def select(self, output: Tensor) -> Tensor:
        """Select the logits ``[B, K]`` of the data's classes from the network's output ``[B, C]``."""
        return output if self.class_index is None else output[:, self.class_index]

    def fingerprint(self) -> str:
        """Return a hash of weights, classes, normalization and size.

        It is the same on every machine: for a zero-shot head it covers the prompts, not their features. NOTE: layers
        without weights (activations, pooling) are not covered, as their descriptions change from release to release.
        """
        model = self.classifier
        tensors = dict(model.state_dict())
        facts: dict[str, Any] = {
            'mean': self.norm.mean.flatten().tolist(),
            'std': self.norm.std.flatten().tolist(),
            'class_index': None if self.class_index is None else self.class_index.tolist(),
            **{name: getattr(self, name) for name in ('input_size', 'interpolation', 'num_classes')},
        }
        if isinstance(model, ZeroShotClassifier):
            facts.update(prompts=model.prompts, logit_scale=model.logit_scale)
            if model.prompts is None:
                tensors['text_features'] = model.text_features
        return content_hash(tensors, facts)

    def forward(self, x_pix: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of images ``[B, 3, H, W]`` in [0, 1]; gradients reach only ``x_pix``."""
        return self._ask(x_pix).logits

    def with_features(self) -> 'Teacher':
        """Let ``answer`` return pooled features too; call it before ``prepare_frozen``.

        Returns:
            The teacher; ``feature_dim`` is the features' ``D``.

        Raises:
            ValueError: If the network has no pooled features, or is already prepared.
        """
        if self.feature_dim:
            return self
        if hasattr(self.model, 'dad_precision'):
            raise ValueError('features of the teacher are asked for before prepare_frozen: call with_features first')
        model = WithFeatures(self.model)
        self.feature_dim = model.feature_dim(self.input_size)
        self.model = model.eval()
        return self

    def answer(self, x_pix: Tensor) -> Answer:
        """Return logits ``[B, K]`` and, after ``with_features``, features ``[B, D]`` of images ``[B, 3, H, W]``."""
        return self._ask(x_pix) if self.feature_dim else Answer(self(x_pix))

    def _ask(self, x_pix: Tensor) -> Answer:
        features = None
        with torch.autocast(x_pix.device.type, enabled=False):  # the student's precision is not the teacher's
            output = self.model(self.normalize(x_pix))
            if self.feature_dim:
                output, features = output[:, : -self.feature_dim], output[:, -self.feature_dim :]
            logits = self.select(output)
        self._check_logits(logits)
        return Answer(logits, features)

    def _check_logits(self, logits: Tensor) -> None:
        # A look at the values waits for the device: on a CPU that is free, elsewhere the first batch must do.
        if torch.compiler.is_compiling() or (self._logits_seen and not logits.is_cpu):
            return
        if self.num_classes and (logits.ndim != 2 or logits.shape[1] != self.num_classes):
            raise ValueError(
                f'the teacher must give logits [B, {self.num_classes}], one per class, got {list(logits.shape)}'
            )
        if not logits.detach().isfinite().all():
            raise ValueError('the logits of the teacher are not finite (are 16 bits too few? use fp32)')
        self._logits_seen = True


def _size(input_size: Sequence[int]) -> tuple[int, int]:
    """Return ``(h, w)`` as a tuple of plain integers; raise ``ValueError`` if it is not one."""
    try:
        height, width = (operator.index(side) for side in input_size)
        if min(height, width) < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f'input_size of the teacher must be (h, w) in pixels, got {input_size!r}') from None
    return height, width


def _check_classes(num_classes: int, class_index: Sequence[int] | None) -> None:
    """Raise ``ValueError`` unless there is a number of classes (0 for features) and, if given, an index for each."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f'num_classes of the teacher must be a positive integer, got {num_classes!r}')
    if class_index is not None and (len(class_index) != num_classes or min(class_index, default=0) < 0):
        raise ValueError(
            f'class_index must hold {num_classes} outputs of the network, from 0, got {len(class_index)}: '
            f'{list(class_index)[:5]}'
        )


def _check_finite(model: nn.Module) -> None:
    broken = [
        name for name, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(f'weights of the network must be finite, got NaN or infinity in {some(broken)}')


def create_timm_teacher(
    name: str,
    num_classes: int,
    checkpoint_path: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    class_map: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    img_size: int | None = None,
    use_ema: bool = True,
) -> Teacher:
    """Create a frozen teacher from a timm model.

    Weights from a file use the network, size and normalization of their training, if the flags stored in the
    checkpoint (``args``), or ``args.yaml`` or a hub's ``config.json`` beside it, state them.

    Args:
        name: timm's name of a model, with its pretrained tag, ``NAME/FILE``, or ``hf-hub:`` / ``local-dir:`` as timm
            takes them.
        num_classes: Classes of the data.
        checkpoint_path: Weights to load in place of the pretrained ones.
        class_names: The data's class folders. If the teacher has other classes, they are looked up by name
            (WordNet ids, or the names in the model's config).
        class_map: The teacher's class for each class of the data, by index or name, instead of that lookup.
        labels: Names of the teacher's classes, if the model's config does not state them.
        img_size: Side of the teacher's images, overriding model and training.
        use_ema: Use the moving average of a checkpoint's weights, if there is one.

    Raises:
        ValueError: If timm does not know the model, the checkpoint does not fit, or the classes do not match.
    """
    model = load_timm(name, checkpoint_path, num_classes, img_size=img_size, use_ema=use_ema)
    own_head = bool(checkpoint_path) or (':' not in name.split('/')[0] and '/' in name)
    named = labels is not None or bool((model.pretrained_cfg or {}).get('label_names'))
    labels = labels or timm_labels(model)
    try:
        if class_map is not None:
            class_index: Sequence[int] | None = resolve_classes(class_map, model.num_classes, labels)
        elif own_head and not named and model.num_classes == num_classes:
            class_index = None  # fine-tuned on this data, in its order
        else:
            class_index = match_classes(model.num_classes, labels, num_classes, class_names)
    except ValueError as error:
        raise ValueError(f'timm:{name} {error}') from error
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
        class_names: One name per class, in the order of the labels.
        templates: Prompts with ``{}`` for the class name; their features are averaged.
        checkpoint_path: Weights in place of ``PRETRAINED``.
        device: Where a text head that is not in the cache is computed; the CPU by default.

    Raises:
        ValueError: If open_clip does not know the model or the tag, or a template has no ``{}``.
        ImportError: If the extra ``clip`` is not installed.
    """
    open_clip = require_extra('open_clip', 'clip')
    check_templates(templates)
    model, config = load_open_clip(name, checkpoint_path)
    try:
        with quiet_hub():
            tokenizer = open_clip.get_tokenizer(name if ':' in name.split('/')[0] else name.partition('/')[0])
    except Exception as error:  # transformers may be missing, or its files
        raise ValueError(f'the tokenizer of open_clip:{name} could not be loaded: {load_error(error)}') from error
    text_features = zero_shot_head(model, tokenizer, class_names, templates, config, device)
    _logger.debug('Zero-shot teacher open_clip:%s: %d classes, %d templates', name, len(class_names), len(templates))
    prompts = [template.format(name) for name in class_names for template in templates]
    classifier = ZeroShotClassifier(model.visual, text_features, model.logit_scale.exp().item(), prompts)
    return Teacher(classifier, **open_clip_norm(model.visual), num_classes=len(class_names))
