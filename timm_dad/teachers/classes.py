"""Match the teacher's classes with the data's, and read the files that define the match."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from timm_dad.common.text_files import read_json, read_text

_logger = logging.getLogger(__name__)


def timm_labels(model: nn.Module) -> list[str] | None:
    """Return the names of a timm model's classes: those in its config, or ImageNet's WordNet ids if the number fits."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if cfg.get('label_names'):
        return list(cfg['label_names'])
    subset = infer_imagenet_subset(model)
    return list(ImageNetInfo(subset).label_names()) if subset else None


def match_classes(
    num_outputs: int, labels: Sequence[str] | None, num_classes: int, class_names: Sequence[str] | None
) -> list[int] | None:
    """Find the data's classes among the teacher's, by name (WordNet ids in ImageNet and its subsets).

    Returns:
        The teacher's output for each class of the data; ``None`` if they are the same, in the same order.

    Raises:
        ValueError: If they differ and cannot be matched. Equal numbers of classes are taken as the same classes, with a
            warning, only if the names of one side are unknown.
    """
    position = {name: index for index, name in enumerate(labels or [])}
    missing = [name for name in class_names or [] if name not in position]
    if class_names and not missing:
        found = [position[name] for name in class_names]
        return None if found == list(range(num_outputs)) else found
    if num_outputs == num_classes and not (labels and class_names):
        _logger.warning(
            "The teacher's %d classes are assumed to be the data's, in the same order: the names of %s are unknown",
            *(num_outputs, 'its classes' if class_names else "the data's classes"),
        )
        return None
    reason = 'the names of its classes are unknown'
    if labels and class_names:
        reason = f'it knows {len(class_names) - len(missing)} of them by name (not {missing[:3]})'
    elif labels:
        reason = 'the data has no class names'
    raise ValueError(
        f'has {num_outputs} classes and the data {num_classes}; {reason}: give a class map, or a checkpoint '
        'fine-tuned on this data'
    )


def resolve_classes(values: Sequence[str], num_outputs: int, labels: Sequence[str] | None) -> list[int]:
    """Find outputs that a class map names, by name or index from 0; ``ValueError`` if one is unknown or repeated."""
    position = {name: index for index, name in enumerate(labels or [])}
    found = [position.get(value, int(value) if value.isdecimal() else -1) for value in values]
    bad = [value for value, index in zip(values, found, strict=True) if not 0 <= index < num_outputs]
    if bad:
        known = f'such as {list(labels[:2])}' if labels else 'which are unknown here'
        raise ValueError(
            f'a class map (--dad-class-map) must name a class of the teacher, by index from 0 to {num_outputs - 1} or '
            f'by name ({known}), got {bad[:3]}'
        )
    times = Counter(found)
    twice = sorted({value for value, index in zip(values, found, strict=True) if times[index] > 1})
    if twice:
        raise ValueError(
            f'a class map (--dad-class-map) must name each class of the teacher once, got {twice[:3]} more than once'
        )
    return found


def read_class_file(path: str | Path, column: str) -> list[str] | dict[str, str]:
    """Read one value per class, in the order of the labels or by class folder.

    The file is ``.json`` (a list, or a map from folders), ``.csv`` (a header with ``column`` and, for folders,
    optionally ``class``), or text with one line per class.

    Raises:
        ValueError: If the file contains anything else.
    """
    path = Path(path)
    read = read_json(path) if path.suffix == '.json' else read_text(path)
    try:
        if path.suffix == '.json':
            content = _from_json(read)
        elif path.suffix == '.csv':
            content = _from_csv(read, column)
        else:
            content = [line.strip() for line in read.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f'{path} cannot be used (text, .json or .csv): {error}') from error
    if not content:
        raise ValueError(f'{path} is empty; give one {column} per class')
    return content


def _from_json(content: object) -> list[str] | dict[str, str]:
    values = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise ValueError('it must be a list of names, or a map from class folder to name')
    return {key: str(value) for key, value in content.items()} if isinstance(content, dict) else list(map(str, values))


def _from_csv(text: str, column: str) -> list[str] | dict[str, str]:
    rows = csv.DictReader(text.splitlines(), strict=True)
    header = list(rows.fieldnames or [])
    if column not in header:
        raise ValueError(f'its header must have a column {column!r} (and may have one "class"), got {header}')
    values = [(row.get('class'), row[column]) for row in rows]
    if not all(value for _, value in values):
        raise ValueError(f'row {[bool(value) for _, value in values].index(False) + 1} has no {column}')
    if 'class' not in header:
        return [value for _, value in values]
    by_class = {str(name): value for name, value in values}
    if len(by_class) < len(values):
        raise ValueError('its column "class" repeats a class')
    return by_class


def in_label_order(
    content: list[str] | dict[str, str], class_names: Sequence[str] | None, num_classes: int, what: str
) -> list[str]:
    """Put values of ``read_class_file`` in the order of the labels; ``ValueError`` unless there is one per class.

    A map may contain more classes than the data; without class names its keys are the labels ``"0"``, ``"1"``, ...
    """
    if isinstance(content, list):
        if len(content) != num_classes:
            raise ValueError(f'there are {len(content)} {what} for {num_classes} classes; give one per class')
        return content
    keys = class_names or [str(index) for index in range(num_classes)]
    missing = [key for key in keys if key not in content]
    if missing:
        found = f'{len(keys) - len(missing)} of {len(keys)} classes'
        raise ValueError(f'the {what} name {found} of the data; there is no entry for {missing[:3]}')
    return [content[key] for key in keys]
