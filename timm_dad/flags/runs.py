"""Trainings as teachers and models: ``run:FOLDER`` with the classes of its data."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from timm_dad.data.datasets import dataset_class_names
from timm_dad.data.images import Source
from timm_dad.demo.data import PREFIX, SEEN_STYLES, DemoDataset
from timm_dad.flags.data import add_source_args, create_dataset
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.trained import read_flags, run_folder


def trained_classes(flags: Mapping[str, Any]) -> list[str] | None:
    """Return the class folders of a run's training data, if still there; without labels, of its validation data."""
    split = flags.get('val_split') if flags.get('no_labels') else flags.get('train_split') or 'train'
    dataset = _open_data(flags, split, is_training=True)
    return None if dataset is None else dataset_class_names(dataset)


def validation_pictures(flags: Mapping[str, Any], count: int) -> tuple[str, list[Image.Image]]:
    """Return evenly spread pictures of a run's validation data, and their description; else the demo's."""
    dataset = _open_data(flags, flags.get('val_split', 'validation'))
    try:
        if dataset is not None:
            return 'the validation data', _some(dataset, count)
    except (ValueError, OSError):  # one does not decode
        pass
    return 'the demo', _some(DemoDataset(SEEN_STYLES[0], 'validation'), count)


def _some(dataset: Any, count: int) -> list[Image.Image]:
    return [found.image for found in Source(dataset).some(count).values()]


def _open_data(flags: Mapping[str, Any], split: str | None, **options: Any) -> Any | None:
    """Open a split of a run's data, if it is still there.

    A run's folder may be untrusted: data sets that are downloaded, or run code of a repository, are left alone.
    """
    parser = argparse.ArgumentParser()
    add_source_args(parser, 'train', '--train-split')
    defaults = vars(parser.parse_args([]))
    args = argparse.Namespace(**{name: flags.get(name) or default for name, default in defaults.items()})
    args.dataset_download = args.dataset_trust_remote_code = False
    if not split or (args.dataset and not str(args.dataset).startswith(PREFIX)):
        return None
    try:
        return create_dataset(args, split, split_flag='--train-split', **options)
    except (ValueError, TypeError, AttributeError, OSError):  # gone, or flags of other types
        return None


def check_run_task(flags: Mapping[str, Any], multi_label: bool) -> None:
    """Raise ``ValueError`` if a run, by its flags, was trained with another ``multi_label``."""
    if (flags.get('task') == 'multilabel') == multi_label:
        return
    if multi_label:
        raise ValueError('it was trained on one class per image: give a run of --task multilabel')
    raise ValueError(
        'it was trained with --task multilabel, but here one class per image is chosen and measured; mAP and F1 of its '
        'validation are in its summary.csv'
    )


def create_spec_teacher(
    spec: str,
    data: DataClasses,
    checkpoint_path: str | None = None,
    device: torch.device | None = None,
    *,
    img_size: int | None = None,
    use_ema: bool = True,
    multi_label: bool = False,
) -> Teacher:
    """Create the teacher of a SPEC like ``create_teacher_by_spec``, with a run's classes taken from its data.

    Raises:
        ValueError: If it cannot be created, or the run was trained with another ``multi_label``.
    """

    def labels_of(spec: str) -> list[str] | None:
        if not spec.startswith('run:'):
            return None
        flags = read_flags(run_folder(spec.removeprefix('run:')) / 'args.yaml')
        check_run_task(flags, multi_label)
        return trained_classes(flags)

    return create_teacher_by_spec(
        spec, data, checkpoint_path, device, img_size=img_size, labels_of=labels_of, use_ema=use_ema
    )
