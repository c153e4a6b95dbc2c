"""``--loss``: the losses are those of timm's own factory, and one line says what does not go together."""

import json
import re

import pytest
import timm.loss
import torch

from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.flags import checks, losses, schedule
from timm_dad.flags.losses import create_criterion
from timm_dad.flags.train import parse_args

pytestmark = pytest.mark.timm

needs_new_timm = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31 has no such loss')
MIXED = ('--mixup', '0.2')


def parse(*flags):
    return parse_args(['--data-dir', 'x', '--num-classes', '5', *flags])


def loss_of(criterion, mixed):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    target = torch.rand(6, 5, generator=generator).softmax(dim=1) if mixed else torch.arange(6) % 5
    return criterion(logits, target)


@needs_new_timm
@pytest.mark.parametrize('more', [(), ('--smoothing', '0'), MIXED])
@pytest.mark.parametrize(
    ('flags', 'settings'),
    [
        ((), {}),
        (('--loss', 'ce'), {'loss_type': 'ce'}),
        (('--loss', 'bce'), {'loss_type': 'bce'}),
        (('--bce-loss', '--bce-sum'), {'loss_type': 'bce', 'bce_sum': True}),
        (('--loss', 'bce', '--bce-target-thresh', '0.3'), {'loss_type': 'bce', 'bce_target_thresh': 0.3}),
        (('--loss', 'bce', '--bce-pos-weight', '3'), {'loss_type': 'bce', 'pos_weight': 3.0}),
        (('--loss', 'bce', '--loss-pos-weight', '1,2,3,4,5'), {'loss_type': 'bce', 'pos_weight': [1, 2, 3, 4, 5]}),
        (('--loss', 'bce', '--loss-class-weight', '1,2,3,4,5'), {'loss_type': 'bce', 'class_weight': [1, 2, 3, 4, 5]}),
        (('--loss', 'bce', '--loss-class-weight', '2'), {'loss_type': 'bce', 'class_weight': 2.0}),
        (('--loss', 'asl', '--asl-gamma-pos', '2'), {'loss_type': 'asl', 'asl_gamma_pos': 2.0}),
        (('--loss', 'asl', '--asl-gamma-neg', '0'), {'loss_type': 'asl', 'asl_gamma_neg': 0.0}),
        (('--loss', 'poly', '--poly-epsilon', '-1'), {'loss_type': 'poly', 'poly_epsilon': -1.0}),
    ],
)
def test_a_loss_is_that_of_timms_factory(flags, settings, more):
    if 'asl' in flags and more is MIXED:
        pytest.skip('asl takes one class per image')
    args = parse(*flags, *more)
    theirs = timm.loss.create_classification_loss(**settings, smoothing=args.smoothing, soft_targets=more is MIXED)
    ours = create_criterion(args)
    assert type(ours) is type(theirs)
    assert torch.equal(loss_of(ours, more is MIXED), loss_of(theirs, more is MIXED))


def test_jsd_has_two_names():
    for flags in (('--loss', 'jsd'), ('--jsd-loss',)):
        criterion = create_criterion(parse(*flags, '--aug-splits', '3'))
        assert (type(criterion), criterion.num_splits) == (timm.loss.JsdCrossEntropy, 3)


@needs_new_timm
def test_weights_of_classes_come_from_their_counts(tmp_path):
    (tmp_path / 'stats.json').write_text(json.dumps({'pos_counts': [1, 2, 3, 4, 5], 'num_samples': 15}))
    stats = ('--loss', 'bce', '--class-stats', str(tmp_path / 'stats.json'))
    criterion = create_criterion(parse(*stats, '--loss-pos-weight', 'neg_pos', '--loss-class-weight', 'inv_freq'))
    torch.testing.assert_close(criterion.pos_weight, torch.tensor([14.0, 6.5, 4.0, 2.75, 2.0]))
    assert (criterion.weight.diff() < 0).all()
    halved = create_criterion(parse(*stats, '--loss-pos-weight', 'neg_pos', '--loss-weight-power', '0.5'))
    torch.testing.assert_close(halved.pos_weight, criterion.pos_weight.sqrt())


@needs_new_timm
@pytest.mark.parametrize(
    ('flags', 'settings'),
    [
        ((), {}),
        (
            ('--loss', 'bce', '--bce-sum', '--loss-pos-weight', '2'),
            {'loss_type': 'bce', 'bce_sum': True, 'pos_weight': 2.0},
        ),
        (('--loss', 'asl', '--asl-clip', '0.2'), {'loss_type': 'asl', 'asl_clip': 0.2}),
        (('--loss', 'asl', '--asl-reduction', 'mean'), {'loss_type': 'asl', 'asl_reduction': 'mean'}),
        (('--loss', 'asl', '--loss-class-weight', '1,2,3,4,5'), {'loss_type': 'asl', 'class_weight': [1, 2, 3, 4, 5]}),
        (('--loss', 'poly', '--poly-gamma', '1'), {'loss_type': 'poly', 'poly_gamma': 1.0}),
        (('--loss', 'poly', '--poly-alpha', '0.3'), {'loss_type': 'poly', 'poly_alpha': 0.3}),
        (('--loss', 'twoway', '--twoway-tp', '2'), {'loss_type': 'twoway', 'twoway_tp': 2.0}),
        (('--loss', 'twoway', '--twoway-tn', '2'), {'loss_type': 'twoway', 'twoway_tn': 2.0}),
        (('--loss', 'zlpr'), {'loss_type': 'zlpr'}),
        (('--loss', 'db', '--db-neg-scale', '3'), {'loss_type': 'db', 'db_neg_scale': 3.0}),
        (('--loss', 'db', '--db-init-bias', '0.2'), {'loss_type': 'db', 'db_init_bias': 0.2}),
        (('--loss', 'db', '--db-focal-gamma', '0'), {'loss_type': 'db', 'db_focal_gamma': 0.0}),
    ],
)
def test_a_loss_for_several_labels_is_that_of_timms_factory(tmp_path, flags, settings):
    stats = tmp_path / 'stats.json'
    stats.write_text(json.dumps({'pos_counts': [1, 2, 3, 4, 5], 'num_samples': 15}))
    more = ('--class-stats', str(stats)) if 'db' in flags else ()
    ours = create_criterion(parse('--task', 'multilabel', '--dataset', 'hfds/x', *flags, *more))
    counts = {'class_counts': [1, 2, 3, 4, 5], 'num_samples': 15} if more else {}
    theirs = timm.loss.create_classification_loss(**settings, **counts, multi_label=True)
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 5, generator=generator), torch.randint(2, (6, 5), generator=generator).float()
    assert type(ours) is type(theirs)
    assert torch.equal(ours(logits, target), theirs(logits, target))


@needs_new_timm
@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--loss-pos-weight', 'neg_pos'), '--loss-pos-weight, --loss-class-weight, --class-stats: '),
        (('--loss-class-weight', 'neg_pos', '--class-stats', '{stats}'), '--loss-pos-weight, --loss-class-weight'),
        (('--class-stats', '{stats}'), '--class-stats needs --loss-pos-weight or --loss-class-weight'),
        (('--loss-pos-weight', 'neg_pos', '--class-stats', 'nowhere'), "--class-stats must be a file .* got 'nowhere'"),
        (('--loss-pos-weight', '2', '--bce-pos-weight', '2'), '--bce-pos-weight is the older name'),
        (('--loss-pos-weight', 'many'), "--loss-pos-weight, .*'?many"),
    ],
)
def test_weights_that_make_no_sense_are_one_line(tmp_path, capsys, flags, message):
    (tmp_path / 'stats.json').write_text(json.dumps({'pos_counts': [1, 2, 3, 4, 5], 'num_samples': 15}))
    with pytest.raises(SystemExit) as stop:
        parse('--loss', 'bce', *(flag.format(stats=tmp_path / 'stats.json') for flag in flags))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count('\n') == 1
    assert re.search(message, error), error


@needs_new_timm
def test_weights_are_one_for_each_class():
    args = parse('--loss', 'bce', '--loss-pos-weight', '1,2,3')
    with pytest.raises(ValueError, match='--loss-pos-weight must have a number for each of 5 classes, got 3'):
        create_criterion(args)


@pytest.mark.parametrize(
    'flags',
    [
        ('--loss', 'poly'),
        ('--loss', 'bce', '--loss-pos-weight', '2'),
        ('--sched', 'wsd'),
        ('--sched', 'rsqrt'),
        ('--sched', 'constant'),
        ('--model-ema-force-fp32', '--model-ema', '--model-dtype', 'bfloat16'),
        ('--workers', '0', '--dataset', 'wds/pictures'),
    ],
)
def test_what_an_older_timm_has_not_is_one_line(capsys, monkeypatch, flags):
    for module in (checks, losses, schedule):
        monkeypatch.setattr(module, 'NEW_TIMM', False)
    with pytest.raises(SystemExit) as stop:
        parse(*flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert f'needs timm 1.0.31 or newer, but {timm.__version__} is installed: run pip install -U timm' in error
    assert next(flag for flag in flags if flag not in ('--loss', 'bce')) in error
    assert error.count('\n') == 1
