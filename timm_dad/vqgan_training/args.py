"""Flags of ``timm-dad vqgan``: named as timm names them, the architecture as taming does."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from timm_dad.flags.rules import check_rules, naming_flag
from timm_dad.vqgan.model import VQGANConfig
from timm_dad.vqgan_training.optimize import OptimizerConfig
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig

PROGRAM = 'timm-dad vqgan train'
# The architecture of the paper's VQGAN (OpenImages, factor 8); sides of attention follow from the image size.
_ARCHITECTURE: dict[str, Any] = {
    'ch': 128,
    'ch_mult': [1, 2, 2, 4],
    'num_res_blocks': 2,
    'attn_resolutions': None,
    'z_channels': 4,
    'n_embed': 16384,
    'embed_dim': 4,
}
# Flags of train_dad.py that its factories ask for and that have one meaning here.
FIXED: dict[str, Any] = {
    'in_chans': None,
    'input_size': None,
    'class_map': '',
    'epoch_repeats': 0,
    'target_key': None,
    'train_num_samples': None,
    'val_num_samples': None,
    'fuser': '',
    'fast_norm': False,
    'log_with': '',
    'log_wandb': False,
    'no_ddp_bb': False,
    'sync_bn': False,
}


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``timm-dad vqgan train``; defaults are those of the config dataclass."""
    default = VQGANTrainConfig(steps=2)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train or fine-tune a VQGAN of taming's modules on one's own pictures, for --dad-vqgan.",
        allow_abbrev=False,
    )
    add_data_flags(parser, img_size='256, or that of --init')
    group = parser.add_argument_group("Architecture, in taming's words", 'By default the f8 VQGAN of the paper.')
    group.add_argument('--init', metavar='PATH', help='VQGAN to fine-tune, as --dad-vqgan takes it; or demo')
    group.add_argument('--ch', type=int, metavar='N', help='channels, a multiple of 32 (default: 128)')
    group.add_argument('--ch-mult', type=int, nargs='+', metavar='N', help='factors of it by level (default: 1 2 2 4)')
    group.add_argument('--num-res-blocks', type=int, metavar='N', help='residual blocks a level (default: 2)')
    group.add_argument(
        '--attn-resolutions', type=int, nargs='*', metavar='N',
        help='sides of the feature maps with attention (default: that of the codes)',
    )  # fmt: skip
    group.add_argument('--z-channels', type=int, metavar='N', help='channels of the latents (default: 4)')
    group.add_argument('--n-embed', type=int, metavar='N', help='codes in the codebook (default: 16384)')
    group.add_argument('--embed-dim', type=int, metavar='N', help='channels of a code (default: 4)')
    group = add_training_flags(parser, default, lr=f'{default.lr}, --init: 1e-4')
    group.add_argument(
        '--restart-interval', type=int, default=default.restart_interval, metavar='N',
        help='steps after which unused codes are put on latents of the batch; 0: never',
    )  # fmt: skip
    group.add_argument(
        '--restart-until', type=float, default=default.restart_until, metavar='PCT',
        help='fraction of the steps after which none is restarted',
    )  # fmt: skip
    return parser


def add_data_flags(parser: argparse.ArgumentParser, img_size: str) -> None:
    """Flags of data and augmentation; ``img_size`` says its default."""
    group = parser.add_argument_group('Dataset (labels are not used)')
    group.add_argument('--data-dir', metavar='DIR', help='folder with a sub-folder a split')
    group.add_argument('--dataset', metavar='NAME', default='', help="timm's dataset type + name, or demo/STYLE")
    group.add_argument('--train-split', metavar='NAME', default='train', help='dataset train split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ datasets download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help="run the dataset repository's own code")
    group.add_argument('--input-img-mode', help='image conversion mode (default: RGB)')
    group.add_argument('--input-key', help='dataset key for input images')
    group.add_argument('--img-size', type=int, metavar='N', help=f'image size (default: {img_size})')
    group.add_argument('-b', '--batch-size', type=int, default=16, metavar='N', help='images a process and step')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    group.add_argument('--no-aug', action='store_true', help='centre crops, not mirrored')
    group.add_argument('--scale', type=float, nargs=2, default=[0.25, 1.0], metavar='PCT', help='area of random crops')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')


def add_training_flags(parser: argparse.ArgumentParser, default: OptimizerConfig, lr: str) -> Any:
    """Flags of training and output; ``lr`` says the default of ``--lr``. Returns their group."""
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
    group.add_argument('--device', default='cuda', help='cuda (the CPU where there is none) or cpu')
    group.add_argument('--amp', action='store_true', help='mixed precision for encoder and decoder')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--output', metavar='DIR', help='folder to write (default: output/vqgan/TIME)')
    group.add_argument('--resume', default='', metavar='auto', help='auto: go on with the run in --output, if any')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='steps between recovery files')
    parser.set_defaults(**FIXED)
    return group


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check what needs neither data nor ``--init``.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    return parse(create_parser(), argv, _check_args)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], check: Callable[[argparse.Namespace], None]
) -> argparse.Namespace:
    """Parse, find the device, and check.

    Args:
        parser: Has the flags of ``add_data_flags`` and ``add_training_flags``.
        argv: The command line.
        check: Raises ``ValueError`` on a bad flag.

    Raises:
        SystemExit: On a bad flag.
    """
    args = parser.parse_args(argv)
    explicit_device = any(flag.startswith('--device') for flag in argv)
    if not explicit_device and not torch.cuda.is_available():
        args.device = 'cpu'
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _check_args(args: argparse.Namespace) -> None:
    given = [name for name in _ARCHITECTURE if getattr(args, name) is not None]
    check_at_least_one(args, ('num_res_blocks', 'z_channels', 'n_embed', 'embed_dim'))
    rules = (
        (args.ch is None or (args.ch > 0 and args.ch % 32 == 0),
         f"--ch must be a multiple of 32, the groups of taming's group norm, got {args.ch}"),
        (args.ch_mult is None or min(args.ch_mult) >= 1, f'--ch-mult must be factors of 1 or more, got {args.ch_mult}'),
        (not (args.init and given),
         f'--{given[0].replace("_", "-") if given else ""} is part of --init already: give one of them'),
    )  # fmt: skip
    check_rules(rules)
    check_common(args)
    train_config(args, steps=args.steps or 2)


def check_at_least_one(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise ``ValueError`` unless these flags, where they are given, are 1 or more."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be 1 or more, got {value}')


def check_common(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` unless the flags of data and training are right."""
    check_at_least_one(args, ('batch_size', 'img_size', 'epochs', 'steps'))
    for name in ('workers', 'recovery_interval'):
        if getattr(args, name) < 0:
            raise ValueError(f'--{name.replace("_", "-")} must be 0 or more, got {getattr(args, name)}')
    for name in ('hflip', 'vflip'):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f'--{name} must be from 0 to 1, got {getattr(args, name)}')
    rules = (
        (0 < args.scale[0] <= args.scale[1] <= 1,
         f'--scale must be two areas, 0 < LEAST <= MOST <= 1, got {args.scale}'),
        (args.resume in ('', 'auto'), f'--resume must be auto, got {args.resume!r}'),
        (not args.resume or args.output, '--resume auto needs --output, the folder of the run to go on with'),
        (args.val_split, '--val-split must name a split: the metrics are measured on it'),
        (args.data_dir or args.dataset, '--data-dir must name a folder of pictures (or give --dataset)'),
        (args.device.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {args.device!r}'),
    )  # fmt: skip
    check_rules(rules)


def train_config(args: argparse.Namespace, steps: int) -> VQGANTrainConfig:
    """The training that the flags ask for; ``ValueError`` names the flag."""
    names = ('weight_decay', 'clip_grad', 'perceptual_weight', 'restart_interval', 'restart_until')
    lr = args.lr if args.lr is not None else 1e-4 if args.init else VQGANTrainConfig(steps=2).lr
    with naming_flag():
        return VQGANTrainConfig(steps=steps, lr=lr, **{name: getattr(args, name) for name in names})


def create_config(args: argparse.Namespace) -> VQGANConfig:
    """The architecture that the flags ask for.

    Raises:
        ValueError: If the image size does not fit it.
    """
    chosen = {name: default if getattr(args, name) is None else getattr(args, name)
              for name, default in _ARCHITECTURE.items()}  # fmt: skip
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


def optimizer_config(args: argparse.Namespace, steps: int) -> OptimizerConfig:
    """Optimizer and schedule that the flags of ``add_training_flags`` ask for; ``ValueError`` names the flag."""
    given = {name: getattr(args, name) for name in ('weight_decay', 'clip_grad', 'perceptual_weight')}
    with naming_flag():
        return OptimizerConfig(steps=steps, lr=OptimizerConfig.lr if args.lr is None else args.lr, **given)
