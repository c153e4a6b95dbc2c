"""``timm-dad generate``: the flags, named as timm names them."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from timm_dad.common.errors import is_main_process, user_errors
from timm_dad.common.log import setup_logging
from timm_dad.dad_sets.claims import KINDS, Claims, open_claims
from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.hub import SCHEME, set_folder
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import FORMAT_VERSION
from timm_dad.dad_sets.parts import Part
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import reinforce
from timm_dad.dad_sets.store import is_url
from timm_dad.dad_sets.store_claims import store_claims
from timm_dad.dad_sets.store_folder import as_root, check_reachable, done_shards
from timm_dad.dad_sets.summary import format_summary
from timm_dad.data.datasets import check_images
from timm_dad.data.images import Source
from timm_dad.flags.attack import attack_config, describe_attack
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_data_args, check_data_args, create_dataset, data_flag, number_of_classes
from timm_dad.flags.execution import add_execution_args, device_rule, pick_device
from timm_dad.flags.fields import add_fields, from_flags
from timm_dad.flags.frame import add_frame_args, create_frame, frame_rules
from timm_dad.flags.labels import check_labels_args, find_class_names
from timm_dad.flags.moved import absolute
from timm_dad.flags.pairs import load_vqgan_by_spec
from timm_dad.flags.parser import Parser
from timm_dad.flags.reinforce import add_reinforce_args, check_reinforce_args, reinforce_config
from timm_dad.flags.rules import check_rules, given_flags, under_flag
from timm_dad.flags.teacher import TEACHER_FLAGS, check_teacher_args, create_teacher, teacher_specs
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

PROGRAM = 'timm-dad generate'
_FILES = {name: name for name in ('format', 'image_format', 'quality')}
_VIEWS = {'num_views': 'dad_views', 'seed': 'seed'}
_SET = {'shard_size': 'shard_size', 'top_k': 'dad_store_logits', 'temperature': 'dad_temperature'}


def create_parser() -> Parser:
    """The parser of ``timm-dad generate``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s --data-dir DIR --dad-teacher SPEC --dad-vqgan SPEC --output DIR [flags]',
        description='Make the DAD views of a data set once, for any number of trainings with --dad-dir.',
    )
    add_config_arg(parser)
    add_view_args(parser)
    add_speed_args(parser)
    group = parser.add_argument_group('DAD: views')
    add_frame_args(group, size_help='size of views and student (default: 224)')
    add_fields(group, GenerateConfig, _VIEWS)
    group = parser.add_argument_group('DAD: the set')
    group.add_argument(
        '--output', metavar='DIR', required=True,
        help='folder of the set, or its URL in an object store, such as s3://BUCKET/NAME; the same one to go on, or to '
        '--repair',
    )  # fmt: skip
    group.add_argument(
        '--repair', action='store_true',
        help='compare every byte of the set with its manifests first, as timm-dad verify does, and make again what is '
        'missing or altered (one process; takes the flags that made the set)',
    )  # fmt: skip
    add_fields(group, FormatConfig, _FILES)
    add_fields(group, GenerateConfig, _SET)
    group = parser.add_argument_group('DAD: several processes')
    group.add_argument(
        '--claim',
        choices=KINDS,
        default='auto',
        help="how processes and machines that share the folder keep out of each other's shards: lock (flock), lease "
        '(files that their holder writes to, for file systems where locks hold on one machine alone), or auto, which '
        'finds out which does (default: auto)',
    )
    group.add_argument(
        '--shards', nargs='?', const='auto', metavar='I/N',
        help='make the shards I, I + N, ... alone, I from 0; without a value those of this task of a Slurm array, or '
        'process of torchrun or accelerate. The part that sees all others done, or the same command without --shards, '
        'finishes the set',
    )  # fmt: skip
    add_reinforce_args(parser)
    group = add_data_args(parser, split='train', alias='--train-split')
    group.add_argument('--train-num-samples', type=int, metavar='N', help='images of the split, for a stream')
    add_execution_args(parser.add_argument_group('Execution'), GenerateConfig.batch_size)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check; ``SystemExit`` on a bad flag."""
    return parse_checked(create_parser, argv, _check_args)


def _check_args(args: argparse.Namespace, given: dict[str, Any]) -> None:
    lossy = args.format != 'codes' and args.image_format != 'png'
    rules = (
        (args.data_dir or args.dataset, '--data-dir must name a folder with a sub-folder a class (or give --dataset)'),
        ('quality' not in given or lossy, '--quality is for --image-format jpeg and webp'),
        ('image_format' not in given or args.format != 'codes', '--image-format is not for --format codes'),
        *frame_rules(args, given),
        (args.dad_precision != 'auto',
         '--dad-precision decides the bytes of a set, in every process that works on it: give fp32, bf16 or fp16 '
         '(timm-dad info --dad-precision auto says which is faster here)'),
        (args.shards is None or ('claim' not in given and args.claim == 'auto'),
         '--claim is for processes that share all shards: leave it out'),
        (not args.repair or args.shards is None, '--repair looks at the whole set: leave --shards out'),
        (not args.repair or int(os.environ.get('WORLD_SIZE', 1)) == 1,
         '--repair looks for damage in one process: leave the launcher out (others may join once views are made)'),
        (not args.output.startswith(SCHEME),
         f'--output must be a folder to make or --repair a set in, got {args.output}: timm-dad push brings it there'),
        (args.workers >= 0, f'--workers must be 0 or more, got {args.workers}'),
        (args.dad_vqgan, NO_VQGAN),
        device_rule(args.device),
    )  # fmt: skip
    check_rules(rules)
    check_data_args(args, given)
    check_labels_args(args, given)
    if 'dad_temperature' in given and not (args.dad_store_logits or args.reinforce) and len(teacher_specs(args)) < 2:
        raise ValueError('--dad-temperature is for --dad-store-logits, --reinforce, or for several teachers')
    check_view_args(args)
    check_reinforce_args(args, given, create_parser())
    create_config(args)
    create_claims(args)


def create_config(args: argparse.Namespace) -> GenerateConfig:
    """How the flags want the set; ``ValueError`` names the flag."""
    frame, files = create_frame(args), from_flags(FormatConfig, args, _FILES)
    flags = {**_VIEWS, **_SET, 'batch_size': 'batch_size'}
    if args.reinforce:
        reinforce_config(args, frame.size)  # whatever is wrong with it, before anything is made
    return from_flags(GenerateConfig, args, flags, frame=frame, files=files)


def create_claims(args: argparse.Namespace) -> Callable[[Any], Claims]:
    """Who makes what; ``ValueError`` names the flag."""
    if args.shards is None:
        return partial(store_claims if is_url(args.output) else open_claims, kind=args.claim)
    with under_flag('--shards'):
        part = Part.parse(args.shards, os.environ)
    return lambda root: part


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run ``timm-dad generate`` with a command line from there on; returns the summary of the set, if it is whole."""
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        with under_flag('--output'):
            check_reachable(args.output)
        # Before any process group: timm's readers of streams would share the data out over it by themselves.
        source = open_source(args)
        args.num_classes = number_of_classes(args, source.class_names)
        check_teacher_args(args, given_flags(create_parser(), argv))
        config = create_config(args)
        device = pick_device(args.device)
        augment, models = build_models(args, source, config, device)
        settings = {'format_version': FORMAT_VERSION, 'data': describe_data(args, source), **models}
        summary = generate(
            source, augment, args.output, config, settings,
            device=device,
            rank=int(os.environ.get('RANK', 0)),
            world_size=int(os.environ.get('WORLD_SIZE', 1)),
            workers=args.workers,
            progress=is_main_process(),
            repair=args.repair,
            claims=create_claims(args),
        )  # fmt: skip
        if args.reinforce and summary is not None:
            store_answers(args, source, augment, config, device)
    if summary is None:
        print(format_part(args, config, len(source)))
    elif is_main_process() or args.shards is not None:  # the part that finishes the set may be any
        print(format_summary(summary, as_root(args.output)))
    return summary


def store_answers(
    args: argparse.Namespace, source: Source, augment: DADAugment, config: GenerateConfig, device: torch.device
) -> None:
    """Reinforce a set that is whole."""
    dad_set = DADSet(set_folder(args.output))
    dad_set.decoder = augment.vqgan if dad_set.format == 'codes' else None
    reinforce(
        source, dad_set, augment.ask_teacher, reinforce_config(args, config.frame.size),
        device=device, workers=args.workers, progress=is_main_process(), claims=create_claims(args),
        place=as_root(args.output),
    )  # fmt: skip


def format_part(args: argparse.Namespace, config: GenerateConfig, num_images: int) -> str:
    """What a run of one part ends with while there are others."""
    done, count = len(done_shards(as_root(args.output))), -(-num_images // config.shard_size)
    part = Part.parse(args.shards or 'auto', os.environ)
    return (
        f'{args.output}: part {part} is done, {done} of {count} shards are. The last of the other parts, or the same '
        'command without --shards, finishes the set'
    )


def open_source(args: argparse.Namespace) -> Source:
    """Open the data, and decode some images of it before anything large is built."""
    dataset = create_dataset(
        args, args.split, split_flag='--split', num_samples=args.train_num_samples,
        batch_size=args.batch_size, seed=args.seed, labels=not args.no_labels,
    )  # fmt: skip
    check_images(dataset, data_flag(args))
    source = Source(dataset)
    source.class_names = find_class_names(args, source.class_names)
    if not len(source):
        raise ValueError('--train-num-samples must say how many images the stream holds: its info does not')
    return source


def build_models(
    args: argparse.Namespace, source: Source, config: GenerateConfig, device: torch.device
) -> tuple[DADAugment, dict[str, Any]]:
    """Teacher, VQGAN and attack, and what of them the set keeps."""
    teacher = create_teacher(args, args.num_classes, source.class_names, device)
    vqgan = create_vqgan(args, config.frame.size)
    teacher_flags = {name: absolute(getattr(args, name)) for name in TEACHER_FLAGS}
    if args.dad_teacher_img_size is None:  # as sets had it from before there was the flag
        del teacher_flags['dad_teacher_img_size']
    settings = {
        'teacher': {'fingerprint': teacher.fingerprint(), 'flags': teacher_flags},
        'vqgan': {
            'fingerprint': vqgan.fingerprint(),
            'spec': absolute(args.dad_vqgan),
            'strict_size': args.dad_strict_size,
        },
        'attack': {**describe_attack(attack_config(args)), 'keep_label': args.dad_keep_label},
        'precision': args.dad_precision,
        **_other_rounding(args),
    }
    prepare_models(args, teacher, vqgan, config.frame.size, device, config.batch_size)
    if device.type == 'cuda' and not args.dad_micro_batch:
        args.dad_micro_batch = config.batch_size  # never less by itself: it rounds otherwise
    return create_augment(args, teacher, vqgan), settings


def _other_rounding(args: argparse.Namespace) -> dict[str, Any]:
    """What else decides the bytes of a set, where it is not as sets were always made."""
    return {
        **_gradient_vqgan(args),
        **({'attack_from': args.dad_attack_from} if args.dad_attack_from != 'reconstruction' else {}),
        **({'micro_batch': args.dad_micro_batch} if args.dad_micro_batch else {}),
        **({'compiled': True} if args.dad_compile else {}),
    }


def _gradient_vqgan(args: argparse.Namespace) -> dict[str, Any]:
    if not args.dad_gradient_vqgan:
        return {}
    return {'gradient_vqgan': load_vqgan_by_spec(args.dad_gradient_vqgan, flag='--dad-gradient-vqgan').fingerprint()}


def describe_data(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What the set keeps of its data."""
    return {
        **{name: getattr(args, name) for name in ('dataset', 'input_key', 'target_key', 'num_classes')},
        'split': args.split,
        'num_images': len(source),
        'class_names': None if source.class_names is None else list(source.class_names),
        'listing': source.listing(),
        'sample': source.sample(),
        'identified_by': source.identified_by,
        **({'label_free': True} if source.label_free else {}),
    }
