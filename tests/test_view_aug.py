"""``--dad-view-aug``: what is done to the extra view, and what a DAD view is made of."""

import numpy as np
import pytest
import torch
from folders import write_pictures
from PIL import Image
from timm.data import create_dataset, create_transform

import train_dad
from timm_dad.data.images import Source
from timm_dad.data.pairs import DADPairs, PairTransform, SameImage
from timm_dad.data.seeded import SeededErasing
from timm_dad.method.augment import DADAugment
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.task import DADTask
from timm_dad.training.loaders import PairCollateMixup, PairMixup

HALF = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
MIXING = {'mixup_alpha': 1.0, 'cutmix_alpha': 0.0, 'num_classes': 4, 'label_smoothing': 0.1}
AUGMENTED = [
    {'auto_augment': 'rand-m9-mstd0.5-inc1'},
    {'auto_augment': 'augmix-m3-w3'},
    {'auto_augment': 'original'},
    {'color_jitter': 0.4},
    {'color_jitter': 0.4, 'color_jitter_prob': 0.9, 'grayscale_prob': 0.9, 'gaussian_blur_prob': 0.9},
    {'re_prob': 1.0},
    {'auto_augment': 'rand-m9', 're_prob': 1.0, 'vflip': 0.5, 'train_crop_mode': 'rkrr'},
]


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8))


def seeded(seed):
    import random

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize('options', AUGMENTED)
@pytest.mark.parametrize('prefetcher', [False, True])
def test_the_base_is_what_timm_calls_the_first_and_the_last_stage(options, prefetcher):
    settings = {'color_jitter': None, **options, 'use_prefetcher': prefetcher, 'is_training': True}
    whole, stages = (create_transform((3, 24, 24), **settings, separate=separate) for separate in (False, True))
    # The last stage erases, too, where there is no prefetcher.
    last = [step for step in stages[2].transforms if type(step).__name__ != 'RandomErasing']
    views = PairTransform(same_draws=True, base_alone=True)
    views.transform = whole
    full = PairTransform(same_draws=True)
    full.transform = whole
    for seed in range(3):
        seeded(seed)
        expected = stages[0](picture())
        for step in last:
            expected = step(expected)
        seeded(seed)
        image, extra = views(picture(), picture())
        assert torch.equal(torch.as_tensor(extra), torch.as_tensor(expected))
        seeded(seed)
        augmented, again = full(picture(), picture())
        assert torch.equal(torch.as_tensor(image), torch.as_tensor(augmented))  # the image gets all of it
        assert torch.equal(torch.as_tensor(augmented), torch.as_tensor(again))


def test_with_splits_the_extra_view_is_not_erased_either():
    stages = create_transform((3, 24, 24), is_training=True, auto_augment='augmix-m3-w3', re_prob=1.0, separate=True)
    views = PairTransform(2, same_draws=True, base_alone=True)
    views.transform = stages
    seeded(0)
    clean, augmented, extra = views(picture(), picture())
    base = create_transform((3, 24, 24), is_training=True, color_jitter=None, re_prob=0.0)
    seeded(0)
    assert torch.equal(extra, base(picture()))
    assert not torch.equal(augmented, extra)
    assert clean.shape == extra.shape


def pairs():
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 255, (2, 4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return views, torch.tensor([0, 1, 2, 3])


def test_mixing_leaves_the_base_alone():
    views, label = pairs()
    smooth = torch.full((4, 4), 0.025) + 0.9 * torch.eye(4)
    for mixup in (PairMixup(**MIXING), PairCollateMixup(**MIXING)):
        mixup.base_alone = True
        seeded(0)
        if isinstance(mixup, PairMixup):
            mixed, soft = mixup(views.flatten(0, 1).float(), label.repeat(2))
        else:
            mixed, soft = mixup([((one, other), int(own)) for one, other, own in zip(*views, label, strict=True)])
        assert torch.equal(mixed[4:].float(), views[1].float())
        torch.testing.assert_close(soft[4:], smooth)
        assert not torch.equal(mixed[:4].float(), views[0].float())
        assert not torch.allclose(soft[:4], smooth)
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(8))


def test_erasing_on_the_device_spares_the_base():
    from timm.data.random_erasing import RandomErasing

    views = torch.rand(2 * 4, 3, 8, 8)
    for spared in (0, 1):
        erased = SeededErasing(RandomErasing(1.0, device='cpu'), 0, 2, 0, 1, spared=spared)(views.clone())
        assert not torch.equal(erased[:4], views[:4])
        assert torch.equal(erased[4:], views[4:]) == bool(spared)


def test_dad_views_are_made_of_the_pictures_apart(student, teacher, vqgan, x_pix):
    """Whatever is done to the clean images, the DAD view is that of the base, and its label the base's."""
    norm = lambda x: (x - 0.5) / 0.5  # noqa: E731
    augment = DADAugment(teacher, vqgan, **HALF, attack=LatentAttackConfig())
    task = DADTask(student, teacher, augment, apart=True, **HALF, verbose=False)
    noise, target = torch.rand_like(x_pix), torch.tensor([0, 1, 2, 3])
    soft = torch.full((4, 5), 0.2)  # mixed
    labels = torch.cat([soft, torch.eye(5)[target]])
    torch.manual_seed(1)
    prepared = task._prepare(torch.cat([norm(noise), norm(x_pix)]), labels)
    torch.manual_seed(1)
    views = augment.make_views(x_pix, torch.eye(5)[target])
    torch.testing.assert_close(prepared.extra.x_norm, norm(views.x_dad))
    torch.testing.assert_close(prepared.logits, teacher(noise))
    assert torch.equal(prepared.extra.kept, views.dad_logits.argmax(dim=1) == target)
    result = task(torch.cat([norm(noise), norm(x_pix)]), labels)
    assert result['output'].shape == (4, 5)
    with pytest.raises(ValueError, match='apart selects the images that augment makes DAD views from'):
        DADTask(student, teacher, None, apart=True, **HALF, verbose=False)


def test_base_and_image_have_one_crop_and_flip(tmp_path):
    root = write_pictures(tmp_path, train=2)
    dataset = DADPairs(
        Source(create_dataset('', str(root), split='train')), SameImage(), PairTransform(same_draws=True)
    )
    dataset.transform = create_transform((3, 24, 24), is_training=True, color_jitter=None)
    (image, extra), _ = dataset[3]
    assert torch.equal(image, extra)


RUN = '--num-classes 4 --img-size 32 --model test_resnet --epochs 1 --batch-size 12 --workers 0 --val-split'
DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--dad-attack', 'latent', '--dad-look', '0')


@pytest.mark.slow
@pytest.mark.parametrize(
    'more',
    [
        ('--aa', 'rand-m9'),
        ('--aa', 'rand-m9', '--reprob', '0.9', '--no-prefetcher'),
        ('--mixup', '0.8', '--reprob', '0.9'),
        ('--mixup', '0.8', '--no-prefetcher', '--smoothing', '0.2'),
        ('--aa', 'augmix-m5', '--aug-splits', '2', '--jsd-loss'),  # the first split is the base already
        ('--aa', 'rand-m9', '--dad-cache', '1'),
        ('--aa', 'rand-m9', '--dad-every', '2', '--dad-replay', '12'),
    ],
    ids=' '.join,
)
def test_trainings(tmp_path, more):
    """Both choices run, and train other students."""
    root = write_pictures(tmp_path / 'data', train=6)
    weights = []
    for view_aug in ('full', 'base'):
        argv = ['--data-dir', str(root), *RUN.split(), '', '--output', str(tmp_path), '--experiment', view_aug, *DAD]
        train_dad.main([*argv, *more, '--dad-view-aug', view_aug])
        weights.append(torch.load(tmp_path / view_aug / 'last.pth.tar', weights_only=False)['state_dict']['fc.weight'])
        assert weights[-1].isfinite().all()
    assert torch.equal(*weights) == ('--aug-splits' in more)
