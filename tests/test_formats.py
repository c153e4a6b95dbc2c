import io
import json
import tarfile

import numpy as np
import pytest
import torch
from folders import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from test_generate import AUGMENT, assert_same_view, items, make, open_source, tree, view_pixels, write_images
from timm.data import create_dataset

from timm_dad.common.files import write_files
from timm_dad.dad_sets.formats import (
    FormatConfig,
    Item,
    bits_of,
    encode_image,
    lay_out,
    pack_codes,
    unpack_codes,
    wds_info,
)
from timm_dad.dad_sets.manifest import sha256
from timm_dad.dad_sets.read import DADSet
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return open_source(write_images(tmp_path_factory.mktemp('pictures')))


# Codes


@given(st.data(), st.integers(1, 70_000), st.integers(1, 12), st.integers(1, 12))
def test_codes_come_back_and_take_no_more_room_than_their_bits(data, n_embed, height, width):
    count = height * width
    codes = torch.tensor(data.draw(st.lists(st.integers(0, n_embed - 1), min_size=count, max_size=count)))
    codes = codes.view(height, width)
    packed = pack_codes(codes, n_embed)
    assert len(packed) == -(-count * bits_of(n_embed) // 8)
    found = unpack_codes(packed, (height, width), n_embed)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, codes, rtol=0, atol=0)


@given(st.integers(2, 2**31))
def test_bits_hold_every_code_and_no_bit_is_left_over(n_embed):
    assert 2 ** bits_of(n_embed) >= n_embed > 2 ** (bits_of(n_embed) - 1)


def test_28_by_28_codes_of_14_bits_are_1372_bytes():
    codes = torch.randint(0, 16384, (28, 28))
    assert bits_of(16384) == 14
    assert len(pack_codes(codes, 16384)) == 1372


def test_codes_are_packed_row_by_row_highest_bit_first():
    assert pack_codes(torch.tensor([[1, 2], [3, 0]]), 4) == bytes([0b01101100])


def test_codes_of_a_set_are_those_that_its_file_holds(source, tmp_path):
    make(source, tmp_path, format='codes', num_views=2)
    dad_set = DADSet(tmp_path)
    for shard, count in enumerate((8, 8, 4)):
        codes = load_file(tmp_path / 'shards' / f'{shard:06d}.safetensors')['codes']
        assert codes.shape == (count, 2, 10)  # 4 x 4 codes of 5 bits
        assert codes.dtype == torch.uint8
        for row in range(count):
            item = items(tmp_path)[8 * shard + row]
            for view in (0, 1):
                assert dad_set._read(item['index'], view, item['name']) == codes[row, view].numpy().tobytes()


@pytest.mark.parametrize('attack', [LatentAttackConfig(), CodeAttackConfig(neighbours=8)])
def test_a_set_of_codes_has_the_views_of_a_set_of_pictures(source, tmp_path, attack):
    """Views are images of codes in every space, so nothing of them is lost."""
    augment = DADAugment(AUGMENT.teacher, AUGMENT.vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=attack)
    sets = []
    for format in ('folder', 'codes'):
        make(source, tmp_path / format, augment, format=format, num_views=2)
        sets.append(DADSet(tmp_path / format))
    for index in range(len(source)):
        for view in (0, 1):
            found, expected = (view_pixels(dad_set, source, index, view) for dad_set in reversed(sets))
            assert_same_view(found, expected, 'codes')


# Pictures


@pytest.mark.parametrize('size', [(7, 5), (8, 8)])
def test_png_is_exact(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Image.open(io.BytesIO(encode_image(pixels, FormatConfig())))
    assert found.format == 'PNG'
    np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize('image_format', ['jpeg', 'webp'])
def test_quality_trades_room_for_likeness(image_format):
    pixels = np.asarray(picture(0, (64, 64)))
    sizes, errors = [], []
    for quality in (5, 50, 95):
        data = encode_image(pixels, FormatConfig(image_format=image_format, quality=quality))
        found = Image.open(io.BytesIO(data))
        assert found.format == image_format.upper()
        sizes.append(len(data))
        errors.append(np.abs(np.asarray(found.convert('RGB')).astype(int) - pixels).mean())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert len(set(sizes)) == 3


def test_jpeg_keeps_the_colour_of_every_pixel():
    """Views are small: at half the colour resolution much of them would be lost."""
    data = encode_image(np.asarray(picture(0, (16, 16))), FormatConfig(image_format='jpeg'))
    with Image.open(io.BytesIO(data)) as found:
        assert [layer[1:3] for layer in found.layer] == [(1, 1)] * 3


# Read by timm


def _class_map(root):
    return {'class_map': str(root / 'class_map.txt')}


@pytest.mark.parametrize('image_format', ['png', 'jpeg', 'webp'])
def test_timm_reads_a_folder_with_the_right_labels(source, tmp_path, image_format):
    make(source, tmp_path, image_format=image_format, num_views=2)
    dad_set = DADSet(tmp_path)
    input_key = '.webp' if image_format == 'webp' else None  # timm's image folder looks for png and jpeg by default
    for view in (0, 1):
        found = create_dataset('', root=str(tmp_path), split=f'view{view}', input_key=input_key, **_class_map(tmp_path))
        assert len(found) == 20
        for index, (image, label) in enumerate(found):
            assert source.name(index, label) == found.filename(index).rsplit('.', 1)[0]
            assert label == source.dataset[index][1]
            np.testing.assert_array_equal(np.asarray(image), view_pixels(dad_set, source, index, view))


@pytest.mark.parametrize('image_format', ['png', 'jpeg', 'webp'])
def test_timm_reads_webdataset_shards_with_the_right_labels(source, tmp_path, image_format):
    make(source, tmp_path, format='wds', image_format=image_format, num_views=2)
    dad_set = DADSet(tmp_path)
    found = create_dataset('wds/', root=str(tmp_path), split='train', is_training=False)
    assert len(found) == 40
    pairs = list(found)
    assert [label for _, label in pairs] == [item['label'] for item in items(tmp_path) for _ in (0, 1)]
    for place, (image, _) in enumerate(pairs):
        np.testing.assert_array_equal(np.asarray(image), view_pixels(dad_set, source, place // 2, place % 2))


def test_timm_trains_on_webdataset_shards(source, tmp_path):
    make(source, tmp_path, format='wds')
    found = create_dataset('wds/', root=str(tmp_path), split='train', is_training=True, batch_size=4)
    assert len(found) == 20
    assert sorted(label for _, label in found) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_samples_of_webdataset_shards_say_what_they_are_made_of(source, tmp_path):
    make(source, tmp_path, format='wds', num_views=2)
    facts = []
    for path in sorted((tmp_path / 'shards').iterdir()):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert len(set(names)) == len(names)
            members = [tar.getmember(name) for name in names]
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, '')}
            facts += [json.load(tar.extractfile(name)) for name in names if name.endswith('.json')]
    assert facts == [
        {'name': item['name'], 'source_sha256': item['source_sha256'], 'view': view}
        for item in items(tmp_path)
        for view in (0, 1)
    ]


@pytest.mark.parametrize('format', ['wds', 'codes'])
def test_offsets_are_where_the_views_are(source, tmp_path, format):
    make(source, tmp_path, format=format, num_views=2)
    for item in items(tmp_path):
        for place in item['views']:
            data = (tmp_path / place['path']).read_bytes()
            assert sha256(data[place['offset'] : place['offset'] + place['bytes']]) == place['sha256']


def test_info_of_webdataset_shards_counts_views():
    info = json.loads(wds_info('fold1', 3, [8, 8, 4]))
    assert info['splits'] == {
        'fold1': {
            'name': 'fold1',
            'num_samples': 60,
            'filenames': ['shards/000000.tar', 'shards/000001.tar', 'shards/000002.tar'],
            'shard_lengths': [24, 24, 12],
        }
    }


# Writing


@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
def test_writing_does_not_depend_on_where_or_when(tmp_path, format):
    data = [[bytes([index, view] * 5) for view in range(2)] for index in range(3)]
    shard = [Item(index, f'é {index}/a b', index, 'f' * 64, data[index]) for index in range(3)]
    written = []
    for name in ('a', 'b'):
        contents, places, files = lay_out(7, shard, FormatConfig(format=format))
        write_files({tmp_path / name / path: content for path, content in contents.items()}, tmp_path / f'{name}work')
        assert tree(tmp_path / name) == contents
        written.append((contents, places, files))
        hashes = [[sha256(view) for view in own] for own in data]
        assert [[place['sha256'] for place in own] for own in places] == hashes
        assert list((tmp_path / f'{name}work').iterdir()) == []  # nothing unfinished is left
    assert written[0] == written[1]
    assert len(written[0][0]) == (6 if format == 'folder' else 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'format': 'zip'}, r"format must be one of \('folder', 'wds', 'codes'\), got 'zip'"),
        ({'image_format': 'gif'}, r"image_format must be one of \('png', 'jpeg', 'webp'\), got 'gif'"),
        ({'quality': 0}, 'quality is from 1 to 100, got 0'),
        ({'quality': 101}, 'quality is from 1 to 100, got 101'),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        FormatConfig(**change)


def test_settings_hold_what_decides_the_bytes_alone():
    assert FormatConfig(format='codes', quality=3).settings == {'format': 'codes'}
    assert FormatConfig(quality=3).settings == FormatConfig(quality=4).settings
    for image_format in ('jpeg', 'webp'):
        config = FormatConfig(image_format=image_format, quality=3)
        assert config.settings != FormatConfig(image_format=image_format, quality=4).settings
        assert FormatConfig(**config.settings) == config
