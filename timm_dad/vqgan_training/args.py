"""Flags of ``timm-dad vqgan``: named like timm's, for the architecture like taming's."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import torch

from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_source_args
from timm_dad.flags.execution import add_execution_args, device_rule
from timm_dad.flags.fields import add_fields
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_rules, check_values, naming_flag, written
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.presets import PRESETS
from timm_dad.vqgan_training.optimize import OptimizerConfig
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig

PROGRAM = 'timm-dad vqgan'
# Flags of the architecture: how many values, and what they are.
_ARCHITECTURE = {
    'ch': (None, 'channels, a multiple of 32'),
    'ch_mult': ('+', 'its factors by level'),
    'num_res_blocks': (None, 'residual blocks per level'),
    'attn_resolutions': ('*', 'sides of the feature maps with attention'),
    'z_channels': (None, 'channels of the latents'),
    'n_embed': (None, 'codes in the codebook'),
    'embed_dim': (None, 'channels of a code'),
}
# Their values by default: those of the paper's VQGAN, with attention at the codes, whatever the size of the images.
_PAPERS = PRESETS['openimages-f8-16384'].config
_DEFAULTS = {**_PAPERS.ddconfig, 'attn_resolutions': None, 'n_embed': _PAPERS.n_embed, 'embed_dim': _PAPERS.embed_dim}
_INIT_LR = 1e-4
_Config = TypeVar('_Config', bound=OptimizerConfig)


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    _add_data_flags(parser, img_size='256, or that of --init')
    group = parser.add_argument_group("Architecture, in taming's terms", "By default an f8 VQGAN like the paper's.")
    group.add_argument('--init', metavar='PATH', help='VQGAN to fine-tune, as for --dad-vqgan; or demo')
    for name, (nargs, what) in _ARCHITECTURE.items():
        text = f'{what} (default: {_DEFAULTS[name] or "that of the codes"})'
        group.add_argument(written(name), type=int, nargs=nargs, metavar='N', help=text)
    _add_training_flags(parser, VQGANTrainConfig, lr=f'{VQGANTrainConfig.lr}, --init: {_INIT_LR}')


def _add_distill_flags(parser: argparse.ArgumentParser) -> None:
    _add_data_flags(parser, img_size='that of --vqgan')
    group = parser.add_argument_group('VQGANs')
    group.add_argument('--vqgan', metavar='PATH', help='VQGAN to imitate, as for --dad-vqgan; or demo')
    group.add_argument(
        '--ch', type=int, metavar='N', help='channels (default: the most that keep to a tenth of the multiply-adds)'
    )
    _add_training_flags(parser, OptimizerConfig, lr=str(OptimizerConfig.lr))


def _add_data_flags(parser: argparse.ArgumentParser, img_size: str) -> None:
    """Add the flags of data and augmentation; ``img_size`` describes its default."""
    group = parser.add_argument_group('Dataset (labels are not used)')
    add_source_args(group, 'train', '--train-split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split')
    group.add_argument('--img-size', type=int, metavar='N', help=f'image size (default: {img_size})')
    group.add_argument('--no-aug', action='store_true', help='centre crops without mirroring')
    group.add_argument('--scale', type=float, nargs=2, default=[0.25, 1.0], metavar='PCT', help='area of random crops')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')


def _add_training_flags(parser: argparse.ArgumentParser, config: type[OptimizerConfig], lr: str) -> None:
    """Add the flags of training and output, including fields of ``config``; ``lr`` describes the default ``--lr``."""
    group = parser.add_argument_group('Training')
    length = group.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=int, metavar='N', help='epochs (default: 30)')
    length.add_argument('--steps', type=int, metavar='N', help='optimizer steps, instead of --epochs')
    group.add_argument('--lr', type=float, metavar='LR', help=f'learning rate (default: {lr})')
    add_fields(group, config, {field.name: field.name for field in fields(config) if field.metadata})
    group.add_argument('--perceptual', choices=('none', 'lpips'), default='none', help='L1 + L2, or L1 + LPIPS')
    add_execution_args(group, 16)
    group.add_argument('--amp', action='store_true', help='mixed precision for encoder and decoder')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--output', metavar='DIR', help='folder to write (default: output/vqgan/TIME)')
    group.add_argument('--resume', default='', metavar='auto', help='auto: continue the run in --output, if any')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='steps between recovery files')


COMMANDS = {
    'train': (_add_train_flags, "train or fine-tune a VQGAN of taming's modules, for --dad-vqgan"),
    'distill': (_add_distill_flags, 'train a tiny VQGAN that imitates another, with its codebook, for --dad-vqgan'),
}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check everything that needs neither data nor a VQGAN.

    Args:
        argv: Command line starting with ``train`` or ``distill``, which becomes ``command`` of the flags.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    top = Parser(
        prog=PROGRAM,
        usage='%(prog)s COMMAND [flags]',
        description='\n'.join(
            ['commands (see COMMAND --help):', *(f'  {name:<9}{what}' for name, (_, what) in COMMANDS.items())]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('command', choices=COMMANDS, metavar=f'COMMAND ({" or ".join(COMMANDS)})', help='what to do')
    command: str = top.parse_args(argv[:1]).command
    args = parse_checked(partial(create_parser, command), argv[1:], partial(_check_all, command))
    args.command = command
    if not torch.cuda.is_available():
        args.device = 'cpu'
    return args


def create_parser(command: str) -> Parser:
    """Create the parser of ``timm-dad vqgan train`` or ``distill``."""
    add_flags, what = COMMANDS[command]
    own = ' --vqgan SPEC' if command == 'distill' else ''
    parser = Parser(
        prog=f'{PROGRAM} {command}', usage=f'%(prog)s --data-dir DIR{own} [--output DIR] [flags]', description=what
    )
    add_config_arg(parser)
    add_flags(parser)
    return parser


def _check_all(command: str, args: argparse.Namespace, given: dict[str, Any]) -> None:
    _check(args)
    if command == 'train':
        _check_architecture(args)
        training_config(VQGANTrainConfig, args, steps=args.steps or 2)
    else:
        check_rules(((args.vqgan, '--vqgan must name the VQGAN to imitate (a file, a folder, a preset, or demo)'),))
        training_config(OptimizerConfig, args, steps=args.steps or 2)
    _check_given(args, given)


def _check_given(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuse flags that would be ignored."""
    random_crops = [written(name) for name in ('scale', 'hflip', 'vflip') if name in given]
    rules = (
        (args.perceptual == 'lpips' or 'perceptual_weight' not in given,
         '--perceptual-weight needs --perceptual lpips'),
        (args.amp or 'amp_dtype' not in given, '--amp-dtype needs --amp'),
        (not (args.no_aug and random_crops),
         f'--no-aug takes centre crops without mirroring: leave {"".join(random_crops[:1])} out'),
    )  # fmt: skip
    check_rules(rules)


def _check(args: argparse.Namespace) -> None:
    """Check the flags that both commands share."""
    values = (
        (('batch_size', 'img_size', 'epochs', 'steps', 'ch'), '1 or more', lambda value: value >= 1),
        (('workers', 'recovery_interval'), '0 or more', lambda value: value >= 0),
        (('hflip', 'vflip'), 'from 0 to 1', lambda value: 0 <= value <= 1),
        (('scale',), 'two areas, 0 < LEAST <= MOST <= 1', lambda value: 0 < value[0] <= value[1] <= 1),
    )
    rules = (
        (args.resume in ('', 'auto'), f'--resume must be auto, got {args.resume!r}'),
        (not args.resume or args.output, '--resume auto needs --output, the folder of the run to continue'),
        (args.val_split, '--val-split must name a split: the metrics are measured on it'),
        (args.data_dir or args.dataset, '--data-dir must name a folder of pictures (or give --dataset)'),
        device_rule(args.device),
    )
    check_values(args, values)
    check_rules(rules)


def _check_architecture(args: argparse.Namespace) -> None:
    counts = ('num_res_blocks', 'z_channels', 'n_embed', 'embed_dim')
    given = [written(name) for name in _ARCHITECTURE if getattr(args, name) is not None]
    rules = (
        (args.ch is None or args.ch % 32 == 0,
         f"--ch must be a multiple of 32, the groups of taming's group norm, got {args.ch}"),
        (args.ch_mult is None or min(args.ch_mult) >= 1, f'--ch-mult must be factors of 1 or more, got {args.ch_mult}'),
        (not (args.init and given), f'{"".join(given[:1])} is already part of --init: give only one of them'),
    )  # fmt: skip
    check_values(args, ((counts, '1 or more', lambda value: value >= 1),))
    check_rules(rules)


def training_config(kind: type[_Config], args: argparse.Namespace, steps: int) -> _Config:
    """Return the training settings from the flags; ``ValueError`` names the flag.

    Args:
        kind: The dataclass, whose fields are flags.
        args: The flags.
        steps: Number of optimizer steps of the whole training.
    """
    lr = _INIT_LR if getattr(args, 'init', None) else kind.lr
    given = {field.name: getattr(args, field.name) for field in fields(kind)}
    with naming_flag():
        return kind(**{**given, 'steps': steps, 'lr': lr if args.lr is None else args.lr})


def create_config(args: argparse.Namespace) -> VQGANConfig:
    """Return the architecture from the flags; set ``args.img_size`` if it is not given.

    Raises:
        ValueError: If the image size does not fit it.
    """
    given = {name: getattr(args, name) for name in _ARCHITECTURE if getattr(args, name) is not None}
    args.img_size = args.img_size or _DEFAULTS['resolution']
    ddconfig = {**_DEFAULTS, 'resolution': args.img_size, **given}
    n_embed, embed_dim = ddconfig.pop('n_embed'), ddconfig.pop('embed_dim')
    check_image_size(args.img_size, 2 ** (len(ddconfig['ch_mult']) - 1))
    sides = [args.img_size // 2**level for level in range(len(ddconfig['ch_mult']))]
    if ddconfig['attn_resolutions'] is None:
        ddconfig['attn_resolutions'] = [sides[-1]]
    if not set(ddconfig['attn_resolutions']) <= set(sides):
        raise ValueError(
            f'--attn-resolutions must be sides of feature maps, {sides} at this size, got '
            f'{ddconfig["attn_resolutions"]}'
        )
    return VQGANConfig(ddconfig=ddconfig, n_embed=n_embed, embed_dim=embed_dim)


def check_image_size(size: int, factor: int) -> None:
    """Raise ``ValueError`` unless the factor divides the size: training does not pad."""
    if size % factor:
        nearest = max(factor, round(size / factor) * factor)
        raise ValueError(
            f'--img-size must be a multiple of {factor}, the factor of the VQGAN, got {size} (nearest: {nearest})'
        )
