"""The flags about the source of an image's extra view, and the pairs of images they describe."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch.utils.data import IterableDataset

from timm_dad.dad_sets.augmented import ReinforcedViews, ReplayedPairs
from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.match import check_decoder, check_student
from timm_dad.dad_sets.read import DADSet, read_settings
from timm_dad.dad_sets.temporary import temporary_set
from timm_dad.dad_sets.views import SetViews
from timm_dad.data.images import Frame, Source
from timm_dad.data.pairs import DADPairs, ExtraViews, PairStream, PairTransform, SameImage
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.flags.attack import ATTACK_FLAGS, DISAGREEMENT
from timm_dad.flags.moved import find_here
from timm_dad.flags.reinforce import add_pairing_args, check_replay_args, open_reinforcement, replays
from timm_dad.flags.rules import check_rules, under_flag, written
from timm_dad.flags.task import is_multilabel, set_facts
from timm_dad.flags.teacher import TEACHER_FLAGS
from timm_dad.flags.temperature import AUTO, take_set_temperature
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN

# Flags that shape the DAD view: useless where the extra view is a random one, or was made before.
VIEW_FLAGS = (
    'dad_vqgan', 'dad_strict_size', *ATTACK_FLAGS, 'dad_keep_label', 'dad_cache', 'dad_eps_sched', 'dad_eps_start',
)  # fmt: skip


def add_pair_args(group: Any) -> None:
    """Add the flags to a group of a parser."""
    group.add_argument(
        '--dad-view', choices=('dad', 'random'), default='dad',
        help='extra view for distillation: DAD, or another random view (plain distillation at equal compute)',
    )  # fmt: skip
    group.add_argument(
        '--dad-cache', type=int, default=0, metavar='K',
        help='make K DAD views of every image (its validation crop) once, in a temporary folder, and draw from them '
        '(default: fresh views for every batch)',
    )  # fmt: skip
    group.add_argument(
        '--dad-dir', metavar='DIR',
        help='take the DAD views from a set made by timm-dad generate: a folder or its URL '
        '(hf://USER/NAME[@REVISION], s3://BUCKET/NAME, ...)',
    )  # fmt: skip
    add_pairing_args(group)
    group.add_argument(
        '--dad-stored-logits', action='store_true',
        help="read the teacher's logits from --dad-dir and load no teacher: needs --no-aug, or the augmentation "
        'that the set was reinforced with',
    )  # fmt: skip


def uses_cache(args: argparse.Namespace) -> bool:
    """Return whether the extra views are DAD views made once, before training."""
    return bool(args.dad and args.dad_view == 'dad' and args.dad_cache and not args.dad_dir)


def uses_pairs(args: argparse.Namespace) -> bool:
    """Return whether batches contain two pictures per image: it and its extra view, or the source of its DAD view."""
    return bool(args.dad and (args.dad_view_aug == 'base' or not makes_views(args)))


def makes_views(args: argparse.Namespace) -> bool:
    """Return whether DAD views are made in the training step."""
    return bool(args.dad and args.dad_view == 'dad' and not args.dad_dir and not args.dad_cache)


def check_pair_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Check the flags before anything is built; flags ``given`` on the command line must not be ignored.

    Raises:
        ValueError: If a flag has a bad value, would be ignored, or the folder contains no DAD set.
    """
    view_flags = [written(name) for name in given if name in VIEW_FLAGS]
    rules = (
        (not args.dad or args.num_classes is None or args.num_classes >= 2,
         f'--num-classes must be 2 or more with --dad, got {args.num_classes}: a single class has no other'),
        (args.dad_cache >= 0, f'--dad-cache must be 0 or more, got {args.dad_cache}'),
        (args.dad_view == 'dad' or not view_flags,
         f'{"".join(view_flags[:1])} shapes the DAD view and needs --dad-view dad'),
        (not args.dad_dir or args.dad_view == 'dad',
         '--dad-dir provides DAD views: leave either --dad-view random or --dad-dir out'),
        (not args.dad_same_crop or args.dad_dir or uses_cache(args),
         '--dad-same-crop is for DAD views made before training: it needs --dad-dir or --dad-cache'),
        (not args.dad_stored_logits or args.dad_dir, '--dad-stored-logits needs --dad-dir'),
        ('dad_look' not in given or makes_views(args) or uses_cache(args),
         '--dad-look checks DAD views made in the training step: leave it out with --dad-dir and --dad-view random'),
        (args.dad_attack != DISAGREEMENT or not uses_cache(args),
         '--dad-attack disagreement needs the student, so it runs in the training step: give --dad-cache 0'),
        (not (args.resplit and args.dad_view_aug == 'base'),
         '--resplit spares the first view and --dad-view-aug base the last one: nothing would be erased; leave it out'),
        (not (uses_pairs(args) and args.aug_splits and args.resplit),
         '--resplit counts only the splits of --aug-splits, but the batch also contains an extra view: leave one '
         'of them out'),
    )  # fmt: skip
    check_rules(rules)
    if args.dad_dir:
        settings = check_set_args(args, given, loads_teacher=not args.dad_stored_logits)
        space = settings['attack'].get('space', 'pixels')
        if args.dad_recipe == 'latent' and space != 'latent':
            raise ValueError(f'--dad-recipe latent is for attacks on latents, but {args.dad_dir} uses one on {space}')
        if args.dad_stored_logits:
            _check_stored_logits_args(args, given, settings)


def check_set_args(args: argparse.Namespace, given: Mapping[str, Any], *, loads_teacher: bool = True) -> dict[str, Any]:
    """Check the flags against ``--dad-dir``, whose settings are returned; its teacher is used if none is given.

    Raises:
        ValueError: If the folder contains no DAD set, or a flag in ``given`` would be ignored.
    """
    with under_flag('--dad-dir:', OSError):
        folder = set_folder(args.dad_dir)
        settings = read_settings(folder)
    label_free = settings['data'].get('label_free', False)
    if label_free != args.no_labels:
        made, fix = ('without labels', 'add') if label_free else ('with labels', 'leave out')
        raise ValueError(f'--dad-dir {args.dad_dir} was made {made}: {fix} --no-labels, or make another set')
    several = bool(settings['data'].get('multi_label'))
    if several != is_multilabel(args):
        made, fix = ('with', 'add') if several else ('without', 'leave out')
        raise ValueError(f'--dad-dir {args.dad_dir} was made {made} --task multilabel: {fix} it, or make another set')
    reasons = {
        '--dad-vqgan': f'is not used: {args.dad_dir} contains pictures; leave it out',
        '--dad-cache': 'makes DAD views, which --dad-dir already provides: give only one of them',
    }
    fixed = 'was fixed when the DAD set was made: leave it out, or make another set'
    for flag in (written(name) for name in given if name in VIEW_FLAGS):
        if flag != '--dad-vqgan' or settings['files']['format'] != 'codes':  # of codes, it is what decodes them
            raise ValueError(f'{flag} {reasons.get(flag, fixed)}')
    asked = 'dad_temperature' in given or args.dad_temperature not in (AUTO, DADLossConfig.temperature)
    if 'temperature' in settings['teacher'] and not asked:
        args.dad_temperature = AUTO  # several teachers are another teacher at another one
    take_set_temperature(args, settings, args.dad_dir)
    if loads_teacher and not args.dad_teacher:
        for name, value in settings['teacher']['flags'].items():
            if getattr(args, name) is None:
                with under_flag('--dad-dir:'):
                    setattr(args, name, find_here(value, folder, written(name)))
    return settings


def _check_stored_logits_args(args: argparse.Namespace, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    logits, replaying = settings['logits'], replays(args)
    teacher_flags = (*TEACHER_FLAGS, 'dad_precision', 'dad_compile', 'dad_micro_batch')
    unused = [written(name) for name in teacher_flags if name in given]
    augmented = [name for name in ('mixup', 'cutmix', 'cutmix_minmax', 'reprob', 'aug_splits') if getattr(args, name)]
    as_they_are = '--dad-stored-logits are for unaugmented pictures'
    check_rules(((not unused, f'{"".join(unused[:1])} is about the teacher, but --dad-stored-logits loads none'),))
    args.num_classes = args.num_classes or (settings['data']['num_classes'] if args.no_labels else None)
    if replaying:
        check_replay_args(args)
        return
    rules = (
        (logits is not None,
         f'--dad-stored-logits: {args.dad_dir} has none; make a set with timm-dad generate --dad-store-logits'),
        (logits is None or logits['temperature'] == args.dad_temperature,
         f'--dad-temperature must be that of the stored logits, {logits and logits["temperature"]}, got '
         f'{args.dad_temperature} (auto uses theirs)'),
        (args.no_aug, f'{as_they_are}: add --no-aug, or reinforce the set (timm-dad generate --reinforce N)'),
        (not augmented, f'{as_they_are}: leave {"".join(map(written, augmented[:1]))} out'),
    )  # fmt: skip
    check_rules(rules)


def load_vqgan_by_spec(spec: str, strict_size: bool = False, *, flag: str = '--dad-vqgan') -> VQGAN:
    """Load the VQGAN of ``--dad-vqgan`` or another flag; ``ValueError`` names the flag."""
    with under_flag(f'{flag}:', FileNotFoundError):
        return load_vqgan(DEMO_VQGAN if spec == 'demo' else spec, strict_size=strict_size)


def open_dad_set(args: argparse.Namespace, size: tuple[int, int]) -> DADSet | None:
    """Open the set of ``--dad-dir``, if the training uses one, like ``open_set``."""
    return open_set(args, size) if args.dad and args.dad_dir else None


def open_set(args: argparse.Namespace, size: tuple[int, int]) -> DADSet:
    """Open the set of ``--dad-dir`` with the VQGAN that decodes it, and compare it with the student.

    Args:
        args: Flags, with the number of classes.
        size: ``(height, width)`` of the student's input.

    Raises:
        ValueError: If it is unfinished or was made for another student; the message says what differs.
    """
    flag = f'--dad-dir {args.dad_dir}:'
    with under_flag(flag):
        dad_set = DADSet(set_folder(args.dad_dir))
        check_student(dad_set, args.num_classes, size)
    if dad_set.format == 'codes':
        made = dad_set.settings['vqgan']
        with under_flag(flag):
            spec = args.dad_vqgan or find_here(made['spec'], dad_set.root, '--dad-vqgan')
        vqgan = load_vqgan_by_spec(spec, made['strict_size'])
        with under_flag(flag):
            check_decoder(dad_set, vqgan)
        dad_set.decoder = vqgan.eval().requires_grad_(False)  # on the CPU: workers of the loader decode
    return dad_set


def pair_dataset(
    args: argparse.Namespace,
    dataset: Any,
    data_config: Mapping[str, Any],
    *,
    dad_set: DADSet | None = None,
    extra_views: ExtraViews | None = None,
) -> DADPairs | PairStream:
    """Give the training data an extra view of every image, for timm's ``create_loader``.

    Args:
        args: Flags for which ``uses_pairs`` is true.
        dataset: Training data, as created by timm.
        data_config: Result of ``timm.data.resolve_data_config``.
        dad_set: From ``open_dad_set`` or ``cached_set``: the extra views come from it.
        extra_views: Returns the extra views otherwise; by default they are the images themselves, augmented again or,
            as the source of DAD views, cropped and flipped alike.

    Raises:
        ValueError: If the set was made from other data, the data is a stream that does not support this, or
            ``extra_views`` would be ignored.
    """
    if extra_views is not None and not (args.dad and args.dad_view == 'random'):
        raise ValueError('extra_views would be ignored: it needs --dad --dad-view random')
    streams, source, found = isinstance(dataset, IterableDataset), Source(dataset), None
    if streams and args.aug_splits:
        raise ValueError('--aug-splits needs data with an index, not a stream')
    extra = extra_views or SameImage()
    if dad_set is not None:
        with under_flag('--dad-cache:' if uses_cache(args) else f'--dad-dir {args.dad_dir}:'):
            if replays(args):
                found = open_reinforcement(args, dad_set, data_config)
                extra = ReinforcedViews(dad_set, source, found.seed, found.repeats)
            else:
                extra = SetViews(dad_set, source, coded=args.dad_stored_logits)
    views = PairTransform(
        args.aug_splits or 1,
        _frame(args, dad_set),
        same_draws=args.dad_same_crop or makes_views(args),
        base_alone=args.dad_view_aug == 'base',
        coded=args.dad_stored_logits,
        mixed=found is not None and found.mixtures is not None,
    )
    if isinstance(extra, ReinforcedViews) and found is not None:
        return ReplayedPairs(source, extra, views, found.mixtures)
    return PairStream(dataset, extra, views) if streams else DADPairs(source, extra, views)


def _frame(args: argparse.Namespace, dad_set: DADSet | None) -> Any:
    """Return the frame of an image's DAD views, if the image must be framed in the same way."""
    as_it_is = args.dad_stored_logits and not replays(args)
    return dad_set.frame().transform() if dad_set is not None and (args.dad_same_crop or as_it_is) else None


def training_frame(data_config: Mapping[str, Any]) -> Frame:
    """Return the frame that validation would use for a training picture, without a border."""
    return Frame(
        size=tuple(data_config['input_size'][-2:]),
        interpolation=data_config['interpolation'],
        crop_pct=min(1.0, data_config['crop_pct']),
    )


@contextmanager
def cached_set(
    args: argparse.Namespace,
    augment: DADAugment,
    dataset: Any,
    data_config: Mapping[str, Any],
    accelerator: Accelerator,
) -> Iterator[DADSet]:
    """Make the views of ``--dad-cache`` like ``timm-dad generate``, from the pictures as validation shows them.

    Raises:
        ValueError: If the data is a stream, or the temporary folder is full.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError('--dad-cache needs data with an index, not a stream')
    config = GenerateConfig(
        frame=training_frame(data_config),
        files=FormatConfig(format='wds'),
        num_views=args.dad_cache,
        seed=args.seed,
        batch_size=args.validation_batch_size or args.batch_size,
    )
    facts = {'split': args.train_split, 'num_classes': args.num_classes, **set_facts(args)}
    with temporary_set(Source(dataset), augment, config, facts, accelerator, workers=args.workers) as dad_set:
        yield dad_set
