"""Which of the teacher's classes the data's classes are, where the two differ."""

from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn


def timm_labels(model: nn.Module) -> list[str] | None:
    """Names of a timm model's classes: those of its config, or ImageNet's WordNet ids by their number."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if cfg.get('label_names'):
        return list(cfg['label_names'])
    subset = infer_imagenet_subset(model)
    return list(ImageNetInfo(subset).label_names()) if subset else None


def match_classes(
    num_outputs: int, labels: Sequence[str] | None, num_classes: int, class_names: Sequence[str] | None
) -> list[int] | None:
    """Find the data's classes among the teacher's, by name.

    Args:
        num_outputs: Classes of the teacher.
        labels: Their names, if it says them.
        num_classes: Classes of the data.
        class_names: Their folders, if they have any (WordNet ids in ImageNet and its subsets).

    Returns:
        The teacher's output of each class of the data; ``None`` where they are the same, in the same order.

    Raises:
        ValueError: If they differ and cannot be matched.
    """
    position = {name: index for index, name in enumerate(labels or [])}
    missing = [name for name in class_names or [] if name not in position]
    if class_names and not missing:
        found = [position[name] for name in class_names]
        return None if found == list(range(num_outputs)) else found
    if num_outputs == num_classes and len(missing) == len(class_names or []):
        return None  # no name in common: taken to be the same classes, in the same order
    reason = 'the names of its classes are not known'
    if labels and class_names:
        reason = f'it knows {len(class_names) - len(missing)} of them by name (not {missing[:3]})'
    elif labels:
        reason = 'the data has no class names'
    raise ValueError(
        f'has {num_outputs} classes and the data {num_classes}; {reason}: give --dad-class-map FILE, or a checkpoint '
        'fine-tuned on this data'
    )


def resolve_classes(values: Sequence[str], num_outputs: int, labels: Sequence[str] | None) -> list[int]:
    """Outputs of the teacher that ``--dad-class-map`` names.

    Args:
        values: The teacher's class of each class of the data: its name, or its index from 0.
        num_outputs: Classes of the teacher.
        labels: Their names, if it says them.

    Returns:
        One output a class of the data.

    Raises:
        ValueError: If there is no such output, or one is named twice.
    """
    position = {name: index for index, name in enumerate(labels or [])}
    found = [position.get(value, int(value) if value.isdecimal() else -1) for value in values]
    bad = [value for value, index in zip(values, found, strict=True) if not 0 <= index < num_outputs]
    if bad:
        known = f'such as {list(labels[:2])}' if labels else 'which are not known here'
        raise ValueError(
            f'--dad-class-map must name a class of the teacher, by index from 0 to {num_outputs - 1} or by name '
            f'({known}), got {bad[:3]}'
        )
    twice = sorted({value for value, index in zip(values, found, strict=True) if found.count(index) > 1})
    if twice:
        raise ValueError(f'--dad-class-map must name each class of the teacher once, got {twice[:3]} more often')
    return found
