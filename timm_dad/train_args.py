"""Flags of ``train_dad.py``: timm's ``train.py`` by name, default and meaning, plus the group ``--dad ...``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from timm.optim import list_optimizers
from timm.utils import ParseKwargs

from timm_dad.dad_args import add_dad_args, check_dad_args
from timm_dad.demo.data import DEMO_CONFIG

# What timm's create_scheduler_v2 knows; it takes any other name without a word.
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly')


def _add_data_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset')
    group.add_argument('--data-dir', metavar='DIR', help='path to dataset (root dir)')
    group.add_argument('--dataset', metavar='NAME', default='', help='dataset type + name (default: image folder)')
    group.add_argument('--train-split', metavar='NAME', default='train', help='dataset train split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split')
    group.add_argument(
        '--eval-suites', metavar='NAME=DATA', nargs='+', default=[],
        help='data sets to evaluate student and teacher on at the end: NAME=DIR (an image folder) or demo/STYLE',
    )  # fmt: skip


def _add_model_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    group.add_argument('--model', metavar='MODEL', default='resnet50', help='name of the student')
    group.add_argument('--pretrained', action='store_true', help='start from pretrained weights')
    group.add_argument('--initial-checkpoint', metavar='PATH', default='', help='load this checkpoint into the model')
    group.add_argument('--resume', metavar='PATH', default='', help='resume model, EMA, optimizer and epoch')
    group.add_argument('--no-resume-opt', action='store_true', help='do not resume the optimizer')
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes (default: of the model)')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='arguments of the model')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: of the model)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='input dimensions (d h w)')
    group.add_argument('--crop-pct', type=float, metavar='N', help='center crop fraction in validation')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='override mean pixel value')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='override standard deviation')
    group.add_argument('--interpolation', default='', metavar='NAME', help='resize interpolation in validation')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='images a process and step')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='the same, in validation')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches an update')
    group.add_argument('--grad-checkpointing', action='store_true', help='trade compute for memory')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the student')
    group.add_argument('--amp', action='store_true', help='mixed precision for the student')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')


def _add_optimizer_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Optimizer')
    group.add_argument('--opt', default='sgd', metavar='OPTIMIZER', help='optimizer')
    group.add_argument('--opt-eps', type=float, metavar='EPSILON', help='its epsilon')
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='BETA', help='its betas')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M', help='its momentum')
    group.add_argument('--weight-decay', type=float, default=2e-5, help='weight decay')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='clip gradients')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='how to clip')
    group.add_argument('--layer-decay', type=float, help='layer-wise learning rate decay')
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, help='arguments of the optimizer')
    group = parser.add_argument_group('Learning rate schedule')
    group.add_argument('--sched', default='cosine', metavar='SCHEDULER', help='schedule')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule each update')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate, overrides --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='rate at --lr-base-size images a step')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='DIV', help='batch size of --lr-base')
    group.add_argument(
        '--lr-base-scale',
        default='',
        choices=('', 'linear', 'sqrt'),
        help='scaling with batch size (default: by --opt)',
    )
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='first learning rate')
    group.add_argument('--min-lr', type=float, default=0, metavar='LR', help='lowest learning rate')
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='epochs')
    group.add_argument('--start-epoch', type=int, metavar='N', help='start here, whatever a checkpoint says')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at --min-lr at the end')


def _add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Augmentation and regularization')
    group.add_argument('--no-aug', action='store_true', help='no augmentation')
    group.add_argument(
        '--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', help='area of random crops'
    )
    group.add_argument('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3], metavar='RATIO', help='their aspect')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='PCT', help='color jitter')
    group.add_argument('--aa', metavar='NAME', help='AutoAugment / RandAugment policy, such as rand-m9-mstd0.5-inc1')
    group.add_argument('--reprob', type=float, default=0.0, metavar='PCT', help='probability of random erasing')
    group.add_argument('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='what it fills in')
    group.add_argument('--mixup', type=float, default=0.0, help='mixup alpha')
    group.add_argument('--cutmix', type=float, default=0.0, help='cutmix alpha')
    group.add_argument('--mixup-prob', type=float, default=1.0, help='probability of mixup or cutmix')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixup from this epoch on')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group.add_argument('--train-interpolation', default='random', help='random, bilinear, bicubic')
    group.add_argument('--drop', type=float, default=0.0, metavar='PCT', help='dropout')
    group.add_argument('--drop-path', type=float, metavar='PCT', help='stochastic depth')
    group = parser.add_argument_group('Model exponential moving average')
    group.add_argument('--model-ema', action='store_true', help='track a moving average, and evaluate it')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, help='its decay')
    group.add_argument('--model-ema-warmup', action='store_true', help='warm its decay up')


def _add_misc_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Miscellaneous')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between two log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between two validations')
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    group.add_argument('--pin-mem', action='store_true', help='pin memory in the data loader')
    group.add_argument('--output', default='', metavar='PATH', help='output folder (default: ./output/train)')
    group.add_argument('--experiment', default='', metavar='NAME', help='its sub-folder (default: time and model)')
    group.add_argument('--eval-metric', default='top1', choices=('top1', 'top5', 'loss'), help='what "best" means')


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``train_dad.py``."""
    parser = argparse.ArgumentParser(
        prog='train_dad.py',
        usage='%(prog)s [--data-dir DIR] [--model MODEL] [--dad ...] [flags]',
        description='timm training with Discrete Adversarial Distillation. Without data, the embedded demo.',
        allow_abbrev=False,
    )
    parser.add_argument('-c', '--config', default='', metavar='FILE', help='YAML file with defaults for these flags')
    for add in (_add_data_args, _add_model_args, _add_optimizer_args, _add_augmentation_args, _add_misc_args):
        add(parser)
    add_dad_args(parser)
    return parser


def _read_config(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        parser.error(f'--config must be a YAML file, got {path!r}, which does not exist')
    content = yaml.safe_load(Path(path).read_text()) or {}
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(content) - known) if isinstance(content, dict) else [content]
    if unknown:
        parser.error(f'--config {path} must map flags to values; these are no flags: {unknown}')
    config: dict[str, Any] = content
    return config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, check what needs no data, and fill in the demo when there is no data set.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.

    Returns:
        The flags. Values come from the command line, then ``--config``, then the defaults.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    parser = create_parser()
    given = create_parser()
    for action in given._actions:
        action.default = argparse.SUPPRESS
    explicit = vars(given.parse_args(argv))
    config = explicit.get('config', '')
    if not config and 'data_dir' not in explicit and 'dataset' not in explicit:
        config = str(DEMO_CONFIG)
    if config:
        parser.set_defaults(**_read_config(parser, config))
    args = parser.parse_args(argv)
    args.config = config
    for name in ('batch_size', 'grad_accum_steps', 'epochs', 'log_interval', 'val_interval', 'checkpoint_hist'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be 1 or more, got {getattr(args, name)}')
    for name, known in (('opt', list_optimizers()), ('sched', SCHEDULES)):
        if getattr(args, name).lower() not in known:
            parser.error(f'--{name} must be one of {", ".join(known)}; got {getattr(args, name)!r}')
    try:
        check_dad_args(args, explicit)
    except ValueError as error:
        parser.error(str(error))
    return args
