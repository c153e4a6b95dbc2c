"""``--dad-temperature auto``: its value comes from a set, a resumed run, or the teacher's own answers."""

import argparse
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_dad.data.images import Frame, Source
from timm_dad.flags.rules import under_flag
from timm_dad.method.loss import DADLossConfig
from timm_dad.preview.first_look import read_pictures
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.temperature import TARGET, fit_temperature

AUTO = 'auto'
NUM_IMAGES = 1000
_BATCH_SIZE = 32
# What else than the data decides the number.
_DECIDES = (
    'dad',
    *(f'dad_teacher{what}' for what in ('', '_weights', '_checkpoint', '_img_size')),
    *('dad_classnames', 'dad_templates', 'dad_class_map'),
)
_logger = logging.getLogger(__name__)

# Gives the images, in batches [B, 3, H, W] in [0, 1], on which a teacher is asked.
Images = Callable[[Teacher], Iterator[Tensor]]


def take_auto(parser: argparse.ArgumentParser) -> None:
    """Make the flag ``--dad-temperature`` of a parser accept ``auto``, too."""
    action = parser._option_string_actions['--dad-temperature']
    action.type = _number_or_auto
    action.help = (
        f'{action.help}; auto: the one at which the teacher, or each of several, has {TARGET:g} of the entropy of a '
        f'uniform answer on {NUM_IMAGES} images'
    )


def _number_or_auto(text: str) -> float | str:
    try:
        return text if text == AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'must be a number or {AUTO}, got {text!r}') from error


def with_number(args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags with the default temperature in place of ``auto``, for checks before the value is known."""
    if args.dad_temperature != AUTO:
        return args
    changed = copy.copy(args)
    changed.dad_temperature = DADLossConfig.temperature
    return changed


def images_to_fit(args: argparse.Namespace, source: Source, make_frame: Callable[[Teacher], Frame]) -> Images | None:
    """Return the images for ``auto``: 1,000 drawn from the data independently of ``--seed``; ``None`` without ``auto``.

    Args:
        args: Flags.
        source: The data.
        make_frame: Returns the frame of an image for the teacher.

    Raises:
        ValueError: If the data are a stream.
    """
    if args.dad_temperature != AUTO:
        return None
    if source.streams:
        raise ValueError(
            '--dad-temperature auto draws images by index, but the data are a stream: give a number, such as one '
            'found on a part of them'
        )
    count = len(source)
    drawn = np.random.default_rng(0).choice(count, min(count, NUM_IMAGES), replace=False).tolist()
    batches = [drawn[i : i + _BATCH_SIZE] for i in range(0, len(drawn), _BATCH_SIZE)]

    def read(teacher: Teacher) -> Iterator[Tensor]:
        frame, device = make_frame(teacher), teacher.norm.mean.device
        for batch in batches:
            yield read_pictures(source, frame, batch, device)[0]

    return read


def fit_temperatures(
    args: argparse.Namespace, specs: Sequence[str], teachers: Sequence[Teacher], images: Images, device: torch.device
) -> None:
    """Store the temperature of ``auto`` in the flags; for several teachers, one for each and their weighted mean.

    Args:
        args: Flags, which are changed.
        specs: Names of the teachers.
        teachers: The teachers, which are moved to ``device``.
        images: From ``images_to_fit``.
        device: Device that computes the answers.

    Raises:
        ValueError: If a teacher has no such temperature.
    """
    found = []
    for spec, teacher in zip(specs, teachers, strict=True):
        with under_flag(f'--dad-temperature auto, {spec}:'):
            found.append(fit_temperature(teacher.to(device), images(teacher)))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    for spec, temperature in zip(specs, found, strict=True):
        _logger.info(
            '--dad-temperature auto: %g, where the answers of %s have %g of the entropy of a uniform one',
            *(temperature, spec, TARGET),
        )
    weights = args.dad_teacher_weights or [1.0] * len(found)
    mean = sum(weight * own for weight, own in zip(weights, found, strict=True)) / sum(weights)
    args.dad_temperature = float(f'{mean:.3g}')
    args.dad_teacher_temperatures = found if len(found) > 1 else None


def take_set_temperature(args: argparse.Namespace, settings: Mapping[str, Any], name: str) -> None:
    """Replace ``auto`` by the temperature stored in a set, if it has one.

    Args:
        args: Flags, which are changed.
        settings: Settings of the set.
        name: Name of the set in the log.
    """
    teacher = settings.get('teacher', {})
    kept = (settings.get('logits') or {}).get('temperature') or teacher.get('temperature')
    if args.dad_temperature == AUTO and kept:
        _take(args, kept, teacher.get('flags', {}).get('dad_teacher_temperatures'), name)


def keep_temperature(args: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """Replace ``auto`` by the value of a resumed run with its teachers; ``before`` are its flags, if known."""
    same = all(before.get(name) == getattr(args, name) for name in _DECIDES)
    if args.dad_temperature == AUTO and same and before.get('dad_temperature') not in (None, AUTO):
        _take(args, before['dad_temperature'], before.get('dad_teacher_temperatures'), 'the resumed run')


def _take(args: argparse.Namespace, temperature: Any, of_each: Any, name: str) -> None:
    own = args.dad_teacher_temperatures
    if own is not None and own != of_each:
        raise ValueError(
            f'--dad-teacher-temperatures {" ".join(map(str, own))}: {name} has {of_each or temperature}; leave it out'
        )
    args.dad_temperature, args.dad_teacher_temperatures = temperature, of_each
    _logger.info('--dad-temperature auto: %g, from %s', temperature, name)
