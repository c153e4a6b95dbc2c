"""DAD views made once, and their pairs."""

import random

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from timm_dad.attack import AttackConfig
from timm_dad.augment import DADAugment
from timm_dad.cache import DADPairs, make_dad_images

NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


class Grey:
    """Six grey pictures; the label is the index."""

    transform = None

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = Image.new('RGB', (4, 4), (index,) * 3)
        return (self.transform(image) if self.transform else image), index


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


def test_every_image_comes_with_one_of_its_own_views():
    dad_images = torch.arange(6).view(6, 1, 1, 1, 1).expand(6, 3, 4, 4, 3) * 10 + torch.arange(3).view(1, 3, 1, 1, 1)
    pairs = DADPairs(Grey(), dad_images.byte())
    assert len(pairs) == 6
    random.seed(0)
    seen = set()
    for _ in range(40):
        (image, dad_image), target = pairs[4]
        assert target == 4
        assert image.getpixel((0, 0)) == (4, 4, 4)
        seen.add(dad_image.getpixel((0, 0))[0])
    assert seen == {40, 41, 42}


def test_each_of_a_pair_goes_through_the_transform():
    pairs = DADPairs(Grey(), torch.zeros(6, 1, 4, 4, 3, dtype=torch.uint8))
    calls = []
    pairs.transform = lambda image: calls.append(image) or len(calls)
    assert pairs[0] == ((1, 2), 0)


def test_missing_views_are_refused():
    with pytest.raises(ValueError, match='DAD images for all 6 images, got 5'):
        DADPairs(Grey(), torch.zeros(5, 1, 4, 4, 3, dtype=torch.uint8))
