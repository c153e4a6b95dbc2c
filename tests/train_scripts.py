"""A script like timm's ``train.py``, with the places of DAD's lines and little more; and other versions of it."""

import re

SCRIPT = """
import argparse
import torch
from timm.data import AugMixDataset, FastCollateMixup, create_dataset, create_loader, resolve_data_config
from timm.models import create_model
from timm.task import (
    ClassificationTask,
    load_task_ema_checkpoint,
)


seen = []
batches = []
utils = argparse.Namespace(setup_default_logging=lambda: None)
config_parser = parser = argparse.ArgumentParser(add_help=False)
parser = argparse.ArgumentParser()
for flag in ('kd-model-name', 'in-chans', 'input-size', 'cutmix-minmax'):
    parser.add_argument(f'--{flag}')
for flag in ('naflex-loader', 'no-prefetcher', 'use-multi-epochs-loader', 'split-bn', 'resplit', 'no-aug'):
    parser.add_argument(f'--{flag}', action='store_true')
for flag in ('mixup', 'cutmix', 'reprob', 'mixup-switch-prob', 'smoothing'):
    parser.add_argument(f'--{flag}', type=float, default=0)
parser.add_argument('--aug-splits', type=int, default=0)
parser.add_argument('--mixup-prob', type=float, default=1)
parser.add_argument('--mixup-mode', default='batch')
parser.add_argument('--data-dir')
parser.add_argument('--epochs', type=int, default=3)
parser.add_argument('--seed', type=int, default=42)
parser.add_argument('--batch-size', type=int, default=8)
parser.add_argument('--num-classes', type=int, default=4)


def _parse_args():
    return parser.parse_args(), 'text'


def main():
    utils.setup_default_logging()
    args, args_text = _parse_args()

    assert args_text == 'text'
    torch.manual_seed(0)
    device = torch.device('cpu')
    model = create_model('test_resnet', num_classes=args.num_classes)
    data_config = resolve_data_config(
        {'img_size': 32, 'mean': (0.4, 0.5, 0.6), 'std': (0.3, 0.2, 0.1)}, model=model, verbose=False
    )
    common = {name: data_config[name] for name in ('mean', 'std')}
    common.update(batch_size=args.batch_size, num_workers=0, persistent_workers=False, device=device)
    common.update(use_prefetcher=not args.no_prefetcher)
    dataset_train, dataset_eval = (create_dataset('', args.data_dir, split=split) for split in ('train', 'validation'))
    collate_fn = None
    if args.mixup and not args.no_prefetcher:
        collate_fn = FastCollateMixup(mixup_alpha=args.mixup, num_classes=args.num_classes)
    if args.naflex_loader:
        raise NotImplementedError
    else:
        if args.aug_splits > 1:
            dataset_train = AugMixDataset(dataset_train, num_splits=args.aug_splits)

        # Use standard loader
        loader_train = create_loader(
            dataset_train,
            input_size=data_config['input_size'],
            is_training=True,
            no_aug=args.no_aug,
            num_aug_splits=args.aug_splits,
            collate_fn=collate_fn,
            **common,
        )
    loader_eval = create_loader(dataset_eval, data_config['input_size'], is_training=False, **common)
    train_loss_fn = torch.nn.CrossEntropyLoss()

    # Setup training task (classification or distillation)
    if args.kd_model_name is not None:
        # Create distillation task (teacher created internally from model name)
        raise NotImplementedError
    else:
        # Standard classification task
        task = ClassificationTask(
            model=model,
            criterion=train_loss_fn,
            device=device,
            dtype=None,
            verbose=True,
        )

    try:
        for epoch in range(args.epochs):
            model.train()

            train_metrics = train_one_epoch(
                epoch,
                model,
                loader_train,
                task=task,
            )
    except KeyboardInterrupt:
        pass
    seen.append((len(next(iter(loader_eval))[0]), task))


def train_one_epoch(epoch, model, loader, task=None):
    input, target = next(iter(loader))
    result = task(input, target)
    result['loss'].backward()
    seen.append((epoch, len(input), getattr(task, 'dad_weight', None)))
    batches.append((input, target, {name: value.detach() for name, value in result.items()}))


if __name__ == '__main__':
    main()
"""

# What timm's script of October 2026 does otherwise at these places (commit 3c467449): the task makes the loss.
OCTOBER = (
    SCRIPT.replace('    train_loss_fn = torch.nn.CrossEntropyLoss()', "    loss_kwargs = {'loss_type': 'poly'}")
    .replace('            criterion=train_loss_fn,\n', '')
    .replace('            verbose=True,\n', '            verbose=True,\n            criterion_kwargs=loss_kwargs,\n')
    .replace(
        '    else:\n        # Standard',
        "    elif args.task == 'multilabel':\n        raise NotImplementedError\n    else:\n        # Standard",
    )
    .replace('\nfor flag in', "\nparser.add_argument('--task', default='classification')\nfor flag in", 1)
)

_NAMES = {
    'parser': 'flag_parser', 'args': 'options', 'dataset_train': 'pictures', 'data_config': 'config',
    'task': 'training', 'loader_train': 'batches_train', 'collate_fn': 'collate', 'epoch': 'number',
}  # fmt: skip


def renamed(script=SCRIPT):
    """The script with other names for the variables of its ``main``; those of keywords stay."""
    before, function, after = script.partition('def train_one_epoch')
    for old, new in _NAMES.items():
        before = re.sub(rf"(?<![\w.'-]){old}\b(?!=[^ =])", new, before)
    return before + function + after


_before, _main, _end = re.split(r'^(?=def main|def train_one_epoch)', SCRIPT, flags=re.MULTILINE)
VERSIONS = {
    'the same': SCRIPT,
    'October 2026': OCTOBER,
    'other names': renamed(),
    'lines added': re.sub(
        r'\n( +)(?=(?:args|loader_train|task|train_metrics)\b.* = )', r'\n\1# new\n\1new = 1\n\1', SCRIPT
    ),
    'comments out': re.sub(r'\n *# .*', '', SCRIPT),
    'a function moved': _before + _end.replace('\n\nif __name__', f'\n\n{_main}\nif __name__'),
    'a call on one line': SCRIPT.replace(
        'create_loader(\n            dataset_train,\n', 'create_loader(dataset_train,\n'
    ),
    'a name of a module': SCRIPT.replace(' ClassificationTask(', ' timm.task.ClassificationTask(').replace(
        'import torch\n', 'import timm\nimport torch\n', 1
    ),
}
