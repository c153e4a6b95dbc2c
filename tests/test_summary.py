import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import picture
from PIL import Image
from test_generate import AUGMENT, SIDE, Memory, Stream, items, make, make_augment, open_source, write_images

from timm_dad.dad_sets.formats import unpack_codes
from timm_dad.dad_sets.manifest import ShardManifest, read_json
from timm_dad.dad_sets.read import DADSet, SetFolder
from timm_dad.dad_sets.summary import CONTACT_SHEET, Totals, contact_sheet, format_summary
from timm_dad.data.images import Frame, Source


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return open_source(write_images(tmp_path_factory.mktemp('pictures')))


@pytest.fixture(scope='module')
def root(tmp_path_factory, source):
    root = tmp_path_factory.mktemp('set')
    make(source, root, num_views=2)
    return root


def test_numbers_are_those_of_the_manifests(root, source):
    summary = read_json(root / 'index.json')['summary']
    views = [(item, view) for item in items(root) for view in item['views']]
    assert (summary['images'], summary['views']) == (20, 40)
    assert summary['teacher_kept'] == pytest.approx(np.mean([view['kept'] for _, view in views]))
    assert summary['l2'] == pytest.approx(np.mean([view['l2'] for _, view in views]))
    sizes = [(root / view['path']).stat().st_size for _, view in views]
    assert summary['bytes_per_view'] == pytest.approx(np.mean(sizes))
    for label, name in enumerate(source.class_names):
        own = [view['kept'] for item, view in views if item['label'] == label]
        assert summary['kept_by_class'][name] == pytest.approx(np.mean(own))
    assert 0 < summary['teacher_kept'] < 1


def test_codebook_usage_is_of_the_codes_of_the_views(source, tmp_path):
    """Those of the images' own reconstructions do not count."""
    summary = make(source, tmp_path, format='codes', num_views=2)
    dad_set = DADSet(tmp_path)
    used = {
        code
        for item in items(tmp_path)
        for view in (0, 1)
        for code in unpack_codes(dad_set._read(item['index'], view, item['name']), (4, 4), 32).flatten().tolist()
    }
    assert summary['codebook_used'] == len(used) / 32
    assert 0 < len(used) < 32


def test_classes_without_images_and_data_without_names():
    views = [{'bytes': 4, 'kept': True, 'l2': 1.0}, {'bytes': 6, 'kept': False, 'l2': 2.0}]
    manifest = ShardManifest({'codes_used': 'gA=='}, [{'label': 2, 'views': views}])

    class Set:
        class_names, one_class = None, True
        num_images = 1

    totals = Totals(5)
    assert totals.add(manifest) is manifest
    assert totals.summary(Set()) == {
        'images': 1, 'views': 2, 'teacher_kept': 0.5, 'l2': 1.5, 'codebook_used': 0.2, 'bytes_per_view': 5.0,
        'kept_by_class': {'2': 0.5},
    }  # fmt: skip


def test_a_damaged_manifest_is_named(root, tmp_path):
    root = shutil.copytree(root, tmp_path / 'set')
    (root / 'manifest' / '000001.jsonl').write_bytes(b'{}')
    with pytest.raises(
        ValueError, match=r'manifest/000001\.jsonl is damaged \(.*\): restore it with timm-dad generate --repair'
    ):
        list(map(Totals(32).add, DADSet(root).manifests()))


def test_text_says_all_of_it(root):
    text = format_summary(read_json(root / 'index.json')['summary'], root)
    assert f'{root}: 40 DAD views of 20 images, ' in text
    for part in ('teacher keeps the label', 'least for', 'mean L2 of x_dad - x', 'codes of the VQGAN used', '%'):
        assert part in text
    assert str(root / CONTACT_SHEET) in text


def test_text_names_the_worst_classes_first():
    kept = {f'c{index}': index / 10 for index in (3, 1, 9, 0, 7, 5, 2)}
    summary = {'images': 1, 'views': 1, 'teacher_kept': 0.5, 'l2': 1, 'codebook_used': 1, 'bytes_per_view': 1}
    text = format_summary({**summary, 'kept_by_class': kept}, Path('x'))
    assert 'least for c0 0.0%, c1 10.0%, c2 20.0%, c3 30.0%, c5 50.0%\n' in text


def test_contact_sheet_shows_every_image_beside_its_own_view(root, source):
    with Image.open(root / CONTACT_SHEET) as file:
        sheet = np.asarray(file.convert('RGB'))
    dad_set, frame = DADSet(root), Frame(size=(SIDE, SIDE)).transform()
    for place in range(20):
        image = source.read(place)
        left, top = 8 + place % 4 * (2 * 112 + 12), 8 + place // 4 * 140
        pair = (frame(image.image), dad_set.image(place, 0, source.name(place, image.label)))
        for offset, picture_of in zip((0, 116), pair, strict=True):
            cell = sheet[top : top + 112, left + offset : left + offset + 112]
            centres = cell[112 // SIDE // 2 :: 112 // SIDE, 112 // SIDE // 2 :: 112 // SIDE]
            np.testing.assert_array_equal(centres, np.asarray(picture_of))
        caption = sheet[top + 112 : top + 140, left : left + 224]
        assert (caption < 128).any()


@pytest.mark.slow
def test_contact_sheet_is_spread_over_the_data_and_of_streams_its_beginning(tmp_path):
    images = [picture(index) for index in range(60)]
    labels = [index % 4 for index in range(60)]
    seen = []

    class Watched(Source):
        def read(self, index):
            seen.append(index)
            return super().read(index)

    source = Watched(Memory(images, labels))
    make(source, tmp_path / 'set', shard_size=30)
    del seen[:]
    contact_sheet(DADSet(tmp_path / 'set'), source, Frame(size=(SIDE, SIDE)), source.some(24))
    assert (len(seen), seen[0], seen[-1]) == (24, 0, 59)
    stream = Source(Stream(images, labels))
    make(stream, tmp_path / 'stream', shard_size=30)
    sheet = contact_sheet(DADSet(tmp_path / 'stream'), stream, Frame(size=(SIDE, SIDE)), stream.some(24))
    assert Image.open(io.BytesIO(sheet)).size == (8 + 4 * 236, 8 + 6 * 140)


@pytest.mark.parametrize('count', [1, 3, 5])
def test_contact_sheet_of_few_images(tmp_path, count):
    make(Source(Memory([picture(index) for index in range(count)], [0] * count)), tmp_path)
    with Image.open(tmp_path / CONTACT_SHEET) as sheet:
        assert sheet.size == (8 + min(count, 4) * 236, 8 + -(-count // 4) * 140)


@pytest.mark.parametrize('name', ['猫', 'élan', 'عربى', '😀', 'a\nb', 'x' * 300, ''])
def test_captions_of_any_class_name(tmp_path, name):
    source = Source(Memory([picture(0), picture(1)], [0, 1]))
    source.class_names = [name, 'other']
    make(source, tmp_path, make_augment(2), format='wds')
    with Image.open(tmp_path / CONTACT_SHEET) as sheet:
        sheet.load()


def test_codes_are_decoded_for_the_sheet(source, root, tmp_path):
    make(source, tmp_path, format='codes', num_views=2)
    assert (tmp_path / CONTACT_SHEET).read_bytes() == (root / CONTACT_SHEET).read_bytes()
    assert not AUGMENT.vqgan.training


def test_manifests_of_a_finished_set_are_parsed_once(source, tmp_path, monkeypatch):
    parsed, manifest = [], SetFolder.manifest
    monkeypatch.setattr(SetFolder, 'manifest', lambda self, shard: parsed.append(shard) or manifest(self, shard))
    make(source, tmp_path)
    assert parsed == sorted(set(parsed))
    assert parsed
