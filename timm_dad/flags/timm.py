"""Flags with the names, defaults and meanings of timm's ``train.py``, and the trainer's own beside them.

timm's own parser is in a script that no wheel contains, so its flags are repeated here; ``test_train_args.py``
compares them with a checkout.
"""

import argparse
from typing import Any

from timm.utils import ParseKwargs

from timm_dad.flags.augmentation import add_mixing_args, add_transform_args
from timm_dad.flags.data import add_source_args
from timm_dad.flags.execution import WORKERS, add_device_arg
from timm_dad.flags.losses import add_loss_args
from timm_dad.flags.rules import written
from timm_dad.flags.schedule import add_schedule_args
from timm_dad.flags.sizes import add_size_args
from timm_dad.flags.task import METRICS, add_task_args

_NAFLEX = ('NaFlex batches are patches, but the DAD view is made from images', 'use --img-size')
_BATCH_SIZES = (
    'every batch has --batch-size images, by which a resumed run finds its place',
    "use --train-img-sizes without it, or timm's own train.py with `timm-dad run`",
)
# timm's flags that make no sense here: their default, why, and what to do instead.
REFUSED: dict[str, tuple[Any, str, str]] = {
    'torchscript': (False, 'PyTorch deprecates TorchScript', 'use --torchcompile'),
    'device_modules': (None, 'Accelerate chooses the device', 'run `accelerate config`'),
    'tta': (0, "timm's loaders make no copies of an image, so it would average different images", 'leave it out'),
    'train_batches_per_epoch': (None, 'an epoch is one pass over the data', 'use --epoch-repeats'),
    'naflex_loader': (False, *_NAFLEX),
    'naflex_train_seq_lens': ([128, 256, 576, 784, 1024], *_NAFLEX),
    'naflex_max_seq_len': (576, *_NAFLEX),
    'naflex_patch_sizes': (None, *_NAFLEX),
    'naflex_patch_size_probs': (None, *_NAFLEX),
    'naflex_loss_scale': ('linear', *_NAFLEX),
    'naflex_patchify_channels_first': (False, *_NAFLEX),
    'train_batch_sizes': (None, *_BATCH_SIZES),
    'variable_batch_loss_scale': ('none', *_BATCH_SIZES),
}


def add_timm_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser, in groups."""
    adders = (
        _add_data_args, _add_model_args, _add_optimizer_args, _add_augmentation_args, _add_kd_args, _add_misc_args,
        _add_refused_args,
    )  # fmt: skip
    for add in adders:
        add(parser)


def _add_data_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset')
    parser.add_argument('data', nargs='?', metavar='DIR', help='path to dataset (deprecated, use --data-dir)')
    add_source_args(group, 'train', '--train-split')
    add_task_args(group)
    group.add_argument('--val-split', metavar='NAME', default='validation', help='dataset validation split, or ""')
    group.add_argument('--train-num-samples', type=int, metavar='N', help='number of training samples, for streams')
    group.add_argument('--val-num-samples', type=int, metavar='N', help='number of validation samples, for streams')
    group.add_argument('--input-img-mode', help='image conversion mode (default: RGB, or L for one channel)')
    group.add_argument(
        '--eval-suites', metavar='NAME=DATA', nargs='+', default=[],
        help='suites to evaluate student and teacher on at the end: NAME=PATH (an image folder, or a published name as '
        'of timm-dad evaluate) or demo/STYLE',
    )  # fmt: skip
    group.add_argument(
        '--eval-suites-interval', type=int, default=0, metavar='N',
        help='epochs between evaluations of the student on the suites (default: only at the end)',
    )  # fmt: skip


def _add_model_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    group.add_argument('--model', metavar='MODEL', default='resnet50', help='name of the student')
    group.add_argument('--pretrained', action='store_true', help='start from pretrained weights')
    group.add_argument('--pretrained-path', help='load this checkpoint as if it were the pretrained weights')
    group.add_argument(
        '--pretrained-cfg-overlay', nargs='*', default={}, action=_KeyValues, help='entries of the pretrained_cfg'
    )
    group.add_argument('--initial-checkpoint', metavar='PATH', default='', help='load this checkpoint into the model')
    group.add_argument(
        '--resume', metavar='PATH', default='',
        help='resume from a checkpoint, bit-exactly; "auto": from the newest in --output/--experiment, if any',
    )  # fmt: skip
    group.add_argument('--no-resume-opt', action='store_true', help='do not resume the optimizer')
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes (default: that of the model)')
    group.add_argument('--gp', metavar='POOL', help='global pool type: fast, avg, max, avgmax, avgmaxc')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: that of the model)')
    add_size_args(group)
    group.add_argument('--in-chans', type=int, metavar='N', help='image channels (default: 3)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='input dimensions (d h w)')
    group.add_argument('--crop-pct', type=float, metavar='N', help='center crop fraction in validation')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='override mean pixel value')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='override standard deviation')
    group.add_argument('--interpolation', default='', metavar='NAME', help='resize interpolation in validation')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='images per process and step')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='the same, in validation')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group.add_argument('--fuser', default='', help='jit fuser: te, old or nvfuser')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches per update')
    group.add_argument('--grad-checkpointing', action='store_true', help='trade compute for memory')
    group.add_argument('--fast-norm', action='store_true', help='run norm layers in the low precision of --amp')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=_KeyValues, help='arguments of the model')
    group.add_argument('--head-init-scale', type=float, help='scale of the initial head')
    group.add_argument('--head-init-bias', type=float, help='initial bias of the head')
    group.add_argument('--torchcompile-mode', metavar='MODE', help='mode of --torchcompile')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the student')
    group = parser.add_argument_group('Device')
    add_device_arg(group)
    group.add_argument('--amp', action='store_true', help='mixed precision for the student')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='precision of --amp')
    group.add_argument('--model-dtype', choices=('float32', 'float16', 'bfloat16'), help='precision of the weights')
    group.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    group.add_argument('--synchronize-step', action='store_true', help='wait for the device after each step')
    group.add_argument('--local_rank', default=0, type=int, help='set by old launchers; must match them')


def _add_optimizer_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Optimizer')
    group.add_argument('--opt', default='sgd', metavar='OPTIMIZER', help='optimizer')
    group.add_argument('--opt-eps', type=float, metavar='EPSILON', help='epsilon of the optimizer')
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='BETA', help='betas of the optimizer')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M', help='momentum of the optimizer')
    group.add_argument('--weight-decay', type=float, default=2e-5, help='weight decay')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='clip gradients')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='how to clip')
    group.add_argument('--layer-decay', type=float, help='layer-wise learning rate decay')
    group.add_argument('--layer-decay-min-scale', type=float, default=0, help='lowest scale of --layer-decay')
    group.add_argument('--layer-decay-no-opt-scale', type=float, help='layers below this scale are not trained')
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=_KeyValues, help='arguments of the optimizer')
    add_schedule_args(parser.add_argument_group('Learning rate schedule'))


def _add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Augmentation and regularization')
    group.add_argument('--no-aug', action='store_true', help='no augmentation')
    add_transform_args(group)
    group.add_argument('--aug-repeats', type=float, default=0, help='repeated augmentation (several processes only)')
    group.add_argument('--aug-splits', type=int, default=0, help='augmentation splits: 0, or 2 and more')
    add_loss_args(group)
    group.add_argument('--resplit', action='store_true', help='do not erase in the first augmentation split')
    add_mixing_args(group)
    group.add_argument('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem'), help='what shares a draw')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixup from this epoch on')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group.add_argument('--drop', type=float, default=0.0, metavar='PCT', help='dropout')
    group.add_argument('--drop-connect', type=float, metavar='PCT', help='deprecated, use --drop-path')
    group.add_argument('--drop-path', type=float, metavar='PCT', help='stochastic depth')
    group.add_argument('--drop-block', type=float, metavar='PCT', help='drop block')
    group = parser.add_argument_group('Batch norm')
    group.add_argument('--bn-momentum', type=float, help='momentum')
    group.add_argument('--bn-eps', type=float, help='epsilon')
    group.add_argument('--sync-bn', action='store_true', help='compute statistics over all processes (GPU only)')
    group.add_argument(
        '--dist-bn', default='reduce', choices=('broadcast', 'reduce', ''),
        help='distribute statistics over processes after each epoch',
    )  # fmt: skip
    group.add_argument('--split-bn', action='store_true', help='separate batch norm for each split and the DAD view')
    group = parser.add_argument_group('Model exponential moving average')
    group.add_argument('--model-ema', action='store_true', help='track a moving average, and evaluate it')
    group.add_argument('--model-ema-force-cpu', action='store_true', help='keep it on the CPU, and do not evaluate it')
    group.add_argument('--model-ema-force-fp32', action='store_true', help='keep it in fp32 for a bfloat16 model')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, help='decay of the moving average')
    group.add_argument('--model-ema-warmup', action='store_true', help='warm up the decay')


def _add_kd_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("timm's knowledge distillation", 'Without --dad.')
    group.add_argument('--kd-model-name', metavar='MODEL', help='name of the timm teacher')
    group.add_argument('--kd-distill-type', default='logit', choices=['logit', 'feature', 'token'], help='what to use')
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
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between validations')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery files')
    group.add_argument(
        '--save-epochs', type=int, nargs='+', default=[], metavar='N', help='keep milestone-N after these epochs'
    )
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='number of checkpoints to keep')
    group.add_argument('-j', '--workers', type=int, default=WORKERS, metavar='N', help='data loading processes')
    group.add_argument('--save-images', action='store_true', help='save a batch as a picture every --log-interval')
    group.add_argument('--pin-mem', action='store_true', help='pin memory in the data loader')
    group.add_argument(
        '--no-prefetcher', action='store_true', help='normalize and mix in the loader, not on the device'
    )
    group.add_argument('--output', default='', metavar='PATH', help='output folder (default: ./output/train)')
    group.add_argument('--experiment', default='', metavar='NAME', help='its sub-folder (default: time and model)')
    group.add_argument(
        '--eval-metric', default='top1', choices=('top1', 'top5', *METRICS, 'loss'),
        help='metric that defines the best checkpoint (default: %(default)s; with --task multilabel map)',
    )  # fmt: skip
    group.add_argument('--use-multi-epochs-loader', action='store_true', help='keep loader processes between epochs')
    group.add_argument(
        '--persistent-workers', action=argparse.BooleanOptionalAction, default=False,
        help='the same, in any loader; samples are as with new processes',
    )  # fmt: skip
    group.add_argument('--log-wandb', action='store_true', help='same as --log-with wandb')
    group.add_argument('--wandb-project', help='wandb project (default: timm-dad)')
    group.add_argument('--wandb-tags', default=[], nargs='+', help='wandb tags')
    group.add_argument('--wandb-resume-id', default='', metavar='ID', help='wandb run to continue, with --resume')
    group.add_argument('--log-with', default='', metavar='NAMES', help='trackers of Accelerate: tensorboard,wandb')


class _KeyValues(ParseKwargs):  # type: ignore[misc]  # timm is not typed
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, MemoryError, RecursionError) as error:
            raise argparse.ArgumentError(self, f'must be KEY=VALUE ..., got {" ".join(values)!r}') from error


def _add_refused_args(parser: argparse.ArgumentParser) -> None:
    """Add timm's flags that are refused, so that they are not reported as unknown and a config may name them."""
    for name, (default, *_) in REFUSED.items():
        aliases = ['--train-steps-per-epoch'] if name == 'train_batches_per_epoch' else []
        values: dict[str, Any] = {'action': 'store_true'} if default is False else {'nargs': '*', 'default': default}
        parser.add_argument(written(name), *aliases, help=argparse.SUPPRESS, **values)
