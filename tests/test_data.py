"""Data sets, their class names, checks before work starts, two views."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_loader

from timm_dad.data import TwoViews, check_images, dataset_class_names, open_dataset


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(('b', 'a')):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((8, 8, 3), 100 * label + index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'train' / name / f'{index}.png')
    return tmp_path


def test_class_names_are_in_the_order_of_the_labels(folder):
    dataset = open_dataset('', str(folder), 'train')
    assert dataset_class_names(dataset) == ['a', 'b']
    assert dataset_class_names(object()) is None
    assert len(dataset_class_names(open_dataset('demo/noto', None, 'train'))) == 16


def test_missing_data_is_an_error_that_names_the_flag(tmp_path):
    with pytest.raises(ValueError, match='--data-dir must name a folder'):
        open_dataset('', None, 'train')
    with pytest.raises(ValueError, match=r'--data-dir .*: no images'):
        open_dataset('', str(tmp_path), 'train')
    with pytest.raises(ValueError, match=r'--data-dir .*nowhere'):
        open_dataset('', str(tmp_path / 'nowhere'), 'train')


def test_good_images_pass_and_data_without_files_is_left_alone(folder):
    check_images(open_dataset('', str(folder), 'train'))
    check_images(open_dataset('demo/noto', None, 'train'))


def test_a_broken_image_is_named(folder):
    (folder / 'train' / 'a' / '1.png').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match=r'--val-dir: .*a.1\.png does not'):
        check_images(open_dataset('', str(folder), 'train'), '--val-dir')


def test_two_views_are_two_draws_in_the_layout_of_augmentation_splits(folder):
    dataset = open_dataset('', str(folder), 'train')
    loader = create_loader(
        dataset,
        8,
        6,
        device=torch.device('cpu'),
        num_workers=0,
        persistent_workers=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    base, calls = dataset.transform, []

    def shifted(image):
        calls.append(random.random())
        return base(image) + 50 * (len(calls) % 2 == 0)

    dataset.transform = TwoViews(shifted)
    input, target = next(iter(loader))
    assert input.shape == (12, 3, 8, 8)
    first, second = (input * 255).round().chunk(2)
    assert (second == first + 50).all()
    assert (target[:6] == target[6:]).all()
    assert len(calls) == 12
