"""``--dad-cache``: DAD views made once by the code of ``timm-dad generate``, in a folder that goes at the end."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from folders import CLASSES, write_pictures
from timm.data import create_dataset

from timm_dad.dad_sets.maker import view_seed
from timm_dad.data.images import Frame, Source
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.flags.pairs import cached_set
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import parse_args
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.vqgan.load import load_vqgan

CONFIG = {'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'crop_pct': 0.9}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    root = write_pictures(tmp_path_factory.mktemp('pictures'), train=3)
    return create_dataset('', root=str(root), split='train')


def made(dataset, *flags):
    args = parse_args(['--data-dir', 'x', '--num-classes', '4', '--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo',
                       '--img-size', '32', '--batch-size', '5', '--workers', '0', *flags])  # fmt: skip
    attack = AttackConfig(eps=3, step_size=1, random_start=1)
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    augment = DADAugment(create_teacher(args, 4, CLASSES), load_vqgan(DEMO_VQGAN), attack=attack, **norm)
    return augment, cached_set(args, augment, dataset, CONFIG, Accelerator(cpu=True))


@pytest.mark.slow
def test_views_are_those_of_their_image_under_seeds_of_their_own(dataset):
    augment, context = made(dataset, '--dad-cache', '2', '--seed', '7')
    source = Source(dataset)
    transform = Frame(size=(32, 32), crop_pct=0.9).transform()
    with context as dad_set:
        assert (dad_set.num_images, dad_set.num_views, dad_set.size) == (12, 2, (32, 32))
        for index in (0, 7, 11):
            image = source.read(index)
            x_pix = torch.from_numpy(np.array(transform(image.image))).permute(2, 0, 1)[None] / 255
            views = []
            for view in range(2):
                generator = torch.Generator().manual_seed(view_seed(7, index, view))
                target = torch.tensor([image.label])
                centre = augment.find_centre(x_pix, target)
                expected = augment.attack_centre(centre, target, generator=[generator]).x_dad[0] * 255
                views.append(np.array(dad_set.image(index, view, source.name(index, image.label))))
                found = torch.from_numpy(views[-1]).permute(2, 0, 1).float()
                assert (found - expected).abs().mean() < 1  # sums over other batches may flip a code
            assert (views[0] != views[1]).any()
        assert dad_set.root.is_dir()
    assert not dad_set.root.exists()


def test_the_folder_goes_when_the_training_fails(dataset):
    _, context = made(dataset, '--dad-cache', '1')
    with pytest.raises(KeyboardInterrupt), context as dad_set:
        raise KeyboardInterrupt
    assert not dad_set.root.exists()
