"""The one rule by which pictures become 8 bits per channel, and every reader that goes by it."""

import os
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, IterableDataset

import train_dad
from timm_dad.commands import generate as generate_command
from timm_dad.commands import preview, probe
from timm_dad.data.datasets import check_class_names, check_images, check_labels, dataset_class_names, open_dataset
from timm_dad.data.images import FramedImages, Source
from timm_dad.data.pairs import DADPairs, SameImage
from timm_dad.data.pictures import DataError, decode, eight_bits
from timm_dad.diagnosis import command as diagnose_command
from timm_dad.evaluation.suites.open import open_suites
from timm_dad.evaluation.suites.suite import FolderImages
from timm_dad.training.batches import Batches
from timm_dad.training.validate import validate

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def write(root, picture, format='png', classes=('a', 'b')):
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        picture.save(root / name / '0.png', format)
    return root


def pixels(image):
    return np.asarray(image)[..., 0].tolist()


@pytest.mark.parametrize('mode', ['I;16', 'I;16B'])
def test_16_bits_are_scaled(mode):
    wide = np.array([[0, 128, 129, 257, 65535]], '>u2' if mode == 'I;16B' else '<u2')
    picture = Image.frombytes(mode, (5, 1), wide.tobytes())
    assert np.asarray(eight_bits(picture)).tolist() == [[0, 0, 1, 1, 255]]


def test_16_bits_of_pillow_before_11_are_scaled_too():
    picture = Image.fromarray(GREY.astype(np.int32) * 257)
    with pytest.raises(DataError, match=r'its mode is I \(32 bits'):
        eight_bits(picture)
    picture.format = 'PNG'
    assert np.asarray(eight_bits(picture)).tolist() == GREY.tolist()


@pytest.mark.parametrize('format', ['png', 'tiff', 'jpeg2000'])
def test_every_reader_gives_a_16_bit_picture_what_it_gives_the_one_of_8_bits(tmp_path, format):
    root = write(tmp_path / 'data', Image.fromarray(GREY.astype(np.uint16) * 257), format)
    timms = open_dataset('', str(root), '', '--data-dir')
    torchvisions = open_dataset('torch/folder', str(root), '', '--data-dir')
    check_images(timms, '--data-dir')
    (suite,), _ = open_suites([f'mine={root}'])
    for dataset in (timms, torchvisions, FolderImages(root, {'a': 0, 'b': 1}), suite.parts[0].dataset):
        assert pixels(dataset[0][0]) == GREY.tolist()
    assert pixels(Source(timms).read(0).image) == GREY.tolist()
    assert pixels(Source(torchvisions).read(0).image) == GREY.tolist()
    (clean, extra), _ = DADPairs(Source(timms), SameImage())[0]
    assert pixels(clean) == pixels(extra) == GREY.tolist()
    grey = open_dataset('', str(root), '', '--data-dir', input_img_mode='L')
    assert np.asarray(grey[0][0]).tolist() == GREY.tolist()


def test_a_stream_scales_16_bits(tmp_path):
    wds = pytest.importorskip('webdataset')
    (tmp_path / '_info.json').write_text(
        '{"splits": {"train": {"name": "train", "num_samples": 2, "filenames": ["0.tar"], "shard_lengths": [2]}}}'
    )
    write(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))
    with wds.TarWriter(str(tmp_path / '0.tar')) as tar:
        for label, name in enumerate('ab'):
            tar.write({'__key__': name, 'png': (tmp_path / name / '0.png').read_bytes(), 'cls': str(label).encode()})
    stream = open_dataset('wds/', str(tmp_path), 'train', '--data-dir')
    assert [(pixels(image), label) for image, label in stream] == [(GREY.tolist(), 0), (GREY.tolist(), 1)]
    check_labels(stream, '--data-dir', 1)
    with pytest.raises(DataError, match=r'^labels must be from 0 to 0, but an image of the stream has 1$'):
        list(stream)


@pytest.mark.parametrize('mode', ['F', 'I'])
def test_a_picture_of_an_unknown_range_is_refused_by_every_command(tmp_path, capsys, mode):
    values = GREY.astype({'F': np.float32, 'I': np.int32}[mode])
    root = write(tmp_path / 'train', Image.fromarray(values), 'tiff').parent
    models = ['--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--img-size', '32', '--data-dir', str(root)]
    one_line = rf'error: .*0\.png does not( decode)?: its mode is {mode} \(32 bits .*8 or 16 bits per channel'
    training = ['--dad', '--model', 'test_resnet', '--num-classes', '2', '--val-split', '']
    for main, argv in (
        (generate_command.main, [*models, '--output', str(tmp_path / 'set')]),
        (preview.main, [*models, '--split', 'train', '--output', str(tmp_path / 'preview')]),
        (train_dad.main, [*models, *training, '--output', str(tmp_path / 'run')]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert re.search(one_line, capsys.readouterr().err)
    with pytest.raises(ValueError, match=r'^mine, part test: .*its mode is'):
        open_suites([f'mine={root / "train"}'])
    with pytest.raises(DataError, match=r'a/0\.png cannot be used: its mode is'):  # timm would take the next one
        open_dataset('', str(root), 'train', '--data-dir')[0]


def test_a_pipe_named_png_and_a_dangling_link_do_not_hang(tmp_path):
    root = write(tmp_path, Image.new('RGB', (8, 8)))
    os.mkfifo(root / 'a' / '1.png')
    (root / 'a' / '2.png').symlink_to('/nowhere/2.png')
    dataset = open_dataset('', str(root), '', '--data-dir')
    with pytest.raises(ValueError, match=r'--data-dir: images must decode, .*1\.png does not: it is not a file'):
        check_images(dataset, '--data-dir')
    for index, reason in ((1, 'it is not a file'), (2, 'No such file')):
        with pytest.raises(DataError, match=rf'{index}\.png does not decode: .*{reason}'):
            Source(dataset).read(index)
        with pytest.raises(DataError, match=rf'{index}\.png does not: .*{reason}'):
            FolderImages(root, {'a': 0, 'b': 1})[index]


def test_a_picture_that_does_not_decode_is_left_out_with_a_warning_as_timm_does(tmp_path, caplog):
    root = write(tmp_path, Image.new('RGB', (8, 8)))
    (root / 'a' / '0.png').write_bytes(b'no picture')
    dataset = open_dataset('', str(root), '', '--data-dir')
    assert dataset[0][1] == 1
    assert re.search(r'a/0\.png does not decode; the next one is used instead: cannot identify', caplog.text)
    (root / 'b' / '0.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='10 pictures in a row do not decode'):
        dataset[0]


def test_a_loop_over_pictures_ends(tmp_path):
    root = write(tmp_path, Image.new('RGB', (8, 8)))
    dataset = open_dataset('', str(root), '', '--data-dir')
    assert [label for _, label in dataset] == [0, 1]
    assert [image.label for image in Source(dataset)] == [0, 1]
    assert dataset[-1][1] == Source(dataset).read(-1).label == 1
    for reader in (dataset, Source(dataset)):
        with pytest.raises(IndexError, match=r'has 2 .*, but no .* 2'):
            reader[2]


def test_whatever_a_codec_raises_is_one_line(tmp_path, monkeypatch):
    root = write(tmp_path, Image.new('RGB', (8, 8)))
    dataset = open_dataset('', str(root), '', '--data-dir')
    monkeypatch.setattr('timm_dad.data.datasets.decode', lambda *_: (_ for _ in ()).throw(RuntimeError('broken AVIF')))
    with pytest.raises(ValueError, match=r'^--data-dir: images must decode, .*a/0\.png does not: broken AVIF$'):
        check_images(dataset, '--data-dir')


def test_an_error_of_the_data_stays_one_line_on_its_way_out_of_a_worker(tmp_path):
    dataset = open_dataset('', str(write(tmp_path, Image.new('RGB', (8, 8)))), '', '--data-dir')
    dataset.num_classes = 1
    one_line = r'^labels must be from 0 to 0, but \S*b/0\.png has 1$'
    with pytest.raises(DataError, match=one_line) as met:
        dataset[1]
    wrapped = ExceptionWrapper(met._excinfo, where='in DataLoader worker process 0')
    with pytest.raises(DataError, match=one_line):
        wrapped.reraise()


def test_labels_that_a_data_set_lists_are_checked_at_once(tmp_path):
    root = write(tmp_path, Image.new('RGB', (8, 8)))
    for name in ('', 'torch/folder'):
        dataset = open_dataset(name, str(root), '', '--data-dir')
        check_labels(dataset, '--data-dir', 2)
        with pytest.raises(
            ValueError, match=r'^--data-dir: labels must be from 0 to 0, but image 1 has 1: set --num-cl'
        ):
            check_labels(dataset, '--data-dir', 1)


def test_decode_closes_what_it_opens_and_keeps_8_bits_as_they_are(tmp_path):
    path = write(tmp_path, Image.fromarray(GREY)) / 'a' / '0.png'
    assert pixels(decode(path)) == GREY.tolist()
    with path.open('rb') as file:
        assert decode(file, 'L').mode == 'L'
    images = FramedImages(Source(open_dataset('', str(tmp_path), '', '--data-dir')), None)
    torch.testing.assert_close(images[0].pixels[0], torch.from_numpy(GREY))


class NoImages(IterableDataset):
    def __iter__(self):
        return iter(())

    def __len__(self):
        return 4


def test_a_stream_that_gives_nothing_says_what_names_its_keys():
    loader = DataLoader(NoImages(), 2)
    accelerator = Accelerator(cpu=True)
    message = '^the stream has no usable image, .*--target-key'
    with pytest.raises(DataError, match=message):
        list(Batches(loader, accelerator, seed=0).of_epoch(0))
    with pytest.raises(DataError, match=message):
        validate(torch.nn.Linear(1, 2), loader, accelerator)


@pytest.mark.parametrize('folders', ['flat', 'beside', 'one'])
def test_pictures_without_class_folders_or_of_one_class_are_refused_by_every_command(tmp_path, capsys, folders):
    picture, root = Image.new('RGB', (8, 8)), tmp_path / 'data'
    write(root / 'train', picture, classes={'flat': ['.'], 'beside': ['.', 'a', 'b'], 'one': ['a']}[folders])
    models = ['--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--img-size', '32']
    found = "there is only one class, 'a'" if folders == 'one' else 'some lie in no folder'
    training = ['--dad', '--model', 'test_resnet', '--num-classes', '2', '--val-split', '']
    out = ['--output', str(tmp_path / 'out')]
    for main, argv in (
        (generate_command.main, [*models, *out]),
        (preview.main, [*models, '--split', 'train', *out]),
        (train_dad.main, [*models, *training, *out]),
        (diagnose_command.main, [*models, '--split', 'train', '--ood', f'o={root}', '--student', 'demo', *out]),
        (probe.main, ['--teacher', 'timm:test_resnet', '--output', str(tmp_path / 'head.safetensors')]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(['--data-dir', str(root), *argv])
        assert ended.value.code == 2
        assert (
            f'pictures must lie in one folder per class, of two classes or more, but {found}' in capsys.readouterr().err
        )
    assert not (tmp_path / 'out').exists()


def test_dad_of_one_class_is_refused_where_the_data_names_none(capsys):
    with pytest.raises(SystemExit):
        train_dad.main(['--dataset', 'hfds/x', '--dad', '--dad-vqgan', 'demo', '--num-classes', '1'])
    assert '--num-classes must be 2 or more with --dad, got 1' in capsys.readouterr().err


@pytest.mark.parametrize('name', [b'\xff\xfe', b'a\nb', 'a\u2028b'.encode()])
def test_class_folders_that_no_file_of_names_could_hold_are_refused(tmp_path, name):
    root = os.fsdecode(bytes(write(tmp_path, Image.new('RGB', (8, 8)), classes=('a',))) + b'/' + name)
    write(type(tmp_path)(root), Image.new('RGB', (8, 8)), classes=('.',))
    names = dataset_class_names(open_dataset('', str(tmp_path), '', '--data-dir'))
    one_line = r'class names must be single lines of UTF-8 text, got \S+: rename the folder$'
    with pytest.raises(ValueError, match=f'^--data-dir x: {one_line}'):
        check_class_names(names, '--data-dir x')
    with pytest.raises(ValueError, match=one_line):
        open_suites([f'mine={tmp_path}'])
    check_class_names(['caf\u00e9', '日本', 'a b', 'x\u200dy'], '--data-dir x')
