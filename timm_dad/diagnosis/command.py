"""``timm-dad diagnose``: its flags, and what they build."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.match import check_data, check_teacher
from timm_dad.dad_sets.read import frame_of_views, read_settings
from timm_dad.data.datasets import check_images
from timm_dad.data.images import Frame, Source
from timm_dad.diagnosis.data import MadeViews, Sample, StoredViews, sample_indices, sample_suite
from timm_dad.diagnosis.diagnose import DiagnoseConfig, diagnose
from timm_dad.diagnosis.divergence import DISTANCES
from timm_dad.diagnosis.page import make_page
from timm_dad.diagnosis.pictures import WorstImages
from timm_dad.diagnosis.plots import write_plots
from timm_dad.diagnosis.report import format_report, write_report
from timm_dad.evaluation.models import EvalModel, ModelOptions, open_model, parse_models
from timm_dad.evaluation.suites.open import open_suite, parse_suite
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_data_args, check_data_args, create_dataset, data_flag, number_of_classes
from timm_dad.flags.execution import add_execution_args, device_rule, pick_device
from timm_dad.flags.fields import from_flags
from timm_dad.flags.frame import add_frame_args
from timm_dad.flags.pairs import check_set_args, open_set
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_output, check_rules, describe_flags, given_flags, under_flag, written
from timm_dad.flags.teacher import check_teacher_args, create_teacher, teacher_specs
from timm_dad.flags.temperature import images_to_fit, take_auto, with_number
from timm_dad.flags.views import (
    NO_VQGAN,
    add_speed_args,
    add_view_args,
    check_view_args,
    create_augment,
    create_vqgan,
    prepare_models,
)
from timm_dad.preview.image import shown_names
from timm_dad.teachers.spec import DataClasses
from timm_dad.teachers.teacher import Teacher

PROGRAM = 'timm-dad diagnose'
_INCIDENTAL = ('config', 'output', 'workers', 'device')  # flags that no number depends on
# Flags fixed when a DAD set was made.
_FRAME_FLAGS = ('img_size', 'crop_pct', 'interpolation')


def create_parser() -> Parser:
    """Create the parser of ``timm-dad diagnose``."""
    default = DiagnoseConfig()
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s --data-dir DIR --ood NAME=PATH ... --student SPEC --dad-teacher SPEC --dad-vqgan SPEC [flags]',
        description='Measure what limits a student on OOD data: its teacher, how well the student follows it, or what '
        'the augmentation does not cover.',
    )
    add_config_arg(parser)
    add_view_args(parser)
    group = parser.add_argument_group('DAD: loss')
    group.add_argument(
        '--dad-temperature', type=float, default=default.temperature, help='distillation temperature of the comparison'
    )
    take_auto(parser)
    add_speed_args(parser)
    group = parser.add_argument_group('DAD: sets')
    group.add_argument('--dad-dir', metavar='DIR', help='take the DAD views from a set made by timm-dad generate')
    group = add_data_args(parser, split='validation')
    group.add_argument(
        '--ood', nargs='+', action='extend', metavar='NAME=PATH', required=True,
        help='OOD data with classes of the data: suites as for timm-dad evaluate, or demo/STYLE',
    )  # fmt: skip
    group.add_argument('--images', type=int, default=1000, metavar='N', help='images of each set, drawn by --seed')
    group = parser.add_argument_group('Images')
    size_help = "image size (default: the student's, else the teacher's)"
    add_frame_args(group, size_help=size_help, input_size=False)
    group = parser.add_argument_group('Student')
    student_help = 'the student, as for --model of timm-dad evaluate: timm:MODEL/FILE, run:FOLDER, ...'
    group.add_argument('--student', metavar='SPEC', help=student_help)
    group = parser.add_argument_group('Measurement')
    group.add_argument('--distance', choices=DISTANCES, default=default.distance, help='Wasserstein distance')
    group.add_argument(
        '--splits',
        type=int,
        default=default.num_splits,
        metavar='N',
        help='random halvings to average over',
    )
    group.add_argument('--seed', type=int, default=default.seed, metavar='S', help='random seed')
    group = parser.add_argument_group('Execution')
    group.add_argument(
        '--output', metavar='DIR', help='folder for diagnose.json, .md and .html, and plots (default: only print)'
    )
    add_execution_args(group, default.batch_size)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check; without a teacher, take that of ``--dad-dir``. ``SystemExit`` on a bad flag."""
    return parse_checked(create_parser, argv, _check_args)


def _check_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    check_data_args(args, given)
    fixed = [written(name) for name in _FRAME_FLAGS if name in given and args.dad_dir]
    rules = (
        (
            args.data_dir or args.dataset,
            '--data-dir must name a folder with one sub-folder per class (or give --dataset)',
        ),
        (not args.no_labels, '--no-labels does not work here: data is compared class by class; leave it out'),
        (args.images >= 4, f'--images must be 4 or more, got {args.images}'),
        (args.img_size is None or args.img_size > 0, f'--img-size must be 1 or more, got {args.img_size}'),
        (args.dad_vqgan or args.dad_dir, f'{NO_VQGAN} (or give --dad-dir)'),
        (not fixed, f'{"".join(fixed[:1])} was fixed when the DAD set was made: leave it out'),
        (
            args.student or 'dad_temperature' not in given or len(teacher_specs(args)) > 1,
            '--dad-temperature is for comparing --student with the teacher, or for several teachers',
        ),
        device_rule(args.device),
    )
    check_rules(rules)
    check_view_args(args)
    create_config(args)
    if args.output:
        check_output(Path(args.output))
    if args.dad_dir:
        check_set_args(args, given)


def create_config(args: argparse.Namespace) -> DiagnoseConfig:
    """Build the measurement config from the flags; ``ValueError`` names the flag."""
    same = {name: name for name in ('distance', 'seed', 'batch_size', 'workers')}
    return from_flags(
        DiagnoseConfig, with_number(args), {**same, 'num_splits': 'splits', 'temperature': 'dad_temperature'}
    )


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run ``timm-dad diagnose`` with flags ``argv``; return the report, as in ``diagnose.json``."""
    setup_logging()
    args = parse_args(argv)
    with user_errors(PROGRAM):
        report, worst = run(args, given_flags(create_parser(), argv))
        text = format_report(report)
        paths = write_all(args, report, text, worst) if args.output else []
    print(text)
    if paths:
        print(f'Written: {", ".join(str(path) for path in paths)}')
    return report


def write_all(args: argparse.Namespace, report: dict[str, Any], text: str, worst: WorstImages) -> list[Path]:
    """Write report, plots and page into ``--output``; return the files."""
    folder = Path(args.output)
    files, plots, page = write_report(folder, report, text), write_plots(report, folder), folder / 'diagnose.html'
    flags = describe_flags(vars(args), _INCIDENTAL)
    write_file(page, make_page(report, text, plots, worst.shown(), flags))
    return [*files, page, *plots]


def run(args: argparse.Namespace, given: Mapping[str, Any]) -> tuple[dict[str, Any], WorstImages]:
    """Build what the flags ask for, and measure; ``ValueError`` if something is missing or does not fit together.

    Returns:
        The report, and the images to show in it.
    """
    source = open_source(args)
    with under_flag('--ood'):
        oods = [open_suite(*parse_suite(text)) for text in args.ood]
    check_teacher_args(args, given)
    device = pick_device(args.device)
    student = open_student(args, source, device)
    to_fit = None
    if student or len(teacher_specs(args)) > 1:
        to_fit = images_to_fit(args, source, lambda teacher: make_frame(args, teacher, student))
    teacher = create_teacher(args, args.num_classes, source.class_names, device, to_fit)
    frame = make_frame(args, teacher, student)
    make_views = open_views(args, source, teacher, frame, device)
    indices_of = partial(sample_indices, num_images=args.images, seed=args.seed)
    clean = Sample(source, indices_of(len(source)), frame)
    with under_flag('--ood'):
        sampled = {
            suite.name: sample_suite(suite, source.class_names, args.num_classes, indices_of, frame) for suite in oods
        }
    if len(sampled) < len(oods):
        raise ValueError(f'--ood: every set needs a name of its own, got {[suite.name for suite in oods]}')
    for name, images in {'the data': clean, **sampled}.items():
        if len(images) < 4:
            raise ValueError(f'{name} must have 4 images or more, got {len(images)}')
    network: Any = student.network if student else None
    worst = WorstImages(shown_names(source.class_names, args.num_classes))
    report = diagnose(clean, make_views, sampled, teacher, network, create_config(args), device, worst)
    flags = {name: value for name, value in vars(args).items() if name not in _INCIDENTAL}
    return {'settings': {**flags, 'img_size': list(frame.size)}, **report}, worst


def open_source(args: argparse.Namespace) -> Source:
    """Open the clean data, check that some of its images decode, and set ``--num-classes``."""
    dataset = create_dataset(args, args.split, split_flag='--split')
    flag = data_flag(args)
    if isinstance(dataset, IterableDataset):
        raise ValueError(f'{flag} is a stream, and images are drawn by index: give a folder, tar or hfds/ data set')
    check_images(dataset, flag)
    source = Source(dataset)
    args.num_classes = number_of_classes(args, source.class_names)
    return source


def open_student(args: argparse.Namespace, source: Source, device: torch.device) -> EvalModel | None:
    """Open and prepare the student of ``--student``, if given."""
    if not args.student:
        return None
    data = DataClasses(num_classes=args.num_classes, class_names=source.class_names)
    with under_flag('--student'):
        (model,) = parse_models([args.student])
        return open_model(model, data, ModelOptions(), device)


def make_frame(args: argparse.Namespace, teacher: Teacher, student: EvalModel | None) -> Frame:
    """Return size and crop of all images: those of the DAD set, if there is one."""
    if args.dad_dir:
        return frame_of_views(read_settings(set_folder(args.dad_dir)))
    size = student.frame.size if student else teacher.input_size
    if args.img_size is not None:
        size = (args.img_size, args.img_size)
    return from_flags(Frame, args, {name: name for name in ('interpolation', 'crop_pct')}, size=size)


def open_views(
    args: argparse.Namespace, source: Source, teacher: Teacher, frame: Frame, device: torch.device
) -> MadeViews | StoredViews:
    """Build what makes DAD views, or reads them from ``--dad-dir``, and prepare teacher and VQGAN."""
    if args.dad_dir:
        dad_set = open_set(args, frame.size)
        with under_flag(f'--dad-dir {args.dad_dir} (--split names the split):'):
            check_data(dad_set, source)
            check_teacher(dad_set, teacher)
        prepare_models(args, teacher, None, frame.size, device, args.batch_size)
        return StoredViews(dad_set, source, args.seed)
    vqgan = create_vqgan(args, frame.size)
    prepare_models(args, teacher, vqgan, frame.size, device, args.batch_size)
    return MadeViews(create_augment(args, teacher, vqgan), args.seed)
