"""The flags about the teacher, and the teacher they describe."""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from timm_dad.common.text_files import read_text
from timm_dad.flags.rules import check_file_args, check_rules, under_flag, written
from timm_dad.flags.runs import create_spec_teacher
from timm_dad.flags.task import check_multilabel_teachers, is_multilabel
from timm_dad.flags.temperature import AUTO, Images, fit_temperatures
from timm_dad.teachers.classes import in_label_order, read_class_file
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.spec import DEFAULT_TEACHER, FINE_TUNED_TEACHER, KINDS, WISE, DataClasses, check_spec, members
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.wise import are_zero_shot
from timm_dad.teachers.zero_shot import check_templates, is_imagenet

TEACHER_FLAGS = (
    'dad_teacher', 'dad_teacher_weights', 'dad_teacher_checkpoint', 'dad_teacher_img_size', 'dad_classnames',
    'dad_templates', 'dad_class_map', 'dad_teacher_temperatures',
)  # fmt: skip
_logger = logging.getLogger(__name__)


class _OneOrMore(argparse.Action):
    """Store one value as it is, several as a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_teacher_args(group: Any) -> None:
    """Add the flags to a group of a parser."""
    group.add_argument(
        '--dad-teacher', metavar='SPEC', nargs='+', action=_OneOrMore,
        help='timm:MODEL (with pretrained weights) or timm:MODEL/FILE, open_clip:MODEL/PRETRAINED (a tag or a file), '
        'both with hf-hub:ORG/REPO or local-dir:DIR instead of the model, run:FOLDER (a training of timm or of this '
        'project), probe:FILE (from `timm-dad probe`), demo, or wise:A+B@ALPHA (WiSE-FT of two of these: '
        'weights (1 - ALPHA) A + ALPHA B); '
        f"several are averaged (default, only for ImageNet's classes: {DEFAULT_TEACHER}, zero-shot; "
        f'fine-tuned on ImageNet, as in the paper: {FINE_TUNED_TEACHER})',
    )  # fmt: skip
    group.add_argument(
        '--dad-teacher-weights', type=float, nargs='+', metavar='W', help='weights of several teachers (default: equal)'
    )
    group.add_argument(
        '--dad-teacher-temperatures', type=float, nargs='+', metavar='T',
        help='temperatures of several teachers in their average, for logits of different scales (default: '
        '--dad-temperature, or what auto finds for each)',
    )  # fmt: skip
    group.add_argument('--dad-teacher-checkpoint', metavar='PATH', help='weights of the teacher')
    group.add_argument(
        '--dad-teacher-img-size', type=int, metavar='N',
        help="side of the images of a timm: or run: teacher (default: that of its training, which the checkpoint's "
        "args, args.yaml or config.json state, or else the model's own)",
    )  # fmt: skip
    group.add_argument(
        '--dad-classnames', metavar='FILE',
        help='class names for a zero-shot teacher: text (one per line), .json (a list, or a map from class folder), or '
        ".csv (header name, optionally class); default: the data's folders, with WordNet ids in words",
    )  # fmt: skip
    group.add_argument(
        '--dad-templates', metavar='FILE',
        help="prompts for a zero-shot teacher, one per line with {}; default: open_clip's for ImageNet's classes, else "
        '"a photo of a {}."',
    )  # fmt: skip
    group.add_argument(
        '--dad-class-map', metavar='FILE',
        help="the teacher's class, by index or name, for every class of the data, if the teacher has other classes: "
        'text (one per line), .json (a list, or a map from class folder) or .csv (header teacher, optionally class); '
        'default: looked up by class folder, such as a WordNet id',
    )  # fmt: skip


def teacher_specs(args: argparse.Namespace) -> list[str]:
    """Return the SPECs of ``--dad-teacher``; empty if it is not given."""
    specs = args.dad_teacher or []
    return [specs] if isinstance(specs, str) else list(specs)


def check_teacher_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the flags before anything is built; flags ``given`` on the command line must not be ignored.

    Raises:
        ValueError: If a flag has a bad value, is missing, or would be ignored.
    """
    specs, weights, own = teacher_specs(args), args.dad_teacher_weights, args.dad_teacher_temperatures
    if not specs and args.num_classes not in (None, 1000):
        raise ValueError(_no_default(args.num_classes))
    with under_flag('--dad-teacher'):
        for spec in specs:
            check_spec(spec)
        parts = [part for spec in specs for part in members(spec)]
    rules = (
        (not weights or len(weights) == len(specs) > 1,
         f'--dad-teacher-weights is for several teachers, one weight each, got {weights} for {specs}'),
        (not weights or all(0 < weight < math.inf for weight in weights),
         f'--dad-teacher-weights must be positive and finite, got {weights}'),
        (not own or len(own) == len(specs) > 1,
         f'--dad-teacher-temperatures is for several teachers, one temperature each, got {own} for {specs}'),
        (not own or all(0 < each < math.inf for each in own),
         f'--dad-teacher-temperatures must be positive and finite, got {own}'),
        (not own or args.dad_temperature != AUTO,
         '--dad-temperature auto finds one for each teacher: leave --dad-teacher-temperatures out'),
        (not args.dad_teacher_checkpoint or len(specs) < 2,
         '--dad-teacher-checkpoint is for one teacher: write timm:MODEL/FILE or open_clip:MODEL/FILE'),
        (args.dad_teacher_img_size is None or args.dad_teacher_img_size > 0,
         f'--dad-teacher-img-size must be a side in pixels, got {args.dad_teacher_img_size}'),
        (args.dad_teacher_img_size is None or (parts and all(part.startswith(('timm:', 'run:')) for part in parts)),
         f'--dad-teacher-img-size is for timm: and run:, got --dad-teacher {" ".join(specs) or "by default"}'),
    )  # fmt: skip
    check_rules(rules)
    check_file_args(args, 'dad_classnames', 'dad_templates', 'dad_teacher_checkpoint', 'dad_class_map')
    zero_shot = not specs or any(part.startswith(('open_clip:', 'demo')) for part in parts)
    own_head = any(part.startswith(KINDS) for part in parts)
    for name, used, rule in (
        ('dad_classnames', zero_shot, 'is for zero-shot teachers'),
        ('dad_templates', zero_shot, 'is for zero-shot teachers'),
        ('dad_class_map', own_head, 'is for teachers with their own head (timm:, run:, probe:)'),
        (
            'dad_teacher_checkpoint',
            not specs or not specs[0].startswith(('probe:', 'run:', WISE)),
            'is for timm: and open_clip:',
        ),
    ):
        if name in given and not used:
            raise ValueError(f'{written(name)} {rule}, got --dad-teacher {" ".join(specs)}')


def _no_default(num_classes: int) -> str:
    return (
        f"--dad-teacher must be given: its default, {DEFAULT_TEACHER}, is for ImageNet's 1000 classes, but the data "
        f'has {num_classes} others'
    )


def create_teacher(
    args: argparse.Namespace,
    num_classes: int,
    class_names: Sequence[str] | None,
    device: torch.device | None = None,
    images: Images | None = None,
) -> Teacher:
    """Create the frozen teacher of ``--dad-teacher``, and find the temperature of ``--dad-temperature auto``.

    Args:
        args: Flags.
        num_classes: Classes of the student.
        class_names: Names of the data's classes (folders), if it has any.
        device: Device that computes a zero-shot head that is not in the cache, and finds a temperature.
        images: From ``images_to_fit``, to find a temperature, which is stored in ``args``.

    Raises:
        ValueError: If the teacher is unknown, or its classes are not the student's.
    """
    specs = teacher_specs(args)
    if not specs:
        if not is_imagenet(class_names, num_classes):
            raise ValueError(_no_default(num_classes))
        _logger.info("No --dad-teacher, and the data has ImageNet's classes: %s", DEFAULT_TEACHER)
        specs = [DEFAULT_TEACHER]
    data = _data_classes(args, num_classes, class_names)
    teachers, multi_label = [], is_multilabel(args)
    for spec in specs:
        checkpoint, size = args.dad_teacher_checkpoint, args.dad_teacher_img_size
        with under_flag(f'--dad-teacher {spec}{f" --dad-teacher-checkpoint {checkpoint}" if checkpoint else ""}:'):
            teachers.append(create_spec_teacher(spec, data, checkpoint, device, img_size=size, multi_label=multi_label))
    _check_heads(args, specs, teachers)
    if multi_label:
        check_multilabel_teachers(specs, teachers)
    if images is not None:
        fit_temperatures(args, specs, teachers, images, device or torch.device('cpu'))
    if len(teachers) == 1:
        return teachers[0]
    temperature = args.dad_temperature
    if temperature == AUTO:
        raise ValueError('--dad-temperature auto: several teachers are averaged at one temperature: give a number')
    own = args.dad_teacher_temperatures
    return TeacherEnsemble(teachers, args.dad_teacher_weights, temperature, own, multi_label=multi_label)


def _check_heads(args: argparse.Namespace, specs: Sequence[str], teachers: Sequence[Teacher]) -> None:
    """Check, from the files, whether open_clip models have heads: ``check_teacher_args`` cannot know it."""
    if not any(part.startswith('open_clip:') for spec in specs for part in members(spec)):
        return
    zero_shot = [own for teacher in teachers for own in are_zero_shot(teacher)]
    if (args.dad_classnames or args.dad_templates) and not any(zero_shot):
        raise ValueError(
            f'--dad-classnames and --dad-templates are for zero-shot teachers, but {specs} have their own heads'
        )
    if args.dad_class_map and all(zero_shot):
        raise ValueError(
            f'--dad-class-map is for teachers with their own head, but {specs} are zero-shot: they know the '
            'classes by name (--dad-classnames)'
        )


def _data_classes(args: argparse.Namespace, num_classes: int, class_names: Sequence[str] | None) -> DataClasses:
    def by_class(name: str, column: str, what: str) -> list[str] | None:
        if not getattr(args, name):
            return None
        with under_flag(f'{written(name)}:'):
            return in_label_order(read_class_file(getattr(args, name), column), class_names, num_classes, what)

    return DataClasses(
        num_classes=num_classes,
        class_names=class_names,
        spoken=by_class('dad_classnames', 'name', 'class names'),
        templates=_read_templates(args.dad_templates) if args.dad_templates else None,
        class_map=by_class('dad_class_map', 'teacher', "teacher's classes"),
    )


def _read_templates(path: str) -> list[str]:
    with under_flag(f'--dad-templates {path}:'):
        templates = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        check_templates(templates)
    return templates
