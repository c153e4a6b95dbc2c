"""Flags of ``train_dad.py``: those of timm's ``train.py``, by name, default and meaning, plus ours and ``--dad ...``.

timm's own parser lives in a script that no wheel carries, so its flags are written down here; ``test_train_args.py``
compares them with a checkout.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.optim import list_optimizers
from timm.utils import ParseKwargs

from timm_dad.demo.data import DEMO_CONFIG
from timm_dad.flags.dad import add_dad_args, check_dad_args
from timm_dad.flags.pairs import uses_pairs
from timm_dad.flags.rules import check_rules, given_flags

# What timm's create_scheduler_v2 knows; it takes any other name without a word.
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly')

_RESOLUTION = 'the image size is fixed during a training', 'use --img-size, or a second training at another size'
_NAFLEX = 'NaFlex batches are patches, and the DAD view is made from images', 'use --img-size'
# timm's flags that make no sense here: why, and what to do instead.
REFUSED = {
    'torchscript': ('PyTorch deprecates TorchScript', 'use --torchcompile'),
    'device_modules': ('Accelerate chooses the device', 'run `accelerate config`'),
    'tta': ("timm's loaders make no copies of an image, so it would average different images", 'leave it out'),
    'naflex_loader': _NAFLEX,
    'naflex_train_seq_lens': _NAFLEX,
    'naflex_max_seq_len': _NAFLEX,
    'naflex_patch_sizes': _NAFLEX,
    'naflex_patch_size_probs': _NAFLEX,
    'naflex_loss_scale': _NAFLEX,
    'naflex_patchify_channels_first': _NAFLEX,
    'train_img_sizes': _RESOLUTION,
    'train_batch_sizes': _RESOLUTION,
    'train_size_probs': _RESOLUTION,
    'train_size_schedule': _RESOLUTION,
    'train_size_schedule_spread': _RESOLUTION,
    'train_size_random_mix': _RESOLUTION,
    'train_batches_per_epoch': ('an epoch is one pass over the data', 'use --epoch-repeats'),
    'variable_batch_loss_scale': _RESOLUTION,
}


def _add_data_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset')
    parser.add_argument('data', nargs='?', metavar='DIR', help='path to dataset (deprecated, use --data-dir)')
    group.add_argument('--data-dir', metavar='DIR', help='path to dataset (root dir)')
    group.add_argument('--dataset', metavar='NAME', default='', help='dataset type + name (default: image folder, tar)')
    group.add_argument('--train-split', metavar='NAME', default='train', help='dataset train split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split, or ""')
    group.add_argument('--train-num-samples', type=int, metavar='N', help='training samples, for streams')
    group.add_argument('--val-num-samples', type=int, metavar='N', help='validation samples, for streams')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ datasets download')
    group.add_argument('--class-map', default='', metavar='FILENAME', help='class to index mapping file')
    group.add_argument('--input-img-mode', help='image conversion mode (default: RGB, or L for one channel)')
    group.add_argument('--input-key', help='dataset key for input images')
    group.add_argument('--target-key', help='dataset key for target labels')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help="run the dataset repository's own code")
    group.add_argument(
        '--eval-suites', metavar='NAME=DATA', nargs='+', default=[],
        help='suites to evaluate student and teacher on at the end: NAME=PATH (an image folder, or a published name as '
        'of timm-dad evaluate) or demo/STYLE',
    )  # fmt: skip
    group.add_argument(
        '--eval-suites-interval', type=int, default=0, metavar='N',
        help='epochs between two evaluations of the student on them (default: at the end alone)',
    )  # fmt: skip


def _add_model_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    group.add_argument('--model', metavar='MODEL', default='resnet50', help='name of the student')
    group.add_argument('--pretrained', action='store_true', help='start from pretrained weights')
    group.add_argument('--pretrained-path', help='load this checkpoint as if it were the pretrained weights')
    group.add_argument('--initial-checkpoint', metavar='PATH', default='', help='load this checkpoint into the model')
    group.add_argument(
        '--resume', metavar='PATH', default='',
        help='resume a checkpoint, bit by bit; "auto": the newest of --output/--experiment, if there is one',
    )  # fmt: skip
    group.add_argument('--no-resume-opt', action='store_true', help='do not resume the optimizer')
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes (default: of the model)')
    group.add_argument('--gp', metavar='POOL', help='global pool type: fast, avg, max, avgmax, avgmaxc')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: of the model)')
    group.add_argument('--in-chans', type=int, metavar='N', help='image channels (default: 3)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='input dimensions (d h w)')
    group.add_argument('--crop-pct', type=float, metavar='N', help='center crop fraction in validation')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='override mean pixel value')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='override standard deviation')
    group.add_argument('--interpolation', default='', metavar='NAME', help='resize interpolation in validation')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='images a process and step')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='the same, in validation')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group.add_argument('--fuser', default='', help='jit fuser: te, old or nvfuser')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches an update')
    group.add_argument('--grad-checkpointing', action='store_true', help='trade compute for memory')
    group.add_argument('--fast-norm', action='store_true', help='norm layers in the low precision of --amp')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='arguments of the model')
    group.add_argument('--head-init-scale', type=float, help='scale of the initial head')
    group.add_argument('--head-init-bias', type=float, help='initial bias of the head')
    group.add_argument('--torchcompile-mode', metavar='MODE', help='mode of --torchcompile')
    scripting = group.add_mutually_exclusive_group()
    scripting.add_argument('--torchscript', action='store_true', help=argparse.SUPPRESS)
    scripting.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the student')
    group = parser.add_argument_group('Device')
    group.add_argument('--device', default='cuda', help='cuda (the CPU where there is none) or cpu')
    group.add_argument('--amp', action='store_true', help='mixed precision for the student')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')
    group.add_argument('--model-dtype', choices=('float32', 'float16', 'bfloat16'), help='precision of the weights')
    group.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    group.add_argument('--synchronize-step', action='store_true', help='wait for the device after each step')
    group.add_argument('--local_rank', default=0, type=int, help='set by old launchers; must be what they say')
    group.add_argument('--device-modules', nargs='+', help=argparse.SUPPRESS)


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
    group.add_argument('--layer-decay-min-scale', type=float, default=0, help='its lowest scale')
    group.add_argument('--layer-decay-no-opt-scale', type=float, help='layers below this scale are not trained')
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, help='arguments of the optimizer')
    group = parser.add_argument_group('Learning rate schedule')
    group.add_argument('--sched', default='cosine', metavar='SCHEDULER', help='schedule')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule each update')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate, overrides --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='rate at --lr-base-size images a step')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='DIV', help='batch size of --lr-base')
    group.add_argument(
        '--lr-base-scale', default='', choices=('', 'linear', 'sqrt'), metavar='SCALE',
        help='scaling with batch size: linear or sqrt (default: by --opt)',
    )  # fmt: skip
    group.add_argument('--lr-noise', type=float, nargs='+', metavar='PCT', help='noise on/off, fractions of the epochs')
    group.add_argument('--lr-noise-pct', type=float, default=0.67, metavar='PERCENT', help='its limit')
    group.add_argument('--lr-noise-std', type=float, default=1.0, metavar='STDDEV', help='its standard deviation')
    group.add_argument('--lr-cycle-mul', type=float, default=1.0, metavar='MULT', help='growth of cycle lengths')
    group.add_argument('--lr-cycle-decay', type=float, default=0.5, metavar='MULT', help='decay of each cycle')
    group.add_argument('--lr-cycle-limit', type=int, default=1, metavar='N', help='cycles')
    group.add_argument('--lr-k-decay', type=float, default=1.0, help='k-decay of cosine and poly')
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='first learning rate')
    group.add_argument('--min-lr', type=float, default=0, metavar='LR', help='lowest learning rate')
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='epochs')
    group.add_argument('--epoch-repeats', type=float, default=0.0, metavar='N', help='passes an epoch, for streams')
    group.add_argument('--start-epoch', type=int, metavar='N', help='start here, whatever a checkpoint says')
    group.add_argument(
        '--decay-milestones', default=[90, 180, 270], type=int, nargs='+', metavar='N', help='epochs of multistep'
    )
    group.add_argument('--decay-epochs', type=float, default=90, metavar='N', help='epochs between steps')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up')
    group.add_argument('--warmup-prefix', action='store_true', help='add the warm-up to the epochs')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at --min-lr at the end')
    group.add_argument('--patience-epochs', type=int, default=10, metavar='N', help='patience of plateau')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='decay of the rate')


def _add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Augmentation and regularization')
    group.add_argument('--no-aug', action='store_true', help='no augmentation')
    group.add_argument('--train-crop-mode', metavar='NAME', help='rrc (random resized crop), rkrc or rkrr')
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', help='area of crops')
    group.add_argument('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3], metavar='RATIO', help='their aspect')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='PCT', help='color jitter')
    group.add_argument('--color-jitter-prob', type=float, metavar='PCT', help='its probability')
    group.add_argument('--grayscale-prob', type=float, metavar='PCT', help='probability of grayscale')
    group.add_argument('--gaussian-blur-prob', type=float, metavar='PCT', help='probability of blur')
    group.add_argument('--aa', metavar='NAME', help='AutoAugment, RandAugment or AugMix policy, rand-m9-mstd0.5-inc1')
    group.add_argument('--aug-repeats', type=float, default=0, help='repeated augmentation (several processes only)')
    group.add_argument('--aug-splits', type=int, default=0, help='augmentation splits: 0, or 2 and more')
    group.add_argument('--jsd-loss', action='store_true', help='Jensen-Shannon divergence + CE, with --aug-splits')
    group.add_argument('--bce-loss', action='store_true', help='binary cross-entropy')
    group.add_argument('--bce-sum', action='store_true', help='its sum over classes')
    group.add_argument('--bce-target-thresh', type=float, help='its threshold for softened targets')
    group.add_argument('--bce-pos-weight', type=float, help='its weight of positives')
    group.add_argument('--reprob', type=float, default=0.0, metavar='PCT', help='probability of random erasing')
    group.add_argument('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='what it fills in')
    group.add_argument('--recount', type=int, default=1, help='its regions')
    group.add_argument('--resplit', action='store_true', help='do not erase in the first augmentation split')
    group.add_argument('--mixup', type=float, default=0.0, help='mixup alpha')
    group.add_argument('--cutmix', type=float, default=0.0, help='cutmix alpha')
    group.add_argument('--cutmix-minmax', type=float, nargs='+', help='cutmix ratio from and to, in place of alpha')
    group.add_argument('--mixup-prob', type=float, default=1.0, help='probability of mixup or cutmix')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, help='probability of cutmix if both are on')
    group.add_argument('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem'), help='what shares a draw')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixup from this epoch on')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group.add_argument('--train-interpolation', default='random', help='random, bilinear, bicubic')
    group.add_argument('--drop', type=float, default=0.0, metavar='PCT', help='dropout')
    group.add_argument('--drop-connect', type=float, metavar='PCT', help='deprecated, use --drop-path')
    group.add_argument('--drop-path', type=float, metavar='PCT', help='stochastic depth')
    group.add_argument('--drop-block', type=float, metavar='PCT', help='drop block')
    group = parser.add_argument_group('Batch norm')
    group.add_argument('--bn-momentum', type=float, help='momentum')
    group.add_argument('--bn-eps', type=float, help='epsilon')
    group.add_argument('--sync-bn', action='store_true', help='statistics over all processes (GPU only)')
    group.add_argument(
        '--dist-bn', default='reduce', choices=('broadcast', 'reduce', ''),
        help='distribute statistics over processes after each epoch',
    )  # fmt: skip
    group.add_argument('--split-bn', action='store_true', help='batch norm of its own for each split and the DAD view')
    group = parser.add_argument_group('Model exponential moving average')
    group.add_argument('--model-ema', action='store_true', help='track a moving average, and evaluate it')
    group.add_argument('--model-ema-force-cpu', action='store_true', help='keep it on the CPU, and do not evaluate it')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, help='its decay')
    group.add_argument('--model-ema-warmup', action='store_true', help='warm its decay up')


def _add_kd_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("timm's knowledge distillation", 'Without --dad.')
    group.add_argument('--kd-model-name', metavar='MODEL', help='name of the timm teacher')
    group.add_argument('--kd-distill-type', default='logit', choices=['logit', 'feature', 'token'], help='what of it')
    group.add_argument('--kd-loss-type', default='kl', help='loss on logits: kl')
    group.add_argument('--distill-loss-weight', type=float, help='weight of the distillation loss')
    group.add_argument('--task-loss-weight', type=float, help='weight of the task loss')
    group.add_argument('--kd-temperature', default=4.0, type=float, help='temperature')
    group.add_argument('--kd-student-feature-dim', type=int, help='feature dimension of the student')
    group.add_argument('--kd-teacher-feature-dim', type=int, help='feature dimension of the teacher')
    group.add_argument('--kd-token-distill-type', default='soft', choices=['soft', 'hard'], help='soft (KL) or hard')


def _add_misc_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Miscellaneous')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed')
    group.add_argument('--worker-seeding', default='all', choices=('all', 'part'), help='worker seed mode')
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between two log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between two validations')
    group.add_argument(
        '--dad-overlap', action='store_true',
        help='make the DAD views of the next batch on a CUDA stream of their own, while the student is at this one',
    )  # fmt: skip
    group.add_argument(
        '--dad-preview-interval', type=int, default=0, metavar='N',
        help='epochs between two preview sheets of DAD views, to folder and trackers (default: one at the end)',
    )  # fmt: skip
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery files')
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    group.add_argument('--save-images', action='store_true', help='save a batch as a picture every --log-interval')
    group.add_argument('--pin-mem', action='store_true', help='pin memory in the data loader')
    group.add_argument(
        '--no-prefetcher', action='store_true', help='normalize and mix in the loader, not on the device'
    )
    group.add_argument('--output', default='', metavar='PATH', help='output folder (default: ./output/train)')
    group.add_argument('--experiment', default='', metavar='NAME', help='its sub-folder (default: time and model)')
    group.add_argument('--eval-metric', default='top1', choices=('top1', 'top5', 'loss'), help='what "best" means')
    group.add_argument('--use-multi-epochs-loader', action='store_true', help='loader processes live over epochs')
    group.add_argument('--log-wandb', action='store_true', help='the same as --log-with wandb')
    group.add_argument('--wandb-project', help='wandb project (default: timm-dad)')
    group.add_argument('--wandb-tags', default=[], nargs='+', help='wandb tags')
    group.add_argument('--wandb-resume-id', default='', metavar='ID', help='wandb run to go on with, with --resume')
    group.add_argument('--log-with', default='', metavar='NAMES', help='trackers of Accelerate: tensorboard,wandb')


def _add_refused_args(parser: argparse.ArgumentParser) -> None:
    """Flags of timm that end with an error; here so that they do not end as unknown."""
    ints: dict[str, Any] = {'type': int, 'nargs': '+'}
    floats: dict[str, Any] = {'type': float, 'nargs': '+'}
    scales = ('none', 'sqrt', 'linear')
    refused: dict[str, dict[str, Any]] = {
        'tta': {'type': int, 'default': 0},
        'naflex_loader': {'action': 'store_true'},
        'naflex_train_seq_lens': {**ints, 'default': [128, 256, 576, 784, 1024]},
        'naflex_max_seq_len': {'type': int, 'default': 576},
        'naflex_patch_sizes': ints,
        'naflex_patch_size_probs': floats,
        'naflex_loss_scale': {'default': 'linear', 'choices': scales},
        'naflex_patchify_channels_first': {'action': 'store_true'},
        'train_img_sizes': ints,
        'train_batch_sizes': ints,
        'train_size_probs': floats,
        'train_size_schedule': {'default': 'constant', 'choices': ('constant', 'progressive')},
        'train_size_schedule_spread': {'type': float, 'default': 0.65},
        'train_size_random_mix': {'type': float, 'default': 0.1},
        'train_batches_per_epoch': {'type': int},
        'variable_batch_loss_scale': {'default': 'none', 'choices': scales},
    }
    for name, options in refused.items():
        names = ['--' + name.replace('_', '-')]
        if name == 'train_batches_per_epoch':
            names.append('--train-steps-per-epoch')
        parser.add_argument(*names, help=argparse.SUPPRESS, **options)


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``train_dad.py``."""
    parser = argparse.ArgumentParser(
        prog='train_dad.py',
        usage='%(prog)s [--data-dir DIR] [--model MODEL] [--dad ...] [flags]',
        description='timm training with Discrete Adversarial Distillation. Without data, the embedded demo.',
        allow_abbrev=False,
    )
    parser.add_argument('-c', '--config', default='', metavar='FILE', help='YAML file with defaults for these flags')
    adders = (
        _add_data_args,
        _add_model_args,
        _add_optimizer_args,
        _add_augmentation_args,
        _add_kd_args,
        _add_misc_args,
    )
    for add in adders:
        add(parser)
    _add_refused_args(parser)
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
    for action in parser._actions:
        value = config.get(action.dest)
        if value is None or isinstance(action, argparse.BooleanOptionalAction | ParseKwargs):
            continue
        for entry in value if isinstance(value, list) else [value]:
            wrong = action.choices is not None and entry not in action.choices
            wrong |= action.type is int and not isinstance(entry, int)
            wrong |= action.type is float and not isinstance(entry, int | float)
            wrong |= action.nargs == 0 and not isinstance(entry, bool)
            if wrong:
                parser.error(f'--config {path}: {action.dest} has the bad value {entry!r}')
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
    explicit = given_flags(create_parser(), argv)
    config = explicit.get('config', '')
    if not config and not {'data', 'data_dir', 'dataset'} & set(explicit):
        config = str(DEMO_CONFIG)
    from_config = _read_config(parser, config) if config else {}
    parser.set_defaults(**from_config)
    args = parser.parse_args(argv)
    args.config = config
    args.data_dir = args.data_dir or args.data
    defaults = create_parser()
    chosen = {name for name in (*explicit, *from_config) if getattr(args, name) != defaults.get_default(name)}
    if 'device' not in explicit and not torch.cuda.is_available():
        args.device = 'cpu'
    try:
        check_args(args, chosen)
        check_dad_args(args, explicit)
        check_preview_args(args)
        check_overlap_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


_AT_LEAST_1 = """batch_size validation_batch_size grad_accum_steps epochs log_interval val_interval checkpoint_hist
    num_classes img_size recount""".split()
_AT_LEAST_0 = """warmup_epochs cooldown_epochs start_epoch workers recovery_interval mixup cutmix mixup_off_epoch lr
    lr_base weight_decay clip_grad warmup_lr min_lr aug_repeats dad_preview_interval eval_suites_interval""".split()
_FRACTIONS = """hflip vflip reprob smoothing mixup_prob mixup_switch_prob model_ema_decay drop drop_path drop_block
    color_jitter_prob grayscale_prob gaussian_blur_prob""".split()
_LENGTHS = {'scale': 2, 'ratio': 2, 'cutmix_minmax': 2, 'mean': 3, 'std': 3, 'opt_betas': 2}
_INTERPOLATIONS = ('random', 'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


def check_ranges(args: argparse.Namespace) -> None:
    """Check the numbers among timm's flags; ``ValueError`` names flag, rule and value."""
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    for names, rule, holds in (
        (_AT_LEAST_1, '1 or more', lambda value: value >= 1),
        (_AT_LEAST_0, '0 or more', lambda value: value >= 0),
        (_FRACTIONS, 'from 0 to 1', lambda value: 0 <= value <= 1),
        (['std'], 'positive', lambda value: min(value) > 0),
        (['crop_pct'], 'more than 0', lambda value: value > 0),
        (['interpolation', 'train_interpolation'], f'one of {_INTERPOLATIONS}', lambda value: value in _INTERPOLATIONS),
    ):
        for name in names:
            value = getattr(args, name)
            if value not in (None, '') and not holds(value):
                raise ValueError(f'--{name.replace("_", "-")} must be {rule}, got {value}')
    for name, length in _LENGTHS.items():
        value, lengths = getattr(args, name), {length, channels} if length == 3 else {length}
        if value is not None and len(value) not in lengths:
            raise ValueError(f'--{name.replace("_", "-")} takes {length} numbers, got {value}')


def check_args(args: argparse.Namespace, chosen: set[str]) -> None:
    """Check timm's flags before anything is built.

    Args:
        args: All flags.
        chosen: Flags that were set to something else than their default.

    Raises:
        ValueError: If a flag makes no sense here, has a bad value, or lacks the one it depends on.
    """
    for name, (reason, fix) in REFUSED.items():
        if name in chosen:
            raise ValueError(f'--{name.replace("_", "-")} does not work here: {reason}; {fix}')
    check_ranges(args)
    for name, known in (('opt', list_optimizers()), ('sched', SCHEDULES)):
        if getattr(args, name).lower() not in known:
            raise ValueError(f'--{name} must be one of {", ".join(known)}; got {getattr(args, name)!r}')
    mixing = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    splits = f'got --aug-splits {args.aug_splits}'
    rules = (
        (args.aug_splits in (0, *range(2, 100)), f'--aug-splits must be 0, or 2 or more, got {args.aug_splits}'),
        (not args.jsd_loss or args.aug_splits, f'--jsd-loss needs --aug-splits 2 or more, {splits}'),
        (
            not (args.aug_splits and mixing),
            f'--aug-splits does not mix images: leave --mixup and --cutmix out, {splits}',
        ),
        (
            not args.split_bn or args.aug_splits or args.resplit or args.dad,
            '--split-bn needs splits: --aug-splits, --resplit or --dad',
        ),
        (
            not mixing or args.batch_size % 2 == 0,
            f'--mixup and --cutmix need an even --batch-size, got {args.batch_size}',
        ),
        (not (args.jsd_loss and args.bce_loss), '--jsd-loss and --bce-loss exclude each other: leave one out'),
        (not (args.split_bn and args.sync_bn), '--split-bn and --sync-bn exclude each other: leave one out'),
        (not args.bce_loss or mixing or args.smoothing, '--bce-loss needs --smoothing, --mixup or --cutmix'),
        (
            not args.amp or args.model_dtype in (None, 'float32'),
            f'--amp needs --model-dtype float32, got {args.model_dtype}',
        ),
        (not args.wandb_resume_id or args.resume, '--wandb-resume-id needs --resume'),
        (not args.eval_suites_interval or args.eval_suites, '--eval-suites-interval needs --eval-suites'),
        (
            not args.eval_suites or (args.in_chans or (args.input_size[0] if args.input_size else 3)) == 3,
            f'--eval-suites needs images of 3 channels, got --in-chans {args.in_chans}, --input-size {args.input_size}',
        ),
        (
            'local_rank' not in chosen or str(args.local_rank) == os.environ.get('LOCAL_RANK'),
            f'--local_rank must be what the launcher says (LOCAL_RANK), got {args.local_rank}; use torchrun',
        ),
        (args.drop_connect is None, '--drop-connect is deprecated in timm and does nothing there: use --drop-path'),
        (args.device.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {args.device!r}'),
        (
            args.sched != 'plateau' or not args.sched_on_updates,
            '--sched plateau goes by epochs: leave --sched-on-updates out',
        ),
    )
    check_rules(rules)
    if args.torchcompile:
        backends = torch.compiler.list_backends(exclude_tags=())
        if args.torchcompile not in backends:
            raise ValueError(f'--torchcompile must be one of {", ".join(backends)}; got {args.torchcompile!r}')


def check_preview_args(args: argparse.Namespace) -> None:
    """Check that ``--dad-preview-interval`` has DAD views to show, and of which images.

    Raises:
        ValueError: If it has not.
    """
    if not (args.dad and args.dad_preview_interval):
        return
    rules = (
        (
            args.dad_view == 'dad',
            '--dad-preview-interval shows DAD views, and --dad-view random makes none: leave one of them out',
        ),
        (
            not args.dad_dir,
            '--dad-preview-interval shows views that are made in training, and those of --dad-dir are there already: '
            'leave it out, and see images of that data with timm-dad preview',
        ),
        (args.val_split, '--dad-preview-interval shows validation images: it needs --val-split'),
    )
    check_rules(rules)


def check_overlap_args(args: argparse.Namespace) -> None:
    """Check that ``--dad-overlap`` has something to overlap.

    Raises:
        ValueError: If it has not.
    """
    rules = (
        (args.device.startswith('cuda'), f'--dad-overlap needs a CUDA device, got --device {args.device}'),
        (not uses_pairs(args), '--dad-overlap is for DAD views that are made while training: leave it out'),
    )
    if args.dad and args.dad_overlap:
        check_rules(rules)


def torch_dtype(name: str | None) -> torch.dtype:
    """The dtype of ``--model-dtype``; fp32 by default."""
    dtype: torch.dtype = getattr(torch, name or 'float32')
    return dtype
