"""Flags of ``timm-dad vqgan``: named as timm names them, the architecture as taming does."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch

from timm_dad.flags.rules import check_rules, check_values, naming_flag
from timm_dad.vqgan.model import VQGANConfig
from timm_dad.vqgan_training.optimize import OptimizerConfig
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig

PROGRAM = 'timm-dad vqgan'
# The architecture of the paper's VQGAN (OpenImages, factor 8): defaults, how many values, and what they are.
_ARCHITECTURE: dict[str, tuple[Any, str | None, str]] = {
    'ch': (128, None, 'channels, a multiple of 32'),
    'ch_mult': ([1, 2, 2, 4], '+', 'factors of it by level'),
    'num_res_blocks': (2, None, 'residual blocks a level'),
    'attn_resolutions': (None, '*', 'sides of the feature maps with attention'),
    'z_channels': (4, None, 'channels of the latents'),
    'n_embed': (16384, None, 'codes in the codebook'),
    'embed_dim': (4, None, 'channels of a code'),
}
_INIT_LR = 1e-4
_Config = TypeVar('_Config', bound=OptimizerConfig)


def _add_train_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        'train',
        help='train or fine-tune a VQGAN',
        description="Train or fine-tune a VQGAN of taming's modules on one's own pictures, for --dad-vqgan.",
        allow_abbrev=False,
    )
    default = VQGANTrainConfig
    _add_data_flags(parser, img_size='256, or that of --init')
    group = parser.add_argument_group("Architecture, in taming's words", 'By default the f8 VQGAN of the paper.')
    group.add_argument('--init', metavar='PATH', help='VQGAN to fine-tune, as --dad-vqgan takes it; or demo')
    for name, (value, nargs, what) in _ARCHITECTURE.items():
        text = f'{what} (default: {value or "that of the codes"})'
        group.add_argument(f'--{name.replace("_", "-")}', type=int, nargs=nargs, metavar='N', help=text)
    group = _add_training_flags(parser, lr=f'{default.lr}, --init: {_INIT_LR}')
    group.add_argument(
        '--restart-interval', type=int, default=default.restart_interval, metavar='N',
        help='steps after which unused codes are put on latents of the batch; 0: never',
    )  # fmt: skip
    group.add_argument(
        '--restart-until', type=float, default=default.restart_until, metavar='PCT',
        help='fraction of the steps after which none is restarted',
    )  # fmt: skip
    return parser


def _add_distill_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        'distill',
        help='train a tiny VQGAN that imitates another',
        description='Train a tiny encoder and decoder that imitate a VQGAN, with its codebook, for --dad-vqgan.',
        allow_abbrev=False,
    )
    _add_data_flags(parser, img_size='that of --vqgan')
    group = parser.add_argument_group('VQGANs')
    group.add_argument('--vqgan', metavar='PATH', help='VQGAN to imitate, as --dad-vqgan takes it; or demo')
    group.add_argument(
        '--ch', type=int, metavar='N', help='channels (default: the most with a tenth of the multiply-adds)'
    )
    _add_training_flags(parser, lr=str(OptimizerConfig.lr))
    return parser


def _add_data_flags(parser: argparse.ArgumentParser, img_size: str) -> None:
    """Add the flags of data and augmentation; ``img_size`` says its default."""
    group = parser.add_argument_group('Dataset (labels are not used)')
    group.add_argument('--data-dir', metavar='DIR', help='folder with a sub-folder a split')
    group.add_argument('--dataset', metavar='NAME', default='', help="timm's dataset type + name, or demo/STYLE")
    group.add_argument('--train-split', metavar='NAME', default='train', help='dataset train split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ datasets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help="run the dataset repository's own code")
    group.add_argument(
        '--input-img-mode', default='RGB', choices=('RGB', 'YCbCr', 'LAB', 'HSV'), help='image conversion mode'
    )
    group.add_argument('--input-key', help='dataset key for input images')
    group.add_argument('--img-size', type=int, metavar='N', help=f'image size (default: {img_size})')
    group.add_argument('-b', '--batch-size', type=int, default=16, metavar='N', help='images a process and step')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    group.add_argument('--no-aug', action='store_true', help='centre crops, not mirrored')
    group.add_argument('--scale', type=float, nargs=2, default=[0.25, 1.0], metavar='PCT', help='area of random crops')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')


def _add_training_flags(parser: argparse.ArgumentParser, lr: str) -> Any:
    """Add the flags of training and output; ``lr`` says the default of ``--lr``. Returns their group."""
    default = OptimizerConfig
    group = parser.add_argument_group('Training')
    length = group.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=int, metavar='N', help='epochs (default: 30)')
    length.add_argument('--steps', type=int, metavar='N', help='optimizer steps, in place of --epochs')
    group.add_argument('--lr', type=float, metavar='LR', help=f'learning rate (default: {lr})')
    group.add_argument('--weight-decay', type=float, default=default.weight_decay, help='weight decay')
    group.add_argument('--clip-grad', type=float, default=default.clip_grad, metavar='NORM', help='clip gradients')
    group.add_argument(
        '--perceptual', choices=('auto', 'lpips', 'none'), default='auto',
        help='L1 + LPIPS, or none: L1 + L2; auto: LPIPS where the package and its weights are installed, and says so',
    )  # fmt: skip
    group.add_argument('--perceptual-weight', type=float, default=default.perceptual_weight, help='weight of LPIPS')
    group.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cuda (default, where there is one) or cpu',
    )
    group.add_argument('--amp', action='store_true', help='mixed precision for encoder and decoder')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--output', metavar='DIR', help='folder to write (default: output/vqgan/TIME)')
    group.add_argument('--resume', default='', metavar='auto', help='auto: go on with the run in --output, if any')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='steps between recovery files')
    return group


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check what needs neither data nor a VQGAN.

    Args:
        argv: Command line from ``train`` or ``distill`` on, which is ``command`` of the flags.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description='Train a VQGAN, or distill one into a tiny one.')
    commands = parser.add_subparsers(dest='command', required=True, help='COMMAND --help tells more')
    parsers = {'train': _add_train_parser(commands), 'distill': _add_distill_parser(commands)}
    args = parser.parse_args(argv)
    try:
        if args.command == 'train':
            _check_train_args(args)
        else:
            _check_distill_args(args)
    except ValueError as error:
        parsers[args.command].error(str(error))
    return args


def _check_train_args(args: argparse.Namespace) -> None:
    given = [f'--{name.replace("_", "-")}' for name in _ARCHITECTURE if getattr(args, name) is not None]
    rules = (
        (args.ch is None or (args.ch > 0 and args.ch % 32 == 0),
         f"--ch must be a multiple of 32, the groups of taming's group norm, got {args.ch}"),
        (args.ch_mult is None or min(args.ch_mult) >= 1, f'--ch-mult must be factors of 1 or more, got {args.ch_mult}'),
        (not (args.init and given), f'{"".join(given[:1])} is part of --init already: give one of them'),
    )  # fmt: skip
    _check_common(args, 'num_res_blocks', 'z_channels', 'n_embed', 'embed_dim')
    check_rules(rules)
    training_config(VQGANTrainConfig, args, steps=args.steps or 2)


def _check_distill_args(args: argparse.Namespace) -> None:
    check_rules(((args.vqgan, '--vqgan must name the VQGAN to imitate (a file, a folder, a preset, or demo)'),))
    _check_common(args, 'ch')
    training_config(OptimizerConfig, args, steps=args.steps or 2)


def _check_common(args: argparse.Namespace, *counts: str) -> None:
    """Check the flags of data and training, and that those of ``counts`` are 1 or more."""
    values = (
        (('batch_size', 'img_size', 'epochs', 'steps', *counts), '1 or more', lambda value: value >= 1),
        (('workers', 'recovery_interval'), '0 or more', lambda value: value >= 0),
        (('hflip', 'vflip'), 'from 0 to 1', lambda value: 0 <= value <= 1),
        (('scale',), 'two areas, 0 < LEAST <= MOST <= 1', lambda value: 0 < value[0] <= value[1] <= 1),
    )
    rules = (
        (args.resume in ('', 'auto'), f'--resume must be auto, got {args.resume!r}'),
        (not args.resume or args.output, '--resume auto needs --output, the folder of the run to go on with'),
        (args.val_split, '--val-split must name a split: the metrics are measured on it'),
        (args.data_dir or args.dataset, '--data-dir must name a folder of pictures (or give --dataset)'),
        (args.device.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {args.device!r}'),
    )
    check_values(args, values)
    check_rules(rules)


def training_config(kind: type[_Config], args: argparse.Namespace, steps: int) -> _Config:
    """The training that the flags ask for; ``ValueError`` names the flag.

    Args:
        kind: The dataclass, whose fields are flags.
        args: The flags.
        steps: Optimizer steps of the whole training.
    """
    lr = _INIT_LR if getattr(args, 'init', None) else kind.lr
    given = {field.name: getattr(args, field.name) for field in fields(kind)}
    with naming_flag():
        return kind(**{**given, 'steps': steps, 'lr': lr if args.lr is None else args.lr})


def create_config(args: argparse.Namespace) -> VQGANConfig:
    """The architecture that the flags ask for; sets ``args.img_size`` where it is not given.

    Raises:
        ValueError: If the image size does not fit it.
    """
    chosen = {name: default if getattr(args, name) is None else getattr(args, name)
              for name, (default, *_) in _ARCHITECTURE.items()}  # fmt: skip
    factor = 2 ** (len(chosen['ch_mult']) - 1)
    size = args.img_size = args.img_size or 256
    check_image_size(size, factor)
    sides = [size // 2**level for level in range(len(chosen['ch_mult']))]
    attention = [sides[-1]] if chosen['attn_resolutions'] is None else chosen['attn_resolutions']
    if not set(attention) <= set(sides):
        raise ValueError(f'--attn-resolutions must be sides of feature maps, {sides} at this size, got {attention}')
    ddconfig = {
        'double_z': False,
        'z_channels': chosen['z_channels'],
        'resolution': size,
        'in_channels': 3,
        'out_ch': 3,
        'ch': chosen['ch'],
        'ch_mult': chosen['ch_mult'],
        'num_res_blocks': chosen['num_res_blocks'],
        'attn_resolutions': attention,
        'dropout': 0.0,
    }
    return VQGANConfig(ddconfig=ddconfig, n_embed=chosen['n_embed'], embed_dim=chosen['embed_dim'])


def check_image_size(size: int, factor: int) -> None:
    """Raise ``ValueError`` unless the factor divides the size; training pads nothing."""
    if size % factor:
        nearest = max(factor, round(size / factor) * factor)
        raise ValueError(
            f'--img-size must be a multiple of {factor}, the factor of the VQGAN, got {size} (nearest: {nearest})'
        )
