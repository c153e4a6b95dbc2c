"""What ``timm-dad info`` counts: parameters, multiply-adds, and how often an image goes through each network."""

from collections import Counter
from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from timm_dad.common.macs import count_macs, count_model_macs
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask

Passes = Counter[tuple[str, str]]  # images by network and way, forward or backward


def count_parts(task: TrainingTask, augment: DADAugment | None, x_norm: Tensor) -> dict[str, Any]:
    """Count the parameters, and the multiply-adds of one image forward and backward, of each network.

    Args:
        task: The training task, before its student is compiled.
        augment: Makes DAD views, if any are made; the teacher's backward is its gradient at the input then.
        x_norm: An image ``[1, C, H, W]`` as the student takes it.
    """
    student, teacher = task.trainable_module, getattr(task, 'teacher', None)
    parts: dict[str, Any] = {'student': {**_size(student), **count_model_macs(student, x_norm, backward='parameters')}}
    if isinstance(teacher, nn.Module):
        parts['teacher'] = _size(teacher)
    if isinstance(task, DADTask) and task.teacher is not None:
        backward = 'none' if augment is None else 'input'
        parts['teacher'].update(count_model_macs(task.teacher, task.norm.to_pixels(x_norm), backward=backward))
    if augment is not None:
        vqgan, x_pix = augment.vqgan, augment.norm.to_pixels(x_norm)
        with torch.no_grad():
            codes = vqgan.encode_to_codes(x_pix)
            encode = count_macs(lambda: vqgan.encode_to_codes(x_pix))
            decode = count_macs(lambda: vqgan.decode_codes(codes))
        parts['vqgan'] = {**_size(vqgan), 'forward': encode + decode, 'encode': encode, 'decode': decode}
    return parts


def _size(network: nn.Module) -> dict[str, float]:
    sizes = [(value.numel(), value.element_size()) for value in network.parameters()]
    return {'parameters': sum(count for count, _ in sizes), 'bytes': sum(count * width for count, width in sizes)}


def watch(network: nn.Module, part: str, passes: Passes) -> None:
    """Count the images that go through a network from here on, and those that a gradient comes back through."""

    def count(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        passes[part, 'forward'] += len(inputs[0])
        passes[part, 'backward'] += len(inputs[0]) * torch.is_grad_enabled()

    network.register_forward_hook(count)


def per_image(passes: Passes, parts: dict[str, Any], count: int) -> dict[str, Any]:
    """Passes and multiply-adds by network for each of ``count`` images; the counter begins anew."""
    rows = {
        f'{part} {way}': {'passes': images / count, 'macs': images / count * parts[part].get(way, 0.0)}
        for (part, way), images in passes.items()
        if images
    }
    passes.clear()
    return rows
