"""``timm-dad init``: inspect data and machine, propose a training, and write a config for it."""

import argparse
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from timm_dad.commands import preview
from timm_dad.commands.init_measure import measure
from timm_dad.commands.init_proposal import Data, Machine, Proposal, config_text, look_at_machine, propose
from timm_dad.common.errors import user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.common.text_files import read_yaml
from timm_dad.dad_sets.store_cache import data_folder
from timm_dad.data.held_out import hold_out
from timm_dad.data.images import Source
from timm_dad.data.survey import Survey, class_folders, oddities, survey, to_mend
from timm_dad.flags.data import (
    add_source_args,
    check_data_args,
    create_dataset,
    data_flag,
    number_of_classes,
    split_folder,
)
from timm_dad.flags.execution import add_device_arg, device_rule, pick_device
from timm_dad.flags.frame import create_frame
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_output, check_rules, given_flags, under_flag
from timm_dad.method.augment import DADAugment
from timm_dad.preview.first_look import first_pictures, look
from timm_dad.teachers.spec import DEFAULT_TEACHER, check_spec
from timm_dad.teachers.trained import BEST
from timm_dad.training.announce import validation_suite
from timm_dad.training.run_folder import ARGS
from timm_dad.vqgan.presets import PRESETS
from timm_dad.vqgan_training.args import check_image_size

PROGRAM = 'timm-dad init'
_LOOK = 64
_HOW_TO_READ = (
    'With --config, a section is read by the commands in its first line; flags on the command line override it.',
)
_FACTOR = 4  # of the demo's VQGAN
_SOURCE_FLAGS = ('data_dir', 'dataset', 'class_map', 'dataset_download', 'dataset_trust_remote_code', 'input_key',
                 'target_key')  # fmt: skip


def create_parser() -> Parser:
    """Create the parser of ``timm-dad init``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s DATA [flags]',
        description='Inspect a folder of pictures and this machine, and write a config for the other commands. DATA '
        'contains either the folders train and val, each with one folder per class, or the class folders themselves: '
        'then every fifth picture is held out, in folders of links.',
    )
    parser.add_argument('data', nargs='?', metavar='DATA', help='the folder, as for --data-dir')
    group = parser.add_argument_group('Dataset')
    add_source_args(group, 'train', '--train-split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split')
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes, if the data does not name them')
    group = parser.add_argument_group('Proposal')
    group.add_argument('--dad-teacher', metavar='SPEC', default='', help='use this teacher')
    group.add_argument('--dad-vqgan', metavar='SPEC', default='', help='use this VQGAN')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: by machine and data)')
    group = parser.add_argument_group('Execution')
    group.add_argument('--output', metavar='FILE', default='dad.yaml', help='the config to write')
    group.add_argument('--force', action='store_true', help='replace it, and the links of held-out pictures')
    add_device_arg(group)
    return parser


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse and check; return all flags, and those of the command line. ``SystemExit`` on a bad flag."""
    args, given = create_parser().parse_args(argv), given_flags(create_parser(), argv)
    with user_errors(PROGRAM):
        size, output = args.img_size, Path(args.output)
        rules = (
            (args.data is None or args.data_dir in (None, args.data),
             f'{args.data} and --data-dir {args.data_dir} both name the data: leave one of them out'),
            (args.data or args.data_dir or args.dataset,
             'DATA must name a folder with one sub-folder per class (or give --dataset)'),
            (args.train_split and args.val_split and args.train_split != args.val_split,
             f'--train-split and --val-split must name two splits, got {args.train_split!r} and {args.val_split!r}'),
            (size is None or size >= 32, f'--img-size must be 32 or more, got {size}'),
            (not output.is_dir(), f'--output must be a file, got the folder {output}'),
            (args.force or not output.exists(),
             f'--output: {output} already exists: give --force to replace it, or the name of another file'),
            device_rule(args.device),
        )  # fmt: skip
        check_rules(rules)
        args.data_dir = args.data_dir or args.data
        check_data_args(args, given)
        check_output(output.parent)
        if args.dad_teacher:
            with under_flag('--dad-teacher'):
                check_spec(args.dad_teacher)
        if size and not args.dad_vqgan:
            check_image_size(size, _FACTOR)
    return args, given


def main(argv: Sequence[str]) -> Proposal:
    """Run ``timm-dad init`` with flags ``argv``; return the proposal."""
    args, given = parse_args(argv)
    setup_logging(logging.WARNING)
    with user_errors(PROGRAM):
        device = pick_device(args.device)
        root = find_splits(args, given)
        data, surveys = look_at_data(args, root)
        machine = look_at_machine(device)
        proposal = propose(machine, data, args.dad_teacher, args.dad_vqgan, args.img_size or 0)
        check_folder(proposal.folder, args)
        found = _describe(args, surveys, machine, proposal)
        print('\n'.join(found))
        called = _printable(f'timm-dad init {shlex.join(argv)}')
        header = [f'Written by: {called}', *found, *_HOW_TO_READ]
        write_file(args.output, config_text(proposal, data, machine, header))
        print(f'Written: {args.output}')
        mended = to_mend(*surveys)
        for line in mended:
            print(_printable(f'To mend before training: {line}'))
        if mended:
            print(f'Then run again: {called}{"" if args.force else " --force"}')
        print_next(args, data, machine, proposal, device, broken=bool(mended))
    return proposal


def check_folder(folder: Path, args: argparse.Namespace) -> None:
    """Check that a teacher in the folder of all runs was trained on these data; ``ValueError`` names both."""
    written = folder / 'teacher' / ARGS
    found = read_yaml(written) if written.is_file() else vars(args)
    before, now = (data.get('dataset') or os.path.abspath(data.get('data_dir') or '') for data in (found, vars(args)))
    if before != now:
        raise ValueError(f'{folder / "teacher"} was trained on {before}, not on {now}: move {folder} away')


def find_splits(args: argparse.Namespace, given: Mapping[str, Any]) -> Path | None:
    """Find the splits of a folder, or hold one out, and set them in ``args``; return the folder with the classes.

    Raises:
        ValueError: If the folder does not exist, or has no class folders.
    """
    if args.dataset:
        return None
    flag = data_flag(args)
    with under_flag('--data-dir'):
        root = Path(str(data_folder(args.data_dir)))
    if not root.is_dir():
        raise ValueError(f'{flag} must be a folder with one sub-folder per class, but there is no such folder')
    train, val = split_folder(root, args.train_split), split_folder(root, args.val_split)
    if val is None and 'val_split' not in given:
        val = split_folder(root, 'test')
    if (train and val) or {'train_split', 'val_split'} & set(given):
        args.train_split = train.name if train else args.train_split
        args.val_split = val.name if val else args.val_split
        return train
    source = train if train and class_folders(train) else root
    if len(class_folders(source)) < 2:
        raise ValueError(
            f'{flag}: pictures must lie in one folder per class, of two classes or more, but the folders of {source} '
            f'are {class_folders(source)}'
        )
    if args.class_map and not os.path.isfile(args.class_map):  # timm looks in the folder of the data, too
        args.class_map = str(source / args.class_map)
    folder = Path(args.output).parent / f'{Path(os.path.abspath(root)).name}-split'
    if folder.exists() and not args.force:
        raise ValueError(f'{folder}, for links of pictures, already exists: give --force to replace its links')
    hold_out(source, folder)
    print(f'{source} has no validation split: every fifth picture of a class is held out, as links in {folder}')
    args.data_dir, args.train_split, args.val_split = str(folder), 'train', 'val'
    return source


def look_at_data(args: argparse.Namespace, folder: Path | None) -> tuple[Data, tuple[Survey, Survey]]:
    """Survey the pictures of both splits; ``ValueError`` if there are none, or fewer than two classes."""
    sources = {
        split: Source(create_dataset(args, split, split_flag=flag))
        for split, flag in ((args.train_split, '--train-split'), (args.val_split, '--val-split'))
    }
    surveys = []
    for source, of_classes in zip(sources.values(), (folder, None), strict=True):
        numbers = [str(label) for label in range(number_of_classes(args, source.class_names))]
        surveys.append(survey(source, source.class_names or numbers, of_classes if source.class_names else None))
    train = next(iter(sources.values()))
    suite = validation_suite(args)
    name = Path(os.path.abspath(args.dataset or args.data_dir)).name.removesuffix('-split') or 'data'
    data = Data(
        flags={name: getattr(args, name) for name in _SOURCE_FLAGS if getattr(args, name)},
        name=name,
        train_split=args.train_split,
        val_split=args.val_split,
        num_classes=number_of_classes(args, train.class_names),
        suite='' if suite == 'NAME=FOLDER' else suite,
        named=train.class_names is not None,
        spoken=not all(name.isdigit() for name in train.class_names or ()),
        streams=train.streams,
        count=len(train),
        side=surveys[0].side,
    )
    return data, (surveys[0], surveys[1])


def _describe(
    args: argparse.Namespace, surveys: tuple[Survey, Survey], machine: Machine, proposal: Proposal
) -> list[str]:
    """Describe findings and proposal in lines for the terminal and the file."""
    train, val = surveys
    classes = ', '.join(f'{name} {count}' for name, count in list(train.counts.items())[:8])
    more = ', ...' if len(train.counts) > 8 else ''
    missing = proposal.missing()
    first = {True: ', to train first', False: ''}
    lines = [
        f'Data: {args.dataset or args.data_dir}',
        f'  {args.train_split}: {train}',
        f'  {args.val_split}: {val}',
        f'  classes: {classes}{more}',
        *(f'  odd: {line}' for line in oddities(train, val, proposal.img_size)),
        f'Machine: {machine}',
        f'Proposal: {proposal.why}',
        f'  teacher {proposal.teacher}{first[proposal.folder / "teacher" / BEST in missing]}',
        f'  VQGAN {proposal.vqgan}{first[Path(proposal.vqgan) in missing]}',
        f'  student {proposal.model}',
        f'  {proposal.img_size} px, batches of {proposal.batch_size}, {proposal.epochs} epochs',
    ]
    return [_printable(line) for line in lines]


def _printable(text: str) -> str:
    """Replace characters that a terminal or a YAML comment cannot contain."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


def print_next(
    args: argparse.Namespace, data: Data, machine: Machine, proposal: Proposal, device: torch.device, *, broken: bool
) -> None:
    """Check teacher and VQGAN, if they exist, and print the next commands, with the time of each."""
    fetched = proposal.teacher == DEFAULT_TEACHER or proposal.vqgan in PRESETS
    ready = not broken and not proposal.missing() and (machine.cached or not fetched)
    standing = proposal.own_teacher and not fetched
    times: dict[str, float] = {}
    augment = None
    if 'vqgan' not in machine.missing and not data.streams:
        augment = check_models(args, data) if ready else None
        if ready or standing:
            times = measure(proposal, data.num_classes, device, augment).of_steps(proposal, data.count)
    if ready:
        preview.main(['--config', args.output, '--device', args.device], augment)
    print('Next:')
    for command, about in next_commands(args.output, data, machine, proposal, seen=ready, times=times):
        print(f'  {command:<70} {about}'.rstrip())


def check_models(args: argparse.Namespace, data: Data) -> DADAugment:
    """Check teacher, VQGAN and attack on some training pictures, and print the result."""
    own = preview.parse_args(['--config', args.output, '--split', data.train_split, '--device', args.device])
    source = preview.open_source(own)
    augment = preview.build_augment(own, source)
    x_pix, target = first_pictures(source, create_frame(own), _LOOK, augment.vqgan.codebook.device)
    found = look(augment, x_pix, target, seed=own.seed)
    print(f'Check: {found}')
    if found.problem():
        print(f'  DAD will teach little: {found.problem()}')
    return augment


def next_commands(
    config: str, data: Data, machine: Machine, proposal: Proposal, *, seen: bool, times: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Return the next commands, with what each makes and how long it takes, without those already done."""
    given, missing = f'--config {shlex.quote(config)}', proposal.missing()
    student = proposal.folder / 'student' / BEST
    steps = (
        ('vqgan' in machine.missing, "pip install 'timm-dad[vqgan]'", 'what VQGANs are built with', ''),
        (proposal.folder / 'teacher' / BEST in missing,
         f'timm-dad train {given} --no-dad --experiment teacher', 'the teacher', 'teacher'),
        (Path(proposal.vqgan) in missing, f'timm-dad vqgan train {given}', 'the VQGAN', 'vqgan'),
        (not seen, f'timm-dad preview {given}', 'look at DAD views', ''),
        (not times, f'timm-dad info {given}', 'how long the next one takes', ''),
        (not student.is_file(), f'timm-dad train {given}', 'the student', 'student'),
        (data.suite, f'timm-dad evaluate {given}', 'student and teacher', ''),
    )  # fmt: skip
    return [(command, f'# {what}{_about(times.get(name))}') for needed, command, what, name in steps if needed]


def _about(seconds: float | None) -> str:
    if seconds is None:
        return ''
    minutes = max(1, round(seconds / 60))
    return f', about {minutes} min' if minutes < 120 else f', about {minutes / 60:.0f} h'
