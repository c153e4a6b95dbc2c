"""Flags of reinforced sets: ``timm-dad generate`` stores answers on augmented images, and a training replays them."""

import argparse
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.logits import StoredLogits
from timm_dad.dad_sets.manifest import differences
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import ReinforceConfig, Reinforcement, is_reinforced
from timm_dad.flags.augmentation import add_mixing_args, add_transform_args, check_augmentation_args
from timm_dad.flags.fields import add_fields, from_flags
from timm_dad.flags.kwargs import mixes, mixing_kwargs, transform_kwargs
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_rules, written
from timm_dad.flags.temperature import take_set_temperature, with_number

VIEW_AUGS = ('full', 'base')
_FLAGS = {'repeats': 'reinforce', 'top_k': 'reinforce_top_k'}


def add_pairing_args(group: Any) -> None:
    """Add the flags for augmenting an image together with its extra view."""
    group.add_argument(
        '--dad-same-crop', action='store_true',
        help='same random crop, flip, ... for image and DAD view (--dad-dir or --dad-cache; default: one for each)',
    )  # fmt: skip
    group.add_argument(
        '--dad-view-aug', choices=VIEW_AUGS, default=VIEW_AUGS[0],
        help='augmentation of the extra view: full: RandAugment, color jitter, erasing, mixing, ... like the image (a '
        'DAD view made in the training step is made from the augmented image); base: only crop and flip (and the '
        'view is made before the rest)',
    )  # fmt: skip


def add_reinforce_args(parser: Parser) -> None:
    """Add the flags of ``timm-dad generate``, including timm's augmentations."""
    group = parser.add_argument_group(
        'DAD: answers on augmentations',
        'With --reinforce, for trainings with --dad-stored-logits and the same augmentation.',
    )
    add_fields(group, ReinforceConfig, _FLAGS)
    add_transform_args(group)
    add_mixing_args(group)
    group.add_argument(
        '--mean', type=float, nargs=3, metavar='MEAN', default=IMAGENET_DEFAULT_MEAN, help='mean of the student'
    )
    group.add_argument(
        '--std', type=float, nargs=3, metavar='STD', default=IMAGENET_DEFAULT_STD, help='its standard deviation'
    )
    add_pairing_args(group)


def check_reinforce_args(args: argparse.Namespace, given: Mapping[str, Any], parser: Parser) -> None:
    """Check the flags of ``add_reinforce_args``; ``ValueError`` if one is given but nothing is reinforced."""
    (group,) = (group for group in parser._action_groups if group.title == 'DAD: answers on augmentations')
    useless = [action.dest for action in group._group_actions if action.dest in given and action.dest != 'reinforce']
    rules = (
        (args.reinforce >= 0, f'--reinforce must be 0 or more, got {args.reinforce}'),
        (args.reinforce or not useless, f'{"".join(map(written, useless[:1]))} is for --reinforce N: add it'),
        (not args.reinforce or args.shards is None,
         '--reinforce needs a complete set: make its parts with --shards first, then run the same command with '
         '--reinforce instead'),
        (not (args.reinforce and (args.aa or '').startswith('augmix')),
         f'--aa {args.aa} makes splits of an image, for which --reinforce has no answers'),
    )  # fmt: skip
    check_rules(rules)
    check_augmentation_args(args)
    unmixed = [name for name in ('mixup_prob', 'mixup_switch_prob') if name in given and not mixes(args)]
    check_rules(((not unmixed, f'{"".join(map(written, unmixed[:1]))} is for --mixup and --cutmix: add one of them'),))


def reinforce_config(args: argparse.Namespace, size: tuple[int, int]) -> ReinforceConfig:
    """Build the config of a reinforced set from flags of ``timm-dad generate``; ``ValueError`` names the flag."""
    data = {'input_size': (3, *size), 'mean': args.mean, 'std': args.std}
    own = {'transform': _transform(args, data), 'mixup': _mixup(args), **_pairs(args)}
    more = {'temperature': with_number(args).dad_temperature, 'seed': args.seed, 'batch_size': args.batch_size}
    return from_flags(ReinforceConfig, args, _FLAGS, **own, **more)


def _transform(args: argparse.Namespace, data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``create_transform``, after a round trip through JSON."""
    data = {name: data_config[name] for name in ('input_size', 'mean', 'std')}
    kwargs: dict[str, Any] = json.loads(
        json.dumps({**transform_kwargs(args), **data, 'interpolation': args.train_interpolation})
    )
    return kwargs


def _mixup(args: argparse.Namespace) -> dict[str, Any] | None:
    kwargs: dict[str, Any] | None = json.loads(json.dumps(mixing_kwargs(args)))
    return kwargs


def _pairs(args: argparse.Namespace) -> dict[str, bool]:
    return {'same_draws': args.dad_same_crop, 'base_alone': args.dad_view_aug == 'base'}


def replays(args: argparse.Namespace) -> bool:
    """Return whether a training uses stored answers on augmented images, not on unaugmented ones."""
    return bool(args.dad_stored_logits and not args.no_aug and is_reinforced(set_folder(args.dad_dir)))


def check_replay_args(args: argparse.Namespace) -> None:
    """Check the flags of a training that ``replays``; ``ValueError`` names the flag."""
    rules = (
        (not args.aug_splits, '--aug-splits: stored answers are for one augmentation per image; leave it out'),
        (not args.aug_repeats, '--aug-repeats: stored answers are drawn once per image and epoch; leave it out'),
        (not args.reprob or args.no_prefetcher,
         "--reprob: timm's prefetcher erases batches, but stored answers are for images erased one by one: "
         'add --no-prefetcher'),
    )  # fmt: skip
    check_rules(rules)


def open_reinforcement(args: argparse.Namespace, dad_set: DADSet, data_config: Mapping[str, Any]) -> Reinforcement:
    """Open the answers that a training replays, and check that its augmentation matches theirs.

    Raises:
        ValueError: If they are incomplete, or their augmentation, normalization or temperature differs.
    """
    found = _answers_of(dad_set)
    take_set_temperature(args, {**dad_set.settings, 'logits': found.settings['logits']}, args.dad_dir)
    here: dict[str, Any] = {
        'transform': _transform(args, data_config),
        'pairs': _pairs(args),
        'logits': {**found.settings['logits'], 'temperature': args.dad_temperature},
    }
    if found.mixtures is not None:
        here['mixup'] = _mixup(args)
        _check_mixing_args(args)
    others = differences(here, {name: found.settings[name] for name in here})
    if others:
        raise ValueError(
            f'its stored answers are for another augmentation ({"; ".join(others[:3])}): use the flags that they were '
            'made with, or reinforce another set'
        )
    return found


def _check_mixing_args(args: argparse.Namespace) -> None:
    """Check the flags of a training that replays mixtures."""
    check_rules((
        (args.mixup_mode == 'batch',
         f'its answers are for mixtures drawn one by one: leave --mixup-mode {args.mixup_mode} out'),
        (not args.mixup_off_epoch, 'its answers are all for mixtures: leave --mixup-off-epoch out'),
    ))  # fmt: skip


@lru_cache(maxsize=1)
def _answers_of(dad_set: DADSet) -> Reinforcement:
    """Return the answers of a set, cached because both the data set and the task need them."""
    return Reinforcement(dad_set)


def stored_logits(args: argparse.Namespace, dad_set: DADSet, data_config: Mapping[str, Any]) -> StoredLogits:
    """Return the answers that ``--dad-stored-logits`` uses instead of a teacher; ``ValueError`` if they do not fit."""
    if not replays(args):
        return StoredLogits.of_views(dad_set)
    return open_reinforcement(args, dad_set, data_config).stored_logits(args.smoothing)
