"""Zero-shot classification: class names, templates, and the text head, computed once and cached on disk.

Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

from timm_dad.common.cache import cache_dir
from timm_dad.common.extras import require_extra
from timm_dad.common.files import replacing
from timm_dad.common.hashing import content_hash
from timm_dad.common.tf32 import without_tf32

_logger = logging.getLogger(__name__)

DEFAULT_TEMPLATES = ('a photo of a {}.',)


class ZeroShotClassifier(nn.Module):
    """Image tower of a CLIP with a fixed text head: ``logit_scale * cos(image, text)``.

    Text features have unit length, one column per class ``[D, K]``; on another machine they may differ in the last
    bits, so ``prompts`` identify them.

    NOTE: SigLIP's ``logit_bias`` is left out: it is the same for all classes, and softmax ignores it.
    """

    text_features: Tensor

    def __init__(
        self, visual: nn.Module, text_features: Tensor, logit_scale: float, prompts: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.visual = visual
        self.prompts = prompts
        self.logit_scale = logit_scale
        self.register_buffer('text_features', text_features, persistent=False)

    def forward(self, x_norm: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of normalized images ``[B, 3, h, w]``."""
        return self.forward_head(self.forward_features(x_norm))

    def forward_features(self, x_norm: Tensor) -> Tensor:
        """Return image embeddings ``[B, D]`` of unit length, fp32, of normalized images ``[B, 3, h, w]``."""
        return unit_features(self.visual, x_norm)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits ``[B, K]`` of embeddings ``[B, D]`` or, with ``pre_logits`` as in timm's models, these."""
        if pre_logits:
            return features
        with torch.autocast(features.device.type, enabled=False), without_tf32():  # cosines times 100 need the bits
            logits: Tensor = self.logit_scale * features @ self.text_features
        return logits


def unit_features(visual: nn.Module, x_norm: Tensor) -> Tensor:
    """Return features ``[B, D]`` of unit length, fp32, of normalized images ``[B, 3, h, w]``."""
    features = visual(x_norm)
    features = features[0] if isinstance(features, tuple) else features  # CoCa also returns its tokens
    return F.normalize(features.float(), dim=-1)


def is_imagenet(class_names: Sequence[str] | None, num_classes: int) -> bool:
    """Return whether the data are ImageNet-1k's 1000 classes: by folder names or, without names, by their number."""
    if not class_names:
        return num_classes == 1000
    return len(class_names) == 1000 and set(class_names) == set(ImageNetInfo().label_names())


def spoken_names(class_names: Sequence[str] | None, num_classes: int | None = None) -> Sequence[str] | None:
    """Return class names as words: open_clip's for ImageNet-1k's WordNet ids, the first lemma for others.

    Other names are returned unchanged.

    Raises:
        ValueError: If a WordNet id has no words.
        ImportError: If the extra ``clip`` is not installed.
    """
    if not class_names:
        if num_classes != 1000:
            return None
        _logger.warning("The data has 1000 classes without names: they are assumed to be ImageNet's, in its order")
        return list(require_extra('open_clip', 'clip').IMAGENET_CLASSNAMES)
    if not all(re.fullmatch(r'n\d{8}', name) for name in class_names):
        return class_names
    info = ImageNetInfo()
    words = dict(zip(info.label_names(), require_extra('open_clip', 'clip').IMAGENET_CLASSNAMES, strict=True))
    for name in set(class_names) - set(words):
        with contextlib.suppress(KeyError):
            words[name] = info.label_name_to_description(name).split(',')[0]
    unknown = [name for name in class_names if name not in words]
    if unknown:
        raise ValueError(f'no words are known for the WordNet ids {unknown[:3]} ...: give class names')
    return [words[name] for name in class_names]


def default_templates(class_names: Sequence[str] | None, num_classes: int) -> Sequence[str]:
    """Return open_clip's templates if all classes are from ImageNet-1k, and ``DEFAULT_TEMPLATES`` otherwise."""
    imagenet = set(class_names) <= set(ImageNetInfo().label_names()) if class_names else num_classes == 1000
    if not imagenet:
        return DEFAULT_TEMPLATES
    return [template('{}') for template in require_extra('open_clip', 'clip').OPENAI_IMAGENET_TEMPLATES]


def check_templates(templates: Sequence[str]) -> None:
    """Raise ``ValueError`` unless every prompt has one place for the class name."""
    bad = [template for template in templates if re.findall(r'[{}]+', template) != ['{}']]
    if bad or not templates:
        raise ValueError(f'a template needs {{}} where the class name goes, got {bad or list(templates)}')


def zero_shot_head(
    model: nn.Module,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    config: Mapping[str, Any],
    device: torch.device | None = None,
) -> Tensor:
    """Return the text features of the classes ``[D, K]``, of unit length, from the cache if already computed.

    Model and features are on the CPU, whatever the device that computes a new head. ``config`` is what the model was
    made from: two models with equal weights may differ in it (heads, activation).
    """
    open_clip = require_extra('open_clip', 'clip')
    prompts = [template.format(name) for name in class_names for template in templates]
    versions = {'open_clip': open_clip.__version__, 'torch': torch.__version__}
    facts = {**versions, 'config': config, 'class_names': list(class_names), 'templates': list(templates)}
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('visual.')}
    tokens = tokenizer(prompts)
    check_prompts(tokenizer, tokens, prompts, class_names)
    # The prompts' tokens stand for the tokenizer and its vocabulary, the text tower's weights for its name and file.
    key = content_hash({**state, 'tokens': tokens}, facts)
    path = cache_dir() / f'zero-shot-{key[:32]}.safetensors'
    head = _read_head(path, key)
    if head is None:
        _logger.info('Computing the zero-shot head of %d classes, %d templates', len(class_names), len(templates))
        with without_tf32():
            head = open_clip.build_zero_shot_classifier(
                model.to(device or 'cpu'), tokenizer, list(class_names), list(templates), device=device or 'cpu'
            )
        model.to('cpu')
        head = head.float().cpu().contiguous()
        _write_head(path, key, head)
    return head


def check_prompts(tokenizer: Any, tokens: Tensor, prompts: Sequence[str], class_names: Sequence[str]) -> None:
    """Compare what the text tower sees of the classes, and warn about prompts that do not fit into its context.

    Args:
        tokenizer: The tokenizer of open_clip.
        tokens: Tokens of the prompts ``[K * templates, context]``, class by class.
        prompts: The prompts.
        class_names: Names of the classes ``[K]``; duplicates cause a warning.

    Raises:
        ValueError: If classes with different names have the same tokens.
    """
    context = tokens.shape[1]
    cut = _cut_prompts(tokenizer, tokens, prompts)
    if cut:
        _logger.warning(
            '%d of %d prompts are longer than the context of %d tokens and are cut, such as %r: shorten class names or '
            'templates',
            *(len(cut), len(prompts), context, cut[0]),
        )
    first: dict[bytes, str] = {}
    for name, of_class in zip(class_names, tokens.view(len(class_names), -1, context), strict=True):
        other = first.setdefault(of_class.numpy().tobytes(), name)
        if other != name:
            raise ValueError(
                f'the classes {other!r} and {name!r} have the same tokens in a context of {context}: the teacher could '
                'not tell them apart; give shorter names, or names that differ (--dad-classnames)'
            )
    twice = sorted(name for name, times in Counter(class_names).items() if times > 1)
    if twice and list(class_names) != list(require_extra('open_clip', 'clip').IMAGENET_CLASSNAMES):
        _logger.warning('Several classes are called %s: the teacher cannot tell them apart', twice[0])


def _cut_prompts(tokenizer: Any, tokens: Tensor, prompts: Sequence[str]) -> list[str]:
    """Return the prompts that do not fit into the context."""
    context = tokens.shape[1]
    try:
        padding = tokenizer([''], context_length=2 * context)[0, -1]
        full = [prompt for prompt, last in zip(prompts, tokens[:, -1], strict=True) if last != padding]
        more = tokenizer(full, context_length=2 * context)[:, context] != padding if full else []
    except TypeError:  # a tokenizer of one context
        return []
    return [prompt for prompt, is_cut in zip(full, more, strict=True) if is_cut]


def _read_head(path: Path, key: str) -> Tensor | None:
    """Return the head in ``path``; ``None`` if the file is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            head: Tensor = file.get_tensor('text_features')
            if file.metadata() != {'key': key, 'sha256': content_hash({'head': head})}:
                raise ValueError('it belongs to something else, or was altered')
    except Exception as error:  # safetensors raises what it likes on a broken file
        _logger.warning('%s is damaged and is computed again: %s', path, error)
        return None
    _logger.debug('Zero-shot head from %s', path)
    return head


def _write_head(path: Path, key: str, head: Tensor) -> None:
    """Write a head atomically, so that nobody reads an incomplete file; if the folder is not writable, skip it."""
    try:
        with replacing(path) as temporary:
            save_file({'text_features': head}, temporary, {'key': key, 'sha256': content_hash({'head': head})})
    except Exception as error:  # safetensors has an error of its own for a full disk
        _logger.warning('The zero-shot head cannot be stored in %s: %s', path.parent, error)
