"""``timm-dad preview``, flag by flag."""

import os

import pytest
import timm
import torch
from commands import error_line, words
from folders import write_hfds, write_pictures, write_wds
from frozen_files import attack_flags, write_frozen
from PIL import Image
from safetensors.torch import save_file

from timm_dad.cli import main as cli
from timm_dad.commands.generate import main as generate
from timm_dad.commands.preview import create_parser, main, parse_args

FILES = ['preview.html', 'preview.png']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Data, teachers and VQGANs; flags name them."""
    root = tmp_path_factory.mktemp('files')
    write_pictures(root / 'data', train=2, validation=3)
    write_pictures(root / 'other', validation=1)
    write_pictures(root / 'plain', none=2)
    write_hfds(root / 'hfds')
    (root / 'wds').mkdir()
    write_wds(root / 'wds', [str(index) for index in range(8)], [index % 4 for index in range(8)])
    write_frozen(root)
    return root


def flags(files, output, *more, **changes):
    """A command line; ``changes`` replace flags, ``None`` leaves one out."""
    attack = attack_flags(files, more, changes)
    return words({'data_dir': files / 'data', 'output': output, 'img_size': 16, 'images': 2, **attack}, more, files)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope='module')
def base(files, tmp_path_factory):
    output = tmp_path_factory.mktemp('base')
    main(flags(files, output))
    return content(output)


# Every flag: what is given beside the plain flags (in both runs, and in the second alone), or the error.

TEACHER = 'timm:test_resnet/{files}/teacher'
TWO = ('--dad-teacher', f'{TEACHER}1.safetensors', f'{TEACHER}2.safetensors')
HFDS = ('--dataset', 'hfds/{files}/hfds', '--data-dir', '{files}/cache', '--split', 'train')
WDS = ('--dataset', 'wds/', '--data-dir', '{files}/wds', '--split', 'train')
CLIP = ('--dad-teacher', 'demo', '--img-size', '32')
CODES = ('--dad-attack', 'codes', '--dad-neighbours', '8')
CHANGES = {
    'dad_teacher_img_size': ((), ('--dad-teacher-img-size', '64')),
    'data_dir': ((), ('--data-dir', '{files}/other')),
    'split': ((), ('--split', 'train')),
    'class_map': ((), ('--class-map', '{files}/map.txt', '--num-classes', '4')),
    'input_key': (HFDS, ('--input-key', 'image2')),
    'target_key': (HFDS, ('--target-key', 'label2')),
    'images': ((), ('--images', '3')),
    'img_size': ((), ('--img-size', '14')),
    'crop_pct': ((), ('--crop-pct', '0.7')),
    'interpolation': ((), ('--interpolation', 'bilinear')),
    'seed': ((), ('--seed', '1')),
    'dad_teacher': ((), ('--dad-teacher', f'{TEACHER}2.safetensors')),
    'dad_teacher_weights': (TWO, ('--dad-teacher-weights', '0.01', '9')),
    'dad_teacher_temperatures': (TWO, ('--dad-teacher-temperatures', '0.5', '20')),
    'dad_temperature': (TWO, ('--dad-temperature', '1')),
    'dad_class_map': ((), ('--dad-class-map', '{files}/teacher.json')),
    'dad_classnames': (CLIP, ('--dad-classnames', '{files}/names.txt')),
    'dad_templates': (CLIP, ('--dad-templates', '{files}/templates.txt')),
    'dad_vqgan': ((), ('--dad-vqgan', '{files}/vqgan2.safetensors')),
    'dad_precision': ((), ('--dad-precision', 'bf16')),
    'dad_norm': (('--dad-eps', '0.1', '--dad-step-size', '0.1'), ('--dad-norm', 'linf')),
    'dad_eps': ((), ('--dad-eps', '1')),
    'dad_step_size': ((), ('--dad-step-size', '0.3')),
    'dad_num_steps': ((), ('--dad-num-steps', '3')),
    'dad_random_start': ((), ('--dad-random-start', '0')),
    'dad_keep_label': ((), ('--dad-keep-label',)),
    'no_labels': ((), ('--no-labels', '--num-classes', '4')),
    'dad_attack_from': ((), ('--dad-attack-from', 'input')),
    'dad_attack': ((), ('--dad-attack', 'latent')),
    'dad_start_size': (('--dad-attack', 'latent'), ('--dad-start-size', '1')),
    'dad_gradient_vqgan': (('--dad-attack', 'latent'), ('--dad-gradient-vqgan', '{files}/tiny.safetensors')),
    'dad_neighbours': (CODES, ('--dad-neighbours', '2')),
    'dad_candidates': (CODES, ('--dad-candidates', '1')),
}
ERRORS = {
    'task': (('--task', 'multilabel'), '--task multilabel needs data with several labels per image'),
    'target_format': (('--target-format', 'multihot'), '--target-format needs --task multilabel'),
    'multilabel_threshold': (('--multilabel-threshold', '0.3'), '--multilabel-threshold needs --task multilabel'),
    'config': (('--config', 'nowhere.yaml'), '--config must be a YAML file'),
    'num_classes': (('--num-classes', '5'), '--num-classes must be 4, as in the data, got 5'),
    'dad_strict_size': (('--dad-strict-size', '--img-size', '15'), '--img-size: image size must be a multiple of 2'),
    'dad_micro_batch': (('--dad-micro-batch', '-1'), '--dad-micro-batch: micro_batch must be 0'),
    'device': (('--device', 'tpu'), "--device must be cuda or cpu, got 'tpu'"),
    'dataset_download': (('--dataset-download',), '--dataset-download is for --dataset torch/, tfds/, hfds/, hfids/'),
    'dataset_trust_remote_code': (('--dataset-trust-remote-code',), '--dataset-trust-remote-code is for --dataset'),
}
ELSEWHERE = {
    'help': 'test_help_names_every_flag',
    'output': 'test_the_same_command_gives_the_same_bytes',
    'index': 'test_index_chooses_images',
    'dataset': 'test_without_data_it_is_the_demo',
    'input_size': 'test_input_size_is_another_way_to_say_it',
    'dad_compile': 'test_models_are_compiled',
    'dad_teacher_checkpoint': 'test_weights_of_the_teacher_may_be_a_flag_of_their_own',
}


@pytest.mark.slow
@pytest.mark.parametrize('dest', [action.dest for action in create_parser()._actions])
def test_every_flag_changes_something_or_is_an_error(files, base, tmp_path, capsys, dest):
    assert (dest in CHANGES) + (dest in ERRORS) + (dest in ELSEWHERE) == 1, f'{dest} has no test'
    if dest in ELSEWHERE:
        assert ELSEWHERE[dest] in globals()
    elif dest in ERRORS:
        given, message = ERRORS[dest]
        assert message in error_line(capsys, main, flags(files, tmp_path / 'out', *given))
        assert not (tmp_path / 'out').exists()
    else:
        both, second = CHANGES[dest]
        if both:
            main(flags(files, tmp_path / 'first', *both))
        first = content(tmp_path / 'first') if both else base
        main(flags(files, tmp_path / 'second', *both, *second))
        changed = content(tmp_path / 'second')
        assert changed.keys() == first.keys()
        assert all(changed[name] != first[name] for name in FILES)


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--help'])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for action in create_parser()._actions for name in action.option_strings)
    assert all(action.help for action in create_parser()._actions)


def test_the_same_command_gives_the_same_bytes(files, base, tmp_path, capsys):
    (tmp_path / 'out' / 'deep').mkdir(parents=True)
    (tmp_path / 'out' / 'deep' / 'preview.png').write_bytes(b'old')
    main(flags(files, tmp_path / 'out' / 'deep'))
    assert content(tmp_path / 'out' / 'deep') == base
    assert list(base) == FILES
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith('mean of 2: PSNR to x of Q(x) ')
    assert out[1:] == [f'Preview: {tmp_path / "out" / "deep" / name}' for name in reversed(FILES)]
    page = base['preview.html'].decode()
    assert str(files) not in page
    assert str(tmp_path) not in page


def test_index_chooses_images(files, tmp_path):
    images = main(flags(files, tmp_path, '--index', '7', '0', '11', images=None))
    titles = ['image 7 (fish/1.png)', 'image 0 (cat/0.png)', 'image 11 (tree/2.png)']
    assert [image.title for image in images] == titles
    assert [image.labels[0] for image in images] == [2, 0, 3]
    assert 'image 7 (fish/1.png), label: fish' in (tmp_path / 'preview.html').read_text()
    (alone,) = main(flags(files, tmp_path, '--index', '7', images=None))
    assert torch.equal(alone.x_dad, images[0].x_dad)  # it does not depend on the others


def test_images_are_spread_over_the_data(files, tmp_path):
    assert [image.labels[0] for image in main(flags(files, tmp_path, images=4))] == [0, 1, 2, 3]
    assert len(main(flags(files, tmp_path, images=None))) == 8
    assert len(main(flags(files, tmp_path, '--data-dir', '{files}/other', images=None))) == 4


def test_a_folder_without_splits(files, tmp_path):
    images = main(flags(files, tmp_path, '--split', '', '--images', '8', data_dir=files / 'plain' / 'none'))
    assert [image.labels[0] for image in images] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_without_data_it_is_the_demo(tmp_path):
    images = main(['--output', str(tmp_path), '--images', '2', '--device', 'cpu'])
    assert images[0].x_pix.shape == (3, 32, 32)
    other = main(['--output', str(tmp_path), '--images', '2', '--device', 'cpu', '--dataset', 'demo/twemoji'])
    assert not torch.equal(images[0].x_pix, other[0].x_pix)
    assert Image.open(tmp_path / 'preview.png').size[0] > 5 * 144
    given = parse_args(['--dad-vqgan', 'x.safetensors', '--dad-teacher', 'timm:y', '--img-size', '64'])
    assert (given.dad_vqgan, given.dad_teacher, given.img_size) == ('x.safetensors', 'timm:y', 64)
    data = parse_args(['--data-dir', 'd', '--dad-vqgan', 'x.safetensors'])
    assert (data.dataset, data.dad_teacher, data.img_size, data.split) == ('', None, 224, 'validation')


def test_the_view_is_that_of_generate(files, tmp_path):
    """Image 5, first view, one image at a time: the pixels are those of the set."""
    generate(
        [
            *flags(files, tmp_path / 'set', images=None),
            *('--train-split', 'validation', '--batch-size', '1', '--workers', '0', '--format', 'folder'),
        ]
    )
    (image,) = main(flags(files, tmp_path / 'out', '--index', '5', images=None))
    stored = Image.open(tmp_path / 'set' / 'view0' / 'dog' / '2.png')
    assert stored.tobytes() == image.x_dad.mul(255).round().byte().permute(1, 2, 0).numpy().tobytes()


def test_input_size_is_another_way_to_say_it(files, base, tmp_path):
    main(flags(files, tmp_path / 'a', '--input-size', '3', '16', '16', img_size=None))
    assert content(tmp_path / 'a') == base
    images = main(flags(files, tmp_path / 'b', '--input-size', '3', '16', '21', img_size=None))
    assert images[0].x_pix.shape == (3, 16, 21)
    assert images[0].dad_codes.shape == (8, 11)


def test_weights_of_the_teacher_may_be_a_flag_of_their_own(files, base, tmp_path):
    weights = ('--dad-teacher-checkpoint', str(files / 'teacher1.safetensors'))
    main(flags(files, tmp_path, *weights, dad_teacher='timm:test_resnet'))
    assert content(tmp_path) == base


def test_a_stream_gives_its_first_images(files, tmp_path, capsys):
    stream = (*WDS, '--num-classes', '4')
    images = main(flags(files, tmp_path, *stream, images=3))
    assert [image.title for image in images] == ['image 0', 'image 1', 'image 2']
    assert [image.labels[0] for image in images] == [0, 1, 2]
    error = error_line(capsys, main, flags(files, tmp_path, *stream, '--index', '1', images=None))
    assert '--index needs data with an index, not a stream (wds/): use --images' in error
    error = error_line(capsys, main, flags(files, tmp_path, *stream, images=9))
    assert '--images must be at most 8, the size of the data, got 9' in error


def test_wordnet_ids_are_shown_in_words(files, tmp_path):
    for old, new in (('cat', 'n02123045'), ('dog', 'n02085620'), ('fish', 'n01440764'), ('tree', 'n11939491')):
        (tmp_path / 'data' / 'validation').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'data' / 'validation' / new).symlink_to(files / 'data' / 'validation' / old)
    main(flags(files, tmp_path / 'out', data_dir=tmp_path / 'data'))
    page = (tmp_path / 'out' / 'preview.html').read_text()
    assert ', label: tench<' in page
    assert 'daisy' in page


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--index', '12', '3'), '--index must be from 0 to 11, the indices of the data, got 12'),
        (('--index', '-1'), '--index must be 0 or more, got [-1]'),
        (('--images', '13'), '--images must be at most 12, the size of the data, got 13'),
        (('--images', '0'), '--images must be 1 or more, got 0'),
        (('--images', '2', '--index', '1'), 'not allowed with argument'),
        (('--seed', '-1'), '--seed must be 0 or more, got -1'),
        (('--num-classes', '1'), '--num-classes must be 2 or more, got 1'),
        (('--img-size', '16', '--input-size', '3', '16', '16'), '--img-size and --input-size: give only one of them'),
        (('--input-size', '1', '16', '16'), '--input-size must begin with 3, got [1, 16, 16]'),
        (('--img-size', '0'), '--img-size: size must be positive, got (0, 0)'),
        (('--input-size', '3', '16', '0'), '--input-size: size must be positive, got (16, 0)'),
        (('--crop-pct', '2'), '--crop-pct: crop_pct must be more than 0 and at most 1.25, got 2.0'),
        (('--dad-temperature', '2'), '--dad-temperature is for several teachers'),
        ((*TWO, '--dad-temperature', '0'), '--dad-temperature must be positive and finite, got 0.0'),
        (('--dad-eps', '9'), '--dad-eps: eps is in [0, 1] pixel units'),
        (('--dad-teacher', 'clip'), "--dad-teacher must be timm:MODEL, open_clip:MODEL/PRETRAINED or demo, got 'clip'"),
        (('--dad-teacher', 'timm:nobody'), '--dad-teacher timm:nobody: timm has no model'),
        (('--dad-vqgan', 'nowhere.safetensors'), '--dad-vqgan: no VQGAN at nowhere.safetensors'),
        (('--data-dir', 'nowhere'), '--data-dir nowhere: there is no such folder'),
        (('--split', 'test'), "--split must be a folder in "),
        (('--dataset', 'demo/noto', '--class-map', '{files}/map.txt'), '--class-map is not for the demo'),
        (('--dataset', 'demo/noto'), 'the demo needs no folder'),
        (WDS, '--num-classes must be given: the data does not name its classes'),
    ],
)  # fmt: skip
def test_bad_flags_are_named_before_anything_is_written(files, tmp_path, capsys, more, message):
    without = {'images': None} if '--index' in more or '--images' in more else {}
    without |= {'img_size': None} if '--img-size' in more or '--input-size' in more else {}
    assert message in error_line(capsys, main, flags(files, tmp_path / 'out', *more, **without))
    assert not (tmp_path / 'out').exists()


def test_what_is_missing_is_said(files, tmp_path, capsys):
    assert '--dad-vqgan must name the weights of a VQGAN' in error_line(
        capsys, main, flags(files, tmp_path, dad_vqgan=None)
    )
    assert '--dad-teacher must be given: its default' in error_line(
        capsys, main, flags(files, tmp_path, dad_teacher=None)
    )


def test_a_label_that_is_no_class(files, tmp_path, capsys):
    save_file(timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'three.safetensors')
    more = (*WDS, '--num-classes', '3', '--dad-teacher', f'timm:test_resnet/{tmp_path / "three.safetensors"}')
    error = error_line(capsys, main, flags(files, tmp_path / 'out', *more, images=4))
    assert error.endswith('labels must be from 0 to 2, image 3 has 3')
    assert not (tmp_path / 'out').exists()


def test_an_image_that_does_not_decode_is_named(files, tmp_path, capsys):
    write_pictures(tmp_path / 'data', validation=1)
    (tmp_path / 'data' / 'validation' / 'dog' / '0.png').write_bytes(b'no picture')
    error = error_line(capsys, main, flags(files, tmp_path / 'out', data_dir=tmp_path / 'data', images=4))
    assert 'dog/0.png does not decode' in error
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_written(files, tmp_path, capsys, monkeypatch):
    (tmp_path / 'file').write_text('x')
    error = error_line(capsys, main, flags(files, tmp_path / 'file' / 'out'))
    assert f'--output: {tmp_path / "file" / "out"} cannot be written: {tmp_path / "file"} is not a folder' in error
    (tmp_path / 'out' / 'preview.html').mkdir(parents=True)
    error = error_line(capsys, main, flags(files, tmp_path / 'out'))
    assert f'--output: {tmp_path / "out"} cannot be written: ' in error
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write everywhere
    assert 'you may not write to' in error_line(capsys, main, flags(files, tmp_path / 'mine'))


def test_it_is_a_command_of_timm_dad(files, base, tmp_path):
    cli(['preview', *flags(files, tmp_path)])
    assert content(tmp_path) == base


def test_models_are_compiled(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('torch.compile', lambda *args, **kwargs: 1 / 0)
    message = error_line(capsys, main, flags(files, tmp_path / 'out', '--dad-compile'))
    assert '--dad-compile: torch.compile does not work on this machine' in message
