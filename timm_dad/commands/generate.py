"""``timm-dad generate``: the flags, named as timm names them."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from timm_dad.common.errors import is_main_process, user_errors
from timm_dad.common.log import setup_logging
from timm_dad.dad_sets.formats import FORMATS, IMAGE_FORMATS, FormatConfig
from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import FORMAT_VERSION
from timm_dad.dad_sets.summary import format_summary
from timm_dad.data.datasets import check_images, create_dataset
from timm_dad.data.images import Frame, Source
from timm_dad.flags.data import add_data_args, check_data_args, number_of_classes
from timm_dad.flags.rules import check_rules, given_flags, naming_flag
from timm_dad.flags.teacher import check_teacher_args, create_teacher, teacher_specs
from timm_dad.flags.views import (
    add_view_args,
    attack_config,
    check_view_args,
    create_augment,
    create_vqgan,
    prepare_models,
)
from timm_dad.method.augment import DADAugment
from timm_dad.teachers.teacher import INTERPOLATIONS
from timm_dad.vqgan.presets import PRESETS

PROGRAM = 'timm-dad generate'
_TEACHER_FLAGS = (
    'dad_teacher',
    'dad_teacher_weights',
    'dad_teacher_checkpoint',
    'dad_classnames',
    'dad_templates',
    'dad_class_map',
)


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``timm-dad generate``."""
    files, default = FormatConfig(), GenerateConfig(frame=Frame(size=(224, 224)), files=FormatConfig())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='Make the DAD views of a data set once, for any number of trainings with --dad-dir.',
        allow_abbrev=False,
    )
    group = add_data_args(parser, split='train', split_flag='--train-split')
    group.add_argument('--train-num-samples', type=int, metavar='N', help='images of the split, for a stream')
    group = parser.add_argument_group('Views')
    group.add_argument('--img-size', type=int, metavar='N', help='size of views and student (default: 224)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='its dimensions (3 h w), in place of that')
    group.add_argument('--crop-pct', type=float, default=default.frame.crop_pct, help='part of the shorter side')
    group.add_argument('--interpolation', default=default.frame.interpolation, choices=INTERPOLATIONS, help='resizing')
    group.add_argument('--dad-views', type=int, default=default.num_views, metavar='K', help='views of every image')
    group.add_argument('--seed', type=int, default=default.seed, metavar='S', help='random seed')
    add_view_args(parser.add_argument_group('Discrete Adversarial Distillation'))
    group = parser.add_argument_group('Output')
    group.add_argument('--output', metavar='DIR', required=True, help='folder of the set; the same one to go on')
    group.add_argument('--format', choices=FORMATS, default=files.format, help='how the views are stored')
    group.add_argument(
        '--image-format', choices=tuple(IMAGE_FORMATS), default=files.image_format, help='their file type'
    )
    group.add_argument('--quality', type=int, default=files.quality, metavar='Q', help='1 to 100, of jpeg and webp')
    group.add_argument(
        '--shard-size', type=int, default=default.shard_size, metavar='N',
        help='images between two points at which work is taken up again or shared out',
    )  # fmt: skip
    group.add_argument(
        '--dad-store-logits', type=int, default=default.top_k, metavar='K',
        help="store the teacher's K largest logits of images and views, for training with --dad-stored-logits",
    )  # fmt: skip
    group.add_argument(
        '--dad-temperature', type=float, default=default.temperature,
        help='distillation temperature that they, and an average of several teachers, are for',
    )  # fmt: skip
    group = parser.add_argument_group('Execution')
    group.add_argument('-b', '--batch-size', type=int, default=default.batch_size, metavar='N', help='images at a time')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    group.add_argument('--device', default='cuda', help='cuda (the CPU where there is none) or cpu')
    parser.set_defaults(dad_view='dad')  # for train_dad.py's factories
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check what needs no data.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    parser = create_parser()
    args = parser.parse_args(argv)
    given = _given(argv)
    try:
        _check_args(args, given)
        check_view_args(args)
        create_config(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """The flags of the command line alone."""
    return given_flags(create_parser(), argv)


def _check_args(args: argparse.Namespace, given: dict[str, Any]) -> None:
    lossy = args.format != 'codes' and args.image_format != 'png'
    rules = (
        (
            args.data_dir or args.dataset,
            '--data-dir must name a folder with a sub-folder a class (or give --dataset)',
        ),
        (not ('quality' in given and not lossy), '--quality is for --image-format jpeg and webp'),
        (not ('image_format' in given and args.format == 'codes'), '--image-format is not for --format codes'),
        (not ('img_size' in given and 'input_size' in given), '--img-size and --input-size: give one of them'),
        (not args.input_size or args.input_size[0] == 3, f'--input-size must begin with 3, got {args.input_size}'),
        (
            args.dad_precision != 'auto',
            '--dad-precision decides the bytes of a set, in every process that works on it: give fp32, bf16 or fp16 '
            '(timm-dad info --dad-precision auto says which is faster here)',
        ),
        (args.workers >= 0, f'--workers must be 0 or more, got {args.workers}'),
        (args.dad_vqgan, f'--dad-vqgan must name the weights of a VQGAN, demo, or one of {", ".join(PRESETS)}'),
        (args.device.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {args.device!r}'),
    )
    check_rules(rules)
    check_data_args(args, given)
    if 'dad_temperature' in given and not args.dad_store_logits and len(teacher_specs(args)) < 2:
        raise ValueError('--dad-temperature is for --dad-store-logits, or for several teachers')


def create_config(args: argparse.Namespace) -> GenerateConfig:
    """How the flags want the set; ``ValueError`` names the flag."""
    side = 224 if args.img_size is None else args.img_size
    size = tuple(args.input_size[1:]) if args.input_size else (side, side)
    flags = {
        'num_views': 'dad_views',
        'top_k': 'dad_store_logits',
        'temperature': 'dad_temperature',
        'size': 'input_size' if args.input_size else 'img_size',
    }
    names = ('num_views', 'seed', 'batch_size', 'shard_size', 'top_k', 'temperature')
    with naming_flag(flags):
        return GenerateConfig(
            frame=Frame(size=size, interpolation=args.interpolation, crop_pct=args.crop_pct),
            files=FormatConfig(format=args.format, image_format=args.image_format, quality=args.quality),
            **{name: getattr(args, flags.get(name, name)) for name in names},
        )


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run ``timm-dad generate``.

    Args:
        argv: Command line without ``generate``.

    Returns:
        The summary of the set.
    """
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        # Before any process group: timm's readers of streams would share the data out over it by themselves.
        source = open_source(args)
        args.num_classes = number_of_classes(args, source.class_names)
        check_teacher_args(args, _given(argv))
        config = create_config(args)
        device = pick_device(args)
        augment, models = build_models(args, source, config, device)
        settings = {'format_version': FORMAT_VERSION, 'data': describe_data(args, source), **models}
        summary = generate(
            source, augment, args.output, config, settings,
            device=device,
            rank=int(os.environ.get('RANK', 0)),
            world_size=int(os.environ.get('WORLD_SIZE', 1)),
            workers=args.workers,
            progress=is_main_process(),
        )  # fmt: skip
    if is_main_process():
        print(format_summary(summary, Path(args.output)))
    return summary


def open_source(args: argparse.Namespace) -> Source:
    """Open the data, and decode some images of it before anything large is built."""
    if args.train_num_samples is not None:
        args.val_num_samples = args.train_num_samples  # of the one split there is
    dataset = create_dataset(args, args.train_split, is_training=False, split_flag='--train-split')
    check_images(dataset, f'--dataset {args.dataset}' if args.dataset else f'--data-dir {args.data_dir}')
    source = Source(dataset)
    if not len(source):
        raise ValueError('--train-num-samples must say how many images the stream holds: its info does not')
    return source


def pick_device(args: argparse.Namespace) -> torch.device:
    """The device of this process."""
    if args.device == 'cpu' or not torch.cuda.is_available():
        return torch.device('cpu')
    if ':' in args.device:
        return torch.device(args.device)
    device: torch.device = PartialState().device
    return device


def build_models(
    args: argparse.Namespace, source: Source, config: GenerateConfig, device: torch.device
) -> tuple[DADAugment, dict[str, Any]]:
    """Teacher, VQGAN and attack, and what of them the set keeps."""
    teacher = create_teacher(args, args.num_classes, source.class_names, device)
    vqgan = create_vqgan(args, config.frame.size)
    assert vqgan is not None
    teacher_flags = {name: getattr(args, name) for name in _TEACHER_FLAGS}
    vqgan_flags = {'spec': args.dad_vqgan, 'strict_size': args.dad_strict_size}
    settings = {
        'teacher': {'fingerprint': teacher.fingerprint(), 'flags': teacher_flags},
        'vqgan': {'fingerprint': vqgan.fingerprint(), **vqgan_flags},
        'attack': {**asdict(attack_config(args)), 'keep_label': args.dad_keep_label},
        'precision': args.dad_precision,
        **_other_rounding(args),
    }
    prepare_models(args, teacher, vqgan, config.frame.size, device)
    if device.type == 'cuda' and not args.dad_micro_batch:
        args.dad_micro_batch = config.batch_size  # never less by itself: it rounds otherwise
    augment = create_augment(args, teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1))
    assert augment is not None
    return augment, settings


def _other_rounding(args: argparse.Namespace) -> dict[str, Any]:
    """What else decides the bytes of a set, where it is not as sets were always made."""
    found: dict[str, Any] = {}
    if args.dad_attack_from != 'reconstruction':
        found['attack_from'] = args.dad_attack_from
    if args.dad_micro_batch:
        found['micro_batch'] = args.dad_micro_batch
    if args.dad_compile:
        found['compiled'] = True
    return found


def describe_data(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What the set keeps of its data."""
    return {
        'dataset': args.dataset,
        'split': args.train_split,
        'input_key': args.input_key,
        'target_key': args.target_key,
        'num_images': len(source),
        'num_classes': args.num_classes,
        'class_names': None if source.class_names is None else list(source.class_names),
        'listing': source.listing(),
        'sample': source.sample(),
        'identified_by': source.identified_by,
    }
