import collections
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dad_sets import stored_logits
from test_generate import AUGMENT, items, make, open_source, tree, write_images

from timm_dad.dad_sets.manifest import canonical_json, index_hash, read_json
from timm_dad.dad_sets.read import DADSet, read_settings
from timm_dad.data.pictures import DataError


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return open_source(write_images(tmp_path_factory.mktemp('pictures')))


@pytest.fixture(scope='module')
def sets(tmp_path_factory, source):
    root = tmp_path_factory.mktemp('sets')
    for format in ('folder', 'wds', 'codes'):
        make(source, root / format, format=format, num_views=2, top_k=2)
    return root


@pytest.fixture(params=['folder', 'wds', 'codes'])
def copied(request, sets, tmp_path):
    return shutil.copytree(sets / request.param, tmp_path / 'set')


def _open(root):
    dad_set = DADSet(root)
    dad_set.decoder = AUGMENT.vqgan
    return dad_set


def test_it_says_what_it_is(sets):
    dad_set = DADSet(sets / 'wds')
    assert (dad_set.num_images, dad_set.num_views, dad_set.size, dad_set.shard_size) == (20, 2, (8, 8), 8)
    assert dad_set.class_names == ['cat', 'dog', 'fish', 'tree']
    assert dad_set.format == 'wds'
    assert dad_set.logits == {'top_k': 2, 'temperature': 4.0}
    assert [item['index'] for manifest in dad_set.manifests() for item in manifest.items] == list(range(20))


def test_all_formats_hold_the_same_views(sets, source):
    """Codes are decoded one by one, in other sums than in a batch: up to the rounding to 8 bits."""
    opened = [_open(sets / format) for format in ('folder', 'wds', 'codes')]
    others = 0
    for index, item in enumerate(items(sets / 'folder')):
        for view in (0, 1):
            found = [dad_set.image(index, view, item['name']) for dad_set in opened]
            assert {picture.mode for picture in found} == {'RGB'}
            folder, wds, codes = (np.asarray(picture).astype(int) for picture in found)
            np.testing.assert_array_equal(folder, wds)
            np.testing.assert_allclose(folder, codes, atol=1)
            others += (folder != codes).sum()
    assert others <= 8  # of 7680


def test_logits_of_all_formats_are_the_same(sets):
    opened = [_open(sets / format) for format in ('folder', 'wds', 'codes')]
    for index, view in ((0, 0), (8, 1), (19, 1)):
        found = [torch.stack(stored_logits(dad_set, index, view)) for dad_set in opened]
        assert found[0].shape == (2, 4)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_views_are_drawn_alike_often(sets):
    drawn = collections.Counter(DADSet(sets / 'folder').draw_view() for _ in range(2000))
    assert set(drawn) == {0, 1}
    assert min(drawn.values()) > 850


def test_one_view_is_always_drawn(source, tmp_path):
    make(source, tmp_path)
    dad_set = DADSet(tmp_path)
    assert {dad_set.draw_view() for _ in range(20)} == {0}


def test_it_reaches_data_loading_processes(sets):
    for format in ('folder', 'wds', 'codes'):
        dad_set = pickle.loads(pickle.dumps(_open(sets / format)))
        assert dad_set.image(3, 1, 'cat/3').size == (8, 8)


def test_reading_leaves_the_set_as_it_is(sets):
    before = tree(sets)
    for format in ('folder', 'wds', 'codes'):
        dad_set = _open(sets / format)
        dad_set.image(3, 1, 'cat/3')
        stored_logits(dad_set, 3, 1)
    assert tree(sets) == before


def test_it_is_opened_and_read_without_a_manifest(sets, monkeypatch):
    monkeypatch.setattr(DADSet, 'manifest', None)
    dad_set = DADSet(sets / 'wds')
    assert dad_set.image(9, 1, 'dog/4').size == (8, 8)
    assert str(sets / 'wds' / 'index.npy') in Path('/proc/self/maps').read_text()  # one copy for all processes


def test_a_set_that_was_made_without_a_table_has_the_same_one(copied):
    table = DADSet(copied).table.clone()
    index = read_json(copied / 'index.json')
    index['files'] = [place for place in index['files'] if place['path'] != 'index.npy']
    (copied / 'index.json').write_bytes(canonical_json({**index, 'sha256': index_hash(index)}))
    (copied / 'index.npy').unlink()
    assert torch.equal(DADSet(copied).table, table)


def test_the_table_is_an_array_of_the_manifests(sets):
    table = np.load(sets / 'wds' / 'index.npy')
    assert (table.dtype, table.shape) == (np.dtype('<i8'), (20, 10))
    for row, item in zip(table, items(sets / 'wds'), strict=True):
        assert row[1] == item['label']
        assert int(row[0]).to_bytes(8, 'big', signed=True).hex() == item['source_sha256'][:16]
        for place, numbers in zip(item['views'], (row[2:6], row[6:]), strict=True):
            assert (place['offset'], place['bytes']) == tuple(numbers[:2])
            assert numbers[2:].astype('>i8').tobytes().hex() == place['sha256'][:32]


# Errors


def test_a_folder_without_a_set_is_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match=r'contains no DAD set \(no dad_set\.json\): make one with timm-dad generate'):
        DADSet(tmp_path)
    with pytest.raises(ValueError, match='contains no DAD set'):
        DADSet(tmp_path / 'nowhere')


def test_a_set_that_is_not_finished_is_never_read(copied):
    (copied / 'index.json').unlink()
    with pytest.raises(ValueError, match='set is not finished: start the same timm-dad generate again to continue'):
        DADSet(copied)


def test_another_version_is_named(copied):
    settings = read_json(copied / 'dad_set.json')
    (copied / 'dad_set.json').write_bytes(canonical_json({**settings, 'format_version': 2}))
    with pytest.raises(ValueError, match=r'dad_set\.json has format version 2, but this timm_dad reads 1'):
        read_settings(copied)


def test_changed_settings_are_named(copied):
    settings = read_json(copied / 'dad_set.json')
    settings['views']['seed'] = 5
    (copied / 'dad_set.json').write_bytes(canonical_json(settings))
    with pytest.raises(ValueError, match=r'dad_set\.json was altered: run timm-dad verify'):
        DADSet(copied)


@pytest.mark.parametrize('file', ['dad_set.json', 'index.json'])
@pytest.mark.parametrize('content', [b'', b'{"a', b'[]', b'\xff\xfe', b'null'])
def test_damaged_files_of_the_set_are_named(copied, file, content):
    (copied / file).write_bytes(content)
    with pytest.raises(ValueError, match=f'{file} is damaged'):
        DADSet(copied)


@pytest.mark.parametrize('content', [None, b'', b'{}\n', b'\xff'])
def test_a_damaged_manifest_is_named(copied, content):
    path = copied / 'manifest' / '000001.jsonl'
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r'manifest/000001\.jsonl is damaged \(.+\): restore it with timm-dad generate --repair and the flags',
    ):
        list(DADSet(copied).manifests())


@pytest.mark.parametrize('damage', [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-8] + b'damaged!')])
def test_a_damaged_table_is_named(copied, damage):
    damage(copied / 'index.npy')
    with pytest.raises(
        DataError, match=r'index\.npy is damaged \(.+\): restore it with timm-dad generate --repair and the flags'
    ):
        DADSet(copied)


def test_an_altered_index_is_never_read(copied):
    """Its hash of itself is there to be looked at."""
    path = copied / 'index.json'
    path.write_bytes(path.read_bytes().replace(b'"images":20', b'"images":21'))
    with pytest.raises(ValueError, match=r'index\.json'):
        DADSet(copied)


@pytest.mark.parametrize('damage', ['missing', 'empty', 'truncated'])
def test_a_damaged_view_is_named(copied, damage):
    dad_set = _open(copied)
    places = {'folder': 'view1/tree/4.png', 'wds': 'shards/000002.tar', 'codes': 'shards/000002.safetensors'}
    path = copied / places[dad_set.format]
    data = path.read_bytes()
    path.unlink()
    if damage != 'missing':
        keep = {'folder': len(data) // 2, 'wds': dad_set.num_views * 512, 'codes': len(data) - 3}[dad_set.format]
        path.write_bytes(b'' if damage == 'empty' else data[:keep])
    with pytest.raises(ValueError, match=r' is damaged \(.+\): restore it with timm-dad generate --repair') as caught:
        dad_set.image(19, 1, 'tree/4')
    assert 'tree/4' in str(caught.value) or path.name in str(caught.value)


def test_a_view_with_other_bytes_is_named(copied):
    dad_set = _open(copied)
    place = items(copied)[19]['views'][1]
    path = copied / place['path']
    data = bytearray(path.read_bytes())
    start = place.get('offset', 0)
    data[start : start + place['bytes']] = bytes(place['bytes'])
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r' is damaged \(its content has changed\): restore it with timm-dad generate --repair'
    ):
        dad_set.image(19, 1, 'tree/4')


def test_codes_need_their_decoder(sets):
    with pytest.raises(ValueError, match='contains codes: set decoder to the VQGAN that made them'):
        DADSet(sets / 'codes').image(0, 0, 'cat/0')


def test_logits_must_be_there(source, tmp_path):
    make(source, tmp_path)
    with pytest.raises(ValueError, match='has no logits: make a set with timm-dad generate --dad-store-logits'):
        stored_logits(DADSet(tmp_path), 0, 0)


@pytest.mark.parametrize('damage', ['missing', 'empty', 'truncated', 'header'])
def test_damaged_logits_are_named(copied, damage):
    path = copied / 'logits' / '000001.safetensors'
    data = path.read_bytes()
    path.unlink()
    content = {'empty': b'', 'truncated': data[:-5], 'header': b'\xff' + data[1:]}.get(damage)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r'logits/000001\.safetensors is damaged'):
        stored_logits(DADSet(copied), 9, 0)


def _swap(one, other):
    one_data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_data)


def test_swapped_files_are_never_used(copied):
    dad_set, (one, *_, other) = _open(copied), sorted(copied.glob('view0/*/*.png')) or sorted(copied.glob('shards/*'))
    _swap(one, other)
    with pytest.raises(
        DataError, match=rf'^{re.escape(str(one))}.* is damaged \(.*\): restore it with timm-dad generate --repair'
    ):
        dad_set.image(0, 0, 'cat/0')
    _swap(copied / 'logits' / '000000.safetensors', copied / 'logits' / '000001.safetensors')
    with pytest.raises(DataError, match=r'logits/000000\.safetensors is damaged \(its content has changed'):
        stored_logits(dad_set, 0, 0)
    _swap(copied / 'manifest' / '000000.jsonl', copied / 'manifest' / '000001.jsonl')
    with pytest.raises(DataError, match=r'manifest/000000\.jsonl is damaged \(it differs from the index'):
        list(DADSet(copied).manifests())


@pytest.mark.parametrize('bit', [0, 3])
def test_any_flipped_bit_of_a_view_is_found(copied, bit):
    place = items(copied)[3]['views'][1]
    path, dad_set = copied / place['path'], _open(copied)
    whole = path.read_bytes()
    for position in range(0, place['bytes'], 11):
        data = bytearray(whole)
        data[place.get('offset', 0) + position] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(DataError, match='its content has changed'):
            dad_set.image(3, 1, 'cat/3')
    if dad_set.format == 'folder':
        path.write_bytes(whole + b'\0')
        with pytest.raises(DataError, match='its content has changed'):
            dad_set.image(3, 1, 'cat/3')
