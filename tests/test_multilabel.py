"""``--task multilabel``: losses by hand, labels of every reader, and trainings end to end."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from conftest import NUM_CLASSES, SIZE
from PIL import Image
from torch import nn

import train_dad
from timm_dad.commands.generate import main as generate
from timm_dad.commands.info import main as info
from timm_dad.commands.preview import main as preview
from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.dad_sets.read import read_settings
from timm_dad.dad_sets.verify import verify
from timm_dad.data.datasets import encode_labels, open_dataset
from timm_dad.data.images import Source
from timm_dad.data.pictures import DataError, as_label
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.evaluation.command import main as evaluate
from timm_dad.flags.train import parse_args
from timm_dad.method.attack import AttackConfig, ascend
from timm_dad.method.augment import DADAugment
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.targets import MultiLabel, SingleLabel
from timm_dad.method.task import DADTask
from timm_dad.preview.first_look import look
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.training.loaders import PairCollateMixup, PairMixup

needs_timm = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31')
NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
TARGET = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.float32)
LOG3 = math.log(3)  # whose sigmoid is 3/4


# --- losses and answers ---------------------------------------------------------------------------------------------
def test_the_attack_ascends_bce():
    logits = torch.tensor([[0.0, LOG3], [-LOG3, LOG3]], requires_grad=True)
    losses = MultiLabel().attack_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(losses, torch.tensor([(math.log(2) + math.log(4)) / 2, math.log(4 / 3)]))
    losses.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 4, 3 / 8], [1 / 8, -1 / 8]]))


def test_distillation_is_the_mean_divergence_of_sigmoids():
    teacher, student = torch.tensor([[2 * LOG3, 0.0]]), torch.zeros(1, 2, requires_grad=True)
    loss = MultiLabel().distillation_loss(student, teacher, 2.0)  # sigmoids 3/4 and 1/2 against 1/2
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(2**2 * expected / 2)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2 * (0.5 - 0.75) / 2, 0.0]]))


def test_at_temperature_1_it_is_bce_with_the_teachers_sigmoids():
    teacher, student = torch.randn(2, 3, 4)
    grads = []
    for loss in (
        lambda logits: MultiLabel().distillation_loss(logits, teacher, 1.0),
        lambda logits: nn.functional.binary_cross_entropy_with_logits(logits, teacher.sigmoid()),
    ):
        leaf = student.clone().requires_grad_()
        loss(leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_the_divergence_of_images_has_the_loss_as_its_mean():
    teacher, student = 9 * torch.randn(2, 3, 4)
    found = MultiLabel().divergence(student, teacher, 4.0)
    assert found.shape == (3,)
    assert found.mean().item() == pytest.approx(MultiLabel().distillation_loss(student, teacher, 4.0).item())


def test_sure_answers_keep_the_divergence_finite():
    sure = torch.tensor([[200.0, -200.0]])
    assert MultiLabel().distillation_loss(sure, sure, 1.0).item() == 0
    assert MultiLabel().distillation_loss(-sure, sure, 1.0).item() == pytest.approx(200)


def test_views_are_kept_where_the_set_of_classes_is_that_of_the_image():
    clean = torch.tensor([[2.0, -2.0, 0.1], [2.0, -2.0, 0.1], [-1.0, -1.0, -1.0]])
    changed = torch.tensor([[0.5, -9.0, 3.0], [0.5, -9.0, -0.1], [-2.0, -2.0, -2.0]])
    labels = torch.zeros(3, 3)  # those of the data are not asked
    assert MultiLabel().keeps(changed, labels, clean).tolist() == [True, False, True]
    assert MultiLabel(0.9).keeps(changed, labels, clean).tolist() == [False, True, True]
    assert MultiLabel().answer(clean).tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_an_answer_is_right_where_the_likeliest_class_is_a_label():
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
    target = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert MultiLabel().is_right(logits, target).tolist() == [True, False, False]
    assert MultiLabel().labels(target[0]) == [0, 1]
    assert MultiLabel().labels(target[2]) == []


@pytest.mark.parametrize('target', [torch.tensor([0, 1, 2, 3]), TARGET.long(), TARGET[0]])
def test_targets_of_another_kind_are_refused(teacher, vqgan, x_pix, target):
    augment = DADAugment(teacher, vqgan, **NORM, targets=MultiLabel())
    with pytest.raises(ValueError, match=r'multi-label targets must be floating-point multi-hot \[B, K\], got \['):
        augment.make_views(x_pix, target)


@pytest.mark.parametrize('threshold', [0, 1, -1])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match=f'threshold must be between 0 and 1, got {threshold}'):
        MultiLabel(threshold)


def test_an_ensemble_averages_sigmoids(teacher, x_pix):
    other = Teacher(teacher.model, **NORM, input_size=(SIZE, SIZE), num_classes=NUM_CLASSES)
    logits = TeacherEnsemble([teacher, other], [3, 1], temperature=2.0, multi_label=True)(x_pix)
    mean = 0.75 * (teacher(x_pix) / 2).double().sigmoid() + 0.25 * (other(x_pix) / 2).double().sigmoid()
    torch.testing.assert_close((logits / 2).double().sigmoid(), mean, atol=1e-6, rtol=1e-5)


# --- the task -------------------------------------------------------------------------------------------------------
@pytest.fixture
def sigmoids(teacher):
    """A teacher whose answers have some classes and lack others."""
    with torch.no_grad():
        teacher.model.get_classifier().weight.mul_(0.2)
    return teacher


def test_the_task_adds_the_parts(student, sigmoids, vqgan, x_pix):
    config = DADLossConfig(temperature=2.0, task_weight=0.7, kd_weight=0.3, dad_weight=0.2)
    augment = DADAugment(sigmoids, vqgan, **NORM, attack=AttackConfig(random_start=0), targets=MultiLabel())
    task = DADTask(student, sigmoids, augment, loss=config, targets=MultiLabel(), **NORM, verbose=False).eval()
    result = task(x_pix * 2 - 1, TARGET)
    x_dad = augment.make_views(x_pix, TARGET).x_dad
    logits = student(x_pix * 2 - 1)
    torch.testing.assert_close(result['output'], logits)
    task_loss = nn.functional.binary_cross_entropy_with_logits(logits, TARGET)
    kd_loss = MultiLabel().distillation_loss(logits, sigmoids(x_pix), 2.0)
    dad_loss = MultiLabel().distillation_loss(student(x_dad * 2 - 1), sigmoids(x_dad), 2.0)
    for name, own in (('task_loss', task_loss), ('kd_loss', kd_loss), ('dad_loss', dad_loss)):
        assert result[name].item() == pytest.approx(own.item(), rel=1e-4)
    assert result['loss'].item() == pytest.approx((0.7 * task_loss + 0.3 * kd_loss + 0.2 * dad_loss).item(), rel=1e-4)
    result['loss'].backward()
    assert all(parameter.grad is None for parameter in sigmoids.parameters())
    assert student.get_classifier().weight.grad.abs().sum() > 0


@pytest.mark.parametrize('attack_from', ['reconstruction', 'input'])
def test_views_are_those_of_the_loop_with_bce(sigmoids, vqgan, x_pix, attack_from):
    config = AttackConfig(eps=2.0, step_size=2.0, random_start=0)
    augment = DADAugment(sigmoids, vqgan, **NORM, attack=config, attack_from=attack_from, targets=MultiLabel())
    views = augment.make_views(x_pix, TARGET)

    def loss(x):
        return nn.functional.binary_cross_entropy_with_logits(sigmoids(x), TARGET, reduction='none').mean(dim=1)

    torch.testing.assert_close(views.x_adv, ascend(loss, views.x0, config))
    assert (loss(views.x_adv) > loss(views.x0)).all()
    torch.testing.assert_close(views.clean_logits, sigmoids(x_pix))


@pytest.mark.parametrize('attack', [AttackConfig(step_size=0.1), LatentAttackConfig()])
def test_the_filter_takes_the_reconstruction_where_the_set_changes(teacher, vqgan, x_pix, attack):
    x_pix = torch.cat([x_pix, 1 - x_pix, x_pix.flip(1), 0.5 * x_pix, x_pix.flip(2), 1 - 0.5 * x_pix])
    augment = DADAugment(teacher, vqgan, **NORM, attack=attack, keep_label=True, targets=MultiLabel(0.8))
    views = augment.make_views(x_pix, TARGET.repeat(6, 1))
    assert 0 < views.kept.sum() < len(views.kept)
    same = ((teacher(views.x_dad).sigmoid() >= 0.8) == (teacher(x_pix).sigmoid() >= 0.8)).all(dim=1)
    assert same[views.kept].all()
    torch.testing.assert_close(views.x_dad[~views.kept], vqgan.reconstruct(x_pix)[0][~views.kept])


def test_without_labels_the_target_is_the_teachers_set(sigmoids, vqgan, x_pix):
    config = AttackConfig(eps=2.0, step_size=2.0, random_start=0)
    free = DADAugment(sigmoids, vqgan, **NORM, attack=config, label_free=True, targets=MultiLabel())
    told = DADAugment(sigmoids, vqgan, **NORM, attack=config, targets=MultiLabel())
    answer = (sigmoids(x_pix) >= 0).float()
    unread = torch.zeros(len(x_pix), dtype=torch.long)
    torch.testing.assert_close(free.make_views(x_pix, unread).x_adv, told.make_views(x_pix, answer).x_adv)


def test_the_most_disagreement_is_one_of_sigmoids(student, sigmoids, vqgan, x_pix):
    attack = LatentAttackConfig(objective='disagreement')
    augment = DADAugment(sigmoids, vqgan, **NORM, attack=attack, targets=MultiLabel())
    DADTask(student, sigmoids, augment, targets=MultiLabel(), **NORM, verbose=False)
    expected = MultiLabel().divergence(student.eval()(x_pix * 2 - 1), sigmoids(x_pix), 4.0)
    torch.testing.assert_close(augment.disagreement(x_pix), expected)


def test_replayed_views_and_their_task_loss_take_sets(student, sigmoids, vqgan, x_pix):
    augment = DADAugment(sigmoids, vqgan, **NORM, targets=MultiLabel())
    common = {**NORM, 'targets': MultiLabel(), 'verbose': False}
    replaying = DADTask(student, sigmoids, augment, schedule=DADSchedule(every=2, replay=8), **common)
    first, second = (replaying(x_pix * 2 - 1, TARGET) for _ in range(2))
    assert first['dad_loss'] > 0 < second['dad_loss']
    config = DADLossConfig(extra_task_weight=0.5)
    found = DADTask(student, sigmoids, augment, loss=config, **common).eval()(x_pix * 2 - 1, TARGET)
    parts = found['task_loss'] + 0.5 * (found['kd_loss'] + found['dad_loss'] + found['extra_task_loss'])
    assert found['loss'].item() == pytest.approx(parts.item(), rel=1e-5)
    assert found['extra_task_loss'] > 0


def test_parts_of_two_kinds_do_not_go_together(student, teacher, vqgan):
    with pytest.raises(ValueError, match='targets must be the same for augment and task'):
        DADTask(student, teacher, DADAugment(teacher, vqgan, **NORM), targets=MultiLabel(), **NORM)
    with pytest.raises(ValueError, match='stored logits are single-label: pass no MultiLabel'):
        DADTask(student, None, None, stored=object(), targets=MultiLabel(), **NORM)


def test_pairs_say_what_is_kept(student, sigmoids, x_pix):
    task = DADTask(student, sigmoids, None, targets=MultiLabel(), **NORM, verbose=False)
    pairs = torch.cat([x_pix, x_pix]) * 2 - 1
    assert task(pairs, TARGET.repeat(2, 1))['teacher_kept'].item() == 1
    other = sigmoids(1 - x_pix) >= 0
    kept = (other == (sigmoids(x_pix) >= 0)).all(dim=1).float().mean().item()
    assert kept < 1
    found = task(torch.cat([x_pix, 1 - x_pix]) * 2 - 1, TARGET.repeat(2, 1))
    assert found['teacher_kept'].item() == pytest.approx(kept)


@needs_timm
def test_evaluators_are_timms(student, teacher):
    task = DADTask(student, teacher, None, targets=MultiLabel(0.3), **NORM, verbose=False)
    evaluator = task.create_evaluator()
    assert (task.multi_label, evaluator.threshold, evaluator.default_metric) == (True, 0.3, 'map')
    single = DADTask(student, teacher, None, targets=SingleLabel(), **NORM, verbose=False)
    assert (single.multi_label, single.create_evaluator().default_metric) == (False, 'top1')


def test_the_first_look_counts_likeliest_classes(sigmoids, vqgan, x_pix):
    augment = DADAugment(sigmoids, vqgan, **NORM, targets=MultiLabel())
    found = look(augment, x_pix, TARGET, seed=0)
    assert found.right[0] == sum(TARGET[row, best] for row, best in enumerate(sigmoids(x_pix).argmax(dim=1).tolist()))
    share = TARGET.mean().item()
    assert found.chance == pytest.approx(4 * share + 2 * math.sqrt(4 * share * (1 - share)))


# --- labels ---------------------------------------------------------------------------------------------------------
def test_one_class_is_wanted_without_the_flag():
    with pytest.raises(
        DataError, match=r'image 3 has the labels \[0, 2\], but one class is required; train, .* --task multilabel'
    ):
        as_label([0, 2], image='image 3')
    assert (as_label(3), as_label(None)) == (3, -1)


@needs_timm
@pytest.mark.parametrize(('dense', 'bad'), [(False, 2), (False, [5]), (True, [0, 1]), (True, [0, 0, 0, 0, 2])])
def test_labels_that_timm_refuses_name_the_image(dense, bad):
    encode = timm.data.MultiLabelTarget(5, dense=dense)
    with pytest.raises(DataError, match='the label of image 3 cannot be used: '):
        as_label(bad, encode, 'image 3')


@needs_timm
@pytest.mark.parametrize('base_alone', [False, True])
@pytest.mark.parametrize('collate', [False, True])
def test_pairs_are_mixed_with_their_labels(base_alone, collate):
    kwargs = {'mixup_alpha': 1.0, 'num_classes': 2, 'label_smoothing': 0.2, 'multi_label': True}
    label = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    mixing = (PairCollateMixup if collate else PairMixup)(**kwargs)
    mixing.base_alone = base_alone
    pixels = torch.tensor([10, 200]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    np.random.seed(0)
    if collate:
        views = [(pixels[row].byte().numpy(), pixels[row].byte().numpy()) for row in range(2)]
        mixed, soft = mixing(list(zip(views, label, strict=True)))
    else:
        mixed, soft = mixing(torch.cat([pixels, pixels]).float(), torch.cat([label, label]))
    weight = (mixed[0, 0, 0, 0].item() - 200) / (10 - 200)
    first = weight * torch.tensor([0.9, 0.9]) + (1 - weight) * torch.tensor([0.1, 0.9])
    assert 0.01 < weight < 0.99
    torch.testing.assert_close(soft[0], first, atol=0.01, rtol=0)
    torch.testing.assert_close(soft[2], torch.tensor([0.9, 0.9]) if base_alone else first, atol=0.01, rtol=0)


# --- end to end -----------------------------------------------------------------------------------------------------
NAMES = ('red', 'green', 'blue')


def _picture(labels, seed):
    """Noise, bright in the channels of its labels."""
    noise = np.random.default_rng(seed).integers(0, 90, (32, 32, 3))
    return Image.fromarray((noise + 150 * np.isin(np.arange(3), labels)).astype(np.uint8))


def _labels(index):
    return [channel for channel in range(3) if index >> channel & 1]  # of image 0 none


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with metadata.jsonl, and one with shards, of 16 and 8 pictures, in three formats of targets."""
    root = tmp_path_factory.mktemp('multilabel')
    for split, count in (('train', 16), ('validation', 7)):
        folder = root / 'folder' / split
        folder.mkdir(parents=True)
        rows = []
        for index in range(count):
            _picture(_labels(index), index).save(folder / f'{index}.png')
            hot = {name: int(label in _labels(index)) for label, name in enumerate(NAMES)}
            row = {'labels': _labels(index), 'hot': list(hot.values()), **hot, 'one': index % 3, 'far': [index]}
            rows.append(json.dumps({'file_name': f'{index}.png', **row}))
        (folder / 'metadata.jsonl').write_text('\n'.join(rows))
    (root / 'wds').mkdir()
    splits = {}
    for split, count in (('train', 8), ('validation', 4)):
        with tarfile.open(root / 'wds' / f'{split}.tar', 'w') as tar:
            for index in range(count):
                file = io.BytesIO()
                _picture(_labels(index), index).save(file, 'png')
                for suffix, content in (
                    ('png', file.getvalue()), ('json', json.dumps({'labels': _labels(index)}).encode())
                ):  # fmt: skip
                    info = tarfile.TarInfo(f'{index:05d}.{suffix}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        splits[split] = {
            'name': split, 'num_samples': count, 'filenames': [f'{split}.tar'], 'shard_lengths': [count]
        }  # fmt: skip
    (root / 'wds' / '_info.json').write_text(json.dumps({'splits': splits}))
    return root


def flags(data, output, *more, kind='folder', key='labels'):
    if kind == 'folder':
        named = ('--dataset', f'hfds/{data}/folder', '--data-dir', f'{data}/cache')
    else:
        named = ('--dataset', 'wds/', '--data-dir', f'{data}/wds')
    classes = () if ',' in key else ('--num-classes', '3')
    return [
        *named, *classes, '--target-key', key, '--task', 'multilabel', '--output', str(output), '--experiment', 'run',
        *('--model', 'test_resnet', '--img-size', '32', '--batch-size', '8', '--workers', '0', '--epochs', '1'),
        *('--mean', '0.5', '0.5', '0.5', '--std', '0.5', '0.5', '0.5', '--opt', 'adamw', '--lr', '0.01', '--no-aug'),
        *('--warmup-epochs', '0', *map(str, more)),
    ]  # fmt: skip


def summary(output):
    with open(output / 'run' / 'summary.csv') as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A run of ``--task multilabel``."""
    output = tmp_path_factory.mktemp('trained')
    results = train_dad.main(flags(data, output, '--epochs', '10', '--eval-metric', 'loss'))
    return output / 'run', results


@needs_timm
def test_plain_training_learns_several_labels(trained):
    rows = summary(trained[0].parent)
    assert {'eval_loss', 'eval_map', 'eval_micro_f1', 'eval_macro_f1', 'eval_sample_f1'} < rows[0].keys()
    assert 'eval_top1' not in rows[0]
    assert trained[1]['best_metric'] == min(row['eval_loss'] for row in rows) < 0.1
    assert rows[-1]['eval_map'] > 95 < rows[-1]['eval_micro_f1']
    assert rows[-1]['train_loss'] < 0.5 * rows[0]['train_loss']


@needs_timm
def test_every_format_of_targets_is_the_same_training(data, tmp_path):
    losses = []
    for number, (key, more) in enumerate(
        {'labels': (), 'hot': ('--target-format', 'multihot'), ','.join(NAMES): ()}.items()
    ):
        train_dad.main(flags(data, tmp_path / str(number), *more, key=key))
        losses.append(summary(tmp_path / str(number)))
    assert losses[0] == losses[1] == losses[2]


@needs_timm
def test_dad_with_a_run_as_teacher(data, trained, tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    dad = ('--dad', '--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', 'demo', '--dad-eps', '1', '--dad-step-size')
    more = ('1', '--dad-keep-label', '--model-ema', '--mixup', '0.2', '--smoothing', '0.1', '--eval-metric', 'micro_f1')
    results = train_dad.main(flags(data, tmp_path, *dad, *more))
    (row,) = summary(tmp_path)
    parts = row['train_task_loss'] + 0.5 * row['train_kd_loss'] + 0.5 * row['train_dad_loss']
    assert row['train_loss'] == pytest.approx(parts, rel=1e-4)
    assert row['train_dad_loss'] > 0
    assert results['best_metric'] == row['eval_micro_f1']
    assert (tmp_path / 'run' / 'preview.png').exists()
    text = caplog.text
    assert re.search(r'Teacher: run:\S+ at 32x32, right on (8[0-9]|9[0-9]|100)% of 16 pictures', text)
    assert 'where the teacher loses its answer x_dad is Q(x)' in text
    assert re.search(r'Best: micro_f1 \S+ \(epoch 0\), \S+model_best.pth.tar$', text, re.MULTILINE)


@needs_timm
def test_the_extra_view_may_be_a_random_one_and_the_data_a_stream(data, trained, tmp_path):
    more = ('--dad', '--dad-teacher', f'run:{trained[0]}', '--dad-view', 'random', '--val-split', 'validation')
    train_dad.main(flags(data, tmp_path, *more, '--smoothing', '0.3', kind='wds'))
    (row,) = summary(tmp_path)
    assert row['train_kd_loss'] > 0
    assert row['train_teacher_kept'] == 1
    assert 0 <= row['eval_map'] <= 100


@needs_timm
@pytest.mark.slow
def test_splits_and_base_views_have_the_labels_of_their_image(data, trained, tmp_path):
    more = ('--dad', '--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', 'demo', '--dad-view-aug', 'base')
    argv = flags(data, tmp_path, *more, '--no-prefetcher', '--aug-splits', '2', '--aa', 'augmix-m5')
    argv.remove('--no-aug')
    train_dad.main(argv)
    assert summary(tmp_path)[0]['train_task_loss'] > 0


@needs_timm
def test_a_resumed_training_is_the_same(data, tmp_path):
    train_dad.main(flags(data, tmp_path / 'whole', '--epochs', '2', '--sched', 'step'))
    train_dad.main(flags(data, tmp_path / 'half', '--sched', 'step'))
    train_dad.main(flags(data, tmp_path / 'half', '--epochs', '2', '--sched', 'step', '--resume', 'auto'))
    assert summary(tmp_path / 'whole') == summary(tmp_path / 'half')


@needs_timm
def test_preview_shows_sets_of_labels(data, trained, tmp_path):
    images = preview([
        *('--dataset', f'hfds/{data}/folder', '--data-dir', f'{data}/cache', '--task', 'multilabel'),
        *('--target-key', ','.join(NAMES), '--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', str(DEMO_VQGAN)),
        *('--img-size', '32', '--index', '0', '6', '--output', str(tmp_path), '--device', 'cpu'),
    ])  # fmt: skip
    assert [image.labels for image in images] == [[], [1, 2]]
    assert images[1].is_right('x')
    assert images[1].probs['x'][[1, 2]].min() > 0.5 > images[1].probs['x'][0]
    page = (tmp_path / 'preview.html').read_text()
    assert 'labels: none' in page
    assert 'labels: green, blue' in page


@needs_timm
def test_a_set_is_made_and_trained_from(data, trained, tmp_path, capsys):
    views = ('--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', str(DEMO_VQGAN))
    common = ('--dataset', f'hfds/{data}/folder', '--data-dir', f'{data}/cache', '--task', 'multilabel')
    common += ('--target-key', 'labels', '--num-classes', '3', '--img-size', '32', '--device', 'cpu', '--workers', '0')
    summary_of_set = generate([*common, *views, '--output', str(tmp_path / 'set')])
    assert summary_of_set['kept_by_class'] == {}
    assert list(verify(tmp_path / 'set')) == []
    settings = read_settings(tmp_path / 'set')
    assert settings['data']['multi_label'] == {'target_format': 'indices', 'threshold': 0.5}
    train_dad.main(flags(data, tmp_path, '--dad', '--dad-dir', tmp_path / 'set'))
    (row,) = summary(tmp_path)
    assert row['train_dad_loss'] > 0
    # Views are PNGs of the augmentation's; the teacher says of them what it said when they were made.
    assert row['train_teacher_kept'] == pytest.approx(summary_of_set['teacher_kept'], abs=0.1)
    argv = flags(data, tmp_path / 'one', '--dad', '--dad-dir', tmp_path / 'set', key='one')
    argv[argv.index('multilabel')] = 'classification'
    assert 'was made with --task multilabel: add it, or make another set' in error_of(capsys, train_dad.main, argv)
    line = error_of(capsys, generate, [*common, *views, '--output', str(tmp_path / 'b'), '--dad-store-logits', '2'])
    assert '--task multilabel: --dad-store-logits stores answers with one class per image; leave it out' in line
    line = error_of(capsys, generate, [*common, *views, '--output', str(tmp_path / 'set'), '--dad-eps', '1'])
    assert 'is a set with other settings' in line


@needs_timm
def test_a_set_of_a_stream_is_found_by_its_pictures(data, trained, tmp_path):
    generate([
        *('--dataset', 'wds/', '--data-dir', f'{data}/wds', '--task', 'multilabel', '--target-key', 'labels'),
        *('--num-classes', '3', '--img-size', '32', '--device', 'cpu', '--workers', '0', '--format', 'wds'),
        *('--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', str(DEMO_VQGAN), '--output', str(tmp_path / 'set')),
    ])  # fmt: skip
    train_dad.main(flags(data, tmp_path, '--dad', '--dad-dir', tmp_path / 'set', kind='wds'))
    assert summary(tmp_path)[0]['train_dad_loss'] > 0


@needs_timm
def test_views_are_cached_with_sets_of_labels(data, trained, tmp_path):
    more = ('--dad', '--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', 'demo', '--dad-cache', '1', '--dad-look', '0')
    train_dad.main(flags(data, tmp_path, *more))
    assert summary(tmp_path)[0]['train_dad_loss'] > 0


@needs_timm
@pytest.mark.parametrize('more', [(), ('--dad-cache', '1')])
def test_info_counts_and_measures_it(data, trained, tmp_path, capsys, more):
    argv = flags(data, tmp_path, '--dad', '--dad-teacher', f'run:{trained[0]}', '--dad-vqgan', 'demo', *more)
    report = info([*argv, '--batches', '1'])
    assert report['parts']['DAD view']['forward'] > report['parts']['vqgan']['forward'] > 0


@needs_timm
def test_an_index_source_gives_encoded_labels(data):
    dataset = open_dataset(f'hfds/{data}/folder', f'{data}/cache', 'train', '--data-dir', target_key='labels')
    encode_labels(dataset, '--data-dir', timm.data.MultiLabelTarget(3))
    assert Source(dataset)[5].label.tolist() == [1, 0, 1]
    assert dataset[5][1].tolist() == [1, 0, 1]


# --- wrong inputs ---------------------------------------------------------------------------------------------------
def error_of(capsys, function, argv):
    with pytest.raises(SystemExit):
        function(argv)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('timm-dad')]
    return line


DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo')


@needs_timm
@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--jsd-loss', '--aug-splits', '2'), r'--jsd-loss does not support --task multilabel: use bce, asl, .* or db'),
        ((*DAD, '--dad-temperature', 'auto'), r'--dad-temperature auto uses the entropy of softmaxes'),
        (('--loss', 'ce'), r'--loss ce does not support --task multilabel: use bce, asl, poly, twoway, zlpr or db'),
        (('--loss', 'zlpr', '--mixup', '0.2'), r'--loss zlpr takes only targets of 0 and 1: leave --mixup, --cutmix'),
        (
            ('--loss', 'db', '--class-stats', '{stats}'),
            r'--class-stats .* a count for each of 3 classes, got 5',
        ),
        (('--loss', 'db'), r"--loss db needs --class-stats, the counts from timm's class_weights.py"),
        (('--loss', 'poly', '--loss-pos-weight', '2'), r'--loss-pos-weight is for --loss bce or asl, got --loss poly'),
        (('--kd-model-name', 'test_resnet'), r"--kd-model-name is timm's distillation with one class per image"),
        (('--eval-suites', 'demo/noto'), r'--eval-suites measures top-1; leave it out'),
        ((*DAD, '--no-labels'), r'--no-labels needs one class per image; leave it out'),
        (
            ('--dad', '--dad-dir', 'set', '--dad-stored-logits'),
            r'--dad-stored-logits uses stored answers, which have',
        ),
        (('--eval-metric', 'top1'), r'--eval-metric must be one of map, .* with --task multilabel, got top1'),
        (('--multilabel-threshold', '1'), r'--multilabel-threshold must be between 0 and 1, got 1'),
        (('--dataset', '', '--data-dir', '.'), r'--task multilabel needs data with several labels .* got a folder of'),
        (('--dataset', 'torch/cifar10'), r'--task multilabel needs data with several .* got torch/cifar10'),
        (('--target-key', 'far'), r'--data-dir: the label of image 3 cannot be used: .* indices must be in \[0, 3\)'),
        (
            ('--target-key', 'one'),
            r'--data-dir: the label of image 0 cannot be used: Multi-label targets must be a 1-D',
        ),
        (('--target-format', 'multihot'), r'--data-dir: the label of image \d cannot be used: Dense multi-label'),
        (
            (*DAD, '--dad-classnames', '{names}'),
            r'--task multilabel needs a teacher whose sigmoids are probabilities, and demo was trained to choose',
        ),
        (
            ('--dad', '--dad-teacher', 'wise:demo+demo@0.5', '--dad-vqgan', 'demo', '--dad-classnames', '{names}'),
            r'--task multilabel needs a teacher whose sigmoids are probabilities, and wise:demo.* was trained',
        ),
        (
            ('--task', 'classification'),
            r'--data-dir: image 0 has the labels \[\], but one class is required; train, .* --task multilabel',
        ),
    ],
)
def test_what_does_not_go_with_it_is_one_line(data, tmp_path, capsys, more, message):
    (tmp_path / 'names.txt').write_text('\n'.join(NAMES))
    (tmp_path / 'stats.json').write_text('{"pos_counts": [1, 2, 3, 4, 5], "num_samples": 15}')
    files = {'names': tmp_path / 'names.txt', 'stats': tmp_path / 'stats.json'}
    more = [flag.format(**files) for flag in more]
    assert re.search(message, error_of(capsys, train_dad.main, flags(data, tmp_path / 'out', *more)))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--target-format', 'multihot'), '--target-format needs --task multilabel'),
        (('--multilabel-threshold', '0.3'), '--multilabel-threshold needs --task multilabel'),
        (('--eval-metric', 'map'), '--eval-metric map needs --task multilabel'),
    ],
)
def test_its_flags_need_it(capsys, more, message):
    assert message in error_of(capsys, parse_args, ['--data-dir', 'x', *more])


def test_an_older_timm_is_refused(monkeypatch, capsys):
    monkeypatch.setattr('timm_dad.flags.task.NEW_TIMM', False)
    line = error_of(capsys, parse_args, ['--dataset', 'hfds/x', '--task', 'multilabel'])
    assert needs_new_timm('--task multilabel') in line


@needs_timm
def test_defaults_are_timms_where_nobody_says_otherwise(tmp_path):
    (tmp_path / 'config.yaml').write_text('smoothing: 0.2\n')
    argv = ['--dataset', 'hfds/x', '--task', 'multilabel']
    found = parse_args(argv)
    assert (found.smoothing, found.eval_metric) == (0.0, 'map')
    assert parse_args([*argv, '--config', str(tmp_path / 'config.yaml')]).smoothing == 0.2
    assert parse_args([*argv, '--smoothing', '0.1', '--eval-metric', 'loss']).eval_metric == 'loss'
    assert parse_args(['--dataset', 'hfds/x']).smoothing == 0.1


@needs_timm
def test_runs_of_two_kinds_are_no_teachers_of_each_other(data, trained, tmp_path, capsys):
    single = flags(data, tmp_path / 'single', key='one')
    single[single.index('multilabel')] = 'classification'
    train_dad.main(single)
    dad = ('--dad', '--dad-vqgan', 'demo', '--dad-teacher')
    line = error_of(capsys, train_dad.main, flags(data, tmp_path / 'a', *dad, f'run:{tmp_path}/single/run'))
    assert 'it was trained on one class per image: give a run of --task multilabel' in line
    line = error_of(capsys, train_dad.main, [*single, '--experiment', 'b', *dad, f'run:{trained[0]}'])
    assert f'--dad-teacher run:{trained[0]}: it was trained with --task multilabel' in line


@needs_timm
def test_evaluate_refuses_its_runs(trained, tmp_path, capsys):
    argv = ['--model', f'run:{trained[0]}', '--suite', 'demo/noto', '--output', str(tmp_path), '--device', 'cpu']
    assert 'it was trained with --task multilabel, but here one class' in error_of(capsys, evaluate, argv)


@needs_timm
@pytest.mark.slow
def test_two_processes_measure_what_one_does(data, tmp_path):
    # No batch statistics and nothing drawn; the 7 images of the validation are padded to 8.
    more = ('--model', 'test_vit', '--opt', 'sgd', '--lr', '0.05')
    train_dad.main(flags(data, tmp_path / 'one', *more, '--batch-size', '8'))
    launcher = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    argv = flags(data, tmp_path / 'two', *more, '--batch-size', '4')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(train_dad.__file__).parent)}
    subprocess.run([*launcher, train_dad.__file__, *argv], env=env, check=True, capture_output=True, timeout=180)
    (one,), (two,) = summary(tmp_path / 'one'), summary(tmp_path / 'two')
    assert two == pytest.approx(one, rel=1e-5)
