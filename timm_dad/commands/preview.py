"""``timm-dad preview``: DAD views of a few images of any data set, as a PNG sheet and an HTML page."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_tensor

from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.common.spread import spread
from timm_dad.dad_sets.maker import GenerateConfig, view_seed
from timm_dad.data.images import Source, SourceImage
from timm_dad.demo.data import PREFIX
from timm_dad.demo.data import SIZE as DEMO_SIZE
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_data_args, check_data_args, create_dataset, encode_targets, number_of_classes
from timm_dad.flags.execution import add_device_arg, device_rule, pick_device
from timm_dad.flags.fields import add_fields, dad_flags
from timm_dad.flags.frame import add_frame_args, create_frame, frame_rules
from timm_dad.flags.labels import check_labels_args, find_class_names
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_output, check_rules, given_flags, under_flag
from timm_dad.flags.task import add_task_args, check_task_args
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
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.preview.image import PreviewImage, describe_means, describe_settings, preview_image, shown_names
from timm_dad.preview.page import make_page
from timm_dad.preview.sheet import make_sheet, png_bytes

PROGRAM = 'timm-dad preview'
FILES = ('preview.png', 'preview.html')
_DEFAULT_IMAGES = 8


def create_parser() -> Parser:
    """Create the parser of ``timm-dad preview``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s [--data-dir DIR --dad-teacher SPEC --dad-vqgan SPEC] [flags]',
        description='Show the DAD views of a few images. Without data, it uses the embedded demo, which provides '
        'teacher, VQGAN and size unless they are given.',
    )
    add_config_arg(parser)
    add_view_args(parser)
    add_fields(parser.add_argument_group('DAD: loss'), DADLossConfig, dad_flags('temperature'))
    take_auto(parser)
    add_speed_args(parser)
    add_task_args(add_data_args(parser, split='validation'))
    group = parser.add_argument_group('Images')
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        '--images', type=int, metavar='N',
        help=f'how many, spread evenly over the data set, or the first of a stream (default: {_DEFAULT_IMAGES}, '
        'or all if there are fewer)',
    )  # fmt: skip
    which.add_argument('--index', type=int, nargs='+', metavar='I', help='these images, counted from 0')
    add_frame_args(group, size_help='size of the views (default: 224; 32 for the demo)')
    group.add_argument(
        '--seed', type=int, default=GenerateConfig.seed, metavar='S',
        help='random seed; with the seed of timm-dad generate, its first view is shown (default: %(default)s, in '
        'both)',
    )  # fmt: skip
    group.add_argument('--output', metavar='DIR', default='output/preview', help=f'folder of {" and ".join(FILES)}')
    add_device_arg(group)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, fill in the demo if there is no data set, and check; raise ``SystemExit`` on a bad flag."""
    return parse_checked(create_parser, argv, _check_args)


def _check_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    if not args.data_dir and not args.dataset:
        args.dataset = f'{PREFIX}noto'
    if args.dataset.startswith(PREFIX):
        args.dad_teacher, args.dad_vqgan = args.dad_teacher or 'demo', args.dad_vqgan or 'demo'
    if args.img_size is None and args.input_size is None:
        args.img_size = DEMO_SIZE if args.dataset.startswith(PREFIX) else 224
    check_data_args(args, given)
    check_labels_args(args, given)
    check_task_args(args, given)
    several, temperature = len(teacher_specs(args)) > 1, with_number(args).dad_temperature
    rules = (
        (args.images is None or args.images >= 1, f'--images must be 1 or more, got {args.images}'),
        (min(args.index or [0]) >= 0, f'--index must be 0 or more, got {args.index}'),
        *frame_rules(args, given),
        (args.dad_vqgan, NO_VQGAN),
        (0 < temperature < math.inf, f'--dad-temperature must be positive and finite, got {temperature}'),
        (several or 'dad_temperature' not in given, '--dad-temperature is for several teachers'),
        device_rule(args.device),
    )
    check_rules(rules)
    check_view_args(args)
    create_frame(args)


def main(argv: Sequence[str], augment: DADAugment | None = None) -> list[PreviewImage]:
    """Run ``timm-dad preview`` with its command line; return the images with their views.

    Args:
        argv: Command line without ``preview``.
        augment: What the flags would build, if it is there already.
    """
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        output = Path(args.output)
        check_output(output)
        source = open_source(args)
        chosen = choose_images(args, source)
        check_teacher_args(args, given_flags(create_parser(), argv))
        augment = augment or build_augment(args, source)
        images = make_previews(args, augment, source, chosen)
        names = shown_names(source.class_names, args.num_classes)
        texts = (f'{describe_settings(augment)}; seed {args.seed}', describe_means(images))
        with under_flag(f'--output: {output} cannot be written:', OSError):
            output.mkdir(parents=True, exist_ok=True)
            write_file(output / FILES[0], png_bytes(make_sheet(images, names, texts[0])))
            write_file(output / FILES[1], make_page(images, names, texts).encode())
    print(texts[1])
    for name in FILES:
        print(f'Preview: {output / name}')
    return images


def open_source(args: argparse.Namespace) -> Source:
    """Open the data, and settle ``--num-classes``; ``ValueError`` names the flag of what is wrong."""
    dataset = create_dataset(args, args.split, split_flag='--split', labels=not args.no_labels)
    source = Source(dataset)
    source.class_names = find_class_names(args, source.class_names)
    args.num_classes = number_of_classes(args, source.class_names)
    encode_targets(args, dataset)
    return source


def choose_images(args: argparse.Namespace, source: Source) -> list[tuple[int, SourceImage]]:
    """Read the images of ``--index`` or ``--images``, in the order of the flags, with their indices.

    Raises:
        ValueError: If there are no such images, or one does not decode.
    """
    if source.streams:
        if args.index:
            raise ValueError(f'--index needs data with an index, not a stream ({args.dataset}): use --images')
        read = list(source.some(args.images or _DEFAULT_IMAGES).items())
        if len(read) < (args.images or 1):
            raise ValueError(f'--images must be at most {len(read)}, the size of the data, got {args.images}')
        return read
    count = len(source)
    if args.index and max(args.index) >= count:
        raise ValueError(f'--index must be from 0 to {count - 1}, the indices of the data, got {max(args.index)}')
    if args.images and args.images > count:
        raise ValueError(f'--images must be at most {count}, the size of the data, got {args.images}')
    indices = args.index or spread(count, args.images or _DEFAULT_IMAGES)
    return [(index, source.read(index)) for index in indices]


def build_augment(args: argparse.Namespace, source: Source) -> DADAugment:
    """Build teacher, VQGAN and attack, prepared."""
    device, frame = pick_device(args.device), create_frame(args)
    images = images_to_fit(args, source, lambda _: frame) if len(teacher_specs(args)) > 1 else None
    teacher = create_teacher(args, args.num_classes, source.class_names, device, images)
    vqgan = create_vqgan(args, frame.size)
    prepare_models(args, teacher, vqgan, frame.size, device, batch_size=1)
    return create_augment(args, teacher, vqgan)


def make_previews(
    args: argparse.Namespace, augment: DADAugment, source: Source, chosen: Sequence[tuple[int, SourceImage]]
) -> list[PreviewImage]:
    """Make the views of the images, each with the random start of its first view in ``timm-dad generate``."""
    transform = create_frame(args).transform()
    images = []
    for index, image in chosen:
        file = f' ({source.reader.filename(index)})' if source.lists_files and source.reader else ''
        x_pix = to_tensor(transform(image.image))
        seed = view_seed(args.seed, index, 0)
        images.append(preview_image(augment, x_pix, image.label, title=f'image {index}{file}', seed=seed))
    return images
