"""Data sets, their class names, checks before work starts."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torch.utils.data import DataLoader

from timm_dad.data.datasets import check_images, dataset_class_names, open_dataset
from timm_dad.flags.data import create_dataset
from timm_dad.flags.train import parse_args
from timm_dad.training.loaders import PairMixup


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(('b', 'a')):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((8, 8, 3), 100 * label + index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'train' / name / f'{index}.png')
    return tmp_path


def test_class_names_are_in_the_order_of_the_labels(folder):
    dataset = open_dataset('', str(folder), 'train', '--data-dir')
    assert dataset_class_names(dataset) == ['a', 'b']
    assert dataset_class_names(object()) is None
    assert len(dataset_class_names(open_dataset('demo/noto', None, 'train', '--data-dir'))) == 16


def test_missing_data_is_an_error_that_names_the_flag(tmp_path):
    with pytest.raises(ValueError, match='--data-dir must name a folder'):
        create_dataset(parse_args(['--data-dir', '']), 'train', split_flag='--train-split')
    with pytest.raises(ValueError, match=r'--eval-suites a: no images'):
        open_dataset('', str(tmp_path), 'train', '--eval-suites a')
    with pytest.raises(ValueError, match=r'--data-dir .*nowhere: there is no such folder'):
        create_dataset(parse_args(['--data-dir', str(tmp_path / 'nowhere')]), 'train', split_flag='--train-split')
    with pytest.raises(ValueError, match=r'--dataset torch/nothing: no images'):
        create_dataset(parse_args(['--dataset', 'torch/nothing']), 'train', split_flag='--train-split')


@pytest.mark.parametrize('split', ['train', 'training', 'train[:50%]'])
def test_a_split_may_have_the_names_that_timm_knows(folder, split):
    assert len(create_dataset(parse_args(['--data-dir', str(folder)]), split, split_flag='--train-split')) == 6


@pytest.mark.parametrize(('split', 'flag'), [('validation', '--val-split'), ('foo', '--train-split')])
def test_a_split_without_a_folder_is_not_all_of_the_data(folder, split, flag):
    with pytest.raises(ValueError, match=rf"{flag} must be a folder in .*, got '{split}'; the folders are \['train'\]"):
        create_dataset(parse_args(['--data-dir', str(folder)]), split, split_flag=flag)


def test_good_images_pass_and_data_without_files_is_left_alone(folder):
    check_images(open_dataset('', str(folder), 'train', '--data-dir'), '--data-dir')
    check_images(open_dataset('demo/noto', None, 'train', '--data-dir'), '--data-dir')


def test_a_broken_image_is_named(folder):
    (folder / 'train' / 'a' / '1.png').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match=r'--val-dir: .*a.1\.png does not'):
        check_images(open_dataset('', str(folder), 'train', '--data-dir'), '--val-dir')


@pytest.mark.parametrize('config', [{'mixup_alpha': 1.0}, {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0}])
@pytest.mark.parametrize('mode', ['batch', 'elem', 'pair'])
def test_mixup_of_pairs_mixes_each_view_with_its_own_kind_and_alike(config, mode):
    np.random.seed(0)
    clean = torch.rand(6, 3, 8, 8)
    mixup = PairMixup(**config, mode=mode, num_classes=6)
    labels = torch.arange(6)
    mixed, target = mixup(torch.cat([clean, clean + 10]), torch.cat([labels, labels]))
    first, second = mixed.chunk(2)
    torch.testing.assert_close(first + 10, second)  # one partner, weight and box
    assert first.max() <= 1  # nothing of an extra view in a clean one
    assert not torch.equal(first, clean)
    assert target.shape == (12, 6)
    assert torch.equal(target[:6], target[6:])
    torch.testing.assert_close(target.sum(dim=1), torch.ones(12))


def test_workers_read_a_tar_that_was_checked_before(tmp_path):
    """timm's reader keeps tars open, and forked workers would share its place in the file."""
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        for index in range(120):
            path = tmp_path / f'{index}.png'
            Image.new('RGB', (8, 8), (index, 255 - index, 7)).save(path)
            tar.add(path, f'{"even" if index % 2 == 0 else "odd"}/{index:03d}.png')
    dataset = open_dataset('', str(tmp_path / 'train.tar'), 'train', '--data-dir', is_training=True)
    check_images(dataset, '--data-dir')
    expected = [int(Path(dataset.reader.filename(index)).stem) for index in range(120)]
    dataset.transform = lambda image: image.getpixel((0, 0))[0]
    loader = DataLoader(dataset, batch_size=4, num_workers=4)
    assert torch.cat([reds for reds, _ in loader]).tolist() == expected


def test_the_strongest_randaugment_of_timm_runs_on_this_pillow():
    # Pillow 13 refuses to posterize to 0 bits, as timm does from magnitude 10 on; m9-mstd0.5 gets there by chance.
    black = AugmentOp('PosterizeIncreasing', prob=1.0, magnitude=10)(Image.new('RGB', (8, 8), 'white'))
    assert black.getpixel((0, 0)) == (0, 0, 0)
