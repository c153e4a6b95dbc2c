import json
import logging
import pickle
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import suite_folders
import timm
import torch
from folders import CLASSES, write_pictures
from safetensors.torch import save_file
from suite_folders import WNIDS, by_label, label_of, plain_file, write_classes
from timm.data import create_transform
from torch import nn
from torchvision.transforms.functional import to_tensor

from timm_dad.evaluation.corruptions import CORRUPTIONS
from timm_dad.evaluation.suites.class_folders import subset_wnids
from timm_dad.evaluation.suites.corruption_layouts import C_BAR_CORRUPTIONS, THREE_D_CORRUPTIONS
from timm_dad.evaluation.suites.open import PUBLISHED, find_suites, open_suite, open_suites, parse_suite
from timm_dad.evaluation.suites.suite import Chosen, check_pictures
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Folder of every published suite; tests that change one make their own."""
    return suite_folders.write_all(tmp_path_factory.mktemp('suites'))


def items(part):
    return [part.dataset[index] for index in range(len(part.dataset))]


def labels(part):
    return [item[1] for item in items(part)]


# What is published


@pytest.mark.parametrize('name', [name for name in PUBLISHED if name not in ('objectnet', 'imagenet-a', 'imagenet-r')])
def test_labels_are_imagenets_and_pictures_are_of_their_class(published, name):
    suite = open_suite(name, str(published[name]))
    assert suite.class_names == WNIDS
    assert suite.num_classes == 1000
    for part in suite.parts:
        assert all(label_of(image) == label for image, label in items(part))


@pytest.mark.parametrize(
    ('name', 'kind', 'resize', 'parts'),
    [
        ('imagenet', 'clean', True, ['val']),
        ('imagenet-real', 'clean', True, ['val']),
        ('imagenet-v2', 'ood', True, ['matched-frequency', 'threshold0.7', 'top-images']),
        ('imagenet-a', 'ood', True, ['test']),
        ('imagenet-r', 'ood', True, ['test']),
        ('imagenet-sketch', 'ood', True, ['test']),
        ('stylized-imagenet', 'ood', False, ['test']),
        ('objectnet', 'ood', True, ['test']),
        ('imagenet-c', 'corruption', False, [f'{name}/{s}' for name in CORRUPTIONS for s in range(1, 6)]),
        ('imagenet-c-bar', 'corruption', False, [f'{name}/{s}' for name in C_BAR_CORRUPTIONS for s in range(1, 6)]),
        ('imagenet-3dcc', 'corruption', False, [f'{name}/{s}' for name in THREE_D_CORRUPTIONS for s in range(1, 6)]),
    ],
)
def test_kind_parts_and_preprocessing(published, name, kind, resize, parts):
    suite = open_suite(name, str(published[name]))
    assert (suite.kind, suite.resize) == (kind, resize)
    assert [part.name for part in suite.parts] == parts
    assert suite.normalizer == ('alexnet' if name == 'imagenet-c' else None)


def test_counts_of_corruptions():
    assert (len(CORRUPTIONS), len(C_BAR_CORRUPTIONS), len(THREE_D_CORRUPTIONS)) == (15, 10, 12)


@pytest.mark.parametrize(('letter', 'checksum'), [('a', 1110206179), ('r', 1691794094)])
def test_200_classes_are_the_published_ones(published, letter, checksum):
    suite = open_suite(f'imagenet-{letter}', str(published[f'imagenet-{letter}']))
    indices = [WNIDS.index(wnid) for wnid in suite.class_names]
    shipped = (files('timm.data') / '_info' / f'imagenet_{letter}_indices.txt').read_text().split()
    assert indices == [int(index) for index in shipped]
    # Of the lists in hendrycks/natural-adv-examples eval.py and hendrycks/imagenet-r eval.py.
    assert zlib.crc32(json.dumps(indices).encode()) == checksum
    assert suite.num_classes == 200
    assert labels(suite.parts[0]) == list(range(200))
    assert all(label_of(image) == label for image, label in items(suite.parts[0]))


def test_imagenets_wnids_are_in_the_order_of_folders():
    assert list(WNIDS) == sorted(WNIDS)


def test_v2_folders_are_numbers_not_text(published):
    suite = open_suite('imagenet-v2', str(published['imagenet-v2']))
    dataset = suite.parts[0].dataset
    assert [dataset.filename(index).split('/')[0] for index in range(12)] == [str(label) for label in range(12)]
    as_text = sorted(str(label) for label in range(1000))
    wrong = sum(int(folder) != label for label, folder in enumerate(as_text))
    assert wrong == 988  # what a reader that sorts folders as text would get wrong
    assert all(label_of(image) == label for image, label in items(suite.parts[0]))


@pytest.mark.parametrize(
    ('folder', 'part'),
    [
        ('imagenetv2-top-images-format-val', 'top-images'),
        ('ImageNetV2-threshold-0.7', 'threshold0.7'),
        ('somewhere', 'somewhere'),
    ],
)
def test_v2_variant_alone(tmp_path, folder, part):
    write_classes(tmp_path / folder, {f'{label:04d}': label for label in range(1000)}, '{number}.jpeg')
    suite = open_suite('imagenet-v2', str(tmp_path / folder))
    assert [part.name for part in suite.parts] == [part]
    assert labels(suite.parts[0]) == list(range(1000))


def test_v2_with_one_variant_has_one_part_and_warns(tmp_path, caplog):
    suite_folders.write_v2(tmp_path, suite_folders.V2_FOLDERS[1:2])
    assert [part.name for part in open_suite('imagenet-v2', str(tmp_path)).parts] == ['threshold0.7']
    assert 'imagenet-v2: threshold0.7 exists; missing: matched-frequency, top-images' in caplog.text


def test_real_labels_go_by_file_name_and_images_without_one_are_left_out(published):
    part = open_suite('imagenet-real', str(published['imagenet-real'])).parts[0]
    real = json.loads((files('timm.data') / '_info' / 'imagenet_real_labels.json').read_text())[:1000]
    assert len(part.dataset) == len(part.multi_labels) == sum(map(bool, real)) == 943
    for index in (0, 1, 500, 942):
        number = int(part.dataset.filename(index).removesuffix('.JPEG')[-8:])
        assert list(part.multi_labels[index]) == real[number - 1]
    assert part.dataset.filename(0).endswith('ILSVRC2012_val_00000002.JPEG')  # the first image has no label
    assert part.multi_labels[0] == (970, 795)


def test_real_covers_what_is_published():
    real = json.loads((files('timm.data') / '_info' / 'imagenet_real_labels.json').read_text())
    assert (len(real), sum(map(bool, real))) == (50000, 46837)  # google-research/reassessed-imagenet real.json


@pytest.mark.parametrize('grouped', [False, True])
def test_imagenet_c_is_read_flat_and_grouped(tmp_path, grouped):
    suite_folders.write_c(tmp_path, grouped=grouped)
    suite_folders.write_corruptions(tmp_path / ('extra' if grouped else ''), ['spatter'])  # not of the benchmark
    suite = open_suite('imagenet-c', str(tmp_path))
    assert len(suite.parts) == 75
    assert labels(suite.parts[-1]) == [3, 990]
    assert ('noise' in Path(suite.parts[0].dataset.root).parts) == grouped


def test_part_of_imagenet_c_is_opened_with_a_warning(tmp_path, caplog):
    suite_folders.write_corruptions(tmp_path, ['fog', 'snow'], severities=('1', '3'))
    with caplog.at_level(logging.WARNING):
        suite = open_suite('imagenet-c', str(tmp_path))
    assert [part.name for part in suite.parts] == ['snow/1', 'snow/3', 'fog/1', 'fog/3']
    assert '4 of 75 parts exist' in caplog.text
    assert 'snow/2, snow/4, snow/5, frost, fog/2, fog/4, fog/5, brightness' in caplog.text
    assert 'as few as 2 of 1000 classes' in caplog.text


def test_c_bar_as_its_script_makes_it(tmp_path):
    severities = ('2.00', '10.00', '1.00', '9.00', '4.00')  # of inverse_sparkles; as text 10.00 comes before 2.00
    suite_folders.write_corruptions(tmp_path, ['inverse_sparkles'], severities)
    suite = open_suite('imagenet-c-bar', str(tmp_path))
    assert [part.name for part in suite.parts] == [f'inverse_sparkles/{severity}' for severity in range(1, 6)]
    assert [part.dataset.root.name for part in suite.parts] == ['1.00', '2.00', '4.00', '9.00', '10.00']


def test_objectnet_maps_classes_and_crops_the_border(published):
    suite = open_suite('objectnet', str(published['objectnet']))
    assert suite.class_names == ('Alarm clock', 'Bench')  # in the order of folders; the air freshener is left out
    assert suite.groups == (('n02708093', 'n03196217'), ('n03891251',))  # analog clock, digital clock; park bench
    image, label = suite.parts[0].dataset[0]
    assert (image.size, label) == ((16, 10), 0)
    assert (np.asarray(image) == suite_folders.colour(1)).all()  # nothing red is left, nothing more is gone
    assert [suite.parts[0].dataset.filename(index) for index in range(2)] == ['alarm_clock/1.png', 'bench/1.png']


def test_objectnet_in_the_folder_that_its_archive_makes(tmp_path):
    suite_folders.write_objectnet(tmp_path / 'objectnet-1.0')
    assert open_suite('objectnet', str(tmp_path)).num_classes == 2


# Reading


def test_pictures_are_lazy_ordered_and_picklable(tmp_path):
    write_classes(tmp_path / 'val', by_label(), '{number}_b.jpeg')
    (tmp_path / 'val' / WNIDS[0] / '9_a.JPG').write_bytes(plain_file(5))
    (tmp_path / 'val' / WNIDS[0] / '._9_a.JPG').write_bytes(b'of a Mac')
    (tmp_path / 'val' / WNIDS[0] / 'notes.txt').write_text('')
    (tmp_path / 'val' / '.cache').mkdir()
    dataset = open_suite('imagenet', str(tmp_path)).parts[0].dataset
    assert '_files' not in vars(dataset)
    assert len(dataset) == 1001
    names = [dataset.filename(index) for index in range(3)]
    assert names == [f'{WNIDS[0]}/1_b.jpeg', f'{WNIDS[0]}/9_a.JPG', f'{WNIDS[1]}/2_b.jpeg']
    assert dataset.filename(0, absolute=True) == str(tmp_path / 'val' / names[0])
    again = pickle.loads(pickle.dumps(dataset))
    assert (again[1][1], label_of(again[1][0])) == (0, 5)
    assert again[1][0].mode == 'RGB'


def test_subsets_of_subsets(published):
    dataset = open_suite('imagenet', str(published['imagenet'])).parts[0].dataset
    assert [Chosen(Chosen(dataset, [5, 7, 9]), [2, 0])[index][1] for index in range(2)] == [9, 5]


def test_broken_picture_is_named_and_not_passed_over(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'], severities=('1',))
    broken = tmp_path / 'fog' / '1' / WNIDS[990] / 'ILSVRC2012_val_00000002.JPEG'
    broken.write_bytes(plain_file(990)[:300])
    suite = open_suite('imagenet-c', str(tmp_path))
    with pytest.raises(ValueError, match=f'pictures must decode, but {broken} does not'):
        suite.parts[0].dataset[1]
    with pytest.raises(ValueError, match=f'^imagenet-c, part fog/1: .*{broken.name} does not'):
        open_suites([f'imagenet-c={tmp_path}'])


def test_broken_picture_of_a_custom_suite(tmp_path):
    write_pictures(tmp_path, val=2)
    (tmp_path / 'val' / 'dog' / '1.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'^mine, part test: .*dog/1.png does not decode'):
        open_suites([f'mine={tmp_path}'])


def test_pictures_that_are_not_resized_must_have_one_size(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'], severities=('1', '2'))
    other = tmp_path / 'fog' / '2' / WNIDS[3] / 'ILSVRC2012_val_00000001.JPEG'
    other.write_bytes(suite_folders.encoded(suite_folders.plain(3, size=9)))
    suite = open_suite('imagenet-c', str(tmp_path))
    with pytest.raises(ValueError, match=r'must have one size, got \(8, 8\) \(fog/1.*\(9, 9\) \(fog/2: n01491361/'):
        check_pictures(suite)


def test_empty_class_folder(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'], severities=('1',))
    (tmp_path / 'fog' / '1' / WNIDS[990] / 'ILSVRC2012_val_00000002.JPEG').unlink()
    with pytest.raises(ValueError, match=f'{WNIDS[990]} contains no pictures'):
        len(open_suite('imagenet-c', str(tmp_path)).parts[0].dataset)


# Layouts that are not as published


def test_missing_class_folders(tmp_path):
    suite_folders.write_subset(tmp_path, 'a')
    (tmp_path / 'n01498041' / '0.001_n01498041.jpg').unlink()
    (tmp_path / 'n01498041').rmdir()
    with pytest.raises(ValueError, match=r'imagenet-a=.* must have 200 class folders .*lacks 1 \(n01498041\)'):
        open_suite('imagenet-a', str(tmp_path))


def test_a_is_not_r(tmp_path):
    suite_folders.write_subset(tmp_path, 'a')
    lacking = len(set(subset_wnids('r')) - set(subset_wnids('a')))
    with pytest.raises(ValueError, match=rf'^imagenet-r=.*lacks {lacking} .* and has {lacking} others'):
        open_suite('imagenet-r', str(tmp_path))


def test_imagenet_that_is_not_sorted_by_class(tmp_path):
    (tmp_path / 'val').mkdir()
    (tmp_path / 'val' / 'ILSVRC2012_val_00000001.JPEG').write_bytes(plain_file(1))
    with pytest.raises(ValueError, match=r'has 0 of them, lacks 1000 .*its files sorted by class'):
        open_suite('imagenet', str(tmp_path))


def test_unknown_class_folder_in_imagenet_c(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'], severities=('1',))
    (tmp_path / 'fog' / '1' / 'cat').mkdir()
    with pytest.raises(ValueError, match=r'1 others \(cat\)'):
        open_suite('imagenet-c', str(tmp_path))


def test_imagenet_c_without_corruptions(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'], severities=('one',))
    with pytest.raises(ValueError, match=r'one folder per corruption \(gaussian_noise, .*it has \(fog\): unpack'):
        open_suite('imagenet-c', str(tmp_path))


def test_corruption_twice(tmp_path):
    suite_folders.write_corruptions(tmp_path, ['fog'])
    suite_folders.write_corruptions(tmp_path / 'weather', ['fog'])
    with pytest.raises(ValueError, match='fog must exist once'):
        open_suite('imagenet-c', str(tmp_path))


def test_v2_with_folders_missing(tmp_path):
    folder = tmp_path / 'imagenetv2-top-images-format-val'
    write_classes(folder, {str(label): label for label in range(1, 1000)}, '{number}.jpeg')
    with pytest.raises(ValueError, match=r'each with folders 0 to 999, .*top-images-format-val has 999 of these'):
        open_suite('imagenet-v2', str(tmp_path))


@pytest.mark.parametrize('pattern', ['{number}.JPEG', 'ILSVRC2012_val_000{number}99999.JPEG'])
def test_real_needs_the_names_of_files(tmp_path, pattern):
    write_classes(tmp_path, by_label(), pattern)
    with pytest.raises(ValueError, match=r'files must have their original names .*, got n01440764/'):
        open_suite('imagenet-real', str(tmp_path))


def test_real_needs_an_image_with_a_label(tmp_path):
    for wnid in WNIDS:
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / 'ILSVRC2012_val_00000001.JPEG').write_bytes(plain_file(1))
    with pytest.raises(ValueError, match='none of 1000 is one'):
        open_suite('imagenet-real', str(tmp_path))


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('imagenet_to_label_2012_v2', None, 'mappings must have imagenet_to_label_2012_v2'),
        ('folder_to_objectnet_label.json', '{', 'must be JSON'),
        ('folder_to_objectnet_label.json', '[]', 'must map names, got a list'),
        ('folder_to_objectnet_label.json', '{"bench": "Bench"}', 'must have the 2 class folders'),
        (
            'folder_to_objectnet_label.json',
            '{"bench": "Bench", "clock": "Alarm clock"}',
            r'1 exist, \(clock\) are missing',
        ),
        ('objectnet_to_imagenet_1k.json', '{"Bench": "bank"}', "one ImageNet class for each name, not for 'bank'"),
        ('objectnet_to_imagenet_1k.json', '{"Bench": "crane"}', "not for 'crane'"),  # a bird, and a machine
        ('pytorch_to_imagenet_2012_id.json', '{}', 'one ImageNet class for each name'),
    ],
)
def test_objectnet_with_other_mappings(tmp_path, file, content, message):
    suite_folders.write_objectnet(tmp_path)
    (tmp_path / 'mappings' / file).unlink()
    if content is not None:
        (tmp_path / 'mappings' / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_suite('objectnet', str(tmp_path))


def test_objectnet_without_mappings(tmp_path):
    (tmp_path / 'images').mkdir()
    with pytest.raises(ValueError, match=r'must have folders images and mappings, .* contains \(images\)'):
        open_suite('objectnet', str(tmp_path))


# Suites of the user's own


def test_folder_of_class_folders(tmp_path):
    write_pictures(tmp_path, train=1, val=(2, 1, 1, 1))
    suite = open_suite('mine', str(tmp_path))
    assert (suite.kind, suite.class_names, suite.num_classes) == ('ood', CLASSES, 4)
    assert labels(suite.parts[0]) == [0, 0, 1, 2, 3]
    assert suite.parts[0].dataset.filename(0) == 'cat/0.png'
    assert items(suite.parts[0])[0][0].mode == 'RGB'
    assert labels(open_suite('mine', str(tmp_path / 'train')).parts[0]) == [0, 1, 2, 3]
    assert pickle.loads(pickle.dumps(suite.parts[0].dataset))[4][1] == 3


@pytest.mark.parametrize(
    ('text', 'name', 'kind'),
    [('demo/noto', 'noto', 'clean'), ('demo/twemoji', 'twemoji', 'ood'), ('val=demo/twemoji', 'val', 'clean')],
)
def test_demo_styles(text, name, kind):
    (suite,), missing = open_suites([text])
    assert (suite.name, suite.kind, suite.num_classes, missing) == (name, kind, 16, [])
    image, label, _ = suite.parts[0].dataset[0]
    assert (image.size, image.mode, suite.parts[0].dataset.filename(0)) == ((32, 32), 'RGB', '0')
    assert 0 <= label < 16


@pytest.mark.parametrize('name', ['clean', 'val', 'validation'])
def test_suites_that_are_no_shift(tmp_path, name):
    write_pictures(tmp_path, val=1)
    assert open_suite(name, str(tmp_path)).kind == 'clean'


def test_data_sets_of_timm(tmp_path):
    write_pictures(tmp_path, test=1)
    suite = open_suite('mine', f'torch/image_folder,root={tmp_path},split=test')
    assert (suite.class_names, labels(suite.parts[0])) == (CLASSES, [0, 1, 2, 3])
    with pytest.raises(ValueError, match='followed by ,root=DIR and ,split=NAME'):
        open_suite('mine', f'torch/image_folder,{tmp_path}')
    with pytest.raises(ValueError, match=r'^mine=torch/nothing: no images'):
        open_suite('mine', 'torch/nothing')


def test_hugging_face_data_set(tmp_path):
    write_pictures(tmp_path, test=1)
    suite = open_suite('mine', f'hfds/{tmp_path},root={tmp_path / "cache"},split=test')
    assert (suite.class_names, labels(suite.parts[0])) == (CLASSES, [0, 1, 2, 3])
    assert items(suite.parts[0])[0][0].size == (40, 36)


@pytest.mark.parametrize('path', ['wds/shards', 'tfds/mnist', 'hfids/some/set'])
def test_streams_are_refused(path):
    with pytest.raises(ValueError, match='read by index, which a stream lacks'):
        open_suite('mine', path)


def test_folder_with_training_pictures_alone(tmp_path):
    write_pictures(tmp_path, train=1)
    with pytest.raises(ValueError, match='training pictures but none named val'):
        open_suite('mine', str(tmp_path))


def test_same_class_in_two_folders(tmp_path):
    write_pictures(tmp_path, one=1, two=1)
    with pytest.raises(ValueError, match=r'a class must be one folder, got .*one/cat and .*two/cat'):
        open_suite('mine', str(tmp_path))


def test_pictures_beside_the_class_folders(tmp_path):
    write_pictures(tmp_path, val=1)
    (tmp_path / 'val' / 'stray.jpg').write_bytes(plain_file(1))
    with pytest.raises(ValueError, match='pictures must lie in one folder per class'):
        open_suite('mine', str(tmp_path))


# Names and roots


def test_parse_suite():
    assert parse_suite('mine=/a=b') == ('mine', '/a=b')
    assert parse_suite('demo/noto') == ('noto', 'demo/noto')
    for text in ('imagenet', 'imagenet=', '/data/imagenet'):
        with pytest.raises(ValueError, match=r'must be NAME=PATH or demo/STYLE, got .*published NAMEs: imagenet,'):
            parse_suite(text)
    for text in ('a/b=dir', '=dir', '.hidden=dir'):
        with pytest.raises(ValueError, match='NAME must consist of letters'):
            parse_suite(text)


def test_missing_folders_are_named_and_the_rest_is_opened(tmp_path):
    write_pictures(tmp_path, val=1)
    texts = [f'imagenet-c={tmp_path}/nothing', f'mine={tmp_path}', 'other=nowhere', 'demo/noto']
    suites, missing = open_suites(texts)
    assert [suite.name for suite in suites] == ['mine', 'noto']
    assert missing == [texts[0], texts[2]]
    for text in missing:
        with pytest.raises(ValueError, match='there is no such folder'):
            open_suite(*parse_suite(text))
    with pytest.raises(ValueError, match='every NAME once, got noto more than once'):
        open_suites(['demo/noto', 'noto=demo/twemoji'])


def test_find_suites(published, tmp_path):
    root = published['imagenet'].parent
    assert find_suites(root) == published
    assert list(find_suites(root)) == list(PUBLISHED)
    assert list(find_suites(root, {'imagenet'})) == [name for name in PUBLISHED if name != 'imagenet']  # ReaL stays
    suite_folders.write_v2(tmp_path / 'root', suite_folders.V2_FOLDERS[:1])
    write_classes(tmp_path / 'root' / 'imagenet', {WNIDS[0]: 0}, '{number}.jpg')
    assert find_suites(tmp_path / 'root') == {
        'imagenet': tmp_path / 'root' / 'imagenet',
        'imagenet-v2': tmp_path / 'root',
    }
    (tmp_path / 'root' / 'ILSVRC2012').mkdir()
    with pytest.raises(ValueError, match='are both imagenet'):
        find_suites(tmp_path / 'root')
    with pytest.raises(ValueError, match='there is no data root'):
        find_suites(tmp_path / 'nothing')


# The known failure: ImageNet-A without its mask, ImageNet-C cropped


SIZE = 160  # test_resnet's own


def border_picture(label, size=SIZE):
    """Grey, with its class in a border of 3 pixels, which a crop of 95 % of the side takes away."""
    pixels = np.full((size, size, 3), 128, np.uint8)
    inside = np.zeros((size, size), bool)
    inside[3:-3, 3:-3] = True
    pixels[~inside] = suite_folders.colour(label)
    return pixels


def nearest_picture_teacher(path, x_pix, outputs, class_names, bias=()):
    """A timm model of 1000 outputs whose head answers with the output of the picture with the nearest features."""
    model = timm.create_model('test_resnet', num_classes=1000, zero_init_last=False).eval()
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        features = model.forward_head(model.forward_features((x_pix - mean) / std), pre_logits=True)
        features, centre = features - features.mean(0), features.mean(0)
        head = model.get_classifier()
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, -1e6)
        head.weight[outputs] = features
        head.bias[outputs] = -features @ centre - features.square().sum(1) / 2
        for output in bias:
            head.bias[output] = 1e6
    save_file(model.state_dict(), path)
    data = DataClasses(num_classes=len(class_names), class_names=class_names)
    return create_teacher_by_spec(f'timm:test_resnet/{path}', data)


def top1(teacher, part, transform):
    x_pix = torch.stack([transform(image) for image, _ in items(part)])
    with torch.no_grad():
        return (teacher(x_pix).argmax(1) == torch.tensor(labels(part))).float().mean().item()


def test_known_failure_imagenet_a_without_its_mask(tmp_path):
    suite = open_suite('imagenet-a', str(suite_folders.write_subset(tmp_path / 'a', 'a')))
    part = suite.parts[0]

    def transform(image):
        return to_tensor(image.resize((32, 32)))

    outputs = [WNIDS.index(wnid) for wnid in suite.class_names]
    x_pix = torch.stack([transform(image) for image, _ in items(part)])
    outside = [index for index in range(1000) if WNIDS[index] not in suite.class_names]
    path = tmp_path / 'head.safetensors'
    masked = nearest_picture_teacher(path, x_pix, outputs, suite.class_names, bias=outside[:1])
    masked.input_size = (32, 32)
    assert masked.class_index.tolist() == outputs
    assert top1(masked, part, transform) > 0.95
    unmasked = create_teacher_by_spec(f'timm:test_resnet/{path}', DataClasses(num_classes=1000, class_names=WNIDS))
    unmasked.input_size = (32, 32)
    with torch.no_grad():
        predicted = unmasked(x_pix).argmax(1)
    assert (predicted == torch.tensor(outputs)).float().mean() == 0


def test_known_failure_imagenet_c_cropped(tmp_path):
    classes = (3, 400, 990)
    suite_folders.write_corruptions(
        tmp_path / 'c', ['fog'], ('1',), classes, file=lambda label: suite_folders.encoded(border_picture(label), True)
    )
    suite = open_suite('imagenet-c', str(tmp_path / 'c'))
    part = suite.parts[0]
    x_pix = torch.stack([to_tensor(image) for image, _ in items(part)])
    teacher = nearest_picture_teacher(tmp_path / 'head.safetensors', x_pix, list(classes), suite.class_names)
    assert not suite.resize
    assert top1(teacher, part, to_tensor) == 1
    cropped = create_transform(SIZE, crop_pct=0.95, mean=(0, 0, 0), std=(1, 1, 1))
    assert cropped(items(part)[0][0]).unique().numel() == 1  # the inside alone, in [0, 1]
    assert top1(teacher, part, cropped) == pytest.approx(1 / 3)
