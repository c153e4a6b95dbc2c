"""``timm-dad generate``: the flags, with timm's names."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm_dad.commands.generate_job import FILES, SET, VIEWS, Job, create_config, open_source
from timm_dad.common.errors import is_main_process, user_errors
from timm_dad.common.extras import require_extra
from timm_dad.common.hub import SCHEME
from timm_dad.common.log import setup_logging
from timm_dad.dad_sets.claims import Claims, open_claims
from timm_dad.dad_sets.formats import FormatConfig, format_of
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.parts import Part
from timm_dad.dad_sets.store import is_url
from timm_dad.dad_sets.store_claims import store_claims
from timm_dad.dad_sets.store_folder import as_root, check_reachable, done_shards
from timm_dad.dad_sets.summary import format_summary
from timm_dad.data.images import Source
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_data_args, check_data_args
from timm_dad.flags.engine import add_engine_args, engine_rules
from timm_dad.flags.execution import add_execution_args, device_rule, pick_device
from timm_dad.flags.fields import add_fields
from timm_dad.flags.frame import add_frame_args, frame_rules
from timm_dad.flags.labels import check_labels_args
from timm_dad.flags.look import add_look_arg, look_first, look_rule
from timm_dad.flags.parser import Parser
from timm_dad.flags.reinforce import add_reinforce_args, check_reinforce_args
from timm_dad.flags.rules import check_rules, given_flags, under_flag
from timm_dad.flags.task import add_task_args, check_task_args
from timm_dad.flags.teacher import check_teacher_args, teacher_specs
from timm_dad.flags.temperature import take_auto
from timm_dad.flags.views import NO_VQGAN, add_speed_args, add_view_args, check_view_args
from timm_dad.preview.first_look import log_look

PROGRAM = 'timm-dad generate'


def create_parser() -> Parser:
    """Create the parser of ``timm-dad generate``."""
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
    add_fields(group, GenerateConfig, VIEWS)
    group = parser.add_argument_group('DAD: the set')
    group.add_argument(
        '--output', metavar='DIR', required=True,
        help='folder of the set, or its URL in an object store, such as s3://BUCKET/NAME; the same one to resume or to '
        '--repair',
    )  # fmt: skip
    group.add_argument(
        '--repair', action='store_true',
        help='compare every byte of the set with its manifests first, as timm-dad verify does, and remake what is '
        'missing or altered (in one process; needs the flags that made the set)',
    )  # fmt: skip
    add_fields(group, FormatConfig, FILES)
    parser.set_defaults(format=None)
    add_fields(group, GenerateConfig, SET)
    take_auto(parser)
    add_look_arg(group)
    group = parser.add_argument_group('DAD: several processes')
    add_engine_args(group)
    add_reinforce_args(parser)
    group = add_data_args(parser, split='train', alias='--train-split')
    add_task_args(group)
    group.add_argument('--train-num-samples', type=int, metavar='N', help='number of images of the split, for a stream')
    add_execution_args(parser.add_argument_group('Execution'), GenerateConfig.batch_size)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check; raise ``SystemExit`` on a bad flag."""
    return parse_checked(create_parser, argv, _check_args)


def _check_args(args: argparse.Namespace, given: dict[str, Any]) -> None:
    check_rules((
        (not args.output.startswith(SCHEME),
         f'--output must be a folder to make or --repair a set in, got {args.output}: upload it with timm-dad push'),
    ))  # fmt: skip
    args.format = args.format or format_of(as_root(args.output))
    lossy = args.format != 'codes' and args.image_format != 'png'
    rules = (
        (args.data_dir or args.dataset, '--data-dir must name a folder of class folders (or give --dataset)'),
        ('quality' not in given or lossy, '--quality is for --image-format jpeg and webp'),
        ('image_format' not in given or args.format != 'codes', '--image-format is not for --format codes'),
        *frame_rules(args, given),
        (args.dad_precision != 'auto',
         '--dad-precision auto is not supported here, because the precision changes the files: give fp32, bf16 or fp16 '
         '(timm-dad info --dad-precision auto tells which is faster here)'),
        *engine_rules(args, given),
        (not args.repair or args.shards is None, '--repair checks the whole set: leave --shards out'),
        (not args.repair or int(os.environ.get('WORLD_SIZE', 1)) == 1,
         '--repair finds damage in one process: leave the launcher out (others may join once views are made)'),
        look_rule(args),
        (args.workers >= 0, f'--workers must be 0 or more, got {args.workers}'),
        (args.dad_vqgan, NO_VQGAN),
        device_rule(args.device),
    )  # fmt: skip
    check_rules(rules)
    if args.engine == 'ray':
        require_extra('ray', 'ray')
    check_data_args(args, given)
    check_labels_args(args, given)
    check_task_args(args, given)
    if 'dad_temperature' in given and not (args.dad_store_logits or args.reinforce) and len(teacher_specs(args)) < 2:
        raise ValueError('--dad-temperature is for --dad-store-logits, --reinforce, or for several teachers')
    check_view_args(args)
    check_reinforce_args(args, given, create_parser())
    create_config(args)
    create_claims(args)


def create_claims(args: argparse.Namespace) -> Callable[[Any], Claims]:
    """Return a function that creates the claims; ``ValueError`` names the flag."""
    if args.shards is None:
        return partial(store_claims if is_url(args.output) else open_claims, kind=args.claim)
    with under_flag('--shards'):
        part = Part.parse(args.shards, os.environ)
    return lambda root: part


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run ``timm-dad generate`` with its command line; return the summary of the set if it is finished."""
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        with under_flag('--output'):
            check_reachable(args.output)
        # Before any process group: timm's readers of streams would share the data out over it by themselves.
        source = open_source(args)
        check_teacher_args(args, given_flags(create_parser(), argv))
        summary = _make_with_ray(args, source) if args.engine == 'ray' else _make(args, source)
    if summary is None:
        print(format_part(args, len(source)))
    elif is_main_process() or args.shards is not None:  # the part that finishes the set may be any
        print(format_summary(summary, as_root(args.output)))
    return summary


def _make(args: argparse.Namespace, source: Source) -> dict[str, Any] | None:
    job = Job.open(args, source, pick_device(args.device))
    if is_main_process() and not done_shards(as_root(args.output)):
        found = look_first(args, job.augment, source, job.config.frame, job.device)
        if found is not None:
            log_look(found)
    summary = job.make(
        create_claims(args),
        rank=int(os.environ.get('RANK', 0)),
        world_size=int(os.environ.get('WORLD_SIZE', 1)),
        progress=is_main_process(),
        repair=args.repair,
    )
    if args.reinforce and summary is not None:
        if job.answer(create_claims(args), progress=is_main_process()) is None:
            print('Answers on other parts of the set remain: run the same command again, in one process')
    return summary


def _make_with_ray(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    from timm_dad.commands.generate_ray import make_with_ray  # which is imported where there is Ray

    return make_with_ray(args, source)


def format_part(args: argparse.Namespace, num_images: int) -> str:
    """Format the final message of a run of one part while others remain."""
    done, count = len(done_shards(as_root(args.output))), -(-num_images // args.shard_size)
    part = Part.parse(args.shards or 'auto', os.environ)
    return (
        f'{args.output}: part {part} is done; {done} of {count} shards exist. The last of the other parts, or the same '
        'command without --shards, completes the set'
    )
