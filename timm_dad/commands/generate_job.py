"""Build and run the making of a DAD set in one process, from the flags of ``timm-dad generate``."""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import FORMAT_VERSION, REINFORCED, SETTINGS, parse_json
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import Reinforcement, reinforce
from timm_dad.dad_sets.store import Store
from timm_dad.dad_sets.store_folder import as_root
from timm_dad.data.datasets import check_images
from timm_dad.data.images import Source
from timm_dad.flags.attack import attack_config, describe_attack
from timm_dad.flags.data import create_dataset, data_flag, encode_targets, number_of_classes
from timm_dad.flags.fields import from_flags
from timm_dad.flags.frame import create_frame
from timm_dad.flags.labels import find_class_names
from timm_dad.flags.moved import absolute
from timm_dad.flags.reinforce import reinforce_config
from timm_dad.flags.task import set_facts
from timm_dad.flags.teacher import TEACHER_FLAGS, create_teacher, teacher_specs
from timm_dad.flags.temperature import Images, images_to_fit, take_set_temperature, with_number
from timm_dad.flags.views import create_augment, create_gradient_vqgan, create_vqgan, prepare_models
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig

FILES = {name: name for name in ('format', 'image_format', 'quality')}
VIEWS = {'num_views': 'dad_views', 'seed': 'seed'}
SET = {'shard_size': 'shard_size', 'top_k': 'dad_store_logits', 'temperature': 'dad_temperature'}


@dataclass(frozen=True)
class Job:
    """Everything needed to make a set in one process.

    Args:
        args: The flags, with ``num_classes``.
        source: The data set.
        augment: Makes the views; its models are on ``device``.
        config: Settings of the generation.
        settings: Everything else that affects the files of the set.
        device: Device of the models.
    """

    args: argparse.Namespace
    source: Source
    augment: DADAugment
    config: GenerateConfig
    settings: dict[str, Any]
    device: torch.device

    @classmethod
    def open(cls, args: argparse.Namespace, source: Source, device: torch.device) -> 'Job':
        """Build the models; ``ValueError`` names the flag."""
        augment, models = build_models(args, source, create_config(args), device)
        config = create_config(args)  # with the temperature that was found
        settings = {'format_version': FORMAT_VERSION, 'data': describe_data(args, source), **models}
        return cls(args, source, augment, config, settings, device)

    def make(self, claims: Callable[[Any], Claims], **more: Any) -> dict[str, Any] | None:
        """Run ``generate`` for the set, with ``more`` of its arguments."""
        return generate(
            self.source, self.augment, self.args.output, self.config, self.settings,
            device=self.device, workers=self.args.workers, answers=bool(self.args.reinforce), claims=claims, **more,
        )  # fmt: skip

    def answer(self, claims: Callable[[Any], Claims], *, progress: bool) -> Reinforcement | None:
        """Run ``reinforce`` for the finished set."""
        dad_set = DADSet(set_folder(self.args.output))
        if dad_set.format == 'codes':
            # Not the one that made them: processes of the loader decode, in fp32 on the CPU as those of a training do.
            dad_set.decoder = create_vqgan(self.args, self.config.frame.size).eval().requires_grad_(False)
        return reinforce(
            self.source, dad_set, self.augment.ask_teacher, reinforce_config(self.args, self.config.frame.size),
            device=self.device, workers=self.args.workers, progress=progress, claims=claims,
            place=as_root(self.args.output),
        )  # fmt: skip


def create_config(args: argparse.Namespace) -> GenerateConfig:
    """Return the settings of the set from the flags; ``ValueError`` names the flag."""
    frame, files = create_frame(args), from_flags(FormatConfig, args, FILES)
    flags = {**VIEWS, **SET, 'batch_size': 'batch_size'}
    if args.reinforce:
        reinforce_config(args, frame.size)  # whatever is wrong with it, before anything is made
    return from_flags(GenerateConfig, with_number(args), flags, frame=frame, files=files)


def open_source(args: argparse.Namespace, *, check: bool = True) -> Source:
    """Open the data, count its classes, and decode some images (``check``) before anything large is built."""
    dataset = create_dataset(
        args, args.split, split_flag='--split', num_samples=args.train_num_samples,
        batch_size=args.batch_size, seed=args.seed, labels=not args.no_labels,
    )  # fmt: skip
    if check:
        check_images(dataset, data_flag(args))
    source = Source(dataset)
    source.class_names = find_class_names(args, source.class_names)
    if not len(source):
        raise ValueError('--train-num-samples must give the number of images: the info of the stream does not')
    args.num_classes = number_of_classes(args, source.class_names)
    encode_targets(args, dataset)
    return source


def build_models(
    args: argparse.Namespace, source: Source, config: GenerateConfig, device: torch.device
) -> tuple[DADAugment, dict[str, Any]]:
    """Build teacher, VQGAN and attack, and what the set records about them."""
    needs_temperature = args.dad_store_logits or args.reinforce or len(teacher_specs(args)) > 1
    images = temperature_images(args, source, config) if needs_temperature else None
    teacher = create_teacher(args, args.num_classes, source.class_names, device, images)
    vqgan = create_vqgan(args, config.frame.size)
    teacher_flags = {name: absolute(getattr(args, name)) for name in TEACHER_FLAGS}
    for name in ('dad_teacher_img_size', 'dad_teacher_temperatures'):
        if teacher_flags[name] is None:  # as sets had it from before there was the flag
            del teacher_flags[name]
    several = len(teacher_specs(args)) > 1  # at their default temperature, sets are as they were before they kept it
    default = args.dad_teacher_temperatures is None and args.dad_temperature == DADLossConfig.temperature
    found = {'temperature': args.dad_temperature} if several and not default else {}
    settings = {
        'teacher': {'fingerprint': teacher.fingerprint(), 'flags': teacher_flags, **found},
        'vqgan': {
            'fingerprint': vqgan.fingerprint(),
            'spec': absolute(args.dad_vqgan),
            'strict_size': args.dad_strict_size,
        },
        'attack': {**describe_attack(attack_config(args)), 'keep_label': args.dad_keep_label},
        'precision': args.dad_precision,
        **_other_rounding(args),
    }
    gradient_vqgan = create_gradient_vqgan(args)
    if gradient_vqgan is not None:
        settings['gradient_vqgan'] = gradient_vqgan.fingerprint()
    prepare_models(args, teacher, vqgan, config.frame.size, device, config.batch_size)
    if device.type == 'cuda' and not args.dad_micro_batch:
        args.dad_micro_batch = config.batch_size  # never less by itself: it rounds otherwise
    return create_augment(args, teacher, vqgan, gradient_vqgan=gradient_vqgan), settings


def temperature_images(args: argparse.Namespace, source: Source, config: GenerateConfig) -> Images | None:
    """Return the images for ``--dad-temperature auto``, unless an existing set stores the value, which is then used."""
    root = as_root(args.output)
    for name in (SETTINGS, f'{REINFORCED}/{SETTINGS}'):
        with contextlib.suppress(ImportError, OSError, ValueError, KeyError):  # there is none yet
            data = (root / name).read_bytes() if isinstance(root, Path) else Store(root).read(name)
            take_set_temperature(args, parse_json(data, root), args.output)
    return images_to_fit(args, source, lambda _: config.frame)


def _other_rounding(args: argparse.Namespace) -> dict[str, Any]:
    """Return rounding-related settings that affect a set's files, if they differ from the original ones."""
    return {
        **({'attack_from': args.dad_attack_from} if args.dad_attack_from != 'reconstruction' else {}),
        **({'micro_batch': args.dad_micro_batch} if args.dad_micro_batch else {}),
        **({'compiled': True} if args.dad_compile else {}),
    }


def describe_data(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Return what the set records about its data."""
    return {
        **{name: getattr(args, name) for name in ('dataset', 'input_key', 'target_key', 'num_classes')},
        'split': args.split,
        'num_images': len(source),
        'class_names': None if source.class_names is None else list(source.class_names),
        'listing': source.listing(),
        'sample': source.sample(),
        'identified_by': source.identified_by,
        **({'class_map': True} if args.class_map and source.one_class else {}),  # the set has a class_map.txt
        **({'label_free': True} if source.label_free else {}),
        **set_facts(args),
    }
