"""The teacher of a training run, from its folder."""

import argparse

import torch

from timm_dad.flags.config import checked_flags
from timm_dad.flags.rules import under_flag
from timm_dad.flags.runs import check_run_task
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import create_parser
from timm_dad.teachers.spec import DataClasses
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.trained import read_flags, run_folder


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
    return create_teacher(args, data.num_classes, data.class_names, device)
