"""WiSE-FT: merge two teachers of the same architecture by interpolating their weights.

Source: Wortsman et al. 2022, arXiv:2109.01903 (there a zero-shot CLIP and its fine-tuned version).
"""

import copy

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from timm_dad.common.hashing import content_hash
from timm_dad.teachers.heads import HeadClassifier, LinearHead
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.zero_shot import ZeroShotClassifier

_INERT = (nn.Identity, nn.Dropout, DropPath)  # in evaluation they are the same


class WiseTeacher(Teacher):
    """A teacher whose weights are ``(1 - alpha) first + alpha second``; both must share their normalization.

    A zero-shot head is treated as a linear one, CLIP's scale times the text features, so a zero-shot CLIP can be merged
    with one that was fine-tuned with a head. Both teachers stay unchanged.

    NOTE: running means and variances of batch norm are interpolated like weights, and not re-estimated.

    Args:
        first: A frozen teacher.
        second: Another one with the same architecture.
        alpha: Share of the second, from 0 to 1.

    Raises:
        ValueError: If ``alpha`` is out of range, or the two differ in architecture, input or classes.
    """

    def __init__(self, first: Teacher, second: Teacher, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f'the share of the second teacher must be from 0 to 1, got {alpha}')
        _check_input(first, second)
        heads = [_linear_head(teacher) for teacher in (first, second)]
        index = None
        if heads[0] is not None and heads[1] is not None:
            visual = _interpolate(first.model.visual, second.model.visual, alpha)  # type: ignore[arg-type]
            weight, bias = (torch.lerp(one, other, alpha) for one, other in zip(*heads, strict=True))
            model: nn.Module = HeadClassifier(visual, LinearHead(weight=weight, bias=bias))
        else:
            index = _common_index(first, second)
            model = _interpolate(first.model, second.model, alpha)
        super().__init__(
            model,
            mean=first.norm.mean.flatten().tolist(),
            std=first.norm.std.flatten().tolist(),
            input_size=first.input_size,
            num_classes=first.num_classes,
            interpolation=first.interpolation,
            class_index=index,
        )
        self.zero_shot = [isinstance(teacher.model, ZeroShotClassifier) for teacher in (first, second)]
        self._of = {'teachers': [first.fingerprint(), second.fingerprint()], 'alpha': alpha}

    def fingerprint(self) -> str:
        """Return a hash of everything the logits depend on; zero-shot heads count by prompts, as in ``Teacher``."""
        return content_hash({}, {**self._of, 'input_size': self.input_size})


def are_zero_shot(teacher: Teacher) -> list[bool]:
    """Return for each network of a teacher whether it is zero-shot."""
    return teacher.zero_shot if isinstance(teacher, WiseTeacher) else [isinstance(teacher.model, ZeroShotClassifier)]


def _check_input(first: Teacher, second: Teacher) -> None:
    """Raise ``ValueError`` unless both teachers take the same images and have the same number of classes."""
    told = [
        {
            'mean': [round(value, 4) for value in teacher.norm.mean.flatten().tolist()],
            'standard deviation': [round(value, 4) for value in teacher.norm.std.flatten().tolist()],
            'size': teacher.input_size,
            'interpolation': teacher.interpolation,
            'number of classes': teacher.num_classes,
        }
        for teacher in (first, second)
    ]
    for what, value in told[0].items():
        if value != told[1][what]:
            raise ValueError(f'two teachers can be merged if their images are alike, but the {what} of the first is '
                             f'{value}, of the second {told[1][what]}')  # fmt: skip


def _linear_head(teacher: Teacher) -> tuple[Tensor, Tensor] | None:
    """Return weight ``[K, D]`` and bias ``[K]`` of a head on features of unit length; ``None`` without such a head."""
    model = teacher.model
    if isinstance(model, ZeroShotClassifier):
        weight = model.logit_scale * model.text_features.t()
        bias = torch.zeros(len(weight))
    elif isinstance(model, HeadClassifier):
        weight, bias = model.head.weight.detach(), model.head.bias.detach()
    else:
        return None
    index = teacher.class_index
    return (weight, bias) if index is None else (weight[index], bias[index])


def _common_index(first: Teacher, second: Teacher) -> list[int] | None:
    indices = [None if teacher.class_index is None else teacher.class_index.tolist() for teacher in (first, second)]
    if indices[0] != indices[1]:
        raise ValueError('two teachers can be merged if their heads list the same classes in the same order, but these '
                         "have the data's at other outputs: fine-tune both on the data")  # fmt: skip
    return indices[0]


def _interpolate(first: nn.Module, second: nn.Module, alpha: float) -> nn.Module:
    """Return a copy of a network with interpolated weights; ``ValueError`` if the other one's architecture differs."""
    states = first.state_dict(), second.state_dict()
    difference = _difference(*states) or _other_layers(first, second)
    if difference:
        raise ValueError(f'two teachers can be merged if they have the same architecture, but {difference}')
    mixed = {
        name: torch.lerp(value.float(), states[1][name].float(), alpha).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    network = copy.deepcopy(first)
    network.load_state_dict(mixed)
    return network


def _difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Describe the first difference in names and shapes of weights; return an empty text if there is none."""
    for name in (*first, *second):
        shapes = [list(state[name].shape) if name in state else 'missing' for state in (first, second)]
        if shapes[0] != shapes[1]:
            return f'{name} of the first is {shapes[0]}, of the second {shapes[1]}'
    return ''


def _other_layers(first: nn.Module, second: nn.Module) -> str:
    """Describe the first layers that differ in kind, such as activations without weights."""
    kinds = [
        [type(module).__name__ for module in network.modules() if not isinstance(module, _INERT)]
        for network in (first, second)
    ]
    if len(kinds[0]) != len(kinds[1]):
        return f'the first has {len(kinds[0])} layers, the second {len(kinds[1])}'
    for one, other in zip(*kinds, strict=True):
        if one != other:
            return f'the first has {one} where the second has {other}'
    return ''
