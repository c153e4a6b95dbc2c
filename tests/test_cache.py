"""DAD views made once."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.training.cache import make_dad_images

NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


def test_images_are_the_dad_views_in_order(teacher, vqgan, x_pix):
    attack = AttackConfig(eps=2, step_size=1, random_start=0)
    augment = DADAugment(teacher, vqgan, attack=attack, **NORM)
    target = torch.arange(4)
    loader = DataLoader(TensorDataset(2 * x_pix - 1, target), batch_size=3)
    images = make_dad_images(augment, loader, 2, progress=False)
    assert images.shape == (4, 2, 16, 16, 3)
    assert images.dtype == torch.uint8
    expected = augment.make_views(x_pix, target).x_dad.permute(0, 2, 3, 1) * 255
    for view in range(2):  # without a random start the views are equal
        torch.testing.assert_close(images[:, view].float(), expected, atol=1.01, rtol=0)


def test_views_differ_where_the_attack_starts_at_random(teacher, vqgan, x_pix):
    augment = DADAugment(teacher, vqgan, attack=AttackConfig(eps=3, step_size=1, random_start=1), **NORM)
    loader = DataLoader(TensorDataset(2 * x_pix - 1, torch.arange(4)), batch_size=4)
    images = make_dad_images(augment, loader, 2, progress=False)
    assert (images[:, 0] != images[:, 1]).flatten(1).any(dim=1).all()
