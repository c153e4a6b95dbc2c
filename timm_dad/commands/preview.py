"""``timm-dad preview``: DAD views of a few images of any data set, as a PNG sheet and an HTML page."""

import argparse
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_tensor

from timm_dad.commands.generate import pick_device
from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.common.spread import spread
from timm_dad.dad_sets.maker import view_seed
from timm_dad.data.datasets import create_dataset
from timm_dad.data.images import Frame, Source, SourceImage
from timm_dad.demo.data import PREFIX
from timm_dad.demo.data import SIZE as DEMO_SIZE
from timm_dad.flags.data import add_data_args, check_data_args, number_of_classes
from timm_dad.flags.rules import check_rules, given_flags, naming_flag
from timm_dad.flags.teacher import check_teacher_args, create_teacher, teacher_specs
from timm_dad.flags.views import add_view_args, check_view_args, create_augment, create_vqgan, prepare_models
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.preview.image import PreviewImage, describe_means, describe_settings, preview_image, shown_names
from timm_dad.preview.page import make_page
from timm_dad.preview.sheet import make_sheet, png_bytes
from timm_dad.teachers.teacher import INTERPOLATIONS
from timm_dad.vqgan.presets import PRESETS

PROGRAM = 'timm-dad preview'
FILES = ('preview.png', 'preview.html')
_DEFAULT_IMAGES = 8


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``timm-dad preview``."""
    frame = Frame(size=(224, 224))
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='Show the DAD views of a few images. Without data, of the embedded demo; the demo brings its '
        'teacher, VQGAN and size, where they are not given.',
        allow_abbrev=False,
    )
    add_data_args(parser, split='validation')
    group = parser.add_argument_group('Images')
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        '--images', type=int, metavar='N',
        help=f'how many, spread evenly over the data set, of a stream the first ones (default: {_DEFAULT_IMAGES}, '
        'or all where there are fewer)',
    )  # fmt: skip
    which.add_argument('--index', type=int, nargs='+', metavar='I', help='these images, counted from 0')
    group.add_argument('--img-size', type=int, metavar='N', help='size of the views (default: 224; of the demo 32)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='its dimensions (3 h w), in place of that')
    group.add_argument('--crop-pct', type=float, default=frame.crop_pct, help='part of the shorter side')
    group.add_argument('--interpolation', default=frame.interpolation, choices=INTERPOLATIONS, help='resizing')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed, as that of timm-dad generate')
    group = parser.add_argument_group('Discrete Adversarial Distillation')
    add_view_args(group)
    group.add_argument(
        '--dad-temperature', type=float, default=DADLossConfig().temperature,
        help='distillation temperature that an average of several teachers is for',
    )  # fmt: skip
    parser.add_argument('--output', metavar='DIR', default='output/preview', help=f'folder of {" and ".join(FILES)}')
    parser.add_argument('--device', default='cuda', help='cuda (the CPU where there is none) or cpu')
    parser.set_defaults(dad_view='dad', batch_size=1)  # for train_dad.py's factories
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, check what needs no data, and fill in the demo where there is no data set.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    parser = create_parser()
    args = parser.parse_args(argv)
    if not args.data_dir and not args.dataset:
        args.dataset = f'{PREFIX}noto'
    if args.dataset.startswith(PREFIX):
        args.dad_teacher, args.dad_vqgan = args.dad_teacher or 'demo', args.dad_vqgan or 'demo'
    if args.img_size is None and args.input_size is None:
        args.img_size = DEMO_SIZE if args.dataset.startswith(PREFIX) else 224
    try:
        _check_args(args, _given(argv))
        check_view_args(args)
        create_frame(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """The flags of the command line alone."""
    return given_flags(create_parser(), argv)


def _check_args(args: argparse.Namespace, given: dict[str, Any]) -> None:
    check_data_args(args, given)
    several = len(teacher_specs(args)) > 1
    rules = (
        (args.images is None or args.images >= 1, f'--images must be 1 or more, got {args.images}'),
        (min(args.index or [0]) >= 0, f'--index must be 0 or more, got {args.index}'),
        (not ('img_size' in given and 'input_size' in given), '--img-size and --input-size: give one of them'),
        (not args.input_size or args.input_size[0] == 3, f'--input-size must begin with 3, got {args.input_size}'),
        (args.seed >= 0, f'--seed must be 0 or more, got {args.seed}'),
        (args.dad_vqgan, f'--dad-vqgan must name the weights of a VQGAN, demo, or one of {", ".join(PRESETS)}'),
        (args.dad_temperature > 0, f'--dad-temperature must be positive, got {args.dad_temperature}'),
        (several or 'dad_temperature' not in given, '--dad-temperature is for several teachers'),
        (args.device.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {args.device!r}'),
    )
    check_rules(rules)


def create_frame(args: argparse.Namespace) -> Frame:
    """The part of an image that is shown; ``ValueError`` names the flag."""
    size = tuple(args.input_size[1:]) if args.input_size else (args.img_size, args.img_size)
    with naming_flag({'size': 'input_size' if args.input_size else 'img_size'}):
        return Frame(size=size, interpolation=args.interpolation, crop_pct=args.crop_pct)


def main(argv: Sequence[str]) -> list[PreviewImage]:
    """Run ``timm-dad preview``.

    Args:
        argv: Command line without ``preview``.

    Returns:
        The images with their views.
    """
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        output = Path(args.output)
        check_output(output)
        dataset = create_dataset(args, args.split, is_training=False, split_flag='--split')
        source = Source(dataset)
        chosen = choose_images(args, source)
        args.num_classes = number_of_classes(args, source.class_names)
        check_teacher_args(args, _given(argv))
        augment = build_augment(args, source)
        images = make_previews(args, augment, source, chosen)
        names = shown_names(source.class_names, args.num_classes)
        texts = (f'{describe_settings(augment)}; seed {args.seed}', describe_means(images))
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_file(output / FILES[0], png_bytes(make_sheet(images, names, texts[0])))
            write_file(output / FILES[1], make_page(images, names, texts).encode())
        except OSError as error:
            raise ValueError(f'--output: {output} cannot be written: {error}') from error
    print(texts[1])
    for name in FILES:
        print(f'Preview: {output / name}')
    return images


def check_output(folder: Path) -> None:
    """Raise ``ValueError`` where files cannot be written into a folder that may have to be made; nothing is made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f'--output: {folder} cannot be written: {nearest} is no folder; name another one')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f'--output: {folder} cannot be written: {nearest} is not yours to write; name another one')


def choose_images(args: argparse.Namespace, source: Source) -> list[tuple[int, SourceImage]]:
    """Read the images of ``--index`` or ``--images``.

    Args:
        args: Flags.
        source: The data.

    Returns:
        Index and image, in the order of the flags.

    Raises:
        ValueError: If there are no such images, or one does not decode.
    """
    if source.streams:
        if args.index:
            raise ValueError(f'--index needs data with an index, not a stream ({args.dataset}): use --images')
        first = itertools.islice(source.dataset, args.images or _DEFAULT_IMAGES)
        read = [(index, source.of_pixels(image, label)) for index, (image, label) in enumerate(first)]
        if len(read) < (args.images or 1):
            raise ValueError(f'--images must be at most {len(read)}, the images of the data, got {args.images}')
        return read
    count = len(source)
    if args.index and max(args.index) >= count:
        raise ValueError(f'--index must be from 0 to {count - 1}, the images of the data, got {max(args.index)}')
    if args.images and args.images > count:
        raise ValueError(f'--images must be at most {count}, the images of the data, got {args.images}')
    indices = args.index or spread(count, args.images or _DEFAULT_IMAGES)
    return [(index, source.read(index)) for index in indices]


def build_augment(args: argparse.Namespace, source: Source) -> DADAugment:
    """Teacher, VQGAN and attack, prepared."""
    device = pick_device(args)
    teacher = create_teacher(args, args.num_classes, source.class_names, device)
    vqgan = create_vqgan(args, create_frame(args).size)
    assert vqgan is not None
    prepare_models(args, teacher, vqgan, create_frame(args).size, device)
    augment = create_augment(args, teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1))
    assert augment is not None
    return augment


def make_previews(
    args: argparse.Namespace, augment: DADAugment, source: Source, chosen: Sequence[tuple[int, SourceImage]]
) -> list[PreviewImage]:
    """The views of the images, each with the random start of its first view in ``timm-dad generate``."""
    transform = create_frame(args).transform()
    images = []
    for index, image in chosen:
        file = f' ({source.reader.filename(index)})' if source.lists_files and source.reader else ''
        x_pix = to_tensor(transform(image.image))
        seed = view_seed(args.seed, index, 0)
        images.append(preview_image(augment, x_pix, image.label, title=f'image {index}{file}', seed=seed))
    return images
