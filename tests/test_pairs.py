"""Pairs stay pairs: under any sampler, epoch, repeat, number of workers and processes, format and kind of data set."""

import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dad_sets import (
    CLASSES,
    NUM_IMAGES,
    colour_of,
    grey_of,
    pixels_of,
    stored_logits,
    write_dad_set,
    write_greys,
    write_taught_set,
)
from PIL import Image
from timm.data import AugMixDataset, create_dataset, create_transform
from torch.utils.data import IterableDataset

import train_dad
from timm_dad.dad_sets.logits import StoredLogits, encode_target
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.views import PictureIndex, SetViews
from timm_dad.data.images import Frame, Source
from timm_dad.data.pairs import DADPairs, PairStream, PairTransform, SameImage
from timm_dad.flags import kwargs
from timm_dad.flags.pairs import cached_set, open_dad_set, pair_dataset
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import parse_args
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.training.batches import Batches
from timm_dad.training.loaders import PairCollateMixup, PairMixup, create_train_loader, set_epoch

REPO = Path(train_dad.__file__).parent
DATA_CONFIG = {
    'input_size': (3, 32, 32),
    'mean': (0.0, 0.0, 0.0),
    'std': (1.0, 1.0, 1.0),
    'interpolation': 'bicubic',
    'crop_pct': 1.0,
}
# Random crops and flips, and nothing that changes the one colour of a picture.
FLAGS = ('--dad', '--dad-teacher', 'demo', '--color-jitter', '0', '--batch-size', '5', '--num-classes', '4',
         '--img-size', '32', '--device', 'cpu')  # fmt: skip
NAMES = {grey_of(index): index for index in range(NUM_IMAGES)}


@pytest.fixture
def greys(tmp_path):
    return write_greys(tmp_path / 'data')


def folder(root):
    return create_dataset('', str(root), split='train')


def write_wds(root):
    """The grey pictures as WebDataset shards, of which a stream is read."""
    paths = sorted((root / 'train').rglob('*.png'))
    wds = root.parent / 'wds'
    wds.mkdir()
    shards = [paths[start : start + 6] for start in range(0, len(paths), 6)]
    for number, shard in enumerate(shards):
        with tarfile.open(wds / f'train-{number}.tar', 'w') as file:
            for index, path in enumerate(shard):
                (wds / 'cls').write_text(str(CLASSES.index(path.parent.name)))
                file.add(path, f'{number}{index:04}.png')
                file.add(wds / 'cls', f'{number}{index:04}.cls')
    files = {'filenames': [f'train-{number}.tar' for number in range(len(shards))], 'num_samples': len(paths)}
    files['shard_lengths'] = [len(shard) for shard in shards]
    (wds / '_info.json').write_text(json.dumps({'splits': {'train': {'name': 'train', **files}}}))
    return wds


def build(dataset, *flags):
    """Loader of the pairs that the flags ask for, as ``train_dad.py`` builds it."""
    args = parse_args([*FLAGS, '--data-dir', 'x', *flags])
    dad_set = open_dad_set(args, (32, 32))
    pairs = pair_dataset(args, dataset, DATA_CONFIG, dad_set=dad_set)
    return create_train_loader(pairs, Accelerator(cpu=True), **kwargs.train_loader_kwargs(args, DATA_CONFIG))


def check_batch(input, target, num_views=1, labels=None):
    """That both views of every pair are of one picture; returns pictures and views."""
    first, second = (input * 255).round().byte().chunk(2)
    assert len(first) == len(second) == len(target) // 2
    seen = []
    for image, view, label, other in zip(first, second, *target.chunk(2), strict=True):
        index = NAMES[pixels_of(image)[0]]
        drawn = (pixels_of(view)[2] - 40) // 60
        assert pixels_of(view) == colour_of(index, drawn)
        assert drawn in range(num_views)
        assert label == other == index // 6
        seen.append((index, drawn))
    return seen


# Under timm's loaders.


@pytest.mark.parametrize('no_prefetcher', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('format', ['folder', 'wds'])
def test_pairs_stay_pairs(greys, tmp_path, no_prefetcher, workers, format):
    write_dad_set(tmp_path / 'set', folder(greys), format=format, num_views=3)
    more = ['--no-prefetcher'] if no_prefetcher else []
    loader = build(folder(greys), '--dad-dir', str(tmp_path / 'set'), '--workers', str(workers), *more)
    orders, views = [], set()
    for epoch in range(2):
        set_epoch(loader, epoch)
        seen = [pair for batch in loader for pair in check_batch(*batch, num_views=3)]
        assert len(seen) == 20  # the last 4 of 24 make no batch of 5
        assert len(dict(seen)) == 20
        orders.append([index for index, _ in seen])
        views |= {view for _, view in seen}
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    assert views == {0, 1, 2}


@pytest.mark.parametrize('no_prefetcher', [False, True])
def test_pairs_of_codes_are_decoded(greys, tmp_path, vqgan, monkeypatch, no_prefetcher):
    monkeypatch.setattr('timm_dad.flags.pairs.load_vqgan', lambda spec, strict_size: vqgan)
    decoded = []
    for index in range(NUM_IMAGES):  # codes that say which picture it is
        with torch.no_grad():
            decoded.append(vqgan.decode_codes(torch.full((1, 16, 16), index)).mul(255).round().byte()[0])
    write_dad_set(tmp_path / 'set', folder(greys), format='codes', vqgan=vqgan,
                  pixels=lambda index, view, image, size: torch.full((16, 16), index))  # fmt: skip
    more = ['--no-prefetcher'] if no_prefetcher else []
    loader = build(folder(greys), '--dad-dir', str(tmp_path / 'set'), '--workers', '2', '--no-aug', *more)
    seen = 0
    for input, _ in loader:
        for image, view in zip(*(input * 255).round().byte().chunk(2), strict=True):
            assert torch.equal(view, decoded[NAMES[pixels_of(image)[0]]])
            seen += 1
    assert seen == 20


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('repeats', [0, 2])
def test_pairs_of_a_stream(greys, tmp_path, workers, repeats):
    pytest.importorskip('webdataset')

    def stream(is_training):
        return create_dataset('wds/x', str(write_wds_once), split='train', is_training=is_training, batch_size=5,
                              repeats=repeats)  # fmt: skip

    write_wds_once = write_wds(greys)
    write_dad_set(tmp_path / 'set', stream(False), num_views=2)
    loader = build(stream(True), '--dad-dir', str(tmp_path / 'set'), '--workers', str(workers))
    assert isinstance(loader.dataset, PairStream)
    orders = []
    for epoch in range(2):
        set_epoch(loader, epoch)
        orders.append([pair for batch in loader for pair in check_batch(*batch, num_views=2)])
        assert len({index for index, _ in orders[-1]}) > 10
    assert orders[0] != orders[1]
    assert loader.dataset.dataset.reader.num_workers == max(workers, 1)


def test_pairs_of_the_demo_and_of_any_data_set_with_an_index(tmp_path):
    dataset = create_demo()
    dad_set = write_dad_set(tmp_path / 'set', dataset, num_classes=16, shard_size=300,
                            pixels=lambda index, view, image, size: np.array(image.image))  # fmt: skip
    source = Source(create_demo())
    pairs = DADPairs(source, SetViews(dad_set, source))
    for index in (0, 17, 820):
        (image, second), label = pairs[index]
        assert image.tobytes() == second.tobytes()
        assert label == dataset[index][1]


def create_demo():
    from timm_dad.data.datasets import open_dataset

    return open_dataset('demo/noto', None, 'train', '--data-dir')


PROCESSES = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_pairs import *

torch.set_num_threads(1)
loader = build(folder({data!r}), '--dad-dir', {set!r}, '--workers', '1', *{flags!r})
for epoch in range(2):
    set_epoch(loader, epoch)
    seen = [index for batch in loader for index, _ in check_batch(*batch, num_views=2)]
    Path(f'seen-{{epoch}}-{{os.environ["RANK"]}}').write_text(' '.join(map(str, seen)))
"""


@pytest.mark.slow
@pytest.mark.parametrize('repeats', [False, True])
def test_pairs_stay_pairs_in_two_processes(greys, tmp_path, repeats):
    write_dad_set(tmp_path / 'set', folder(greys), num_views=2)
    flags = ['--aug-repeats', '2', '--batch-size', '4'] if repeats else ['--batch-size', '4']
    script = tmp_path / 'script.py'
    script.write_text(
        PROCESSES.format(tests=str(REPO / 'tests'), data=str(greys), set=str(tmp_path / 'set'), flags=flags)
    )
    command = [*(sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'), str(script)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    for epoch in range(2):
        seen = [(tmp_path / f'seen-{epoch}-{rank}').read_text().split() for rank in (0, 1)]
        assert [len(each) for each in seen] == [12, 12]
        if repeats:  # an image's repeats go to different processes
            assert set(seen[0]) == set(seen[1])
        else:
            assert len({*seen[0], *seen[1]}) == NUM_IMAGES


# Mixing.


@pytest.mark.parametrize('no_prefetcher', [False, True])
@pytest.mark.parametrize('more', [('--mixup', '0.8'), ('--cutmix', '1'), ('--mixup', '0.8', '--mixup-mode', 'elem'),
                                  ('--cutmix', '1', '--mixup-mode', 'pair')])  # fmt: skip
def test_mixed_pairs_have_one_partner_weight_and_box(greys, tmp_path, no_prefetcher, more):
    # The DAD view is the picture, 100 lighter; so is the mixture.
    write_dad_set(tmp_path / 'set', folder(greys), pixels=lambda index, view, image, size: np.full(
        (*size, 3), 10 * index // 2 + 100, np.uint8))  # fmt: skip
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-dir', str(tmp_path / 'set'), '--batch-size', '6', *more,
                       *(['--no-prefetcher'] if no_prefetcher else [])])  # fmt: skip
    loader = build(folder(greys), '--dad-dir', str(tmp_path / 'set'), '--batch-size', '6', '--workers', '0', *more,
                   *(['--no-prefetcher'] if no_prefetcher else []))  # fmt: skip
    batches = Batches(loader, Accelerator(cpu=True), **kwargs.batches_kwargs(args))
    assert (batches.mixup_fn is None) == (not no_prefetcher)
    mixed = 0
    for _, input, target in batches.of_epoch(0):
        clean, second = (input * 255).chunk(2)
        torch.testing.assert_close(second, clean / 2 + 100, atol=1.6, rtol=0)
        assert target.shape == (12, 4)
        assert torch.equal(*target.chunk(2))
        mixed += (target[:6].max(dim=1).values < 0.9).sum()
    assert mixed > 0


def test_mixing_in_the_loader_can_be_turned_off(greys, tmp_path):
    write_dad_set(tmp_path / 'set', folder(greys))
    loader = build(folder(greys), '--dad-dir', str(tmp_path / 'set'), '--batch-size', '6', '--workers', '0',
                   '--mixup', '0.8', '--smoothing', '0')  # fmt: skip
    assert loader.mixup_enabled
    assert isinstance(loader.loader.collate_fn, PairCollateMixup)
    for _, input, target in Batches(loader, Accelerator(cpu=True), seed=0, mixup_off_epoch=2).of_epoch(2):
        check_batch(input, target.argmax(dim=1))
        assert set(target.unique().tolist()) == {0, 1}


@pytest.mark.parametrize('workers', [0, 1])
def test_pairs_of_a_stream_are_mixed_as_pairs_without_the_prefetcher(greys, workers):
    wds = create_dataset('wds/x', root=str(write_wds(greys)), split='train', is_training=True, batch_size=6)
    more = ('--dad-view', 'random', '--batch-size', '6', '--mixup', '0.8', '--no-prefetcher', '--workers', str(workers))
    args = parse_args([*FLAGS, '--data-dir', 'x', *more])
    batches = Batches(build(wds, *more), Accelerator(cpu=True), **kwargs.batches_kwargs(args))
    assert isinstance(batches.mixup_fn, PairMixup)
    for _, _, target in batches.of_epoch(0):
        assert torch.equal(*target.chunk(2))  # both views of an image have one partner and weight


@pytest.mark.parametrize('config', [{'mixup_alpha': 1.0}, {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0}])
@pytest.mark.parametrize('mode', ['batch', 'elem', 'pair'])
@pytest.mark.parametrize('kind', [np.asarray, torch.as_tensor])
def test_the_collate_mixes_as_the_mixup_of_batches(config, mode, kind):
    clean = np.random.default_rng(0).integers(0, 100, (6, 3, 8, 8), dtype=np.uint8)
    second, labels = clean + 100, torch.arange(6)
    mixup = {**config, 'mode': mode, 'num_classes': 6}
    np.random.seed(3)
    batch = [((kind(a), kind(b)), int(label)) for a, b, label in zip(clean, second, labels, strict=True)]
    input, target = PairCollateMixup(**mixup)(batch)
    np.random.seed(3)
    whole = torch.from_numpy(np.concatenate([clean, second])).float()
    expected, soft = PairMixup(**mixup)(whole, labels.repeat(2))
    assert input.dtype == torch.uint8
    torch.testing.assert_close(input.float(), expected, atol=1, rtol=0)
    torch.testing.assert_close(target, soft)
    assert not torch.equal(input[:6], torch.from_numpy(clean))


# One crop for both.


@pytest.fixture
def pictures(tmp_path):
    """Four pictures with much to see, and a DAD set of what its frame shows of them."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / 'data' / 'train' / name).mkdir(parents=True)
        pixels = rng.integers(0, 255, (50 + label, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'data' / 'train' / name / '0.png')
    frame = Frame(size=(32, 32), crop_pct=0.8).transform()
    write_dad_set(tmp_path / 'set', folder(tmp_path / 'data'), crop_pct=0.8,
                  pixels=lambda index, view, image, size: np.array(frame(image.image)))  # fmt: skip
    return tmp_path


@pytest.mark.parametrize('no_prefetcher', [False, True])
@pytest.mark.parametrize(
    'policy', [(), ('--aa', 'rand-m9-mstd0.5-inc1', '--vflip', '0.5'), ('--train-crop-mode', 'rkrc')]
)
def test_one_crop_for_both_gives_equal_views_of_equal_pictures(pictures, no_prefetcher, policy):
    flags = ('--dad-dir', str(pictures / 'set'), '--batch-size', '4', '--workers', '0', '--color-jitter', '0.4',
             *policy, *(['--no-prefetcher', '--reprob', '0.5'] if no_prefetcher else []))  # fmt: skip
    dataset = folder(pictures / 'data')
    batches = []
    for seed in range(3):
        [(input, _)] = build(dataset, *flags, '--dad-same-crop', '--seed', str(seed))
        first, second = input.chunk(2)
        assert torch.equal(first, second)
        batches.append(input)
    assert not torch.equal(batches[0], batches[1])
    [(input, _)] = build(dataset, *flags)
    assert not any(torch.equal(first, second) for first, second in zip(*input.chunk(2), strict=True))


def test_draws_go_on_after_one_crop_for_both():
    def draw(image):
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = [draw(None) for _ in range(3)]
    seed()
    views = PairTransform(same_draws=True)
    views.transform = draw
    first, second, third = (views('a', 'b') for _ in range(3))
    assert [first, second, third] == [(each, each) for each in expected]
    seed()
    views = PairTransform()
    views.transform = draw
    assert views('a', 'b') == tuple(expected[:2])


def test_draws_go_on_after_one_crop_for_both_and_splits():
    drawn = iter(range(100))
    torch.manual_seed(0)
    order = {torch.rand(()).item(): next(drawn) for _ in range(20)}
    views = PairTransform(num_splits=3, same_draws=True)
    views.transform = (lambda _: [torch.rand(()).item()], lambda base: [*base, torch.rand(()).item()], tuple)
    torch.manual_seed(0)
    got = [[tuple(order[draw] for draw in view) for view in views('a', 'b')] for _ in range(2)]
    assert got == [[(0,), (0, 1), (0, 2), (0,)], [(3,), (3, 4), (3, 5), (3,)]]


def test_one_crop_for_both_of_the_cache_is_that_of_the_validation_crop(pictures, vqgan):
    """Views that are the frame itself (no attack, and a VQGAN that changes nothing) then equal their images."""
    vqgan.reconstruct = lambda x_pix: (x_pix, torch.zeros(len(x_pix), 8, 8, dtype=torch.int64))
    dataset, config = folder(pictures / 'data'), {**DATA_CONFIG, 'crop_pct': 0.8}
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-vqgan', 'demo', '--dad-cache', '1', '--dad-same-crop'])
    teacher = create_teacher(args, 4, CLASSES)
    augment = DADAugment(teacher, vqgan, attack=AttackConfig(num_steps=0, random_start=0), mean=[0] * 3, std=[1] * 3)
    with cached_set(args, augment, dataset, config, Accelerator(cpu=True)) as dad_set:
        pairs = pair_dataset(args, dataset, config, dad_set=dad_set)
        pairs.transform = create_transform((3, 32, 32), is_training=True)
        for index in range(4):
            views, label = pairs[index]
            assert torch.equal(*views)
            assert label == index
        assert dad_set.root.exists()
    assert not dad_set.root.exists()


# Augmentation splits.


def split_transform():
    return create_transform((3, 32, 32), is_training=True, auto_augment='augmix-m5-w2', separate=True)


@pytest.mark.parametrize('num_splits', [2, 3])
def test_splits_are_those_of_timm_and_the_extra_view_comes_after_them(pictures, num_splits):
    dataset, source = folder(pictures / 'data'), Source(folder(pictures / 'data'))
    dad_set = open_dad_set(parse_args([*FLAGS, '--data-dir', 'x', '--dad-dir', str(pictures / 'set')]), (32, 32))
    pairs = DADPairs(source, SetViews(dad_set, source), PairTransform(num_splits))
    pairs.transform = transform = split_transform()
    theirs = AugMixDataset(dataset, num_splits=num_splits)
    theirs.transform = transform
    for index in range(4):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(index)
        expected, label = theirs[index]
        second = transform[2](transform[0](dad_set.image(index, 0, f'{CLASSES[index]}/0')))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(index)
        views, own_label = pairs[index]
        assert own_label == label
        assert len(views) == num_splits + 1
        for view, other in zip(views, (*expected, second), strict=True):
            torch.testing.assert_close(view, other, rtol=0, atol=0)
        assert not torch.equal(views[0], views[1])


def test_one_crop_for_both_leaves_the_distortion_to_the_splits(pictures):
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-dir', str(pictures / 'set'), '--dad-same-crop', '--aug-splits',
                       '2'])  # fmt: skip
    pairs = pair_dataset(args, folder(pictures / 'data'), DATA_CONFIG, dad_set=open_dad_set(args, (32, 32)))
    pairs.transform = split_transform()
    first, again = pairs[0][0], pairs[0][0]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], again[0])
    assert not torch.equal(first[1], again[1])


@pytest.mark.parametrize('no_prefetcher', [False, True])
def test_a_batch_holds_all_splits_before_all_extra_views(greys, tmp_path, no_prefetcher):
    write_dad_set(tmp_path / 'set', folder(greys))
    loader = build(folder(greys), '--dad-dir', str(tmp_path / 'set'), '--aug-splits', '3', '--workers', '0',
                   *(['--no-prefetcher'] if no_prefetcher else []))  # fmt: skip
    for input, target in loader:
        assert input.shape == (20, 3, 32, 32)
        check_batch(torch.cat([input[:5], input[15:]]), torch.cat([target[:5], target[15:]]))
        check_batch(torch.cat([input[5:10], input[15:]]), torch.cat([target[5:10], target[15:]]))


# Other extra views.


@pytest.mark.parametrize('no_prefetcher', [False, True])
def test_the_extra_view_may_be_the_picture_itself(pictures, no_prefetcher):
    loader = build(folder(pictures / 'data'), '--dad-view', 'random', '--batch-size', '4', '--workers', '0',
                   *(['--no-prefetcher'] if no_prefetcher else []))  # fmt: skip
    [(input, target)] = loader
    first, second = input.chunk(2)
    assert torch.equal(*target.chunk(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loader = build(folder(pictures / 'data'), '--dad-view', 'random', '--batch-size', '4', '--workers', '0', '--no-aug')
    [(input, _)] = loader
    assert torch.equal(*input.chunk(2))


def test_two_views_are_two_draws_in_the_layout_of_augmentation_splits(greys):
    loader = build(folder(greys), '--dad-view', 'random', '--batch-size', '6', '--workers', '0')
    base, calls = loader.dataset.transform, []

    def shifted(image):
        calls.append(random.random())
        return base(image) + 5 * (len(calls) % 2 == 0)

    loader.dataset.transform = shifted
    input, target = next(iter(loader))
    assert input.shape == (12, 3, 32, 32)
    first, second = (input * 255).round().chunk(2)
    assert (second == first + 5).all()
    assert torch.equal(*target.chunk(2))
    assert len(set(calls)) == len(calls) >= 12


def test_a_picture_that_does_not_decode_is_named_and_not_replaced(greys):
    broken = greys / 'train' / 'dog' / '02.png'
    broken.write_bytes(broken.read_bytes()[:60])
    pairs = DADPairs(Source(folder(greys)), SameImage())
    with pytest.raises(ValueError, match=r'dog.02\.png does not decode'):
        pairs[8]


class Numbers:
    """Six grey pictures; the label is the index."""

    transform = None

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return Image.new('RGB', (4, 4), (index,) * 3), index


class Nothing:
    """The extra view of every picture is black."""

    dad_set = None

    def __call__(self, index, image, label):
        return Image.new('RGB', image.size), label


def test_each_of_a_pair_goes_through_the_transform():
    pairs = DADPairs(Source(Numbers()), Nothing())
    calls = []
    pairs.transform = lambda image: calls.append(image) or len(calls)
    assert pairs[0] == ((1, 2), 0)


# Streams.


class Stream(IterableDataset):
    """Pictures and labels as they are, one after another."""

    def __init__(self, items):
        self.items, self.transform = items, None

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


def stream_of(*greys_and_labels):
    return Stream([(Image.new('RGB', (8, 8), (grey,) * 3), label) for grey, label in greys_and_labels])


def test_equal_pictures_are_told_apart_by_their_labels(tmp_path):
    stream = stream_of((1, 0), (2, 0), (1, 3), (2, 0))
    pictures = PictureIndex(write_dad_set(tmp_path / 'set', stream))
    found = [pictures.find(image, label) for image, label in stream]
    assert found[0] == 0
    assert found[2] == 2
    assert found[1] == found[3]
    assert found[1] in (1, 3)  # one is as good as the other


def test_a_picture_that_is_not_in_the_set_is_an_error(tmp_path):
    pictures = PictureIndex(write_dad_set(tmp_path / 'set', stream_of((1, 0), (2, 1))))
    with pytest.raises(
        ValueError, match=r'a picture of class 1, 8 x 8, is not in the set: it was made from other data'
    ):
        pictures.find(Image.new('RGB', (8, 8), (3,) * 3), 1)
    with pytest.raises(ValueError, match=r'a picture of class 3 has class 1 in the set, .*another --class-map'):
        pictures.find(Image.new('RGB', (8, 8), (2,) * 3), 3)


def test_a_stream_without_epochs_and_workers_is_left_alone(tmp_path):
    stream = stream_of((1, 0), (2, 1))
    source = Source(stream)
    pairs = PairStream(stream, SetViews(write_dad_set(tmp_path / 'set', stream), source))
    pairs.set_epoch(1)
    pairs.set_loader_cfg(num_workers=2)
    assert len(pairs) == 2
    assert [pixels_of(second) for (_, second), _ in pairs] == [colour_of(0, 0), colour_of(1, 0)]


def test_what_streams_cannot_do():
    stream = stream_of((1, 0))
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-view', 'random', '--aug-splits', '2'])
    with pytest.raises(ValueError, match='--aug-splits needs data with an index, not a stream'):
        pair_dataset(args, stream, DATA_CONFIG)
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-vqgan', 'demo', '--dad-cache', '1'])
    context = cached_set(args, None, stream, DATA_CONFIG, Accelerator(cpu=True))
    with pytest.raises(ValueError, match='--dad-cache needs data with an index, not a stream'), context:
        pass


# Stored logits.


def random_logits(image, views):
    return torch.randn(1 + len(views), 4, generator=torch.Generator().manual_seed(int(image.sha256[:8], 16)))


@pytest.mark.parametrize('no_prefetcher', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_targets_say_which_view_of_which_picture_it_is(greys, tmp_path, no_prefetcher, workers):
    dad_set = write_dad_set(tmp_path / 'set', folder(greys), num_views=3, logits=random_logits)
    stored = StoredLogits.of_views(dad_set)
    flags = ('--dad-dir', str(tmp_path / 'set'), '--dad-stored-logits', '--no-aug', '--workers', str(workers))
    loader = build_stored(folder(greys), *flags, *(['--no-prefetcher'] if no_prefetcher else []))
    count = 0
    for input, coded in loader:
        assert coded.dtype == torch.int64
        pairs = check_batch(input, stored.labels(coded), num_views=3)
        for row, (index, view) in enumerate(pairs):
            assert coded[row] == encode_target(index, view, 3, index // 6, 4)
        clean, second = stored.read(coded)
        for (index, view), *logits in zip(pairs, clean, second, strict=True):
            for got, expected in zip(logits, stored_logits(dad_set, index, view), strict=True):
                assert torch.equal(got, expected)
            count += 1
    assert count == 20


def build_stored(dataset, *flags, data_config=DATA_CONFIG):
    args = parse_args([flag for flag in (*FLAGS, '--data-dir', 'x', *flags) if flag not in ('--dad-teacher', 'demo')])
    pairs = pair_dataset(args, dataset, data_config, dad_set=open_dad_set(args, (32, 32)))
    return create_train_loader(pairs, Accelerator(cpu=True), **kwargs.train_loader_kwargs(args, data_config))


def test_stored_logits_are_the_teachers_the_largest_exactly(greys, tmp_path):
    dad_set = write_dad_set(tmp_path / 'set', folder(greys), num_views=2, logits=random_logits)
    image = Source(folder(greys)).read(13)
    expected = random_logits(image, [0, 1])
    clean, second = StoredLogits.of_views(dad_set).read(torch.tensor(2 * [encode_target(13, 1, 2, 2, 4)]))
    for got, whole in ((clean[0], expected[0]), (second[0], expected[2])):
        largest = whole.topk(2)
        torch.testing.assert_close(got[largest.indices] - got.max(), largest.values - whole.max(), atol=1e-3, rtol=1e-3)
        probs, all_probs = (got / 4).softmax(dim=0), (whole / 4).softmax(dim=0)
        torch.testing.assert_close(probs[largest.indices], all_probs[largest.indices], atol=1e-3, rtol=1e-3)
        rest = [label for label in range(4) if label not in largest.indices]
        assert got[rest].unique().numel() == 1


@pytest.mark.parametrize('no_prefetcher', [False, True])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_stored_logits_are_of_the_very_pixels_of_the_batch(pictures, no_prefetcher, interpolation):
    path = write_taught_set(pictures / 'taught', folder(pictures / 'data'))
    flags = ('--dad-dir', str(path), '--dad-stored-logits', '--no-aug', '--workers', '0', '--batch-size', '4')
    args = parse_args([*FLAGS, '--data-dir', 'x', '--dad-vqgan', 'demo'])
    teacher = create_teacher(args, 4, CLASSES)
    config = {**DATA_CONFIG, 'interpolation': interpolation}
    [(input, coded)] = build_stored(
        folder(pictures / 'data'), *flags, *(['--no-prefetcher'] if no_prefetcher else []), data_config=config
    )
    with torch.no_grad():
        expected = teacher(input)
    for got, whole in zip(torch.cat(StoredLogits.of_views(DADSet(path)).read(coded)), expected, strict=True):
        largest = whole.topk(2)
        torch.testing.assert_close(got[largest.indices] - got.max(), largest.values - whole.max(), atol=2e-3, rtol=2e-3)


def test_a_set_without_logits_is_refused(greys, tmp_path):
    with pytest.raises(ValueError, match='has no logits: make a set with timm-dad generate --dad-store-logits'):
        StoredLogits.of_views(write_dad_set(tmp_path / 'set', folder(greys)))


def test_many_images_views_and_classes_fit_in_a_target():
    target = encode_target(14_000_000, 2, 3, 21840, 21841)
    assert int(torch.tensor([target]).double()) == target  # of mixed images
    assert torch.tensor([target]).dtype == torch.int64
    assert divmod(target, 21841) == (14_000_000 * 3 + 2, 21840)


def test_the_loop_of_the_docs_reads_a_set(greys, monkeypatch, tmp_path):
    """As it is written there, on a small set."""
    page = (REPO / 'docs' / 'generate.md').read_text()
    code = page.partition('<!-- python: reader -->\n```python\n')[2].partition('```')[0]
    code = code.replace('batch_size=64', 'batch_size=NUM_IMAGES').replace('    ...  ', '    seen = x, x_dad, target  ')
    assert 'seen' in code
    write_dad_set(tmp_path / 'dad-imagenet', folder(greys))
    (tmp_path / 'imagenet').symlink_to(greys)
    monkeypatch.chdir(tmp_path)
    namespace = {'NUM_IMAGES': NUM_IMAGES}
    exec(code, namespace)
    x, x_dad, target = namespace['seen']
    assert x.shape == x_dad.shape == (NUM_IMAGES, 3, 32, 32)
    assert target.bincount().tolist() == [6, 6, 6, 6]
    assert not torch.equal(x, x_dad)
