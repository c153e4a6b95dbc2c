"""What networks of evaluated models are: the sizes that they take, and their text towers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.zero_shot import ZeroShotClassifier

_SUMS = 8


def uncut_network(teacher: Teacher) -> Callable[[Tensor], Tensor] | None:
    """A teacher without its resizing, where its network takes images of any size.

    Those of open_clip, and several teachers together, have a fixed size; of timm's those whose config says so, or
    whose patch embedding refuses others.
    """
    visual: Any = getattr(teacher.model, 'visual', teacher.model)
    cfg: Any = getattr(visual, 'pretrained_cfg', None)
    strict = any(
        getattr(module, 'strict_img_size', False) and getattr(module, 'img_size', None) is not None
        for module in visual.modules()
    )
    if not cfg or cfg.get('fixed_input_size') or strict:
        return None

    def network(x_pix: Tensor) -> Tensor:
        with torch.autocast(x_pix.device.type, enabled=False):
            return teacher.select(teacher.model(teacher.norm.normalize(x_pix)))

    return network


def text_sketch(teacher: Teacher) -> list[float]:
    """Some sums of the text features of zero-shot heads, which tell one text tower from another.

    ``Teacher.fingerprint`` takes the prompts alone, since features of two machines differ in the last bits. Two CLIPs
    may share the image tower and not the text tower (LiT): their predictions are not the same. NOTE: rounded features
    would not do, some of a million always lie where two machines round to either side; of a few sums hardly one does,
    and then its parts are made anew.
    """
    sketch: list[float] = []
    for module in teacher.modules():
        if isinstance(module, ZeroShotClassifier):
            features = module.text_features.double().cpu()
            place = torch.arange(features.numel(), dtype=torch.float64)
            for frequency in range(1, _SUMS + 1):
                total = (features.flatten() * (frequency * place).cos()).sum() / features.shape[1] ** 0.5
                sketch.append(round(total.item(), 3))
    return sketch
