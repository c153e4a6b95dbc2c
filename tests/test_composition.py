"""DAD together with timm's features: a walk over all pairs of them, the DAD view in each, schedules, data sets."""

import copy
import importlib.util
import itertools
import json
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from dad_sets import stored_logits, write_taught_set
from folders import CLASSES, write_pictures
from timm.data import create_dataset as create_timm_dataset
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.loader import PrefetchLoader
from timm.data.mixup import FastCollateMixup, Mixup
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath, SplitBatchNorm2d, convert_splitbn_model
from timm.loss import JsdCrossEntropy
from timm.utils import unwrap_model
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import IterableDataset

import train_dad
from timm_dad.flags import data as flags_data
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.splits import add_splits
from timm_dad.method.task import DADTask

DOCS = Path(train_dad.__file__).parent / 'docs' / 'composition.md'
TASK_WEIGHT, KD_WEIGHT, DAD_WEIGHT = 0.9, 0.6, 0.7
LR, SMOOTHING, CLIP_NORM, CLIP_VALUE, AGC = 0.01, 0.1, 0.01, 1e-4, 0.001

# One update of 8 pictures, every random draw seeded.
BASE = {
    **{'--experiment': 'run', '--num-classes': '4', '--img-size': '32', '--val-split': '', '--workers': '0'},
    **{'--mean': '0.5 0.5 0.5', '--std': '0.5 0.5 0.5', '--batch-size': '8', '--epochs': '1', '--warmup-epochs': '0'},
    **{'--opt': 'adamw', '--lr': str(LR), '--smoothing': '0', '--dad': True, '--dad-teacher': 'demo'},
    **{'--dad-vqgan': 'demo', '--dad-task-weight': str(TASK_WEIGHT), '--dad-kd-weight': str(KD_WEIGHT)},
    '--dad-weight': str(DAD_WEIGHT),
}
# Untrained ResNets of timm multiply residual branches by zero, so that their weights get no gradient.
STUDENTS = ({'--model': 'test_resnet', '--model-kwargs': 'zero_init_last=False'}, {'--model': 'test_vit'})

DAD_DIR = {'--dad-dir': '{dad_set}', '--dad-vqgan': None, '--dad-teacher': None}

FEATURES = {
    'randaugment': {'--aa': 'rand-m9-mstd0.5-inc1'},
    'autoaugment': {'--aa': 'original'},
    'augmix': {'--aa': 'augmix-m3-w2', '--aug-splits': '3', '--jsd-loss': True},
    'splits': {'--aug-splits': '2'},
    'split_bn': {'--split-bn': True},
    'mixup': {'--mixup': '0.8'},
    'cutmix': {'--cutmix': '1.0'},
    'no_prefetcher': {'--no-prefetcher': True},
    'erasing': {'--reprob': '1', '--remode': 'pixel'},
    'smoothing': {'--smoothing': str(SMOOTHING)},
    'bce': {'--bce-loss': True, '--smoothing': str(SMOOTHING)},
    'repeats': {'--aug-repeats': '2'},
    'accumulation': {'--batch-size': '4', '--grad-accum-steps': '2'},
    'clip_norm': {'--clip-grad': str(CLIP_NORM), '--clip-mode': 'norm'},
    'clip_value': {'--clip-grad': str(CLIP_VALUE), '--clip-mode': 'value'},
    'clip_agc': {'--clip-grad': str(AGC), '--clip-mode': 'agc'},
    'ema': {'--model-ema': True, '--model-ema-decay': '0.5', '--epochs': '3'},
    'layer_decay': {'--layer-decay': '0.5'},
    'channels_last': {'--channels-last': True},
    'sync_bn': {'--sync-bn': True},
    'compile': {'--torchcompile': 'eager'},
    'bf16': {'--amp': True, '--amp-dtype': 'bfloat16'},
    'fp16': {'--amp': True, '--amp-dtype': 'float16'},
    'drop_path': {'--drop-path': '0.2'},
    'prob': {'--dad-prob': '0.5', '--epochs': '3'},
    'warmup': {'--dad-warmup-epochs': '2', '--epochs': '3'},
    'off_epoch': {'--dad-off-epoch': '2', '--epochs': '3'},
    'eps_sched': {'--dad-eps-sched': 'linear', '--dad-eps-start': '0.1', '--dad-eps': '0.4', '--epochs': '3'},
    'cache': {'--dad-cache': '2'},
    'random_view': {'--dad-view': 'random', '--dad-vqgan': None},
    'dad_dir': DAD_DIR,
    'same_crop': {**DAD_DIR, '--dad-same-crop': True},
    'stored_logits': {**DAD_DIR, '--dad-stored-logits': True, '--no-aug': True},
}
SPLITS, MIXES, SETS = {'augmix', 'splits'}, {'mixup', 'cutmix'}, {'dad_dir', 'same_crop', 'stored_logits'}
PAIRS = {'cache', 'random_view', *SETS}

# Which exclude each other, and what the error says; the first that fits is raised.
EXCLUDED = (
    (SPLITS, MIXES, r'--aug-splits does not mix images: leave --mixup and --cutmix out'),
    ({'split_bn'}, {'sync_bn'}, r'--split-bn and --sync-bn exclude each other'),
    ({'augmix'}, {'bce'}, r'--jsd-loss and --bce-loss exclude each other'),
    ({'random_view'}, {'eps_sched'}, r'--dad-eps-sched shapes the DAD view and needs --dad-view dad'),
    ({'random_view'}, {'cache'}, r'--dad-cache shapes the DAD view and needs --dad-view dad'),
    ({'cache'}, {'eps_sched'}, r'--dad-eps-sched .*give --dad-cache 0'),
    (SETS, {'random_view'}, r'--dad-dir provides DAD views: leave either --dad-view random or --dad-dir out'),
    (SETS, {'cache'}, r'--dad-cache makes DAD views, which --dad-dir already provides: give only one of them'),
    (SETS, {'eps_sched'}, r'--dad-eps-sched was fixed when the DAD set was made'),
    ({'stored_logits'}, {'mixup'}, r'--dad-stored-logits are for unaugmented pictures: leave --mixup out'),
    ({'stored_logits'}, {'cutmix'}, r'--dad-stored-logits are for unaugmented pictures: leave --cutmix out'),
    ({'stored_logits'}, {'erasing'}, r'--dad-stored-logits are for unaugmented pictures: leave --reprob out'),
    ({'stored_logits'}, SPLITS, r'--dad-stored-logits are for unaugmented pictures: leave --aug-splits out'),
    ({'split_bn'}, {'prob', 'warmup', 'off_epoch'}, r'--split-bn needs a DAD view in every batch: leave --dad-prob'),
    ({'sync_bn'}, set(FEATURES), r'--sync-bn needs GPUs'),
    ({'repeats'}, set(FEATURES), r'--aug-repeats needs several processes'),
)

# Where two features meet in one place of the code: walked always.
OFTEN = [
    *({'no_prefetcher', other} for other in (*SPLITS, *MIXES, *PAIRS, 'erasing')),
    *({'mixup', other} for other in (*PAIRS, 'bce', 'smoothing', 'accumulation')),
    *({'splits', other} for other in (*PAIRS, 'randaugment', 'split_bn', 'erasing', 'prob')),
    *({'dad_dir', other} for other in ('augmix', 'split_bn', 'prob', 'warmup')),
    *({'clip_norm', other} for other in ('accumulation', 'fp16')),
]


def expected_error(pair):
    """The message that the pair must end with, or ``None``."""
    first, second = pair
    for some, others, message in EXCLUDED:
        if (first in some and second in others) or (second in some and first in others):
            return message
    return None


def one_flag(pair):
    """Whether both are values of one flag, such as two augmentation policies."""
    first, second = (FEATURES[name] for name in pair)
    return any(first[flag] != second[flag] for flag in first.keys() & second.keys())


def walk():
    """All features and all pairs; slow but for every feature alone, errors and ``OFTEN``."""
    names = list(FEATURES)
    for pair in itertools.combinations_with_replacement(names, 2):
        refused = expected_error(pair) and not {'repeats', 'sync_bn'} & {*pair}
        fast = pair[0] == pair[1] or set(pair) in OFTEN or refused
        if not one_flag(pair):
            yield pytest.param(pair, id='+'.join(dict.fromkeys(pair)), marks=[] if fast else [pytest.mark.slow])


def command_line(flags):
    argv = []
    for flag, value in flags.items():
        argv += [] if value is None else [flag] if value is True else [flag, *(value.split() or [''])]
    return argv


@pytest.fixture(autouse=True)
def own_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=2, validation=1)


@pytest.fixture(scope='module')
def dad_set(pictures, tmp_path_factory):
    return write_taught_set(tmp_path_factory.mktemp('sets'), create_timm_dataset('', str(pictures), split='train'))


# --- what a run is seen to do ---------------------------------------------------------------------------------------


@dataclass
class Call:
    """One batch in the task."""

    input: torch.Tensor
    target: torch.Tensor
    weights: dict[str, torch.Tensor]  # of the student, before the batch
    attack: AttackConfig | None
    fed: torch.Tensor | None = None  # what the student saw, all views in one batch
    logits: torch.Tensor | None = None
    made_from: tuple[torch.Tensor, torch.Tensor] | None = None  # pixels and target that make_views got
    views: Any = None
    result: dict[str, torch.Tensor] = field(default_factory=dict)
    loss_scale: float = 0.0  # gradient that the loss got


@dataclass
class Step:
    """One update, after clipping."""

    parameters: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor | None]
    rates: list[tuple[float, float]]  # learning rate and lr_scale of every group
    frozen: bool


@dataclass
class Seen:
    task: DADTask | None = None
    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    @property
    def student(self):
        return unwrap_model(self.task.trainable_module)


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.fixture
def seen(monkeypatch):
    """Everything that a run does with the task, without changing it."""
    seen = Seen()
    forward, make_views = DADTask.forward, DADAugment.make_views

    def spy_forward(task, input, target):
        seen.task = task
        attack = task.augment.attack if task.augment else None
        call = Call(input.clone(), target.clone(), snapshot(seen.student), attack)
        seen.calls.append(call)

        def keep(_module, args, output):
            call.fed, call.logits = args[0], output.detach()

        handle = task.trainable_module.register_forward_hook(keep)
        call.result = forward(task, input, target)
        handle.remove()
        call.result['loss'].register_hook(lambda grad: setattr(call, 'loss_scale', grad.item()))
        return call.result

    def spy_make_views(augment, x_pix, target, eps=None):
        views = make_views(augment, x_pix, target, eps)
        if seen.calls and not seen.calls[-1].result:  # not the preview's
            seen.calls[-1].made_from, seen.calls[-1].views = (x_pix, target), views
        return views

    def counted(cls, method):
        def call(self, *args, **kwargs):
            seen.counts[cls] += 1
            return method(self, *args, **kwargs)

        return call

    def spy_step(optimizer, _args, _kwargs):
        parameters = dict(seen.student.named_parameters())
        in_groups = {id(p) for group in optimizer.param_groups for p in group['params']}
        assert in_groups == {id(p) for p in parameters.values()}
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
        others = [p for module in (seen.task.teacher, seen.task.vqgan) if module for p in module.parameters()]
        frozen = all(p.grad is None and not p.requires_grad for p in others)
        rates = [(group['lr'], group.get('lr_scale', 1.0)) for group in optimizer.param_groups]
        seen.steps.append(Step(snapshot(seen.student), grads, rates, frozen))

    monkeypatch.setattr(DADTask, 'forward', spy_forward)
    monkeypatch.setattr(DADAugment, 'make_views', spy_make_views)
    for cls in (AugMixAugment, AutoAugment, RandAugment, RandomErasing, FastCollateMixup, Mixup):
        monkeypatch.setattr(cls, '__call__', counted(cls, cls.__call__))
    monkeypatch.setattr(PrefetchLoader, '__iter__', counted(PrefetchLoader, PrefetchLoader.__iter__))
    handle = register_optimizer_step_pre_hook(spy_step)
    yield seen
    handle.remove()


# --- references -----------------------------------------------------------------------------------------------------


def soft(target, smoothing=0.0, num_classes=4):
    if target.ndim == 2:
        return target
    return nn.functional.one_hot(target, num_classes) * (1 - smoothing) + smoothing / num_classes


def reference_kl(teacher, student, temperature=4.0):
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    return temperature**2 * (p * (p / q).log()).sum(dim=1).mean()


def reference_ce(logits, target):
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def reference_jsd(logits, target, num_splits, smoothing=0.0, num_classes=4):
    """Hendrycks et al. 2020, arXiv:1912.02781: cross-entropy of the clean split + 12 Jensen-Shannon divergences."""
    probs = logits.softmax(dim=1).chunk(num_splits)
    mixture = sum(probs) / num_splits
    divergence = sum((p * (p / mixture).log()).sum(dim=1).mean() for p in probs) / num_splits
    count = len(logits) // num_splits
    return reference_ce(logits[:count], soft(target[:count], smoothing, num_classes)) + 12 * divergence


def reference_task_loss(logits, target, features):
    smoothing = SMOOTHING if features & {'smoothing', 'bce'} else 0.0
    if 'augmix' in features:
        return reference_jsd(logits, target, 3, smoothing)
    target = soft(target, smoothing)
    if 'bce' in features:
        p = logits.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    return reference_ce(logits, target)


def epoch_weight(features, epoch):
    """Factor of the DAD weight in an epoch, from the flags above."""
    return ([0.0, 0.5, 1.0][epoch] if 'warmup' in features else 1.0) * ('off_epoch' not in features or epoch < 2)


# --- what holds in every run ----------------------------------------------------------------------------------------


def views_of(features):
    """Views of an image in a batch of the loader: those that the task loss is taken on, and all."""
    num_splits = 3 if 'augmix' in features else 2 if features & SPLITS else 1
    return num_splits, num_splits + bool(features & PAIRS)


def set_logits(task, coded):
    """What the set holds for targets that say image, view and class."""
    pairs = [divmod(number // 4, task.stored.folder.num_views) for number in coded.tolist()]
    logits = [stored_logits(task.stored.folder, index, view) for index, view in pairs]
    return [torch.stack(each) for each in zip(*logits, strict=True)]


def check_call(seen, call, features, epoch):
    """Views, targets and loss parts of a batch, from what the student answered and the teacher says."""
    task, result = seen.task, call.result
    num_splits, of_loader = views_of(features)
    num_images = 4 if 'accumulation' in features else 8
    own = num_splits * num_images  # what the task loss is taken on
    assert call.input.shape == (of_loader * num_images, 3, 32, 32)
    assert call.target.shape == (of_loader * num_images, *((4,) if features & MIXES else ()))
    for other in call.target.chunk(of_loader):
        assert torch.equal(other, call.target[:num_images])
    target = call.target % 4 if 'stored_logits' in features else call.target

    weight = epoch_weight(features, epoch)
    made = len(call.fed) > own
    assert made == (weight > 0) or 'prob' in features
    assert len(call.fed) == own + made * num_images
    assert torch.equal(call.fed[:own], call.input[:own])
    assert torch.equal(result['output'], call.logits[:own])
    assert (call.views is not None) == (made and not features & PAIRS)
    torch.testing.assert_close(result['task_loss'], reference_task_loss(call.logits[:own], target[:own], features))
    clean_pix = (call.input[:num_images] / 2 + 0.5).clamp(0, 1)
    clean_logits, second_logits = set_logits(task, call.target[:num_images]) if task.stored else (None, None)
    clean_logits = task.teacher(clean_pix) if clean_logits is None else clean_logits
    expected = {'kd_loss': reference_kl(clean_logits, call.logits[:num_images])}
    if made:
        if call.views is not None:  # made from the first split alone, as the loader left it
            torch.testing.assert_close(call.made_from[0], clean_pix)
            assert torch.equal(call.made_from[1], call.target[:num_images])
            torch.testing.assert_close(call.fed[own:], (call.views.x_dad - 0.5) / 0.5)
            assert not torch.equal(call.views.x_dad, clean_pix)
        else:
            assert torch.equal(call.fed[own:], call.input[own:])
        dad_logits = task.teacher((call.fed[own:] / 2 + 0.5).clamp(0, 1)) if second_logits is None else second_logits
        expected['dad_loss'] = reference_kl(dad_logits, call.logits[own:])
        labels = soft(target[:num_images]).argmax(dim=1)
        expected['teacher_kept'] = (dad_logits.argmax(dim=1) == labels).float().mean()
        assert result['dad_loss'] > 0
    else:
        expected.update(dad_loss=torch.tensor(0.0), teacher_kept=torch.tensor(0.0))
    expected['loss'] = (
        TASK_WEIGHT * result['task_loss'] + KD_WEIGHT * result['kd_loss'] + weight * DAD_WEIGHT * result['dad_loss']
    )
    for name, value in expected.items():
        torch.testing.assert_close(result[name].detach(), value.detach(), atol=1e-5, rtol=1e-3)
    assert result['kd_loss'] > 0
    assert set(result) == {'task_loss', 'output', *expected}
    assert all(value.isfinite().all() for value in result.values())


def check_run(seen, features):
    epochs = 3 if any('--epochs' in FEATURES[name] for name in features) else 1
    batches = 2 if 'accumulation' in features else 1
    assert len(seen.calls) == epochs * batches
    assert len(seen.steps) == epochs
    for index, call in enumerate(seen.calls):
        check_call(seen, call, features, index // batches)
        assert call.loss_scale == 1 / batches
    for step in seen.steps:
        assert step.frozen
        for name, grad in step.grads.items():
            assert grad is not None, name
            assert grad.isfinite().all(), name
            assert grad.any(), name
    for name, value in seen.student.named_parameters():
        assert value.isfinite().all()
        assert not torch.equal(value, seen.calls[0].weights[name]), name
    assert bool(seen.counts[PrefetchLoader]) != ('no_prefetcher' in features)


# --- what a feature does, beside any other --------------------------------------------------------------------------


def check_policy(policy):
    def check(seen, features):
        # The clean split is not augmented, nor an extra view beside splits; of pairs without splits, each picture is.
        num_splits, of_loader = views_of(features)
        augmented = 0 if 'stored_logits' in features else num_splits - 1 if features & SPLITS else of_loader
        images = sum(len(call.input) for call in seen.calls)
        assert seen.counts[policy] == images * augmented / of_loader

    return check


def check_splits(seen, features):
    for call in seen.calls:
        num_splits, of_loader = views_of(features)
        splits = call.input.chunk(of_loader)[:num_splits]
        assert len(splits) == seen.task.num_splits == (3 if 'augmix' in features else 2)
        if features & {'augmix', 'randaugment', 'autoaugment', 'erasing'}:
            assert not any(torch.equal(splits[0], other) for other in splits[1:])


def check_split_bn(seen, features):
    layers = [module for module in seen.student.modules() if isinstance(module, SplitBatchNorm2d)]
    assert layers
    for layer in layers:
        norms = [layer, *layer.aux_bn]
        assert len(norms) == layer.num_splits == (4 if 'augmix' in features else 3 if 'splits' in features else 2)
        assert all(norm.num_batches_tracked == len(seen.calls) for norm in norms)
        assert not any(torch.equal(layer.running_mean, aux.running_mean) for aux in layer.aux_bn)


def check_mix(seen, features):
    in_loader = 'no_prefetcher' not in features
    assert (seen.counts[FastCollateMixup], seen.counts[Mixup])[:: -1 if in_loader else 1] == (0, len(seen.calls))
    for call in seen.calls:
        torch.testing.assert_close(call.target.sum(dim=1), torch.ones(len(call.target)))
        floor = SMOOTHING / 4 if features & {'smoothing', 'bce'} else 0.0
        torch.testing.assert_close(call.target.min(), torch.tensor(floor))
        assert ((call.target > floor + 1e-3).sum(dim=1) == 2).any()


def check_erasing(seen, features):
    assert seen.counts[RandomErasing] == sum(len(call.input) for call in seen.calls)  # each image under its own seed
    for call in seen.calls:
        assert ((call.input / 2 + 0.5) > 1.01).any()  # noise in the student's units, which the DAD view is clipped of
        if call.made_from:
            assert 0 <= call.made_from[0].min() <= call.made_from[0].max() <= 1


def check_clip_norm(seen, features):
    for step in seen.steps:
        norm = torch.stack([grad.norm() for grad in step.grads.values()]).norm()
        torch.testing.assert_close(norm, torch.tensor(CLIP_NORM), atol=0, rtol=1e-3)


def check_clip_value(seen, features):
    for step in seen.steps:
        largest = torch.stack([grad.abs().max() for grad in step.grads.values()])
        torch.testing.assert_close(largest.max(), torch.tensor(CLIP_VALUE))


def check_clip_agc(seen, features):
    def unit_norms(value):
        return value.norm() if value.ndim < 2 else value.flatten(1).norm(dim=1)

    for step in seen.steps:
        ratios = [
            (unit_norms(step.grads[name]) / unit_norms(value).clamp_min(1e-3)).max()
            for name, value in step.parameters.items()
        ]
        torch.testing.assert_close(max(ratios[:-2]), torch.tensor(AGC), atol=0, rtol=1e-2)
        assert max(ratios[-2:]) > 2 * AGC  # the head, at the end, is left as it is


def check_ema(seen, features):
    batches = 2 if 'accumulation' in features else 1
    states = [call.weights for call in seen.calls[batches::batches]] + [snapshot(seen.student)]
    average = dict(unwrap_model(seen.task.get_trainable_module(ema=True)).named_parameters())
    assert average.keys() == states[0].keys()
    for name, value in average.items():
        expected = states[0][name]  # timm's average begins with the first update
        for state in states[1:]:
            expected = 0.5 * expected + 0.5 * state[name]
        torch.testing.assert_close(value, expected)


def check_layer_decay(seen, features):
    for epoch, step in enumerate(seen.steps):
        base = LR * (1 + np.cos(np.pi * epoch / len(seen.steps))) / 2
        assert len({scale for _, scale in step.rates}) > 2
        for rate, scale in step.rates:
            assert rate == pytest.approx(base * scale)


def check_channels_last(seen, features):
    kernels = [p for p in seen.student.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    for value in (*kernels, *(tensor for call in seen.calls for tensor in (call.input, call.fed))):
        assert value.is_contiguous(memory_format=torch.channels_last)


def check_compile(seen, features):
    assert type(seen.task.trainable_module).__name__ == 'OptimizedModule'
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0


def check_amp(dtype):
    def check(seen, features):
        for call in seen.calls:  # the head's output was of that precision, the loss parts are not
            assert call.logits.dtype == torch.float32
            assert torch.equal(call.logits, call.logits.to(dtype).float())
            assert call.views is None or not torch.equal(call.views.dad_logits, call.views.dad_logits.to(dtype).float())

    return check


def check_drop_path(seen, features):
    assert any(isinstance(module, DropPath) and module.drop_prob > 0 for module in seen.student.modules())


def check_prob(seen, features):
    made = [call.result['dad_loss'] > 0 for call in seen.calls]
    if features <= {'prob', *PAIRS, 'mixup', 'ema'}:  # the seed is the same, and so are the draws
        assert 0 < sum(made) < len(made)


def check_eps_sched(seen, features):
    for index, call in enumerate(seen.calls):
        epoch = index * 3 // len(seen.calls)
        assert call.attack.eps == pytest.approx([0.2, 0.3, 0.4][epoch])
        assert call.attack.step_size == pytest.approx(AttackConfig().step_size * [0.5, 0.75, 1.0][epoch])


def check_pairs(seen, features):
    for call in seen.calls:
        first, *_, second = call.input.chunk(views_of(features)[1])
        assert call.views is None
        assert not torch.equal(first, second)
        assert bool(seen.task.stored) == ('stored_logits' in features)
        assert bool(seen.task.teacher) == ('stored_logits' not in features)


CHECKS = {
    'randaugment': check_policy(RandAugment),
    'autoaugment': check_policy(AutoAugment),
    'augmix': lambda seen, features: (check_policy(AugMixAugment)(seen, features), check_splits(seen, features)),
    'splits': check_splits,
    'split_bn': check_split_bn,
    'mixup': check_mix,
    'cutmix': check_mix,
    'erasing': check_erasing,
    'clip_norm': check_clip_norm,
    'clip_value': check_clip_value,
    'clip_agc': check_clip_agc,
    'ema': check_ema,
    'layer_decay': check_layer_decay,
    'channels_last': check_channels_last,
    'compile': check_compile,
    'bf16': check_amp(torch.bfloat16),
    'fp16': check_amp(torch.float16),
    'drop_path': check_drop_path,
    'prob': check_prob,
    'eps_sched': check_eps_sched,
    'cache': check_pairs,
    'random_view': check_pairs,
    **dict.fromkeys(SETS, check_pairs),
}
# The loss parts and the gradients of every run show them.
IN_EVERY_RUN = {'no_prefetcher', 'smoothing', 'bce', 'accumulation', 'warmup', 'off_epoch'}
ERRORS_ALONE = {'repeats', 'sync_bn'}


def test_every_feature_is_checked_and_documented():
    assert set(FEATURES) == {*CHECKS, *IN_EVERY_RUN, *ERRORS_ALONE}
    text = DOCS.read_text()
    for flag in (
        {flag for flags in FEATURES.values() for flag in flags} - BASE.keys() - {'--remode', '--model-ema-decay'}
    ):
        assert f'`{flag}' in text, flag
    for some, others, _ in EXCLUDED:
        for pair in itertools.product(some, others):
            assert set(pair) <= set(FEATURES)


@pytest.mark.slow
@pytest.mark.parametrize('pair', list(walk()))
def test_walk(pair, pictures, dad_set, tmp_path, seen, capsys):
    features = set(pair)
    student = STUDENTS[sum(map(len, pair)) % 3 == 0 and 'split_bn' not in pair]
    flags = {'--data-dir': str(pictures), '--output': str(tmp_path / 'out'), **BASE, **student}
    for name in pair:
        flags.update(FEATURES[name])
    argv, message = [part.format(dad_set=dad_set) for part in command_line(flags)], expected_error(pair)
    if message:
        with pytest.raises(SystemExit) as error:
            train_dad.main(argv)
        assert re.search(message, f'{error.value} {capsys.readouterr().err}')
        assert not (tmp_path / 'out').exists()
        return
    train_dad.main(argv)
    check_run(seen, features)
    for name in dict.fromkeys(pair):
        CHECKS.get(name, lambda seen, features: None)(seen, features)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_compiled_with_a_real_backend(backend, pictures, tmp_path, seen):
    flags = {'--data-dir': str(pictures), '--output': str(tmp_path), **BASE, **STUDENTS[0], '--torchcompile': backend}
    train_dad.main(command_line(flags))
    check_run(seen, {'compile'})
    check_compile(seen, {'compile'})


# --- data sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_flags(pictures, tmp_path):
    """Flags of the pictures as one of timm's kinds of data set."""

    def folder():
        return {'--data-dir': str(pictures), '--val-split': 'validation'}

    def tar():
        with tarfile.open(tmp_path / 'train.tar', 'w') as file:
            for name in CLASSES:
                file.add(pictures / 'train' / name, name)
        return {'--data-dir': str(tmp_path / 'train.tar'), '--val-split': 'train'}

    def wds():
        splits = {}
        for split in ('train', 'validation'):
            paths = sorted((pictures / split).rglob('*.png'))
            with tarfile.open(tmp_path / f'{split}-0.tar', 'w') as file:
                for index, path in enumerate(paths):
                    (tmp_path / 'cls').write_text(str(CLASSES.index(path.parent.name)))
                    file.add(path, f'{index:04}.png')
                    file.add(tmp_path / 'cls', f'{index:04}.cls')
            count = len(paths)
            files = {'filenames': [f'{split}-0.tar'], 'shard_lengths': [count], 'num_samples': count}
            splits[split] = {'name': split, **files}
        (tmp_path / '_info.json').write_text(json.dumps({'splits': splits}))
        # timm before 1.0.31 reads nothing without workers.
        data = {'--dataset': 'wds/pictures', '--data-dir': str(tmp_path), '--val-split': 'validation'}
        return {**data, '--workers': '1'}

    def hfds():
        shutil.copytree(pictures, tmp_path / 'pictures')
        name = f'hfds/{tmp_path / "pictures"}'
        return {'--dataset': name, '--data-dir': str(tmp_path / 'cache'), '--val-split': 'validation'}

    return {kind.__name__: kind for kind in (folder, tar, wds, hfds)}


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'needs'), [('folder', ''), ('tar', ''), ('wds', 'webdataset'), ('hfds', 'datasets')])
def test_any_timm_dataset(kind, needs, data_flags, tmp_path, seen):
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f'{kind}/ needs the package {needs}')
    (tmp_path / 'names.txt').write_text('\n'.join(CLASSES))
    flags = {**BASE, **STUDENTS[0], '--output': str(tmp_path / 'out'), '--dad-classnames': str(tmp_path / 'names.txt')}
    flags.update({'--no-aug': True, **data_flags[kind]()})
    results = train_dad.main(command_line(flags))
    check_run(seen, set())
    assert sorted(seen.calls[0].target.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    # Pictures have the colour of their class: the labels are those of the pictures.
    for pixels, label in zip(seen.calls[0].input / 2 + 0.5, seen.calls[0].target.tolist(), strict=True):
        brightest = pixels.mean(dim=(1, 2)).argmax().item()
        assert brightest == label or label == 3
    assert 0 <= results['best_metric'] <= 100
    assert (tmp_path / 'out' / 'run' / 'preview.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'needs'), [('folder', ''), ('tar', ''), ('wds', 'webdataset'), ('hfds', 'datasets')])
@pytest.mark.parametrize('stored', [False, True])
def test_any_timm_dataset_with_a_set(kind, needs, stored, data_flags, tmp_path, seen):
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f'{kind}/ needs the package {needs}')
    data = data_flags[kind]()
    dataset = create_timm_dataset(data.get('--dataset', ''), data['--data-dir'], split='train')
    feature = FEATURES['stored_logits' if stored else 'dad_dir']
    flags = {**BASE, **STUDENTS[0], '--output': str(tmp_path / 'out'), '--no-aug': True, **data, **feature}
    path = write_taught_set(tmp_path, dataset)
    train_dad.main([part.format(dad_set=path) for part in command_line(flags)])
    check_run(seen, {'stored_logits' if stored else 'dad_dir'})
    for call in seen.calls:
        clean, second = (call.input / 2 + 0.5).mul(255).round().chunk(2)
        for view, other in zip(clean, second, strict=True):
            # A stored pair has the frame of the view; without it the picture is squeezed, of nearly the same mean.
            ratio = other.mean() / view.mean()
            assert min(abs(ratio - 0.7), abs(ratio - 0.8)) < 0.02


class Stream(IterableDataset):
    """A data set as a stream, such as those of ``wds/``: no index."""

    def __init__(self, dataset):
        self.dataset, self.transform = dataset, None

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        for image, target in map(self.dataset.__getitem__, range(len(self))):
            yield image if self.transform is None else self.transform(image), target


@pytest.mark.slow
@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({}, ''),
        (FEATURES['random_view'], ''),
        (FEATURES['splits'], r'--aug-splits needs data with an index'),
        (FEATURES['cache'], r'--dad-cache needs data with an index'),
        ({**FEATURES['splits'], **FEATURES['random_view']}, r'--aug-splits needs data with an index'),
        ({**FEATURES['splits'], **FEATURES['cache']}, r'--dad-cache needs data with an index'),
        (FEATURES['repeats'], r'--aug-repeats needs several processes and data with an index'),
    ],
)
def test_streams(more, message, pictures, tmp_path, seen, monkeypatch, capsys):
    open_dataset = flags_data.open_dataset
    monkeypatch.setattr(flags_data, 'open_dataset', lambda *args, **kwargs: Stream(open_dataset(*args, **kwargs)))
    (tmp_path / 'names.txt').write_text('\n'.join(CLASSES))
    flags = {**BASE, **STUDENTS[0], **more, '--dad-classnames': str(tmp_path / 'names.txt')}
    argv = command_line({**flags, '--data-dir': str(pictures), '--output': str(tmp_path / 'out')})
    if message:
        with pytest.raises(SystemExit):
            train_dad.main(argv)
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / 'out').exists()
        return
    train_dad.main(argv)
    check_run(seen, {'random_view'} if more else set())


def test_a_flag_of_the_schedule_is_not_ignored(pictures, tmp_path, capsys):
    argv = command_line({'--data-dir': str(pictures), **BASE, **STUDENTS[0], '--dad-eps-start': '0.1'})
    with pytest.raises(SystemExit):
        train_dad.main(argv)
    assert '--dad-eps-start needs --dad-eps-sched' in capsys.readouterr().err


# --- splits in the task ---------------------------------------------------------------------------------------------


@pytest.fixture
def splits(x_pix):
    """Three normalized splits of 4 images, the clean one first, and their targets."""
    clean = (x_pix - 0.5) / 0.5
    return torch.cat([clean, clean.flip(3), clean.roll(3, dims=2)]), torch.tensor([0, 1, 2, 3]).repeat(3)


@pytest.fixture
def augment(teacher, vqgan):
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    return DADAugment(teacher, vqgan, attack=AttackConfig(eps=3.0, step_size=3.0, random_start=0.0), **norm)


def create_task(student, teacher, augment, **kwargs):
    return DADTask(student, teacher, augment, verbose=False, **kwargs).train()


def test_splits_the_dad_view_comes_of_the_clean_one(student, teacher, augment, splits):
    input, target = splits
    clean = input[:4] / 2 + 0.5
    x_dad = augment.make_views(clean, target[:4]).x_dad
    reference = copy.deepcopy(student).train()
    logits = reference(torch.cat([input, (x_dad - 0.5) / 0.5]))
    result = create_task(student, teacher, augment, num_splits=3)(input, target)
    expected = {
        'task_loss': reference_ce(logits[:12], soft(target, num_classes=5)),
        'kd_loss': reference_kl(teacher(clean), logits[:4]),
        'dad_loss': reference_kl(teacher(x_dad), logits[12:]),
        'output': logits[:12],
    }
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)


def test_splits_other_than_the_clean_one_are_in_the_task_loss_alone(student, teacher, augment, splits):
    input, target = splits
    student.eval()  # no batch statistics: images do not see each other
    task = DADTask(student, teacher, augment, num_splits=3, verbose=False)
    result, other = task(input, target), task(torch.cat([input[:4], -input[4:]]), target)
    for name in ('kd_loss', 'dad_loss', 'teacher_kept'):
        torch.testing.assert_close(result[name], other[name])
    assert result['task_loss'] != other['task_loss']


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_jsd_loss_is_that_of_the_formula(student, teacher, augment, splits, smoothing):
    input, target = splits
    criterion = JsdCrossEntropy(num_splits=3, smoothing=smoothing)
    result = create_task(student, teacher, augment, num_splits=3, criterion=criterion)(input, target)
    expected = reference_jsd(result['output'], target, 3, smoothing, num_classes=5)
    torch.testing.assert_close(result['task_loss'], expected, atol=1e-5, rtol=1e-4)
    assert expected > reference_ce(result['output'][:4], soft(target[:4], smoothing, 5))


@pytest.mark.parametrize('num_splits', [1, 3])
def test_split_bn_keeps_the_dad_view_out_of_the_statistics_that_remain(
    student, teacher, augment, splits, x_pix, num_splits
):
    input, target = splits[0][: 4 * num_splits], splits[1][: 4 * num_splits]
    plain = copy.deepcopy(student).train()
    plain(input[:4])
    student = convert_splitbn_model(student, max(num_splits, 2))
    create_task(student, teacher, augment, num_splits=num_splits)(input, target)
    x_dad = augment.make_views(x_pix, target[:4]).x_dad
    layers = [layer for layer in student.modules() if isinstance(layer, SplitBatchNorm2d)]
    references = [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer, reference in zip(layers, references, strict=True):
        assert layer.num_splits == len(layer.aux_bn) + 1 == num_splits + 1
        torch.testing.assert_close(layer.running_mean, reference.running_mean)
        torch.testing.assert_close(layer.running_var, reference.running_var)
    # The first layer sees the pixels alone, so its last batch norm must have the DAD view's statistics.
    first = student.conv1[0]((x_dad - 0.5) / 0.5)
    norm = layers[0].aux_bn[-1]
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_split_bn_of_the_dad_view_starts_as_the_main_one_and_is_trained(student, teacher, augment, splits):
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            module.running_mean.normal_()
    student = convert_splitbn_model(student, 3)
    task = create_task(student, teacher, augment, num_splits=3)
    layers = [module for module in student.modules() if isinstance(module, SplitBatchNorm2d)]
    for layer in layers:
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            assert torch.equal(getattr(layer.aux_bn[-1], name), getattr(layer, name))
    task(*splits)['loss'].backward()
    assert all(layer.aux_bn[-1].weight.grad.any() for layer in layers)
    assert all(layer.weight.grad.any() for layer in layers)


def test_split_bn_needs_a_dad_view_in_every_batch(student, teacher, augment):
    assert not add_splits(student, 2)
    student = convert_splitbn_model(student, 2)
    for never in ({'prob': 0.5}, {'warmup_epochs': 1}, {'off_epoch': 1}):
        with pytest.raises(ValueError, match='split batch norm needs a DAD view in every batch'):
            DADTask(student, teacher, augment, schedule=DADSchedule(**never), verbose=False)


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'weights'),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({'warmup_epochs': 4}, [0, 0.25, 0.5, 0.75, 1, 1]),
        ({'warmup_epochs': 1}, [0, 1, 1, 1, 1, 1]),
        ({'off_epoch': 3}, [1, 1, 1, 0, 0, 0]),
        ({'off_epoch': 3, 'warmup_epochs': 2}, [0, 0.5, 1, 0, 0, 0]),
        ({'prob': 0.3}, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_weight_by_epoch(settings, weights):
    schedule = DADSchedule(**settings)
    assert [schedule.weight(epoch) for epoch in range(6)] == weights
    assert schedule.always == (not settings)


@pytest.mark.parametrize(
    ('settings', 'budget'),
    [
        ({}, [0.4, 0.4, 0.4, 0.4]),
        ({'eps_sched': 'linear', 'epochs': 4}, [0.1, 0.2, 0.3, 0.4]),
        ({'eps_sched': 'linear', 'epochs': 4, 'eps_start': 0.2}, [0.25, 0.3, 0.35, 0.4]),
        # (1 - cos(pi p)) / 2 at p = 1/4, 1/2, 3/4, 1
        ({'eps_sched': 'cosine', 'epochs': 4}, [0.4 * 0.1464466, 0.2, 0.4 * 0.8535534, 0.4]),
        ({'eps_sched': 'linear', 'epochs': 1}, [0.4, 0.4]),
        ({'eps_sched': 'linear', 'epochs': 2}, [0.2, 0.4, 0.4, 0.4]),
    ],
)
def test_attack_budget_by_epoch(settings, budget):
    full = AttackConfig(eps=0.4, step_size=0.1, num_steps=3, random_start=0.5)
    for epoch, eps in enumerate(budget):
        attack = DADSchedule(**settings).attack(full, epoch)
        assert attack.eps == pytest.approx(eps)
        assert attack.step_size == pytest.approx(eps / 4)  # in proportion
        assert (attack.num_steps, attack.random_start, attack.norm) == (3, 0.5, 'l2')
    assert attack == full


def test_no_budget_stays_none():
    none = AttackConfig(eps=0.0, step_size=0.0)
    assert DADSchedule(eps_sched='linear', epochs=3).attack(none, 0) == none


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'prob': -0.1}, r'prob is a probability, from 0 to 1, got -0\.1'),
        ({'prob': 1.1}, r'prob is a probability, from 0 to 1, got 1\.1'),
        ({'prob': float('nan')}, r'prob is a probability.*got nan'),
        ({'warmup_epochs': -1}, r'warmup_epochs must be 0 or more, got -1'),
        ({'off_epoch': -2}, r'off_epoch must be 0 or more, got -2'),
        ({'eps_start': -0.1}, r'eps_start must be 0 or more, got -0\.1'),
        ({'eps_sched': 'step'}, r"eps_sched must be one of .*'linear'.*got 'step'"),
        ({'eps_sched': 'linear'}, r'eps_sched linear needs the number of epochs, got 0'),
    ],
)
def test_bad_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DADSchedule(**settings)


@pytest.mark.parametrize(
    'schedule', [DADSchedule(prob=0.0), DADSchedule(warmup_epochs=2), DADSchedule(off_epoch=3)], ids=str
)
def test_without_a_dad_view_it_is_plain_distillation_and_the_vqgan_rests(
    student, teacher, augment, splits, monkeypatch, schedule
):
    def never(*args):
        raise AssertionError('the VQGAN was called')

    monkeypatch.setattr(augment.vqgan, 'forward', never)
    input, target = splits[0][:4], splits[1][:4]
    reference = copy.deepcopy(student).train()
    task = create_task(student, teacher, augment, schedule=schedule)
    task.set_epoch(3 if schedule.off_epoch else 0)
    result = task(input, target)
    logits = reference(input)
    kd_loss, task_loss = reference_kl(teacher(input / 2 + 0.5), logits), reference_ce(logits, soft(target, 0, 5))
    torch.testing.assert_close(result['output'], logits)
    torch.testing.assert_close(result['loss'], task_loss + kd_loss / 2)
    assert result['dad_loss'] == result['teacher_kept'] == 0
    result['loss'].backward()
    (task_loss + kd_loss / 2).backward()
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.slow
def test_probability_is_that_of_batches(student, teacher, augment, splits):
    task = create_task(student, teacher, augment, schedule=DADSchedule(prob=0.25))
    input, target = splits[0][:4], splits[1][:4]
    with torch.no_grad():
        made = [task(input, target)['dad_loss'].item() > 0 for _ in range(200)]
    assert sum(made) == pytest.approx(50, abs=20)  # more than 3 standard deviations


def test_warm_up_scales_the_dad_loss_and_nothing_else(student, teacher, augment, splits):
    schedule, weights = DADSchedule(warmup_epochs=4), DADLossConfig(task_weight=2.0, kd_weight=3.0, dad_weight=5.0)
    input, target = splits[0][:4], splits[1][:4]
    for epoch, scale in ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        task = create_task(copy.deepcopy(student), teacher, augment, schedule=schedule, loss=weights)
        task.set_epoch(epoch)
        result = task(input, target)
        expected = 2 * result['task_loss'] + 3 * result['kd_loss'] + scale * 5 * result['dad_loss']
        torch.testing.assert_close(result['loss'], expected)


def test_the_task_attacks_with_the_budget_of_the_epoch(student, teacher, augment, splits):
    task = create_task(student, teacher, augment, schedule=DADSchedule(eps_sched='linear', epochs=3))
    moved = []
    for epoch in (0, 1, 2, 3, 0):
        task.set_epoch(epoch)
        views = task.augment.make_views(splits[0][:4] / 2 + 0.5, splits[1][:4])
        moved.append((views.x_adv - views.x0).flatten(1).norm(dim=1).max().item())
    assert moved[0] == moved[4] < moved[1] < moved[2] == moved[3] <= 3.0
    assert moved[0] <= 1.0
