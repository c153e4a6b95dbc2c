"""Samples that depend on seed, epoch and index alone, and batches that can begin anywhere."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DataLoaderConfiguration
from folders import write_pictures
from timm.data import create_dataset
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, Dataset

from timm_dad.data.images import Source
from timm_dad.data.pairs import DADPairs, SameImage
from timm_dad.data.seeded import Positions, SeededErasing, SeededSamples, Shuffled
from timm_dad.training.batches import Batches
from timm_dad.training.loaders import create_train_loader, set_epoch, unwrapped

pytestmark = pytest.mark.timm


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6)


class Draws(Dataset):
    """Gives what its three generators draw."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, random.random(), np.random.random(), float(torch.rand(()))


def by_index(samples):
    return {int(index): tuple(map(float, draws)) for index, *draws in samples}


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    data = SeededSamples(Draws(), seed=3)
    straight = by_index(data[index] for index in range(7))
    assert len({draws for draws in straight.values()}) == 7
    assert by_index(data[index] for index in (5, 0, 5, 2)) == {index: straight[index] for index in (5, 0, 2)}
    data.set_epoch(1)
    other_epoch = by_index(data[index] for index in range(7))
    other_seed = by_index(SeededSamples(Draws(), seed=4)[index] for index in range(7))
    for draws in (other_epoch, other_seed):
        assert all(draws[index] != straight[index] for index in range(7))


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_that_outlive_an_epoch_see_the_next_one(workers):
    data = SeededSamples(Draws(), seed=0)
    loader = DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        assert by_index(loader) == by_index(data[index] for index in range(7))


class ByEpoch(Draws):
    """Knows the epoch by being told."""

    told = 0

    def set_epoch(self, epoch):
        self.told = epoch

    def __getitem__(self, index):
        return index, self.told


def test_what_a_data_set_is_told_reaches_workers_that_outlive_an_epoch():
    data = SeededSamples(ByEpoch(), seed=0)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        assert {told for _, told in loader} == {epoch}


def test_the_order_is_that_of_accelerate():
    order, accelerates = Shuffled(3000, 7), SeedableRandomSampler(range(3000), data_seed=7)
    for _ in range(2):
        found = list(order)
        assert found == list(accelerates)
        assert sorted(found) == list(range(3000))
    for sampler in (order, accelerates):
        sampler.set_epoch(9)
    assert list(order) == list(accelerates)
    assert len(order) == 3000


@pytest.mark.parametrize('prefetcher', [False, True])
def test_a_training_has_another_order_in_every_epoch_that_its_seed_decides(pictures, prefetcher):
    def orders(seed):
        config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        dataset = create_dataset('', root=str(pictures), split='train')
        loader = create_train_loader(
            dataset, accelerator, seed=seed, batch_size=1, input_size=(3, 8, 8), num_workers=0, no_aug=True,
            use_prefetcher=prefetcher, persistent_workers=False,
        )  # fmt: skip
        for epoch in (0, 1, 0):
            set_epoch(loader, epoch)
            sampler = SeedableRandomSampler(range(len(dataset)), data_seed=seed)
            sampler.set_epoch(epoch)
            found = list(unwrapped(loader).batch_sampler)
            assert found == [[index] for index in sampler]
            yield found

    first, second, again = orders(3)
    assert first == again != second
    assert next(orders(4)) != first


def test_copies_of_a_sample_get_seeds_of_their_own():
    first, second = (list(Positions([4, 4, 1], rank, 2)) for rank in (0, 1))
    assert first == [(4, 0), (4, 2), (1, 4)]
    assert second == [(4, 1), (4, 3), (1, 5)]
    data = SeededSamples(Draws(), seed=0)
    draws = [data[key][1:] for key in (*first[:2], *second[:2])]
    assert len(set(draws)) == 4


def batches(pictures, accelerator, *, pairs=False, batch_size=4, workers=0, **more):
    dataset = create_dataset('', root=str(pictures), split='train')
    if pairs:
        dataset = DADPairs(Source(dataset), SameImage())
    loader = create_train_loader(
        dataset, accelerator, seed=1, input_size=(3, 16, 16), batch_size=batch_size, num_workers=workers,
        persistent_workers=False, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.7, re_mode='pixel', re_count=2, **more,
    )  # fmt: skip
    return Batches(loader, accelerator, seed=1)


def images(batches, epoch, start=0):
    """All images of an epoch, in the order of their batches; views of one image beside each other."""
    found = []
    for _, input, target in batches.of_epoch(epoch, start):
        num_views = len(input) // batches.loader.loader.batch_sampler.batch_size
        found += torch.stack(input.chunk(num_views), dim=1).unbind()
        assert len(target) == len(input)
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize('views', [{}, {'pairs': True}, {'num_aug_splits': 2, 're_split': True}])
def test_samples_are_the_same_for_any_batch_size_and_number_of_workers(pictures, views):
    accelerator = Accelerator()
    expected = images(batches(pictures, accelerator, **views), epoch=2)
    assert len(expected) == 24
    for change in ({'batch_size': 8}, {'batch_size': 12}, {'workers': 2}, {'workers': 1, 'batch_size': 6}):
        assert torch.equal(images(batches(pictures, accelerator, **views, **change), epoch=2), expected)
    other = images(batches(pictures, accelerator, **views), epoch=3)
    assert not torch.equal(other, expected)


@pytest.mark.slow
@pytest.mark.parametrize('prefetcher', [True, False])
@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_can_begin_at_any_batch_and_decodes_nothing_before_it(pictures, monkeypatch, workers, prefetcher):
    accelerator, decoded = Accelerator(), []
    made = batches(pictures, accelerator, workers=workers, use_prefetcher=prefetcher)
    whole = list(made.of_epoch(1))
    inner = made.loader.loader.dataset if prefetcher else made.loader.dataset
    get = SeededSamples.__getitem__
    monkeypatch.setattr(SeededSamples, '__getitem__', lambda self, key: decoded.append(key) or get(self, key))
    for start in (2, 5):
        decoded.clear()
        rest = list(made.of_epoch(1, start))
        assert [place for place, *_ in rest] == list(range(start, 6))
        for (_, input, target), (_, input_again, target_again) in zip(whole[start:], rest, strict=True):
            assert torch.equal(input, input_again)
            assert torch.equal(target, target_again)
        if not workers:  # in this process
            assert len(decoded) == 4 * (6 - start)
    assert isinstance(inner, SeededSamples)


def test_erasing_of_two_processes_is_that_of_one():
    def erased(rank, num_processes, batch_size, batch):
        erasing = SeededErasing(RandomErasing(0.8, mode='pixel', max_count=2, device='cpu'), 5, 2, rank, num_processes)
        erasing.begin(3, batch)
        return erasing(torch.zeros(2 * batch_size, 3, 8, 8)).unflatten(0, (2, batch_size))

    one = erased(0, 1, 4, batch=1)
    assert torch.equal(one, torch.cat([erased(rank, 2, 2, batch=1) for rank in (0, 1)], dim=1))
    assert not torch.equal(one, erased(0, 1, 4, batch=2))
    assert (one != 0).any()
