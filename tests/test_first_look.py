"""What is said before training, and when it is said that DAD can teach nothing."""

import dataclasses
import logging

import pytest
import timm
import torch
from folders import write_pictures, write_wds
from PIL import Image
from timm.data import create_dataset
from torch import nn

import train_dad
from timm_dad.data.datasets import dataset_class_names
from timm_dad.data.images import Frame, Source
from timm_dad.flags.dad import build_task
from timm_dad.flags.data import create_dataset as create_data
from timm_dad.flags.train import parse_args
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.preview.first_look import FirstLook, first_pictures, log_look, look

GOOD = FirstLook(count=64, num_classes=10, right=(60, 55, 20), psnr=24.0, changed=0.9)
ZERO_ONE = {'mean': (0, 0, 0), 'std': (1, 1, 1)}


def test_numbers_are_those_of_the_views(teacher, vqgan, x_pix):
    target = teacher(x_pix).argmax(dim=1)
    target[0] = (target[0] + 1) % 5  # one that the teacher gets wrong
    augment = DADAugment(teacher, vqgan, **ZERO_ONE, attack=LatentAttackConfig())
    state = torch.get_rng_state()
    found = look(augment, x_pix, target, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    x_vq, codes = vqgan.reconstruct(x_pix)
    generators = [torch.Generator().manual_seed(3 + place) for place in range(4)]
    views = augment.attack_centre(augment.find_centre(x_pix, target), target, generator=generators)
    right = [int((teacher(own).argmax(dim=1) == target).sum()) for own in (x_pix, x_vq, views.x_dad)]
    assert found.right == tuple(right)
    assert found.right[0] == 3
    mse = (x_vq - x_pix).square().mean(dim=(1, 2, 3))
    assert found.psnr == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-4)
    assert found.changed == pytest.approx((views.dad_codes != codes).float().mean().item())
    assert found.changed > 0.2


def test_the_label_filter_counts_no_view_that_became_the_reconstruction(teacher, vqgan, x_pix):
    for eps, steps in ((0.1, 1), (0.5, 0)):  # the attack loses labels that noise keeps
        attack, target = LatentAttackConfig(eps=eps, num_steps=steps), teacher(vqgan(x_pix)).argmax(dim=1)
        augment = DADAugment(teacher, vqgan, **ZERO_ONE, attack=attack, keep_label=True)
        generators = [torch.Generator().manual_seed(index) for index in range(4)]
        views = augment.attack_centre(augment.find_centre(x_pix, target), target, generator=generators)
        found = look(augment, x_pix, target, seed=0)
        assert found.kept == int(views.kept.sum())
        assert f'in the {found.kept} views that --dad-keep-label leaves' in str(found)
        changed = (views.dad_codes != vqgan.encode_to_codes(x_pix))[views.kept].float().flatten()
        assert found.changed == pytest.approx(changed.mean().item() if len(changed) else 0.0)


def test_the_attack_is_looked_at_as_it_will_be_when_the_schedule_ends(caplog):
    """Cosine starts with next to nothing, which would be called too little."""
    caplog.set_level('INFO', logger='timm_dad')
    argv = '--dataset demo/noto --num-classes 16 --img-size 32 --dad --dad-teacher demo --dad-vqgan demo --epochs 300'
    args = parse_args([*argv.split(), '--dad-recipe', 'latent', '--dad-eps-sched', 'cosine', '--dad-look', '4'])
    student = timm.create_model('test_resnet', num_classes=16)
    dataset = create_data(args, 'train', split_flag='--train-split')
    half = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    data_config = {'input_size': (3, 32, 32), 'crop_pct': 1.0, 'interpolation': 'bicubic', **half}
    names = dataset_class_names(dataset)
    task, _ = build_task(args, student, data_config, names, dataset=dataset, device=torch.device('cpu'))
    assert 'latents, l2, eps 0.5, 1 step of 0.5' in caplog.text
    assert 'DAD on 4 pictures' in caplog.text
    assert 'DAD will teach little' not in caplog.text
    assert task.augment.attack.eps < 0.001


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, None),
        ({'right': (5, 5, 5)}, r'the teacher is right on 5 of 64 pictures, no more than chance.*docs/teachers\.md'),
        ({'right': (60, 8, 8)}, r'on 8 of their reconstructions.*--dad-vqgan.*docs/vqgan\.md'),
        ({'kept': 0, 'changed': 0.0}, r'loses the label on every DAD view.*smaller --dad-eps.*--dad-keep-label out'),
        ({'kept': 3}, None),
        ({'changed': 0.0}, r'the attack changes 0\.0% of the codes.*--dad-attack latent.*docs/attacks\.md'),
        ({'num_classes': 1000, 'right': (1, 1, 1)}, None),  # one of 64 is more than chance there
        ({'num_classes': 1000, 'right': (0, 0, 0)}, r'on 0 of 64'),
    ],
)
def test_a_problem_says_which_of_teacher_vqgan_and_attack_to_change(changes, message, caplog):
    found = dataclasses.replace(GOOD, **changes)
    caplog.set_level('INFO', logger='timm_dad')
    log_look(found)
    assert 'teacher right on x' in caplog.text
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (message is not None)
    if message:
        import re

        assert re.search(message, warnings[0])


def test_guessing_is_seldom_taken_for_knowing():
    """Of random answers on 64 pictures of 4 classes at most one in 20 looks like knowledge."""
    guesses = torch.randint(4, (2000, 64), generator=torch.Generator().manual_seed(0))
    right = (guesses == 0).sum(dim=1)
    chance = dataclasses.replace(GOOD, num_classes=4).chance
    assert (right > chance).float().mean() < 0.05


def test_pictures_are_spread_and_such_as_do_not_decode_are_left_out(tmp_path):
    root = write_pictures(tmp_path, train=4)
    (root / 'train' / 'dog' / '0.png').write_bytes(b'no picture')
    source = Source(create_dataset('', str(root), split='train'))
    x_pix, target = first_pictures(source, Frame(size=(16, 16)), 64, torch.device('cpu'))
    assert x_pix.shape == (15, 3, 16, 16)
    assert 0 <= x_pix.min() <= x_pix.max() <= 1
    assert target.tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 4
    _, target = first_pictures(source, Frame(size=(16, 16)), 4, torch.device('cpu'))
    assert len(set(target.tolist())) > 2


def test_a_data_set_stays_as_it_is(tmp_path):
    """timm's script looks when its loader is there; data without a timm reader is read through its own transform."""

    class Plain(torch.utils.data.Dataset):
        transform = staticmethod(lambda image: 1)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            image = Image.new('RGB', (20, 20), (80 * index, 0, 0))
            return (self.transform(image) if self.transform else image), index

    dataset = Plain()
    x_pix, target = first_pictures(Source(dataset), Frame(size=(8, 8)), 8, torch.device('cpu'))
    assert target.tolist() == [0, 1, 2]
    assert x_pix.shape == (3, 3, 8, 8)
    assert dataset[0][0] == 1


def test_pieces_find_what_the_whole_finds(teacher, vqgan, x_pix):
    augment = DADAugment(teacher, vqgan, **ZERO_ONE, attack=LatentAttackConfig())
    whole, pieces = (look(augment, x_pix, torch.arange(4), seed=0, batch_size=size) for size in (4, 3))
    assert whole.right == pieces.right
    assert whole.changed == pytest.approx(pieces.changed, abs=0.05)


def test_a_stream_is_not_looked_at(tmp_path, caplog):
    """Whoever reads it before its loader leaves every worker with all of it."""
    (tmp_path / 'wds').mkdir()
    write_wds(tmp_path / 'wds', [str(index) for index in range(16)], list(range(16)))
    (tmp_path / 'names.txt').write_text('\n'.join(f'thing {index}' for index in range(16)))
    caplog.set_level('INFO', logger='timm_dad')
    argv = ['--dataset', 'wds/', '--data-dir', str(tmp_path / 'wds'), '--num-classes', '16', '--img-size', '32']
    argv += [
        '--train-num-samples',
        '16',
        '--val-split',
        '',
        '--model',
        'test_resnet',
        '--epochs',
        '1',
        '--workers',
        '0',
    ]
    argv += ['--batch-size', '8', '--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--output', str(tmp_path)]
    train_dad.main([*argv, '--dad-classnames', str(tmp_path / 'names.txt'), '--train-split', 'train'])
    assert 'Pictures of a stream are not checked first' in caplog.text
    assert 'DAD on' not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize('count', [0, 8])
def test_training_looks_first_and_is_the_same_training(tmp_path, caplog, count):
    """The paper's attack changes next to no code of the demo's pictures: that is told."""
    caplog.set_level('INFO', logger='timm_dad')
    argv = [
        '--dataset',
        'demo/noto',
        '--num-classes',
        '16',
        '--img-size',
        '32',
        '--model',
        'test_resnet',
        '--epochs',
        '1',
    ]
    argv += ['--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--dad-every', '20', '--batch-size', '64']
    argv += ['--dad-num-steps', '0', '--dad-random-start', '0', '--workers', '0', '--output', str(tmp_path)]
    train_dad.main([*argv, '--experiment', 'a', '--dad-look', str(count)])
    assert ('DAD on 8 pictures' in caplog.text) == bool(count)
    assert ('DAD will teach little: the attack changes 0.0%' in caplog.text) == bool(count)
    if count:
        train_dad.main([*argv, '--experiment', 'b', '--dad-look', '0'])
        states = [torch.load(tmp_path / run / 'last.pth.tar', weights_only=False)['state_dict'] for run in 'ab']
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name


def test_gradients_that_are_zero_are_told_before_training(teacher, vqgan, x_pix):
    nn.init.zeros_(teacher.model.get_classifier().weight)
    augment = DADAugment(teacher, vqgan, **ZERO_ONE, attack=AttackConfig())
    with pytest.raises(ValueError, match='the attack moves no image'):
        look(augment, x_pix, torch.zeros(4, dtype=torch.long), seed=0)
