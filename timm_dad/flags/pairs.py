"""The flags about where the second view of an image comes from, and the pairs of images that they ask for."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from timm_dad.dad_sets.match import check_data, check_decoder, check_student
from timm_dad.dad_sets.read import DADSet, read_settings
from timm_dad.dad_sets.views import CachedViews, SetViews
from timm_dad.data.images import Frame, Source
from timm_dad.data.pairs import DADPairs, PairStream, PairTransform, Partner, SamePicture
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.flags.rules import check_rules
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN

# Flags that shape the DAD view: useless where the second view is a random one, or was made before.
VIEW_FLAGS = (
    'dad_vqgan',
    'dad_strict_size',
    'dad_eps',
    'dad_step_size',
    'dad_num_steps',
    'dad_norm',
    'dad_random_start',
    'dad_keep_label',
    'dad_attack_from',
    'dad_cache',
    'dad_eps_sched',
    'dad_eps_start',
)


def add_pair_args(group: Any) -> None:
    """Add the flags to a group of a parser."""
    group.add_argument(
        '--dad-view', choices=('dad', 'random'), default='dad',
        help='second view that is distilled: DAD, or another random view (plain distillation at equal compute)',
    )  # fmt: skip
    group.add_argument(
        '--dad-cache', type=int, default=0, metavar='K',
        help='make K DAD views of every image (its validation crop) once, in memory, and draw from them '
        '(default: a fresh view of every batch)',
    )  # fmt: skip
    group.add_argument('--dad-dir', metavar='DIR', help='take the DAD views from a set that timm-dad generate made')
    group.add_argument(
        '--dad-same-crop', action='store_true',
        help='one random crop, flip, ... for image and DAD view (--dad-dir or --dad-cache; default: one for each)',
    )  # fmt: skip
    group.add_argument(
        '--dad-stored-logits', action='store_true',
        help="take the teacher's logits from --dad-dir, and load no teacher; without random augmentation",
    )  # fmt: skip


def uses_cache(args: argparse.Namespace) -> bool:
    """Whether the second views are DAD views made once, before training, in memory."""
    return bool(args.dad and args.dad_view == 'dad' and args.dad_cache and not args.dad_dir)


def uses_pairs(args: argparse.Namespace) -> bool:
    """Whether the batches of the task hold a second view of every image, and the task makes none."""
    return bool(args.dad and (args.dad_view == 'random' or args.dad_dir or args.dad_cache))


def check_pair_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the flags before anything is built; with ``--dad-dir``, teacher flags that were left out become the set's.

    Args:
        args: All flags.
        given: The flags of the command line alone, which must not be ignored.

    Raises:
        ValueError: If a flag has a bad value, would be ignored, or the folder holds no DAD set.
    """
    if args.dad_cache < 0:
        raise ValueError(f'--dad-cache must be 0 or more, got {args.dad_cache}')
    view_flags = [f'--{name.replace("_", "-")}' for name in given if name in VIEW_FLAGS]
    rules = (
        (
            args.dad_view == 'dad' or not view_flags,
            f'{view_flags[0] if view_flags else ""} shapes the DAD view and needs --dad-view dad',
        ),
        (
            not args.dad_dir or args.dad_view == 'dad',
            '--dad-dir brings DAD views: leave --dad-view random out, or --dad-dir',
        ),
        (
            not args.dad_same_crop or args.dad_dir or uses_cache(args),
            '--dad-same-crop is for DAD views that were made before: it needs --dad-dir or --dad-cache',
        ),
        (not args.dad_stored_logits or args.dad_dir, '--dad-stored-logits needs --dad-dir'),
        (
            not (uses_pairs(args) and args.aug_splits and args.resplit),
            '--resplit counts the splits of --aug-splits alone, and here the batch holds a second view too: leave one '
            'of them out',
        ),
    )
    check_rules(rules)
    if args.dad_dir:
        _check_set_args(args, given, view_flags)


def _check_set_args(args: argparse.Namespace, given: Mapping[str, Any], view_flags: Sequence[str]) -> None:
    try:
        settings = read_settings(Path(args.dad_dir))
    except ValueError as error:
        raise ValueError(f'--dad-dir: {error}') from error
    for flag in view_flags:
        if flag == '--dad-vqgan' and settings['files']['format'] == 'codes':
            continue  # where the VQGAN that decodes them lies by now
        if flag == '--dad-vqgan':
            raise ValueError(f'--dad-vqgan is not used: {args.dad_dir} holds pictures; leave it out')
        if flag == '--dad-cache':
            raise ValueError('--dad-cache makes the DAD views that --dad-dir brings: give one of them')
        raise ValueError(f'{flag} was fixed when the DAD set was made: leave it out, or make another set')
    if args.dad_stored_logits:
        _check_stored_logits_args(args, given, settings)
    elif not args.dad_teacher:
        for name, value in settings['teacher']['flags'].items():
            if getattr(args, name) is None:
                setattr(args, name, value)


def _check_stored_logits_args(args: argparse.Namespace, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    logits = settings['logits']
    teacher_flags = (*settings['teacher']['flags'], 'dad_precision', 'dad_compile', 'dad_micro_batch')
    unused = [f'--{name.replace("_", "-")}' for name in teacher_flags if name in given]
    rules = (
        (not unused, f'{unused[0] if unused else ""} is about the teacher, and --dad-stored-logits loads none'),
        (
            logits is not None,
            f'--dad-stored-logits: {args.dad_dir} has none; timm-dad generate --dad-store-logits makes a set with them',
        ),
        (
            logits is None or logits['temperature'] == args.dad_temperature,
            f'--dad-temperature must be that of the stored logits, {logits and logits["temperature"]}, got '
            f'{args.dad_temperature}',
        ),
        (args.no_aug, '--dad-stored-logits are of the pictures as they are: it needs --no-aug'),
        *(
            (not getattr(args, name), f'--dad-stored-logits are of the pictures as they are: leave --{flag} out')
            for name, flag in (
                ('mixup', 'mixup'),
                ('cutmix', 'cutmix'),
                ('cutmix_minmax', 'cutmix-minmax'),
                ('reprob', 'reprob'),
                ('aug_splits', 'aug-splits'),
            )
        ),
    )
    check_rules(rules)


def load_vqgan_by_spec(spec: str, strict_size: bool) -> VQGAN:
    """The VQGAN of ``--dad-vqgan``; ``ValueError`` names the flag."""
    try:
        return load_vqgan(DEMO_VQGAN if spec == 'demo' else spec, strict_size=strict_size)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f'--dad-vqgan: {error}') from error


def open_dad_set(args: argparse.Namespace, size: tuple[int, int]) -> DADSet | None:
    """Open the set of ``--dad-dir``, if there is one, with the VQGAN that decodes it, and compare it with the student.

    Args:
        args: Flags.
        size: ``(height, width)`` of the student's input.

    Raises:
        ValueError: If it is not whole or was made for another student; it says what differs.
    """
    if not (args.dad and args.dad_dir):
        return None
    try:
        dad_set = DADSet(args.dad_dir)
        check_student(dad_set, args.num_classes, size)
    except ValueError as error:
        raise ValueError(f'--dad-dir {args.dad_dir}: {error}') from error
    if dad_set.format == 'codes':
        made = dad_set.settings['vqgan']
        vqgan = load_vqgan_by_spec(args.dad_vqgan or made['spec'], made['strict_size'])
        try:
            check_decoder(dad_set, vqgan)
        except ValueError as error:
            raise ValueError(f'--dad-dir {args.dad_dir}: {error}') from error
        dad_set.decoder = vqgan.eval().requires_grad_(False)  # on the CPU: workers of the loader decode
    return dad_set


def pair_dataset(
    args: argparse.Namespace,
    dataset: Any,
    data_config: Mapping[str, Any],
    *,
    dad_set: DADSet | None = None,
    dad_images: Tensor | None = None,
) -> DADPairs | PairStream:
    """The training data with a second view of every image, for timm's ``create_loader``.

    Args:
        args: Flags, with ``uses_pairs``.
        dataset: Training data, as timm creates it.
        data_config: Size, interpolation and crop of the student, of ``timm.data.resolve_data_config``.
        dad_set: From ``open_dad_set``.
        dad_images: Views of ``--dad-cache``, from ``make_dad_images``.

    Raises:
        ValueError: If the data is not what the set was made of, or is a stream that cannot be had in this way.
    """
    streams = isinstance(dataset, IterableDataset)
    for flag, unfit in (('--aug-splits', args.aug_splits), ('--dad-cache', uses_cache(args))):
        if streams and unfit:
            raise ValueError(f'{flag} needs data with an index, not a stream')
    source = Source(dataset)
    if dad_set is not None:
        try:
            check_data(dad_set, source)
        except ValueError as error:
            raise ValueError(f'--dad-dir {args.dad_dir}: {error}') from error
        partner: Partner = SetViews(dad_set, source, coded=args.dad_stored_logits)
    else:
        partner = SamePicture() if dad_images is None else CachedViews(dad_images, len(source))
    views = PairTransform(args.aug_splits or 1, _frame(args, data_config, dad_set), args.dad_same_crop)
    return PairStream(dataset, partner, views) if streams else DADPairs(source, partner, views)


def _frame(args: argparse.Namespace, data_config: Mapping[str, Any], dad_set: DADSet | None) -> Any:
    """What the DAD views show of an image, where the image must show the same."""
    if not (args.dad_same_crop or args.dad_stored_logits):
        return None
    if dad_set is not None:
        views = dad_set.settings['views']
        frame = Frame(size=dad_set.size, interpolation=views['interpolation'], crop_pct=views['crop_pct'])
    else:  # the validation crop
        size = tuple(data_config['input_size'][-2:])
        frame = Frame(size=size, interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'])
    return frame.transform()
