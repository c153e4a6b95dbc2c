"""Making a DAD set in this process, with tiny models; ``make`` and its like serve the other files, too."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import sys
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DDCONFIG
from dad_sets import stored_logits
from folders import picture, write_wds
from PIL import Image
from timm.data import create_dataset, create_transform
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from timm_dad.commands.generate_job import describe_data
from timm_dad.dad_sets import maker
from timm_dad.dad_sets.formats import FormatConfig, encode_image
from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.maker import GenerateConfig, view_seed
from timm_dad.dad_sets.manifest import FORMAT_VERSION, ShardManifest
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.verify import verify
from timm_dad.data.images import Frame, Source
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import Centre, DADAugment
from timm_dad.method.chunked import Chunked
from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN, VQGANConfig

SIDE = 8
PICTURES = tuple(f'{name}/{index}.png' for name in ('cat', 'dog', 'fish', 'tree') for index in range(5))


def write_images(root, names=PICTURES):
    """Write pictures ``root/train/NAME``, all different; returns the root."""
    for name in names:
        path = root / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(name).save(path)
    return root


def open_source(root, name='', **kwargs):
    return Source(create_dataset(name, root=str(root), split='train', **kwargs))


def make_augment(num_classes=4, keep_label=False, random_start=0.8, ddconfig=DDCONFIG):
    """A random teacher and VQGAN, always the same, whose views differ from their images and from one another."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vqgan = VQGAN(VQGANConfig(ddconfig=ddconfig, n_embed=32, embed_dim=4)).eval().requires_grad_(False)
        with torch.no_grad():
            vqgan.quant_conv.weight.mul_(3)
            vqgan.quantize.embedding.weight.normal_()
            vqgan.decoder.conv_out.weight.mul_(1.5)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
        nn.init.normal_(network[-1].weight, std=0.5)
        teacher = Teacher(network, mean=[0.5] * 3, std=[0.5] * 3, input_size=(SIDE, SIDE), num_classes=num_classes)
        attack = AttackConfig(eps=2, step_size=2, random_start=random_start)
        return DADAugment(teacher, vqgan, mean=[0] * 3, std=[1] * 3, attack=attack, keep_label=keep_label)


AUGMENT = make_augment()


def make(
    source, output, augment=None, size=(SIDE, SIDE), crop_pct=1.0, format='folder', image_format='png', quality=95,
    rank=0, world_size=1, workers=0, progress=False, repair=False, claims=None, **config
):  # fmt: skip
    """``generate`` with small shards; returns the summary."""
    augment = augment or AUGMENT
    config = {'batch_size': 3, 'shard_size': 8, **config}
    files = FormatConfig(format=format, image_format=image_format, quality=quality)
    args = SimpleNamespace(
        dataset='',
        split='train',
        input_key=None,
        target_key=None,
        class_map='',
        num_classes=augment.teacher.num_classes,
    )
    return generate(
        source, augment, output, GenerateConfig(frame=Frame(size=size, crop_pct=crop_pct), files=files, **config),
        {
            'format_version': FORMAT_VERSION,
            'data': describe_data(args, source),
            'vqgan': {'fingerprint': augment.vqgan.fingerprint()},
            'keep_label': augment.keep_label,
        },
        rank=rank, world_size=world_size, workers=workers, progress=progress, repair=repair,
        claims=claims,
    )  # fmt: skip


def tree(root):
    """All files of a folder, and their bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def assert_same_tree(root, expected):
    found = tree(root)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def items(root):
    """Items of all manifests, in order."""
    manifests = sorted((root / 'manifest').iterdir())
    return [item for path in manifests for item in ShardManifest.from_bytes(path.read_bytes()).items]


def view_pixels(dad_set, source, index, view=0):
    dad_set.decoder = AUGMENT.vqgan
    name = source.name(index, items(dad_set.root)[index]['label'])
    return np.asarray(dad_set.image(index, view, name))


def assert_same_view(found, expected, format='folder'):
    """Codes are decoded one by one, in other sums than in a batch: up to the rounding to 8 bits."""
    np.testing.assert_allclose(np.asarray(found).astype(int), expected.astype(int), rtol=0, atol=format == 'codes')


def reference_views(source, num_views, seed, batch_size, shard_size, augment=AUGMENT, size=(SIDE, SIDE)):
    """Pixels ``[N, K, H, W, 3]`` of all views, made here from timm's own evaluation transform."""
    transform = create_transform((3, *size), crop_pct=1.0, interpolation='bicubic', mean=[0] * 3, std=[1] * 3)
    pixels = []
    for shard in range(0, len(source), shard_size):
        stop = min(shard + shard_size, len(source))
        for first in range(shard, stop, batch_size):
            indices = range(first, min(first + batch_size, stop))
            pairs = [source.dataset[index] for index in indices]
            x_pix = torch.stack([transform(image.convert('RGB')) for image, _ in pairs])
            target = torch.tensor([label for _, label in pairs])
            x_vq, codes = augment.vqgan.reconstruct(x_pix)
            centre = Centre(x_vq, x_pix.shape[-2:], codes)
            views = []
            for view in range(num_views):
                own = [torch.Generator().manual_seed(view_seed(seed, index, view)) for index in indices]
                views.append(augment.attack_centre(centre, target, generator=own).x_dad)
            pixels.append(torch.stack(views, dim=1).mul(255).round().byte())
    return torch.cat(pixels).permute(0, 1, 3, 4, 2).numpy()


class Memory(Dataset):
    """A data set like torchvision's: no reader, no names of classes."""

    def __init__(self, images, labels):
        self.images, self.labels, self.transform = images, labels, None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return self.transform(image) if self.transform else image, self.labels[index]


class Stream(IterableDataset):
    """A data set like timm's of ``wds/``: it announces ``count`` images."""

    def __init__(self, images, labels, count=None):
        self.images, self.labels, self.count, self.transform = images, labels, count, None

    def __len__(self):
        return len(self.images) if self.count is None else self.count

    def __iter__(self):
        yield from zip(self.images, self.labels, strict=True)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('pictures'))


@pytest.fixture
def source(pictures):
    return open_source(pictures)


# Pairs


def test_every_item_says_image_label_hash_and_seed_and_its_views_are_where_it_says(pictures, source, tmp_path):
    make(source, tmp_path / 'set', num_views=2)
    found = items(tmp_path / 'set')
    assert [item['index'] for item in found] == list(range(20))
    for item, name in zip(found, PICTURES, strict=True):
        data = (pictures / 'train' / name).read_bytes()
        assert item['source_sha256'] == hashlib.sha256(data).hexdigest()
        assert item['name'] == name.removesuffix('.png')
        assert item['label'] == ('cat', 'dog', 'fish', 'tree').index(name.split('/')[0])
        for view, place in enumerate(item['views']):
            data = (tmp_path / 'set' / place['path']).read_bytes()
            assert place['path'] == f'view{view}/{name}'
            assert (place['bytes'], place['sha256']) == (len(data), hashlib.sha256(data).hexdigest())
            assert place['seed'] == view_seed(0, item['index'], view)
            assert place['kept'] in (True, False)
            assert place['l2'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
def test_views_are_those_of_the_attack_on_timms_evaluation_crop(source, tmp_path, format):
    make(source, tmp_path, num_views=2, seed=3, format=format)
    expected = reference_views(source, 2, 3, 3, 8)
    dad_set = DADSet(tmp_path)
    found = np.stack([[view_pixels(dad_set, source, index, view) for view in (0, 1)] for index in range(20)])
    assert_same_view(found, expected, format)


def test_l2_and_kept_are_measured_on_the_view_that_is_stored(source, tmp_path):
    make(source, tmp_path)
    dad_set, frame = DADSet(tmp_path), Frame(size=(SIDE, SIDE)).transform()
    for item in items(tmp_path):
        x_pix = np.asarray(frame(source.read(item['index']).image)) / 255
        x_dad = view_pixels(dad_set, source, item['index']) / 255
        assert item['views'][0]['l2'] == pytest.approx(np.linalg.norm(x_dad - x_pix), rel=1e-4)
        logits = AUGMENT.teacher(torch.from_numpy(x_dad).permute(2, 0, 1)[None].float())[0]
        if logits.topk(2).values.diff().abs() > 0.05:  # beyond what rounding to 8 bits moves
            assert item['views'][0]['kept'] == (logits.argmax().item() == item['label'])


def test_views_of_an_image_differ_and_seeds_decide_them(source, tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        make(source, tmp_path / name, make_augment(random_start=1), num_views=3, seed=seed)
    assert_same_tree(tmp_path / 'b', tree(tmp_path / 'a'))
    for one, other in zip(items(tmp_path / 'a'), items(tmp_path / 'c'), strict=True):
        assert len({view['sha256'] for view in one['views']}) == 3
        assert {view['sha256'] for view in one['views']}.isdisjoint(view['sha256'] for view in other['views'])
        assert len({view['seed'] for view in one['views']}) == 3


def test_more_views_leave_the_first_ones_as_they_were(source, tmp_path):
    make(source, tmp_path / 'one')
    make(source, tmp_path / 'two', num_views=2)
    one, two = tree(tmp_path / 'one'), tree(tmp_path / 'two')
    assert {name for name in one if name.startswith('view0/')} == {f'view0/{name}' for name in PICTURES}
    assert all(two[name] == data for name, data in one.items() if name.startswith('view0/'))


def test_seeds_of_views_are_all_different():
    seeds = {view_seed(*key) for key in itertools.product((0, 1, 2**40), range(50), range(4))}
    assert len(seeds) == 3 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ('batch_size', 'shard_size', 'shards'), [(3, 8, 3), (8, 8, 3), (64, 256, 1), (1, 1, 20), (7, 20, 1), (4, 19, 2)]
)
def test_last_shard_and_last_batch_may_be_smaller(source, tmp_path, batch_size, shard_size, shards):
    summary = make(source, tmp_path, batch_size=batch_size, shard_size=shard_size)
    assert summary['images'] == summary['views'] == 20
    assert len(list((tmp_path / 'manifest').iterdir())) == shards
    assert [item['index'] for item in items(tmp_path)] == list(range(20))
    assert list(verify(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
@pytest.mark.parametrize('size', [(8, 12), (9, 7), (5, 16)])
def test_sizes_need_not_be_square_nor_multiples_of_the_factor(source, tmp_path, size, format):
    make(source, tmp_path, size=size, format=format)
    dad_set = DADSet(tmp_path)
    expected = reference_views(source, 1, 0, 3, 8, size=size)
    for index in (0, 19):
        assert_same_view(view_pixels(dad_set, source, index), expected[index, 0], format)


def test_crop_pct_takes_a_part_of_the_middle(source, tmp_path):
    make(source, tmp_path / 'all')
    make(source, tmp_path / 'part', crop_pct=0.5)
    one, other = tree(tmp_path / 'all'), tree(tmp_path / 'part')
    assert all(one[name] != other[name] for name in one if name.startswith('view0'))


@pytest.mark.slow
@pytest.mark.parametrize('num_views', [1, 3])
def test_kept_labels_with_codes_are_the_views_that_are_stored_as_pictures(source, tmp_path, num_views):
    augment = make_augment(keep_label=True)
    for format in ('folder', 'codes'):
        make(source, tmp_path / format, augment, format=format, num_views=num_views)
    kept = [view['kept'] for item in items(tmp_path / 'folder') for view in item['views']]
    assert 0 < sum(kept) < len(kept)  # both cases occur
    folder, codes = DADSet(tmp_path / 'folder'), DADSet(tmp_path / 'codes')
    for index, view in itertools.product(range(20), range(num_views)):
        expected = view_pixels(folder, source, index, view)
        assert_same_view(view_pixels(codes, source, index, view), expected, 'codes')
    reconstruction = AUGMENT.vqgan(_frames(source)).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for index, item in enumerate(items(tmp_path / 'folder')):
        for view, place in enumerate(item['views']):
            same = np.array_equal(view_pixels(folder, source, index, view), reconstruction[index])
            assert same or place['kept']


def _frames(source):
    frame = Frame(size=(SIDE, SIDE)).transform()
    pixels = [np.asarray(frame(source.read(index).image)) for index in range(len(source))]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


# Labels and names


CLASSES = (*(f'c{number}' for number in range(1, 12)), 'a class', 'élan ß 猫', 'Zoo')


def test_labels_are_those_of_the_data_where_names_sort_otherwise_as_text(tmp_path):
    write_images(tmp_path, [f'{name}/{index}.png' for name in CLASSES for index in range(2)])
    source = open_source(tmp_path)
    assert source.class_names != sorted(source.class_names)
    make(source, tmp_path / 'set', make_augment(len(CLASSES)))
    _assert_labels_are_the_datas(source, tmp_path / 'set')
    for item in items(tmp_path / 'set'):
        assert source.class_names[item['label']] == item['name'].split('/')[0]


def test_classes_without_images_and_a_class_map_shift_no_label(tmp_path):
    names = ['tree', 'empty', *CLASSES[::-1], 'none here']
    write_images(tmp_path, [f'{name}/{index}.png' for name in names for index in range(2) if name[0] not in 'en'])
    (tmp_path / 'train' / 'empty').mkdir()
    (tmp_path / 'map.txt').write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
    source = open_source(tmp_path, class_map=str(tmp_path / 'map.txt'))
    make(source, tmp_path / 'set', make_augment(len(names)))
    assert {item['label'] for item in items(tmp_path / 'set')} == set(range(len(names))) - {1, len(names) - 1}
    _assert_labels_are_the_datas(source, tmp_path / 'set')


def test_a_class_map_with_merged_classes_shifts_no_label(tmp_path):
    """Two folders of one class: the set's own class map must not give the second one a label of its own."""
    write_images(tmp_path, [f'{name}/{index}.png' for name in ('cat', 'lion', 'oak') for index in range(2)])
    class_map = {'cat': 0, 'lion': 0, 'oak': 1}
    source = Source(create_dataset('', root=str(tmp_path), split='train', class_map=class_map))
    _assert_labels_are_the_datas_or_refused(source, tmp_path / 'set', 2)


@pytest.mark.parametrize('class_map', [{'cat': 1, 'oak': 2, 'yak': 0}, {'cat': 1, 'oak': 2}, {'cat': 1, 'yak': 2}])
def test_a_class_map_with_gaps_shifts_no_label(tmp_path, class_map):
    write_images(tmp_path, [f'{name}/{index}.png' for name in ('cat', 'oak') for index in range(2)])
    source = Source(create_dataset('', root=str(tmp_path), split='train', class_map=class_map))
    _assert_labels_are_the_datas_or_refused(source, tmp_path / 'set', len(class_map))


def _assert_labels_are_the_datas_or_refused(source, root, num_classes):
    try:
        make(source, root, make_augment(num_classes))
    except ValueError as error:
        message = str(error)
    else:
        _assert_labels_are_the_datas(source, root)
        return
    assert 'class' in message or 'labels' in message  # an error is as good: it must not be wrong in silence


def _assert_labels_are_the_datas(source, root):
    """In the manifests, and when timm itself reads the set."""
    expected = {source.name(index, label): label for index, label in enumerate(_labels(source))}
    assert {item['name']: item['label'] for item in items(root)} == expected
    found = create_dataset('', root=str(root), split='view0', class_map=str(root / 'class_map.txt'))
    stems = [os.path.splitext(found.reader.filename(index))[0] for index in range(len(found))]
    assert dict(zip(stems, (found.reader[index][1] for index in range(len(found))), strict=True)) == expected


def _labels(source):
    return [int(source.reader[index][1]) for index in range(len(source))]


def test_sources_with_one_stem_have_views_of_their_own(tmp_path):
    names = ['cat/a.jpg', 'cat/a.png', 'cat/b.png', 'dog/a.png', 'dog/x.y.png', 'dog/x.png']
    source = open_source(write_images(tmp_path, names))
    make(source, tmp_path / 'set')
    assert {item['name'] for item in items(tmp_path / 'set')} == {
        *('cat/a.jpg', 'cat/a.png', 'cat/b', 'dog/a', 'dog/x.y', 'dog/x'),
    }
    _assert_every_view_is_its_images(source, tmp_path / 'set')


def test_a_name_that_another_ones_suffix_makes_has_a_view_of_its_own(tmp_path):
    source = open_source(write_images(tmp_path, ['cat/a.jpg', 'cat/a.png', 'cat/a.jpg.png', 'cat/a.png.png']))
    make(source, tmp_path / 'set')
    _assert_every_view_is_its_images(source, tmp_path / 'set')


def test_nested_folders_keep_their_paths(tmp_path):
    names = ['pets/cat/0.png', 'zoo/cat/0.png', 'zoo/big/dog/0.png', 'fish/0.png']
    source = open_source(write_images(tmp_path, names))
    make(source, tmp_path / 'set')
    assert {item['name'] for item in items(tmp_path / 'set')} == {name.removesuffix('.png') for name in names}
    _assert_labels_are_the_datas(source, tmp_path / 'set')
    _assert_every_view_is_its_images(source, tmp_path / 'set')


def _assert_every_view_is_its_images(source, root):
    """No two images have one file, and each file is the view of the image that it is named after."""
    paths = [view['path'] for item in items(root) for view in item['views']]
    assert len(set(paths)) == len(paths) == len(source)
    assert list(verify(root)) == []
    expected = reference_views(source, 1, 0, 3, 8)
    for index in range(len(source)):
        np.testing.assert_array_equal(view_pixels(DADSet(root), source, index), expected[index, 0])


@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
def test_a_file_name_that_is_no_utf_8_is_read_or_named(tmp_path, format):
    write_images(tmp_path, ['cat/0.png'])
    (tmp_path / 'train/cat/0.png').rename(os.fsdecode(bytes(tmp_path / 'train/cat') + b'/caf\xe9.png'))
    try:
        make(open_source(tmp_path), tmp_path / 'set', make_augment(2), format=format)
    except ValueError as error:
        caught = error
    else:
        assert list(verify(tmp_path / 'set')) == []
        return
    assert 'caf' in str(caught)
    assert not isinstance(caught, UnicodeError)


# Readers


def _tar(path, folder):
    with tarfile.open(path, 'w') as tar:
        tar.add(folder, arcname='.' if folder.name == 'train' else folder.name)
    return path


def _reader(kind, root):
    """One data set under every reader; its labels in its order."""
    names = [f'{label}/{index}.png' for label in ('b', 'a', 'c10', 'c9') for index in range(3)]
    if kind == 'folder':
        return open_source(write_images(root, names))
    if kind == 'tar of folders':
        write_images(root / 'x', names)
        return open_source(_tar(root / 'all.tar', root / 'x' / 'train'))
    if kind == 'tar of a tar a class':
        write_images(root / 'x', names)
        (root / 'tars').mkdir()
        with tarfile.open(root / 'all.tar', 'w') as tar:
            for folder in sorted((root / 'x' / 'train').iterdir()):
                path = root / 'tars' / f'{folder.name}.tar'
                with tarfile.open(path, 'w') as own:
                    for file in sorted(folder.iterdir()):
                        own.add(file, arcname=file.name)
                tar.add(path, arcname=path.name)
        return open_source(root / 'all.tar')
    labels = [index % 4 for index in range(12)]
    if kind == 'wds':
        return open_source(write_wds(root, names, labels), 'wds/x')
    if kind == 'hfds':
        datasets = pytest.importorskip('datasets')
        features = datasets.Features(
            {'image': datasets.Image(), 'label': datasets.ClassLabel(names=['b', 'a', 'c10', 'c9'])}
        )
        content = {'image': [picture(name) for name in names], 'label': labels}
        datasets.Dataset.from_dict(content, features=features).to_parquet(str(root / 'data' / 'train-0.parquet'))
        return open_source(root / 'cache', f'hfds/{root / "data"}')
    images = [picture(name) for name in names]
    return Source(Memory(images, labels) if kind == 'memory' else Stream(images, labels))


@pytest.mark.parametrize(('format', 'workers'), [('folder', 0), ('wds', 0), ('codes', 0), ('folder', 2)])
@pytest.mark.parametrize(
    'kind', ['folder', 'tar of folders', 'tar of a tar a class', 'wds', 'hfds', 'memory', 'stream']
)
def test_label_and_view_of_an_item_are_the_datas_under_any_reader(tmp_path, kind, format, workers):
    (tmp_path / 'data').mkdir()
    source = _reader(kind, tmp_path)
    make(source, tmp_path / 'set', format=format, workers=workers, num_views=2)
    pairs = list(source.dataset) if source.streams else [source.dataset[index] for index in range(len(source))]
    found = items(tmp_path / 'set')
    assert [item['label'] for item in found] == [label for _, label in pairs]
    assert len({item['name'] for item in found}) == len(found) == 12
    source = Source(Memory([image for image, _ in pairs], [label for _, label in pairs]))
    expected = reference_views(source, 2, 0, 3, 8)
    dad_set = DADSet(tmp_path / 'set')
    dad_set.decoder = AUGMENT.vqgan
    for index, item in enumerate(found):
        for view in (0, 1):
            assert_same_view(dad_set.image(index, view, item['name']), expected[index, view], format)


def test_one_tar_a_class_keeps_stems(tmp_path):
    source = _reader('tar of a tar a class', tmp_path)
    make(source, tmp_path / 'set')
    expected = {f'{label}/{index}' for label in ('b', 'a', 'c10', 'c9') for index in range(3)}
    assert {item['name'] for item in items(tmp_path / 'set')} == expected


def test_tars_with_folders_of_one_name_have_views_of_their_own(tmp_path):
    """A tar of tars that each hold class folders: ``1.tar/cat/0.png`` and ``2.tar/cat/0.png``."""
    with tarfile.open(tmp_path / 'all.tar', 'w') as tar:
        for part in '12':
            write_images(tmp_path / part, [])
            for name in ('cat/0.png', 'dog/0.png'):
                path = tmp_path / part / 'train' / name
                path.parent.mkdir(parents=True)
                picture(part + name).save(path)
            tar.add(_tar(tmp_path / f'{part}.tar', tmp_path / part / 'train'), arcname=f'{part}.tar')
    source = open_source(tmp_path / 'all.tar')
    assert len(source) == 4
    make(source, tmp_path / 'set', make_augment(2))
    paths = [view['path'] for item in items(tmp_path / 'set') for view in item['views']]
    assert len(set(paths)) == 4
    assert list(verify(tmp_path / 'set')) == []


def test_names_of_a_tar_never_leave_the_set(tmp_path):
    with tarfile.open(tmp_path / 'evil.tar', 'w') as tar, io.BytesIO() as file:
        picture(0).save(file, 'png')
        for name in ('../../../cat/0.png', 'cat/../../../1.png', '/cat/2.png', './dog/3.png'):
            info = tarfile.TarInfo(name)
            info.size = file.tell()
            tar.addfile(info, io.BytesIO(file.getvalue()))
    root = tmp_path / 'deep' / 'set'
    source = open_source(tmp_path / 'evil.tar')
    with contextlib.suppress(ValueError):
        make(source, root, make_augment(len(source.class_names)))
    assert [path for path in tmp_path.rglob('*.png') if root not in path.parents] == []


@pytest.mark.slow
def test_workers_read_a_tar_that_was_open_before_them(tmp_path):
    """timm's reader keeps the tar open; processes that share its file position would read one another's bytes."""
    names = [f'{label}/{index}.png' for label in range(4) for index in range(100)]
    write_images(tmp_path / 'x', names)
    tar = _tar(tmp_path / 'all.tar', tmp_path / 'x' / 'train')
    source = open_source(tar)
    source.read(0)  # as check_images does
    make(source, tmp_path / 'set', workers=4, shard_size=100, batch_size=5)
    for item, (image, label) in zip(items(tmp_path / 'set'), source.dataset, strict=True):
        assert item['label'] == label
        del image
        data = (tmp_path / 'x' / 'train' / f'{item["name"]}.png').read_bytes()
        assert item['source_sha256'] == hashlib.sha256(data).hexdigest()


def test_numbers_as_class_folders_shift_no_label_where_the_first_class_has_no_image(tmp_path):
    """Data without names of classes: timm must read the labels that the manifests say, class 0 there or not."""
    labels = [11, 10, 2, 2, 11, 3]
    source = Source(Memory([picture(index) for index in range(6)], labels))
    make(source, tmp_path, make_augment(12))
    found = create_dataset('', root=str(tmp_path), split='view0', class_map=str(tmp_path / 'class_map.txt'))
    read = {found.reader.filename(index): found.reader[index][1] for index in range(len(found))}
    assert read == {f'{label}/{index:08d}.png': label for index, label in enumerate(labels)}


def test_a_class_with_a_slash_in_its_name_shifts_no_label(tmp_path):
    source = Source(Memory([picture(index) for index in range(4)], [0, 1, 2, 3]))
    source.class_names = ['a/b', 'a_b', '..', 'a_b-0']
    make(source, tmp_path / 'set')
    found = create_dataset(
        '', root=str(tmp_path / 'set'), split='view0', class_map=str(tmp_path / 'set' / 'class_map.txt')
    )
    assert sorted(found.reader[index][1] for index in range(len(found))) == [0, 1, 2, 3]


# Images


@pytest.mark.parametrize('size', [(40, 9), (9, 40), (3, 3)])
@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [
        *(('RGB', 'jpg'), ('L', 'png'), ('L', 'jpg'), ('RGBA', 'png'), ('P', 'png'), ('CMYK', 'jpg'), ('1', 'png')),
        ('LA', 'png'),
    ],
)
def test_pictures_of_every_kind_are_seen_as_timm_sees_them(tmp_path, mode, suffix, size):
    path = tmp_path / 'train' / 'cat' / f'0.{suffix}'
    path.parent.mkdir(parents=True)
    picture(mode, size, mode).save(path)
    source = open_source(tmp_path)
    make(source, tmp_path / 'set', make_augment(2))
    expected = reference_views(source, 1, 0, 3, 8, augment=make_augment(2))
    np.testing.assert_array_equal(view_pixels(DADSet(tmp_path / 'set'), source, 0), expected[0, 0])
    assert items(tmp_path / 'set')[0]['source_sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()


BAD = {
    'empty': b'',
    'text': b'hello',
    'truncated': None,
    'bomb': None,
}


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('bad', BAD)
def test_an_image_that_does_not_decode_is_named_and_no_neighbour_takes_its_place(tmp_path, monkeypatch, bad, workers):
    write_images(tmp_path)
    path, whole = tmp_path / 'train/dog/3.png', (tmp_path / 'train/dog/3.png').read_bytes()
    if bad == 'bomb':
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
        picture(0, (100, 100)).save(path)
    else:
        path.write_bytes(whole[:-40] if bad == 'truncated' else BAD[bad])
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r'dog/3\.png does not decode: .*; repair it, or remove it from the data set'):
        make(source, tmp_path / 'set', workers=workers)
    assert not (tmp_path / 'set' / 'index.json').exists()
    path.write_bytes(whole)
    make(source, tmp_path / 'set', workers=workers)
    make(open_source(write_images(tmp_path / 'sound')), tmp_path / 'undisturbed')
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'undisturbed'))


@pytest.mark.parametrize('label', [-1, 4])
def test_labels_outside_the_teachers_classes_are_named(tmp_path, label):
    source = Source(Memory([picture(index) for index in range(4)], [0, 1, label, 3]))
    with pytest.raises(ValueError, match=rf'labels must be from 0 to 3, but image 2 of the data set has {label}'):
        make(source, tmp_path)


# Streams


@pytest.mark.parametrize(('count', 'has'), [(7, 'more'), (9, '8')])
def test_a_stream_must_hold_what_it_announces_however_often_it_is_started(tmp_path, count, has):
    source = Source(Stream([picture(index) for index in range(8)], [0, 1, 2, 3] * 2, count))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf'must contain the {count} images it announces, but it has {has}.*: fix'):
            make(source, tmp_path, shard_size=3)
        assert not (tmp_path / 'index.json').exists()


@pytest.mark.parametrize(('tar', 'refused'), [('001.tar', 'other settings'), ('003.tar', 'another stream')])
def test_an_image_that_a_stream_leaves_out_moves_no_other_ones_view(tmp_path, tar, refused):
    """timm's wds reader skips what does not decode: everything behind it moves up by one."""
    names, labels = [f'{index}' for index in range(20)], [index % 4 for index in range(20)]
    (tmp_path / 'bad').mkdir()
    write_wds(tmp_path / 'bad', names, labels)
    data = (tmp_path / 'bad' / tar).read_bytes()
    (tmp_path / 'bad' / tar).write_bytes(data.replace(b'IHDR', b'XXXX', 1))
    with pytest.raises(ValueError, match=r'it has 19 that decode: fix it, .* and choose an empty folder'):
        make(open_source(tmp_path / 'bad', 'wds/x'), tmp_path / 'set', shard_size=2)
    (tmp_path / 'bad' / tar).write_bytes(data)
    with pytest.raises(ValueError, match=refused):
        make(open_source(tmp_path / 'bad', 'wds/x'), tmp_path / 'set', shard_size=2)
    assert not (tmp_path / 'set' / 'index.json').exists()
    make(open_source(tmp_path / 'bad', 'wds/x'), tmp_path / 'other', shard_size=2)


def test_an_error_of_the_data_is_not_said_to_be_the_folders(tmp_path):
    class Broken(Stream):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 2)
            raise ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer')

    source = Source(Broken([picture(index) for index in range(4)], [0, 1, 2, 3]))
    with pytest.raises((ValueError, OSError), match='Connection reset by peer') as caught:
        make(source, tmp_path)
    assert 'cannot be written' not in str(caught.value)


def test_a_stream_is_taken_up_again_in_its_middle(tmp_path):
    source = Source(Stream([picture(index) for index in range(8)], [0, 1, 2, 3] * 2))
    make(source, tmp_path, shard_size=3)
    whole = tree(tmp_path)
    for name in ('index.json', 'manifest/000001.jsonl'):
        (tmp_path / name).unlink()
    make(source, tmp_path, shard_size=3, rank=1, world_size=2)
    assert_same_tree(tmp_path, whole)


# Stopped, shared


def _stopping_at(monkeypatch, name, count, error):
    """Let the ``count``-th call of ``os.NAME`` from now on raise, and all later ones, as if the process were gone."""
    function, calls = getattr(os, name), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) >= count:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(os, name, stopping)


class _Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
@pytest.mark.parametrize('function', ['replace', 'fsync'])
def test_stopped_at_any_write_and_started_again_it_ends_with_the_same_bytes(tmp_path, monkeypatch, format, function):
    source = open_source(write_images(tmp_path / 'few', PICTURES[3:7]))
    make(source, tmp_path / 'undisturbed', format=format, top_k=2, shard_size=3)
    expected = tree(tmp_path / 'undisturbed')
    for count in itertools.count(1):
        output = tmp_path / f'{count}'
        with monkeypatch.context() as patch:
            _stopping_at(patch, function, count, _Killed())
            try:
                make(source, output, format=format, top_k=2, shard_size=3)
            except _Killed:
                whole = False
            else:
                whole = True
        if not whole:
            _assert_all_is_whole(output, expected)
            make(source, output, format=format, top_k=2, shard_size=3)
        assert_same_tree(output, expected)
        if whole:
            break
    assert count > 8


def _assert_all_is_whole(output, expected):
    """What has its final name has its final content."""
    found = {name: data for name, data in tree(output).items() if not name.startswith('.work')}
    assert [name for name, data in found.items() if expected.get(name) != data] == []


@pytest.mark.slow
@pytest.mark.parametrize('file', ['000001.jsonl', 'contact_sheet.png', 'class_map.txt', 'index.json', 'dad_set.json'])
def test_stopped_before_a_file_of_the_end_and_started_again(tmp_path, monkeypatch, source, file):
    make(source, tmp_path / 'undisturbed')
    replace = os.replace

    def stopping(here, there):
        if str(there).endswith(file):
            raise _Killed
        replace(here, there)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', stopping)
        with pytest.raises(_Killed):
            make(source, tmp_path / 'set')
    make(source, tmp_path / 'set')
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'undisturbed'))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2, 5, 9, 14, 22, 26])
def test_a_full_disk_is_one_line_and_is_gone_on_from(tmp_path, monkeypatch, source, count):
    make(source, tmp_path / 'undisturbed')
    with monkeypatch.context() as patch:
        _stopping_at(patch, 'fsync', count, OSError(errno.ENOSPC, 'No space left on device'))
        with pytest.raises(ValueError, match=r'set cannot be written \(No space left on device\): provide the space'):
            make(source, tmp_path / 'set')
    make(source, tmp_path / 'set')
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'undisturbed'))


def test_a_gpu_without_memory_for_the_batch_is_an_error(tmp_path, monkeypatch, source):
    """Fewer images at a time, found by itself, would be other bytes than the settings of the set say."""

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    augment = make_augment()
    augment.chunked = Chunked(3)
    monkeypatch.setattr(augment.vqgan, 'reconstruct', full)
    with pytest.raises(ValueError, match=r'the GPU does not have enough memory for .*: give --dad-micro-batch'):
        make(source, tmp_path / 'set', augment)


@pytest.mark.slow
@pytest.mark.parametrize(('rank', 'world_size'), [(0, 2), (1, 2), (4, 5), (63, 64)])
def test_where_a_process_begins_does_not_matter(tmp_path, source, rank, world_size):
    make(source, tmp_path / 'one', shard_size=3)
    make(source, tmp_path / 'other', shard_size=3, rank=rank, world_size=world_size)
    assert_same_tree(tmp_path / 'other', tree(tmp_path / 'one'))


@pytest.mark.slow
def test_data_loading_processes_do_not_matter(tmp_path, source):
    for workers in (0, 1, 3):
        make(source, tmp_path / f'{workers}', shard_size=3, workers=workers)
    for workers in (1, 3):
        assert_same_tree(tmp_path / f'{workers}', tree(tmp_path / '0'))


class OfTheMainThread(Memory):
    """Knows which thread started the process that it is read in; one that another thread starts ends with 1."""

    def __getitem__(self, index):
        assert threading.main_thread().name == 'MainThread'
        return super().__getitem__(index)


def test_data_loading_processes_are_started_by_the_main_thread(tmp_path):
    source = Source(OfTheMainThread([picture(index) for index in range(6)], [0, 1, 2, 3, 0, 1]))
    assert make(source, tmp_path, shard_size=3, workers=2)['images'] == 6


def test_a_whole_set_is_left_alone(tmp_path, source):
    first = make(source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert make(source, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path != tmp_path} == before


CHANGES = {
    'views.seed': {'seed': 1},
    'views.count': {'num_views': 2},
    'views.size': {'size': (SIDE, 10)},
    'views.crop_pct': {'crop_pct': 0.9},
    'files.format': {'format': 'wds'},
    'files.image_format': {'image_format': 'webp'},
    'files.quality': {'image_format': 'jpeg', 'quality': 90},
    'logits.top_k': {'top_k': 2},
    'batch_size': {'batch_size': 4},
    'shard_size': {'shard_size': 7},
    'keep_label': {'augment': make_augment(keep_label=True)},
    'vqgan.fingerprint': {'augment': make_augment(ddconfig={**DDCONFIG, 'num_res_blocks': 2})},
}


@pytest.mark.parametrize('name', CHANGES)
def test_two_configurations_never_mix_in_one_folder(tmp_path, source, name):
    first = {'image_format': 'jpeg'} if name == 'files.quality' else {}
    make(source, tmp_path, **first)
    (tmp_path / 'index.json').unlink()
    (tmp_path / 'manifest' / '000001.jsonl').unlink()
    before = tree(tmp_path)
    with pytest.raises(
        ValueError, match=rf'set with other settings \(.*{name}: here .*, there .*\): give the same flags'
    ):
        make(source, tmp_path, **CHANGES[name])
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith('.work')} == before


def test_other_names_or_labels_of_the_images_are_other_settings(tmp_path, source):
    make(source, tmp_path / 'set')
    other = open_source(write_images(tmp_path / 'other', (*PICTURES[:-1], 'tree/z.png')))
    with pytest.raises(ValueError, match=r'data\.listing: here'):
        make(other, tmp_path / 'set')


@pytest.mark.parametrize('kind', [Memory, Stream])
def test_other_pictures_never_mix_in_one_folder(tmp_path, kind):
    """Data that lists no files, of the same number of images: what is done says which pictures it was made from."""
    labels = [0, 1, 2, 3] * 2
    make(Source(kind([picture(index) for index in range(8)], labels)), tmp_path, shard_size=3)
    (tmp_path / 'index.json').unlink()
    (tmp_path / 'manifest' / '000001.jsonl').unlink()
    with pytest.raises(ValueError, match='other'):
        make(Source(kind([picture(index + 100) for index in range(8)], labels)), tmp_path, shard_size=3)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, source):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(ValueError, match=r'contains other files \(thesis\.tex\): choose an empty folder'):
        make(source, tmp_path)
    assert (tmp_path / 'thesis.tex').read_text() == 'x'


def test_a_folder_that_cannot_be_written_is_named(tmp_path, source):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ValueError, match='file/set cannot be written'):
        make(source, tmp_path / 'file' / 'set')


# Logits, summary, progress


@pytest.mark.parametrize('top_k', [1, 3, 4, 9])
def test_stored_logits_are_the_teachers_on_image_and_stored_view(tmp_path, source, top_k):
    make(source, tmp_path, num_views=2, top_k=top_k, temperature=3.0)
    dad_set, frames = DADSet(tmp_path), _frames(source)
    with torch.no_grad():
        for index, view in itertools.product((0, 7, 8, 19), (0, 1)):
            x_dad = torch.from_numpy(view_pixels(dad_set, source, index, view).copy()).permute(2, 0, 1)[None].float()
            both = stored_logits(dad_set, index, view)
            for found, x_pix in zip(both, (frames[index][None], x_dad / 255), strict=True):
                logits = AUGMENT.teacher(x_pix)[0]
                probability, kept = logits.div(3).softmax(0), logits.topk(min(top_k, 4)).indices
                torch.testing.assert_close(found.div(3).softmax(0)[kept], probability[kept], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('image_format', ['jpeg', 'webp'])
def test_stored_logits_of_lossy_views_are_of_the_pictures_as_they_are_read(tmp_path, source, image_format):
    make(source, tmp_path, top_k=4, image_format=image_format, quality=30)
    dad_set = DADSet(tmp_path)
    x_dad = torch.stack([torch.from_numpy(view_pixels(dad_set, source, index).copy()) for index in range(20)])
    with torch.no_grad():
        logits = AUGMENT.teacher(x_dad.permute(0, 3, 1, 2).float() / 255)
    found = torch.stack([stored_logits(dad_set, index, 0)[1] for index in range(20)])
    torch.testing.assert_close(found.softmax(1), logits.softmax(1), atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_progress_shows_images_a_second_and_the_time_left(tmp_path, source, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    make(source, tmp_path, progress=True)
    error = capsys.readouterr().err
    assert 'DAD views: 100%' in error
    assert '20/20' in error
    assert 'img/s' in error
    assert '<' in error  # tqdm's `elapsed<left`
    make(source, tmp_path / 'quiet', progress=False)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    make(source, tmp_path / 'file', progress=True)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_views': 0}, 'num_views must be 1 or more, got 0'),
        ({'batch_size': 0}, 'batch_size must be 1 or more, got 0'),
        ({'shard_size': -1}, 'shard_size must be 1 or more, got -1'),
        ({'seed': -1}, 'seed must be 0 or more, got -1'),
        ({'top_k': -1}, 'top_k must be 0 or more, got -1'),
        ({'temperature': 0.0}, r'temperature must be positive, got 0\.0'),
        ({'temperature': float('nan')}, 'temperature must be positive, got nan'),
        ({'temperature': float('inf')}, 'temperature must be positive, got inf'),
    ],
)
def test_config_says_what_is_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(frame=Frame(size=(8, 8)), files=FormatConfig(), **change)


def test_the_thread_of_the_networks_neither_reads_nor_encodes_nor_waits_for_the_disk(tmp_path, monkeypatch):
    threads = {}
    for owner, name in ((Source, 'read'), (maker, 'encode_image'), (maker, 'write_files'), (ShardedFolder, 'commit')):
        function = getattr(owner, name)

        def watched(*given, name=name, function=function, **more):
            threads.setdefault(name, set()).add(threading.current_thread())
            return function(*given, **more)

        monkeypatch.setattr(owner, name, watched)
    source = open_source(write_images(tmp_path))
    monkeypatch.setattr(Source, 'sample', lambda self: '')  # which reads before anything is made
    monkeypatch.setattr(Source, 'some', lambda self, count: {})
    make(source, tmp_path / 'set', size=(SIDE, SIDE))
    assert set(threads) == {'read', 'encode_image', 'write_files', 'commit'}
    assert threading.main_thread() not in set.union(*threads.values())


def test_views_are_encoded_and_written_beside_the_networks_and_an_error_loses_no_shard_before(tmp_path, monkeypatch):
    threads = set()

    def encode(*given):
        threads.add(threading.current_thread())
        broken.write_bytes(b'no picture')  # image 8, the first of the second shard, once the first is begun
        return encode_image(*given)

    monkeypatch.setattr('timm_dad.dad_sets.maker.encode_image', encode)
    source = open_source(write_images(tmp_path))
    broken = tmp_path / 'train' / 'dog' / '3.png'
    with pytest.raises(ValueError, match=r'dog/3\.png does not decode'):
        make(source, tmp_path / 'set')
    assert threads
    assert threading.main_thread() not in threads
    assert [path.name for path in (tmp_path / 'set' / 'manifest').iterdir()] == ['000000.jsonl']
    assert list(verify(tmp_path / 'set')) == []
