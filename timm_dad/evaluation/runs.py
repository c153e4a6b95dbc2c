"""The student and the teacher of a training run, from its folder."""

import argparse
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import load_checkpoint

from timm_dad.common.text_files import read_yaml
from timm_dad.data.datasets import dataset_class_names
from timm_dad.data.images import Frame
from timm_dad.flags.config import checked_flags
from timm_dad.flags.data import create_dataset
from timm_dad.flags.rules import under_flag
from timm_dad.flags.student import create_untrained_student
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import create_parser
from timm_dad.teachers.classes import match_classes, resolve_classes, timm_labels
from timm_dad.teachers.spec import DataClasses
from timm_dad.teachers.teacher import INTERPOLATIONS, Teacher

BEST = 'model_best.pth.tar'


def run_folder(path: str) -> Path:
    """The folder of a run, given itself or a file in it."""
    return Path(path).parent if Path(path).is_file() else Path(path)


def read_run(path: str) -> argparse.Namespace:
    """Flags of a run, by its folder or a file in it: its ``args.yaml``, and defaults of flags that this lacks."""
    file = run_folder(path) / 'args.yaml'
    try:
        flags = read_yaml(file)
    except ValueError as error:
        raise ValueError(f'run:FOLDER is a folder of `timm-dad train`, with args.yaml; {error}') from error
    if not isinstance(flags, dict) or not flags.get('model') or not all(isinstance(name, str) for name in flags):
        raise ValueError(f'{file} holds no flags of a training')
    parser = create_parser()
    with under_flag(f'{file}:'):
        return argparse.Namespace(**{**vars(parser.parse_args([])), **checked_flags(parser, flags)})


def create_run_student(path: str, data: DataClasses, use_ema: bool = True) -> tuple[Teacher, Frame]:
    """The student that a run trained, frozen, and how its validation images were framed.

    ``path`` is the run's folder, whose best checkpoint is taken, or a checkpoint in it. ``ValueError`` if it is none,
    or the student's classes are not those of the data.
    """
    args = read_run(path)
    checkpoint = Path(path) if Path(path).is_file() else Path(path) / BEST
    if not checkpoint.is_file():
        raise ValueError(f'{path} has no {BEST} (yet); another checkpoint: run:{path}/FILE')
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    if channels != 3:
        raise ValueError(f'{path}: images must have 3 channels, the run has {channels}')
    model: Any = create_untrained_student(args)
    try:
        load_checkpoint(model, str(checkpoint), use_ema=use_ema)
    except Exception as error:  # torch raises what it likes on broken weights
        raise ValueError(f'{checkpoint} could not be loaded: {error}') from error
    config = resolve_data_config(vars(args), model=model)
    labels = timm_labels(model) or _trained_classes(args)
    if data.class_map is not None:
        class_index: list[int] | None = resolve_classes(data.class_map, model.num_classes, labels)
    else:
        class_index = match_classes(model.num_classes, labels, data.num_classes, data.class_names)
    student = Teacher(
        model,
        mean=config['mean'],
        std=config['std'],
        input_size=tuple(config['input_size'][-2:]),
        num_classes=data.num_classes,
        # Of images that come in another size; the others are framed before.
        interpolation=config['interpolation'] if config['interpolation'] in INTERPOLATIONS else 'bicubic',
        class_index=class_index,
    )
    # The trainer, as timm's train.py, cuts validation images from the centre, whatever the model's own crop mode.
    return student, Frame.of_timm({**config, 'crop_mode': 'center'})


def _trained_classes(args: argparse.Namespace) -> list[str] | None:
    """Class folders of the training data, where it is still there."""
    try:
        return dataset_class_names(create_dataset(args, args.train_split, split_flag='--train-split', is_training=True))
    except ValueError:
        return None


def create_run_teacher(path: str, data: DataClasses, device: torch.device | None = None) -> Teacher:
    """The frozen teacher of a run, for the classes of the data; ``ValueError`` if it has none, or for others."""
    args = read_run(path)
    if not args.dad:
        raise ValueError(f'{path} was trained without --dad: it has no teacher')
    return create_teacher(args, data.num_classes, data.class_names, device)
