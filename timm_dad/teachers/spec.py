"""Create teachers from their SPECs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timm_dad.demo.data import DEMO_TEACHER, TEMPLATES
from timm_dad.teachers.heads import LinearHead, create_head_teacher, read_head
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher, create_timm_teacher
from timm_dad.teachers.trained import find_run
from timm_dad.teachers.wise import WiseTeacher
from timm_dad.teachers.zero_shot import default_templates, spoken_names

DEFAULT_TEACHER = 'open_clip:ViT-L-14/openai'
# NOTE: nothing released names it: the paper's CLIP ViT-L/14 is a file whose fine-tuning is not told (docs/paper.md).
FINE_TUNED_TEACHER = 'timm:vit_large_patch14_clip_224.openai_ft_in1k'


KINDS = ('timm:', 'open_clip:', 'probe:', 'run:')
WISE = 'wise:'


@dataclass(frozen=True, kw_only=True)
class DataClasses:
    """What a teacher needs to know about the data's classes."""

    num_classes: int
    class_names: Sequence[str] | None = None  # their folders
    spoken: Sequence[str] | None = None  # names for a text tower; made of the folders by default
    templates: Sequence[str] | None = None  # prompts for a text tower; the teacher's own by default
    class_map: Sequence[str] | None = None  # classes of a fixed head, by index or name; looked up by default


def check_spec(spec: str) -> None:
    """Raise ``ValueError`` unless a SPEC starts like one."""
    if spec.startswith(WISE):
        split_wise(spec)
    elif spec != 'demo' and not spec.startswith(KINDS):
        raise ValueError(
            f'must be timm:MODEL, open_clip:MODEL/PRETRAINED or demo, got {spec!r} '
            f'(such as {DEFAULT_TEACHER}), run:FOLDER of a training, probe:FILE of `timm-dad probe`, or wise:A+B@ALPHA'
        )


def split_wise(spec: str) -> tuple[str, str, float]:
    """Return the SPECs of ``wise:A+B@ALPHA`` and the share of the second; ``ValueError`` if it is malformed."""
    pair, _, share = spec.removeprefix(WISE).rpartition('@')
    parts = re.split(rf'\+(?={"|".join(KINDS)}|demo$)', pair)
    alpha = float(share) if re.fullmatch(r'\d*\.?\d+', share) else -1.0
    if len(parts) != 2 or not 0 <= alpha <= 1 or any(part.startswith(WISE) for part in parts):
        raise ValueError(
            f'must be wise:A+B@ALPHA, with two SPECs and the share of B from 0 to 1, got {spec!r} (such as '
            'wise:timm:MODEL+timm:MODEL/FILE@0.5)'
        )
    for part in parts:
        check_spec(part)
    return parts[0], parts[1], alpha


def members(spec: str) -> tuple[str, ...]:
    """Return the SPECs of a teacher's networks: two for ``wise:A+B@ALPHA``, else its own."""
    return split_wise(spec)[:2] if spec.startswith(WISE) else (spec,)


def change_members(spec: str, change: Callable[[str], str]) -> str:
    """Replace the SPECs A and B in ``wise:A+B@ALPHA``."""
    return f'{WISE}{"+".join(map(change, members(spec)))}@{spec.rpartition("@")[2]}'


def create_teacher_by_spec(
    spec: str,
    data: DataClasses,
    checkpoint_path: str | None = None,
    device: torch.device | None = None,
    *,
    img_size: int | None = None,
    labels_of: Callable[[str], Sequence[str] | None] | None = None,
    use_ema: bool = True,
) -> Teacher:
    """Create the teacher of a SPEC.

    Args:
        spec: ``timm:MODEL``, ``timm:MODEL/FILE``, ``open_clip:MODEL/PRETRAINED``, ``open_clip:MODEL/FILE``, either with
            ``hf-hub:ORG/REPO`` or ``local-dir:DIR`` in place of the model, ``probe:FILE``, ``run:FOLDER``
            (the result of a training of timm or ``timm-dad train``), ``run:FILE`` (a checkpoint in it), ``demo``, or
            ``wise:A+B@ALPHA`` (``WiseTeacher`` of two of these).
        data: Classes of the data.
        checkpoint_path: Weights in place of the named ones.
        device: Where a text head that is not in the cache is computed.
        img_size: Side of the images of a timm model, overriding the model and its training.
        labels_of: Returns the names of the classes of a ``run:...``, if they are known.
        use_ema: Use the moving average of a timm checkpoint's weights, if there is one.

    Raises:
        ValueError: If it cannot be loaded, or its classes are not those of the data.
    """
    check_spec(spec)
    if spec.startswith(WISE):
        if checkpoint_path:
            raise ValueError(f'takes no separate weights, got {checkpoint_path}: write them as MODEL/FILE')
        first, second, alpha = split_wise(spec)
        more: dict[str, Any] = {'img_size': img_size, 'labels_of': labels_of, 'use_ema': use_ema}
        one, other = (create_teacher_by_spec(each, data, None, device, **more) for each in (first, second))
        return WiseTeacher(one, other, alpha)
    source, _, name = spec.partition(':')
    if source in ('timm', 'run'):
        name, checkpoint_path = find_run(name) if source == 'run' else (name, checkpoint_path)
        return create_timm_teacher(
            name,
            data.num_classes,
            checkpoint_path,
            class_names=data.class_names,
            class_map=data.class_map,
            labels=labels_of(spec) if labels_of else None,
            img_size=img_size,
            use_ema=use_ema,
        )
    if img_size is not None:
        raise ValueError('takes only one size: leave --dad-teacher-img-size out, which is for timm: and run:')
    if source == 'probe':
        head = read_head(name) if Path(name).is_file() else None
        if head is None or not head.tower:
            found = 'a file without a head or without its tower' if Path(name).is_file() else 'no file'
            raise ValueError(f'probe:FILE must be what `timm-dad probe` wrote, got {found}')
        return _with_head(name, head, head.tower, data)
    if source == 'demo':
        name = f'local-dir:{DEMO_TEACHER}'
    head, head_file = _head_beside(name, checkpoint_path)
    if head is not None:
        if not head.visual:
            raise ValueError(f'{head_file} contains a head but no image tower (visual.*): give it as probe:{head_file}')
        return _with_head(head_file, head, f'open_clip:{name}', data, checkpoint_path)
    templates = TEMPLATES if source == 'demo' else default_templates(data.class_names, data.num_classes)
    return create_open_clip_teacher(name, _names(data), data.templates or templates, checkpoint_path, device=device)


def _names(data: DataClasses) -> Sequence[str]:
    """Return the names that a text tower uses for the classes; ``ValueError`` unless there is one per class."""
    names = data.spoken or spoken_names(data.class_names, data.num_classes)
    if names is None:
        raise ValueError(
            'a zero-shot teacher needs class names, but the data has none: give class names (--dad-classnames)'
        )
    if len(names) != data.num_classes:
        raise ValueError(f'there are {len(names)} class names for {data.num_classes} classes; give one per class')
    return names


def _head_beside(name: str, checkpoint_path: str | None) -> tuple[LinearHead | None, str]:
    """Return the linear head in the file of weights, if there is such a file and it contains a head."""
    file = checkpoint_path or ('' if ':' in name.split('/')[0] else name.partition('/')[2])
    if not Path(file).is_file() or Path(file).suffix in ('.npz', '.npy'):
        return None, file
    return read_head(file), file


def _with_head(
    file: str, head: LinearHead, tower: str, data: DataClasses, checkpoint_path: str | None = None
) -> Teacher:
    classes = {'class_names': data.class_names, 'class_map': data.class_map}
    try:
        return create_head_teacher(head, tower, data.num_classes, checkpoint_path=checkpoint_path, **classes)
    except ValueError as error:
        raise ValueError(f'{file} {error}') from error
