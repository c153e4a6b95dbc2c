"""The teacher of a training run, from its folder."""

import argparse

import torch

from timm_dad.common.torch_files import read_checkpoint
from timm_dad.flags.config import checked_flags
from timm_dad.flags.rules import under_flag
from timm_dad.flags.runs import check_run_task
from timm_dad.flags.teacher import create_teacher, teacher_specs
from timm_dad.flags.temperature import AUTO, keep_temperature
from timm_dad.flags.train import create_parser
from timm_dad.teachers.spec import DataClasses
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.trained import find_run, read_flags, run_folder


def read_run(path: str) -> argparse.Namespace:
    """Return the flags of a run from its folder or a file in it: its ``args.yaml``, completed by defaults."""
    file = run_folder(path) / 'args.yaml'
    flags, parser = read_flags(file), create_parser()
    with under_flag(f'{file}:'):
        return argparse.Namespace(**{**vars(parser.parse_args([])), **checked_flags(parser, flags)})


def create_run_teacher(path: str, data: DataClasses, device: torch.device | None = None) -> Teacher:
    """Create the frozen teacher of a run for the data's classes; ``ValueError`` if it has none, or other classes."""
    args = read_run(path)
    if not args.dad:
        raise ValueError(f'{path} was trained without --dad: it has no teacher')
    check_run_task(vars(args), multi_label=False)
    if args.dad_temperature == AUTO and len(teacher_specs(args)) > 1:
        _take_found_temperature(args, path)
    return create_teacher(args, data.num_classes, data.class_names, device)


def _take_found_temperature(args: argparse.Namespace, path: str) -> None:
    """Put what ``auto`` found, which timm's own script keeps in checkpoints and not in ``args.yaml``, in its place."""
    _, checkpoint = find_run(path)
    flags = read_checkpoint(checkpoint, mmap=True).get('args')
    keep_temperature(args, vars(flags) if flags else {})
    if args.dad_temperature == AUTO:
        raise ValueError(
            f'{run_folder(path) / "args.yaml"} says dad_temperature: auto for several teachers, and {checkpoint} does '
            'not say what was found: write the numbers there, dad_temperature and dad_teacher_temperatures'
        )
