import hashlib
import io
import pickle
import random

import numpy as np
import pytest
import torch
from folders import picture
from PIL import Image
from test_generate import Memory, Stream, open_source, write_images
from timm.data import create_dataset, create_transform

from timm_dad.data.images import Frame, Source
from timm_dad.demo.data import DemoDataset


@pytest.fixture
def source(tmp_path):
    return open_source(write_images(tmp_path, ['b/x.png', 'a/2.png', 'a/10.png', 'a/deep/a/1.jpg']))


def _names(source):
    return [source.name(index, source.read(index).label) for index in range(len(source))]


def test_it_is_the_data_set_image_by_image(source, tmp_path):
    assert len(source) == len(source.dataset) == 4
    assert source.class_names == ['a', 'b']
    assert (source.streams, source.has_files, source.identified_by) == (False, True, 'file')
    for index, (image, label) in enumerate(source.dataset):
        own = source.read(index)
        np.testing.assert_array_equal(np.asarray(own.image), np.asarray(image))
        assert own.label == label
        path = source.reader.filename(index, absolute=True)
        with open(path, 'rb') as file:
            assert own.sha256 == hashlib.sha256(file.read()).hexdigest()


def test_names_are_paths_without_suffix(source):
    assert _names(source) == ['a/2', 'a/10', 'a/deep/a/1', 'b/x']


def test_the_transform_of_the_data_set_does_not_matter(source):
    before = source.read(0)
    source.dataset.transform = lambda image: image.rotate(90)
    assert source.read(0) == before


@pytest.mark.parametrize('root', ['{}', '{}/', '{}/./', '{}/x/..'])
def test_names_do_not_depend_on_how_the_root_is_written(tmp_path, monkeypatch, root):
    (tmp_path / 'x').mkdir()
    write_images(tmp_path, ['a/2.png', 'b/x.png'])
    source = open_source(root.format(tmp_path))
    assert _names(source) == ['a/2', 'b/x']
    assert source.listing() == open_source(tmp_path).listing()
    monkeypatch.chdir(tmp_path)
    for here in ('.', './', '../' + tmp_path.name):
        assert _names(open_source(here)) == ['a/2', 'b/x']
        assert open_source(here).listing() == source.listing()


def test_pictures_beside_the_class_folders_get_a_name(tmp_path):
    source = open_source(write_images(tmp_path, ['x.png', 'a/x.png']))
    names = _names(source)
    assert len(set(names)) == 2
    assert sorted(name.split('/')[-1] for name in names) == ['x', 'x']


def test_same_stems_of_one_folder_alone_keep_their_suffix(tmp_path):
    names = ['a/x.png', 'a/x.jpg', 'a/y.png', 'b/x.png', 'b/y.jpeg', 'b/y.png', 'b/y.jpg']
    source = open_source(write_images(tmp_path, names))
    assert sorted(_names(source)) == ['a/x.jpg', 'a/x.png', 'a/y', 'b/x', 'b/y.jpeg', 'b/y.jpg', 'b/y.png']


def test_names_are_of_the_data_set_not_of_the_split_of_another(tmp_path):
    """Adding a picture changes the names of its stem alone."""
    write_images(tmp_path, ['a/x.png', 'a/y.png'])
    before = set(_names(open_source(tmp_path)))
    write_images(tmp_path, ['a/z.png'])
    assert before < set(_names(open_source(tmp_path)))


def test_random_sets_of_file_names_never_share_a_name(tmp_path):
    """Stems with dots and suffixes in them, in one folder."""
    rng = random.Random(0)
    for trial in range(30):
        stems = ['a', 'a.jpg', 'a.png', 'a.jpg.png', 'b', 'b.x', '.c', 'A', 'a.JPG']
        names = {f'k/{rng.choice(stems)}{rng.choice((".png", ".jpg", ".jpeg", ".PNG"))}' for _ in range(8)}
        root = tmp_path / f'{trial}'
        for name in names:
            (root / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
            picture(name).save(root / 'train' / name, 'png')
        found = _names(open_source(root))
        assert len(set(found)) == len(found), sorted(names)


@pytest.mark.parametrize('change', ['renamed', 'removed', 'added', 'other class'])
def test_listing_is_of_names_and_labels(tmp_path, change):
    names = ['a/1.png', 'a/2.png', 'b/1.png']
    first = open_source(write_images(tmp_path / 'one', names)).listing()
    assert open_source(write_images(tmp_path / 'two', names)).listing() == first
    other = {
        'renamed': ['a/1.png', 'a/3.png', 'b/1.png'],
        'removed': ['a/1.png', 'b/1.png'],
        'added': [*names, 'b/2.png'],
        'other class': ['a/1.png', 'b/2.png', 'b/1.png'],
    }[change]
    assert open_source(write_images(tmp_path / 'three', other)).listing() != first


def test_listing_sees_a_class_map(tmp_path):
    write_images(tmp_path, ['a/1.png', 'b/1.png'])
    (tmp_path / 'map.txt').write_text('b\na\n')
    mapped = open_source(tmp_path, class_map=str(tmp_path / 'map.txt'))
    assert mapped.class_names == ['b', 'a']
    assert [mapped.read(index).label for index in range(2)] == [1, 0]
    assert mapped.listing() != open_source(tmp_path).listing()


@pytest.mark.parametrize('kind', ['memory', 'demo', 'stream'])
def test_data_without_files_is_known_by_its_pixels(kind):
    images = [picture(0), picture(1), picture(0)]
    dataset = {
        'memory': Memory(images, [0, 1, 2]),
        'demo': DemoDataset('noto', 'train'),
        'stream': Stream(images, [0, 1, 2]),
    }[kind]
    source = Source(dataset)
    assert source.identified_by == 'pixels'
    assert source.listing() is None
    assert source.streams == (kind == 'stream')
    if kind == 'memory':
        hashes = [source.read(index).sha256 for index in range(3)]
        assert hashes[0] == hashes[2] != hashes[1]
        assert _names(source) == ['0/00000000', '1/00000001', '2/00000002']
    if kind == 'demo':
        label = dataset[3][1]
        assert source.name(3, label) == f'{dataset.class_names[label]}/00000003'


def test_the_hash_of_pixels_is_of_their_shape_too():
    hashes = {Source.of_pixels(Image.new('RGB', size), 0).sha256 for size in ((4, 2), (2, 4), (8, 1), (4, 4))}
    assert len(hashes) == 4
    grey = Source.of_pixels(Image.new('L', (4, 2)), torch.tensor(3))
    assert grey.sha256 == Source.of_pixels(Image.new('RGB', (4, 2)), 3).sha256
    assert grey.label == 3
    assert grey.image.mode == 'RGB'


def test_a_class_name_with_a_slash_is_one_folder():
    source = Source(Memory([picture(0)], [0]))
    source.class_names = ['a/b']
    assert source.name(0, 0) == 'a_b/00000000'


def test_it_reaches_data_loading_processes(source):
    copied = pickle.loads(pickle.dumps(Memory([picture(0)], [0])))
    assert Source(copied).read(0).label == 0


@pytest.mark.parametrize('content', [b'', b'no picture', b'\x89PNG\r\n\x1a\n' + b'\0' * 40])
def test_what_does_not_decode_is_named(tmp_path, content):
    write_images(tmp_path, ['a/1.png', 'a/2.png', 'a/3.png'])
    (tmp_path / 'train' / 'a' / '2.png').write_bytes(content)
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r'train/a/2\.png does not decode: .+; repair it, or remove it from'):
        source.read(1)
    assert source.read(2).label == 0


def test_a_file_that_is_gone_is_named(tmp_path):
    write_images(tmp_path, ['a/1.png', 'a/2.png'])
    source = open_source(tmp_path)
    (tmp_path / 'train' / 'a' / '2.png').unlink()
    with pytest.raises(ValueError, match=r'train/a/2\.png does not decode: .*No such file'):
        source.read(1)


@pytest.mark.parametrize('format', ['png', 'jpeg', 'webp', 'gif', 'bmp', 'tiff', 'ppm', 'tga', 'ico', 'pcx'])
def test_whatever_bytes_are_damaged_it_is_a_value_error_or_a_picture(tmp_path, format):
    write_images(tmp_path, ['a/1.png'])
    with io.BytesIO() as file:
        picture(0, (16, 16)).save(file, format)
        whole = file.getvalue()
    path, rng = tmp_path / 'train' / 'a' / '1.png', random.Random(0)
    source = open_source(tmp_path)
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(1, len(whole) + 1)] if rng.random() < 0.4 else whole)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            source.read(0)
        except ValueError as error:
            refused += 'a/1.png does not decode' in str(error)
    assert refused > 5


def test_a_picture_of_a_hugging_face_data_set_that_does_not_decode_is_named(tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['a', 'b'])})
    content = {'image': [{'bytes': b'no picture', 'path': None}], 'label': [1]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(tmp_path / 'data' / 'train-0.parquet'))
    source = open_source(tmp_path / 'cache', f'hfds/{tmp_path / "data"}')
    assert source.class_names == ['a', 'b']
    with pytest.raises(ValueError, match=r'image 0|index 0|00000000'):
        source.read(0)


# Frame


@pytest.mark.parametrize('crop_pct', [1.0, 0.8])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('size', [(8, 8), (8, 12), (15, 9)])
def test_frame_is_timms_evaluation_transform(size, interpolation, crop_pct):
    frame = Frame(size=size, interpolation=interpolation, crop_pct=crop_pct).transform()
    expected = create_transform(
        (3, *size), interpolation=interpolation, crop_pct=crop_pct, mean=[0] * 3, std=[1] * 3, crop_mode='center'
    )
    for shape in ((12, 10), (40, 9), (5, 60), size[::-1]):
        image = picture(shape, shape)
        found = frame(image)
        assert found.size == size[::-1]
        pixels = expected(image).mul(255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'crop_pct': 0.0}, r'crop_pct must be more than 0 and at most 1.25, got 0\.0'),
        ({'crop_pct': 1.5}, r'crop_pct must be more than 0 and at most 1.25, got 1\.5'),
        ({'crop_pct': float('nan')}, 'crop_pct must be more than 0 and at most 1.25, got nan'),
        ({'size': (0, 8)}, r'size must be positive, got \(0, 8\)'),
        ({'size': (8, -1)}, r'size must be positive, got \(8, -1\)'),
    ],
)
def test_frame_says_what_is_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        Frame(**{'size': (8, 8), **change})


def test_timms_own_data_set_would_take_the_neighbour(tmp_path):
    """What ``Source.read`` is there for; if timm changes, it can go."""
    write_images(tmp_path, ['a/1.png', 'a/2.png'])
    (tmp_path / 'train' / 'a' / '1.png').write_bytes(b'')
    dataset = create_dataset('', root=str(tmp_path), split='train')
    np.testing.assert_array_equal(np.asarray(dataset[0][0]), np.asarray(picture('a/2.png')))
