"""``timm-dad generate`` in this process, flag by flag, and in real processes that are started together and killed."""

import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import error_line, words
from folders import picture, write_hfds, write_wds
from frozen_files import attack_flags, write_frozen
from test_generate import assert_same_tree, items, tree, write_images

from timm_dad.cli import main as cli
from timm_dad.commands.generate import create_parser, main, parse_args
from timm_dad.commands.generate_job import create_config
from timm_dad.dad_sets.claims import Leases, Locks
from timm_dad.dad_sets.manifest import read_json
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import Reinforcement
from timm_dad.dad_sets.verify import verify
from timm_dad.data import datasets as data
from timm_dad.flags import pairs
from timm_dad.flags.reinforce import reinforce_config
from timm_dad.flags.rules import written

NAMES = tuple(f'{name}/{index}.png' for name in ('cat', 'dog', 'fish', 'tree') for index in range(3))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Data, teachers and VQGANs; flags name them."""
    root = tmp_path_factory.mktemp('files')
    write_images(root / 'data', NAMES)
    write_images(root / 'other', [f'{name}/{index}.png' for name in 'abcd' for index in range(3)])
    for index, name in enumerate(NAMES):
        path = root / 'data' / 'validation' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(path)
    write_images(root / 'many', [f'{name}/{index}.png' for name in 'abcd' for index in range(50)])
    (root / 'wds').mkdir()
    write_wds(root / 'wds', [str(index) for index in range(12)], [index % 4 for index in range(12)])
    write_hfds(root / 'hfds')
    write_frozen(root)
    return root


def flags(files, output, *more, **changes):
    """A command line; ``changes`` replace flags, ``None`` leaves one out."""
    small = {'batch_size': 4, 'shard_size': 5, 'workers': 0, 'dad_look': 0}
    attack = attack_flags(files, more, changes)
    return words({'data_dir': files / 'data', 'output': output, 'img_size': 16, **small, **attack}, more, files)


def content(root):
    """What a set holds, but not what it says that it was made with."""
    held = {name: data for name, data in tree(root).items() if not name.startswith(('dad_set', 'index', 'manifest'))}
    return held, items(root)


@pytest.fixture(scope='module')
def base(files, tmp_path_factory):
    """What the set of the plain flags holds."""
    output = tmp_path_factory.mktemp('base')
    main(flags(files, output))
    return content(output)


# Every flag: what is given beside the plain flags (in both runs, and in the second alone), or the error.

TEACHER = 'timm:test_resnet/{files}/teacher'
TWO = ('--dad-teacher', f'{TEACHER}1.safetensors', f'{TEACHER}2.safetensors')
DEMO = {'data_dir': None, 'dataset': 'demo/noto', 'img_size': 32, 'dad_teacher': 'demo', 'dad_vqgan': 'demo'}
HFDS = ('--dataset', 'hfds/{files}/hfds', '--data-dir', '{files}/cache')
CODES = ('--dad-attack', 'codes', '--dad-neighbours', '8')
CHANGES = {
    'dad_teacher_img_size': ((), ('--dad-teacher-img-size', '64')),
    'data_dir': ((), ('--data-dir', '{files}/other')),
    'dataset': ((), ('--dataset', 'wds/', '--data-dir', '{files}/wds', '--num-classes', '4')),
    'split': ((), ('--split', 'validation')),
    'class_map': ((), ('--class-map', '{files}/map.txt')),
    'input_key': (HFDS, ('--input-key', 'image2')),
    'target_key': (HFDS, ('--target-key', 'label2')),
    'img_size': ((), ('--img-size', '14')),
    'crop_pct': ((), ('--crop-pct', '0.7')),
    'interpolation': ((), ('--interpolation', 'bilinear')),
    'dad_views': ((), ('--dad-views', '2')),
    'seed': ((), ('--seed', '1')),
    'dad_teacher': ((), ('--dad-teacher', f'{TEACHER}2.safetensors')),
    'dad_teacher_weights': (TWO, ('--dad-teacher-weights', '0.01', '9')),
    'dad_teacher_temperatures': (TWO, ('--dad-teacher-temperatures', '0.5', '20')),
    'dad_class_map': ((), ('--dad-class-map', '{files}/teacher.json')),
    'dad_vqgan': ((), ('--dad-vqgan', '{files}/vqgan2.safetensors')),
    'dad_precision': (('--dad-store-logits', '4'), ('--dad-precision', 'bf16')),
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
    'format': (('--format', 'wds'), ('--format', 'codes')),
    'image_format': ((), ('--image-format', 'webp')),
    'quality': (('--image-format', 'jpeg'), ('--quality', '20')),
    'dad_store_logits': ((), ('--dad-store-logits', '3')),
    'dad_temperature': (('--dad-store-logits', '2'), ('--dad-temperature', '1')),
}
ERRORS = {
    'task': (('--task', 'multilabel'), '--task multilabel needs data with several labels per image'),
    'target_format': (('--target-format', 'multihot'), '--target-format needs --task multilabel'),
    'multilabel_threshold': (('--multilabel-threshold', '0.3'), '--multilabel-threshold needs --task multilabel'),
    'config': (('--config', 'nowhere.yaml'), '--config must be a YAML file'),
    'num_classes': (('--num-classes', '5'), '--num-classes must be 4, as in the data, got 5'),
    'dad_strict_size': (('--dad-strict-size', '--img-size', '15'), '--img-size: image size must be a multiple of 2'),
    'device': (('--device', 'tpu'), "--device must be cuda or cpu, got 'tpu'"),
    'dad_micro_batch': (('--dad-micro-batch', '-1'), '--dad-micro-batch: micro_batch must be 0'),
    'workers': (('--workers', '-1'), '--workers must be 0 or more, got -1'),
    'dad_classnames': (('--dad-classnames', '{files}/names.txt'), '--dad-classnames is for zero-shot teachers'),
    'dad_templates': (('--dad-templates', '{files}/templates.txt'), '--dad-templates is for zero-shot teachers'),
}
ELSEWHERE = {
    'help': 'test_help_names_every_flag',
    'output': 'test_flags_of_execution_change_no_byte',
    'shard_size': 'test_flags_of_execution_change_no_byte',
    'batch_size': 'test_flags_of_execution_change_no_byte',
    'repair': 'test_repair_makes_again_what_is_damaged',
    'claim': 'test_claims_change_no_byte',
    'engine': 'test_the_engine_ray_needs_its_extra',  # and tests/test_ray_engine.py
    'shards': 'test_a_part_says_that_others_are_to_make_the_rest_and_the_last_one_finishes',
    'input_size': 'test_input_size_is_another_way_to_say_it',
    'train_num_samples': 'test_the_number_of_images_of_a_stream_may_be_given',
    'dataset_download': 'test_flags_of_the_data_reach_timm',
    'dataset_trust_remote_code': 'test_flags_of_the_data_reach_timm',
    'dad_compile': 'test_what_rounds_otherwise_is_a_setting_of_the_set',
    'dad_look': 'test_a_look_comes_first_and_changes_no_byte',
    'dad_teacher_checkpoint': 'test_weights_of_the_teacher_may_be_a_flag_of_their_own',
}


# Flags of --reinforce: settings of the answers.
REINFORCED = {
    'reinforce': ('3',), 'reinforce_top_k': ('3',), 'train_crop_mode': ('rkrc',), 'scale': ('0.5', '1'),
    'ratio': ('1', '1'), 'hflip': ('0',), 'vflip': ('0.5',), 'color_jitter': ('0.1',), 'color_jitter_prob': ('0.5',),
    'grayscale_prob': ('0.2',), 'gaussian_blur_prob': ('0.2',), 'aa': ('rand-m5',), 'reprob': ('0.2',),
    'remode': ('const',), 'recount': ('2',), 'train_interpolation': ('bicubic',), 'mean': ('0', '0', '0'),
    'std': ('1', '1', '1'), 'dad_same_crop': (), 'dad_view_aug': ('base',), 'mixup': ('0.5',), 'cutmix': ('1',),
    'cutmix_minmax': ('0.2', '0.8'), 'mixup_prob': ('0.5',), 'mixup_switch_prob': ('0.1',),
}  # fmt: skip
ELSEWHERE |= dict.fromkeys(REINFORCED, 'test_flags_of_reinforce_are_settings_of_the_answers')


@pytest.mark.parametrize('dest', REINFORCED)
def test_flags_of_reinforce_are_settings_of_the_answers(files, tmp_path, dest):
    def settings(*more):
        args = parse_args(flags(files, tmp_path / 'set', '--reinforce', '2', *more))
        return reinforce_config(args, (16, 16)).settings

    base = ('--mixup', '0.8') if dest.startswith('mixup_') else ()
    assert settings(*base, written(dest), *REINFORCED[dest]) != settings(*base)
    assert 'mixup' not in settings()  # sets of single images stay as they were


def test_a_set_is_reinforced_when_it_is_whole_and_in_one_way_alone(files, tmp_path, capsys):
    main(flags(files, tmp_path / 'set', '--reinforce', '2'))
    assert list(verify(tmp_path / 'set')) == []
    answers = Reinforcement(DADSet(tmp_path / 'set'))
    assert (answers.repeats, answers.settings['transform']['input_size'][0]) == (2, 3)
    with pytest.raises(SystemExit, match='2'):
        main(flags(files, tmp_path / 'set', '--reinforce', '2', '--hflip', '0'))
    error = capsys.readouterr().err
    assert 'reinforced is a set with other settings (transform.hflip: here 0.0, there 0.5)' in error
    assert f'or remove {tmp_path / "set" / "reinforced"} to answer anew' in error


def test_damaged_answers_are_made_again_with_the_flags_that_make_them(files, tmp_path, capsys):
    main(flags(files, tmp_path / 'set', '--reinforce', '2'))
    before = tree(tmp_path / 'set')
    logits = sorted((tmp_path / 'set' / 'reinforced' / 'logits').iterdir())[0]
    logits.write_bytes(logits.read_bytes()[:-1] + b'?')
    assert 'its stored answers are damaged, too (reinforced/logits/' in error_line(
        capsys, main, flags(files, tmp_path / 'set', '--repair')
    )
    assert (tmp_path / 'set' / 'reinforced' / 'index.json').exists()
    main(flags(files, tmp_path / 'set', '--repair', '--reinforce', '2'))
    assert_same_tree(tmp_path / 'set', before)


def test_unfinished_answers_are_told_and_such_as_are_hardly_begun_are_none(files, tmp_path, capsys):
    main(flags(files, tmp_path / 'set', '--reinforce', '2'))
    (tmp_path / 'set' / 'reinforced' / 'index.json').unlink()
    with pytest.raises(SystemExit, match='is not finished, but what exists is intact'):
        cli(['verify', str(tmp_path / 'set')])
    shutil.rmtree(tmp_path / 'set' / 'reinforced')
    (tmp_path / 'set' / 'reinforced' / '.work').mkdir(parents=True)
    cli(['verify', str(tmp_path / 'set')])
    assert 'is whole' in capsys.readouterr().out
    main(flags(files, tmp_path / 'set', '--repair'))


@pytest.mark.slow
@pytest.mark.parametrize('dest', [action.dest for action in create_parser()._actions])
def test_every_flag_changes_something_or_is_an_error(files, base, tmp_path, capsys, dest):
    assert (dest in CHANGES) + (dest in ERRORS) + (dest in ELSEWHERE) == 1, f'{dest} has no test'
    if dest in ELSEWHERE:
        assert ELSEWHERE[dest] in globals()
    elif dest in ERRORS:
        given, message = ERRORS[dest]
        assert message in error_line(capsys, main, flags(files, tmp_path / 'set', *given))
        assert not (tmp_path / 'set').exists()
    else:
        both, second = CHANGES[dest]
        if both:
            main(flags(files, tmp_path / 'first', *both))
        first = content(tmp_path / 'first') if both else base
        main(flags(files, tmp_path / 'second', *both, *second))
        assert content(tmp_path / 'second') != first
        assert list(verify(tmp_path / 'second')) == []
        with pytest.raises(SystemExit):  # nor does it go on with the other one's folder
            main(flags(files, tmp_path / 'second', *both))
        assert 'is a set with other settings' in capsys.readouterr().err


def test_a_look_comes_first_and_changes_no_byte(files, base, tmp_path, caplog):
    """Noise of length 0 changes no code: that is told before a set is made of it, and not again when it is there."""
    caplog.set_level('INFO', logger='timm_dad')
    main(flags(files, tmp_path / 'set', dad_look=8))
    assert 'DAD on 8 pictures: teacher right on x' in caplog.text
    assert content(tmp_path / 'set') == base
    caplog.clear()
    main(flags(files, tmp_path / 'set', dad_look=8))
    assert 'DAD on' not in caplog.text
    calm = ('--dad-num-steps', '0', '--dad-random-start', '0', '--no-labels', '--num-classes', '4')
    main(flags(files, tmp_path / 'calm', *calm, dad_look=8))
    assert 'DAD will teach little: ' in caplog.text
    assert 'codes changed by the attack 0.0%' in caplog.text


def test_a_stream_is_not_looked_at(files, tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    stream = {'dataset': 'wds/', 'data_dir': files / 'wds', 'num_classes': 4}
    main(flags(files, tmp_path / 'set', dad_look=8, **stream))
    assert 'Pictures of a stream are not checked first' in caplog.text
    assert 'DAD on' not in caplog.text


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--help'])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for action in create_parser()._actions for name in action.option_strings)
    assert all(action.help for action in create_parser()._actions)


def test_flags_of_execution_change_no_byte(files, base, tmp_path):
    """Of a view, that is: batch and shard size are settings of the set, for other sums may round differently."""
    main(flags(files, tmp_path / 'workers', workers=2))
    assert content(tmp_path / 'workers') == base
    main(flags(files, tmp_path / 'sizes', batch_size=3, shard_size=7))
    _, found = content(tmp_path / 'sizes')
    assert [(item['name'], item['source_sha256']) for item in found] == [
        (item['name'], item['source_sha256']) for item in base[1]
    ]
    assert len(list((tmp_path / 'sizes' / 'manifest').iterdir())) == 2


@pytest.mark.parametrize(
    ('given', 'setting'),
    [
        (('--dad-micro-batch', '3'), {'micro_batch': 3}),
        pytest.param(('--dad-compile',), {'compiled': True}, marks=pytest.mark.slow),
    ],
)
def test_what_rounds_otherwise_is_a_setting_of_the_set(files, base, tmp_path, given, setting):
    main(flags(files, tmp_path / 'set', *given))
    settings = read_json(tmp_path / 'set' / 'dad_set.json')
    assert setting.items() <= settings.items()
    views, _ = content(tmp_path / 'set')
    assert views.keys() == base[0].keys()
    assert list(verify(tmp_path / 'set')) == []


def test_a_set_without_them_has_the_settings_that_sets_always_had(files, base, tmp_path):
    main(flags(files, tmp_path / 'set'))
    assert not {'micro_batch', 'compiled', 'attack_from'} & set(read_json(tmp_path / 'set' / 'dad_set.json'))


def test_a_machine_that_cannot_compile_says_so_before_work_starts(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('torch.compile', lambda *args, **kwargs: 1 / 0)
    message = error_line(capsys, main, flags(files, tmp_path / 'set', '--dad-compile'))
    assert '--dad-compile: torch.compile does not work on this machine' in message
    assert not (tmp_path / 'set').exists()


def test_the_precision_of_a_set_is_named(files, tmp_path, capsys):
    message = error_line(capsys, main, flags(files, tmp_path / 'set', '--dad-precision', 'auto'))
    assert '--dad-precision auto is not supported here, because the precision changes the files' in message


@pytest.mark.slow
def test_shards_are_the_default_and_a_set_goes_on_in_its_own_format(files, tmp_path, capsys):
    main(flags(files, tmp_path / 'new'))
    assert read_json(tmp_path / 'new' / 'dad_set.json')['files'] == {'format': 'wds', 'image_format': 'png'}
    main(flags(files, tmp_path / 'set', '--format', 'folder'))
    whole = tree(tmp_path / 'set')
    for name in ('index.json', 'manifest/000001.jsonl'):
        (tmp_path / 'set' / name).unlink()
    main(flags(files, tmp_path / 'set'))
    assert_same_tree(tmp_path / 'set', whole)
    (tmp_path / 'set' / 'dad_set.json').write_bytes(b'{')
    main(flags(files, tmp_path / 'set', '--repair'))
    assert_same_tree(tmp_path / 'set', whole)
    (tmp_path / 'flags.yaml').write_text('format: wds\n')
    for given in (('--format', 'wds'), ('--config', tmp_path / 'flags.yaml')):
        message = error_line(capsys, main, flags(files, tmp_path / 'set', *given))
        assert 'is a set with other settings (files.format: here "wds", there "folder")' in message


def test_every_vqgan_is_loaded_once(files, tmp_path, monkeypatch):
    loaded, load = [], pairs.load_vqgan
    monkeypatch.setattr(pairs, 'load_vqgan', lambda path, **given: loaded.append(Path(path)) or load(path, **given))
    main(flags(files, tmp_path / 'set', '--dad-attack', 'latent', '--dad-gradient-vqgan', '{files}/tiny.safetensors'))
    assert loaded == [files / 'vqgan1.safetensors', files / 'tiny.safetensors']


def test_input_size_is_another_way_to_say_it(files, base, tmp_path):
    main(flags(files, tmp_path / 'set', '--input-size', '3', '16', '16', img_size=None))
    assert content(tmp_path / 'set') == base
    main(flags(files, tmp_path / 'other', '--input-size', '3', '16', '18', img_size=None))
    assert read_json(tmp_path / 'other' / 'dad_set.json')['views']['size'] == [16, 18]
    assert content(tmp_path / 'other') != base


def test_size_is_224_by_default(files):
    args = parse_args(flags(files, 'x', img_size=None))
    assert create_config(args).frame.size == (224, 224)


def test_the_number_of_images_of_a_stream_may_be_given(files, tmp_path, capsys):
    root = files / 'wds'
    more = ('--dataset', 'wds/', '--data-dir', root, '--num-classes', '4', '--train-split')
    assert '--train-num-samples must give the number of images' in error_line(
        capsys, main, flags(files, tmp_path / 'set', *more, '{{000..002}}.tar')
    )
    main(flags(files, tmp_path / 'set', *more, '{{000..002}}.tar', '--train-num-samples', '12'))
    assert len(items(tmp_path / 'set')) == 12


@pytest.mark.parametrize('flag', ['--dataset-download', '--dataset-trust-remote-code'])
def test_flags_of_the_data_reach_timm(files, tmp_path, monkeypatch, flag):
    seen = []

    def create(name, **kwargs):
        seen.append(kwargs)
        raise OSError('enough')

    monkeypatch.setattr(data, 'create_timm_dataset', create)
    for given in ((), (flag,)):
        with pytest.raises(SystemExit):
            main(flags(files, tmp_path / 'set', *given, '--dataset', 'hfds/org/name'))
    name = {'--dataset-download': 'download', '--dataset-trust-remote-code': 'trust_remote_code'}[flag]
    assert [kwargs[name] for kwargs in seen] == [False, True]


@pytest.mark.parametrize(
    'given',
    [
        ('--train-num-samples', '3'),
        ('--dataset-download',),
        ('--dataset-trust-remote-code',),
        ('--target-key', 'label'),
        ('--dad-temperature', '7'),
    ],
)
def test_a_flag_that_would_be_ignored_is_an_error(files, tmp_path, capsys, given):
    """For a folder of pictures, one teacher, and no stored logits none of them means anything."""
    assert given[0] in error_line(capsys, main, flags(files, tmp_path / 'set', *given))


@pytest.mark.parametrize('flag', ['--class-map', '--input-key', '--target-key', '--train-num-samples'])
def test_a_flag_that_the_demo_would_ignore_is_an_error(files, tmp_path, capsys, flag):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'stranger').write_text('')  # an error, but later
    given = (flag, '3' if flag == '--train-num-samples' else files / 'map.txt')
    assert flag in error_line(capsys, main, flags(files, tmp_path / 'set', *given, **DEMO))


def test_weights_of_the_teacher_may_be_a_flag_of_their_own(files, base, tmp_path):
    for seed in (1, 2):
        checkpoint = files / f'teacher{seed}.safetensors'
        output = tmp_path / f'{seed}'
        main(flags(files, output, dad_teacher='timm:test_resnet', dad_teacher_checkpoint=checkpoint))
    assert content(tmp_path / '1') == base
    assert content(tmp_path / '2') != base


@pytest.mark.slow
@pytest.mark.parametrize('flag', ['--dad-classnames', '--dad-templates'])
def test_words_of_a_zero_shot_teacher_change_the_views(files, tmp_path, flag):
    file = {'--dad-classnames': 'names.txt', '--dad-templates': 'templates.txt'}[flag]
    more = ('--dad-store-logits', '4')
    main(flags(files, tmp_path / 'first', *more, dad_teacher='demo'))
    main(flags(files, tmp_path / 'second', *more, flag, files / file, dad_teacher='demo'))
    assert content(tmp_path / 'second') != content(tmp_path / 'first')


# Errors


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (('--format', 'codes', '--image-format', 'png'), '--image-format is not for --format codes'),
        (('--quality', '90'), '--quality is for --image-format jpeg and webp'),
        (('--format', 'codes', '--quality', '90'), '--quality is for --image-format jpeg and webp'),
        (('--image-format', 'jpeg', '--quality', '0'), '--quality: quality is from 1 to 100, got 0'),
        (('--input-size', '3', '16', '16'), '--img-size and --input-size: give only one of them'),
        (('--img-size', '0'), '--img-size: size must be positive, got (0, 0)'),
        (('--crop-pct', '2'), '--crop-pct: crop_pct must be more than 0 and at most 1.25, got 2.0'),
        (('--dad-views', '0'), '--dad-views: num_views must be 1 or more, got 0'),
        (('--seed', '-1'), '--seed must be 0 or more, got -1'),
        (('--batch-size', '0'), '--batch-size: batch_size must be 1 or more, got 0'),
        (('--shard-size', '0'), '--shard-size: shard_size must be 1 or more, got 0'),
        (('--dad-store-logits', '-1'), '--dad-store-logits: top_k must be 0 or more, got -1'),
        (
            ('--dad-temperature', '0', '--dad-store-logits', '1'),
            '--dad-temperature: temperature must be positive, got 0.0',
        ),
        (('--dad-eps', '9'), '--dad-eps: eps is in [0, 1] pixel units, from 0 to 5 for l2, got 9.0'),
        (('--num-classes', '1'), '--num-classes must be 2 or more, got 1'),
        (('--train-split', 'nothing'), '--split must be a folder in'),
        (('--data-dir', '{files}/nowhere'), 'nowhere: there is no such folder'),
        (('--class-map', '{files}/no.txt'), 'no.txt'),
        (('--dad-teacher', 'timm:test_resnet/{files}/no.pth'), '--dad-teacher'),
        (('--dad-vqgan', '{files}/no.ckpt'), '--dad-vqgan: no VQGAN at'),
        (('--shards', '5/4'), '--shards must be I/N with I from 0 to N - 1, got 5/4'),
        (('--shards', '0/0'), '--shards must be I/N with I from 0 to N - 1, got 0/0'),
        (('--shards', 'a/b'), "--shards must be I/N, such as 0/4 for the first of 4 parts, or auto, got 'a/b'"),
        (('--shards',), '--shards auto needs SLURM_ARRAY_TASK_ID or RANK, but neither is set: give I/N'),
        (('--shards', '0/2', '--claim', 'lease'), '--claim is for processes that share all shards: leave it out'),
        (('--shards', '0/2', '--repair'), '--repair checks the whole set: leave --shards out'),
        (('--claim', 'flock'), "argument --claim: invalid choice: 'flock'"),
        (('--engine', 'slurm'), "argument --engine: invalid choice: 'slurm'"),
        (
            ('--engine', 'ray', '--shards', '0/2'),
            '--shards is for processes that you start; --engine ray distributes them',
        ),
        (
            ('--engine', 'ray', '--claim', 'lease'),
            '--claim is for processes that you start; --engine ray distributes the',
        ),
        (
            ('--engine', 'ray', '--dad-look', '8'),
            '--dad-look makes views in this process, but --engine ray leaves that',
        ),
        (('--engine', 'ray', '--device', 'cuda:1'), '--device must be cuda or cpu with --engine ray, got cuda:1'),
        (('--format', 'zip'), "argument --format: invalid choice: 'zip'"),
        (('--interpolation', 'random'), "argument --interpolation: invalid choice: 'random'"),
        (('--dad-dir', 'x'), 'unrecognized arguments: --dad-dir x'),
        (('--dad-cache', '2'), 'unrecognized arguments: --dad-cache 2'),
    ],
)
def test_errors_name_the_flag(files, tmp_path, capsys, given, message):
    assert message in error_line(capsys, main, flags(files, tmp_path / 'set', *given))
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize(
    ('left_out', 'message'),
    [
        ('data_dir', '--data-dir must name a folder of class folders (or give --dataset)'),
        ('output', 'the following arguments are required: --output'),
        ('dad_vqgan', '--dad-vqgan must name the weights of a VQGAN, demo, or one of'),
        ('dad_teacher', '--dad-teacher must be given: its default'),
    ],
)
def test_what_is_missing_is_named(files, tmp_path, capsys, left_out, message):
    argv = flags(files, **{'output': tmp_path / 'set', left_out: None})
    assert message in error_line(capsys, main, argv)


def test_the_engine_ray_needs_its_extra(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    message = error_line(capsys, main, flags(files, tmp_path / 'set', '--engine', 'ray'))
    assert 'ray is missing; run: pip install "timm-dad[ray]"' in message
    assert not (tmp_path / 'set').exists()


def test_the_engine_ray_takes_no_launcher(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    message = error_line(capsys, main, flags(files, tmp_path / 'set', '--engine', 'ray'))
    assert '--engine ray starts its processes itself: leave the launcher (torchrun, accelerate) out' in message


def test_a_bad_input_size_names_its_own_flag(files, capsys):
    argv = flags(files, 'x', '--input-size', '3', '0', '16', img_size=None)
    assert '--input-size: size must be positive, got (0, 16)' in error_line(capsys, main, argv)
    argv = flags(files, 'x', '--input-size', '1', '16', '16', img_size=None)
    assert '--input-size must begin with 3, got [1, 16, 16]' in error_line(capsys, main, argv)


def test_data_without_names_of_classes_needs_their_number(files, tmp_path, capsys):
    argv = flags(files, tmp_path / 'set', dataset='wds/', data_dir=files / 'wds')
    assert '--num-classes must be given: the data does not name its classes' in error_line(capsys, main, argv)


def test_an_image_that_does_not_decode_is_named(files, tmp_path, capsys):
    write_images(tmp_path / 'data', NAMES)
    (tmp_path / 'data' / 'train' / 'dog' / '1.png').write_bytes(b'x')
    message = error_line(capsys, main, flags(files, tmp_path / 'set', data_dir=tmp_path / 'data'))
    assert 'dog/1.png' in message
    assert not (tmp_path / 'set').exists()


# What it says


def test_it_prints_the_summary_and_the_parts_of_the_set_are_there(files, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, 'timm_dad')
    summary = main(flags(files, tmp_path / 'set'))
    waited = [re.match(r'The networks waited (.*) % of .* s for images and the disk', text) for text in caplog.messages]
    assert [0 < float(found[1]) < 100 for found in waited if found] == [True]
    caplog.clear()
    main(flags(files, tmp_path / 'set'))  # finds nothing to do
    assert 'networks waited' not in caplog.text
    output = capsys.readouterr().out
    assert f'{tmp_path / "set"}: 12 DAD views of 12 images' in output
    for part in ('teacher keeps the label', 'mean L2', 'codes of the VQGAN used', 'contact_sheet.png'):
        assert part in output
    assert summary == read_json(tmp_path / 'set' / 'index.json')['summary']
    assert set(summary['kept_by_class']) == {'cat', 'dog', 'fish', 'tree'}


def test_the_set_keeps_what_made_it(files, tmp_path):
    main(flags(files, tmp_path / 'set', '--dad-store-logits', '2', '--dad-views', '2', '--seed', '5'))
    settings = read_json(tmp_path / 'set' / 'dad_set.json')
    assert settings['data']['class_names'] == ['cat', 'dog', 'fish', 'tree']
    assert (settings['data']['num_images'], settings['data']['num_classes']) == (12, 4)
    assert settings['views']['seed'] == 5
    assert settings['views']['count'] == 2
    assert settings['attack']['eps'] == 2
    assert settings['logits'] == {'top_k': 2, 'temperature': 4.0}
    for name in ('teacher', 'vqgan'):
        assert len(settings[name]['fingerprint']) == 64


def test_settings_know_models_by_their_content_not_by_where_they_lie(files, tmp_path, monkeypatch):
    """Elastic: on another machine the same files may lie in another folder."""
    main(flags(files, tmp_path / 'set'))
    (tmp_path / 'moved').mkdir()
    for name in ('teacher1.safetensors', 'vqgan1.safetensors', 'vqgan1.yaml'):
        (tmp_path / 'moved' / name).write_bytes((files / name).read_bytes())
    monkeypatch.chdir(tmp_path / 'moved')
    here = {'dad_teacher': 'timm:test_resnet/teacher1.safetensors', 'dad_vqgan': 'vqgan1.safetensors'}
    main(flags(files, tmp_path / 'set', **here))
    main(flags(files, tmp_path / 'own', **here))
    settings = read_json(tmp_path / 'own' / 'dad_set.json')
    assert settings['teacher']['flags']['dad_teacher'] == f'timm:test_resnet/{tmp_path}/moved/teacher1.safetensors'
    assert settings['vqgan']['spec'] == f'{tmp_path}/moved/vqgan1.safetensors'


def test_it_is_a_command_of_timm_dad(files, tmp_path, base):
    cli(['generate', *flags(files, tmp_path / 'set')])
    cli(['verify', str(tmp_path / 'set')])
    assert content(tmp_path / 'set') == base


@pytest.mark.slow
def test_repair_makes_again_what_is_damaged(files, tmp_path, base, capsys, monkeypatch):
    assert 'contains no DAD set' in error_line(capsys, main, flags(files, tmp_path / 'set', '--repair'))
    main(flags(files, tmp_path / 'set'))
    shard = tmp_path / 'set' / 'shards' / '000001.tar'
    shard.write_bytes(shard.read_bytes()[:-1])
    main(flags(files, tmp_path / 'set'))  # finds nothing to do
    assert content(tmp_path / 'set') != base
    main(flags(files, tmp_path / 'set', '--repair'))
    assert content(tmp_path / 'set') == base
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert '--repair finds damage in one process' in error_line(
        capsys, main, flags(files, tmp_path / 'set', '--repair')
    )


@pytest.mark.parametrize('claim', ['lock', 'lease'])
def test_claims_change_no_byte(files, tmp_path, base, claim, monkeypatch):
    kinds, taken = {'lock': Locks, 'lease': Leases}, []
    take = kinds[claim].take
    monkeypatch.setattr(kinds[claim], 'take', lambda self, name: taken.append(name) or take(self, name))
    main(flags(files, tmp_path / 'set', '--claim', claim))
    assert content(tmp_path / 'set') == base
    assert [name for name in taken if not name.startswith('test-')] == ['start', '000000', '000001', '000002', 'finish']
    assert not (tmp_path / 'set' / '.work').exists()


def test_locks_that_do_not_work_are_an_error_before_a_shard_is_made(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('timm_dad.dad_sets.claims._TRY_LOCK', 'pass')
    message = error_line(capsys, main, flags(files, tmp_path / 'set', '--claim', 'lock'))
    assert 'where a lock (flock) does not keep a second process out: give --claim lease' in message
    assert not (tmp_path / 'set' / 'dad_set.json').exists()


def test_a_part_says_that_others_are_to_make_the_rest_and_the_last_one_finishes(
    files, tmp_path, base, capsys, monkeypatch
):
    output = tmp_path / 'set'
    assert main(flags(files, output, '--shards', '0/2')) is None
    assert (
        f'{output}: part 0/2 is done; 2 of 3 shards exist. The last of the other parts, or' in capsys.readouterr().out
    )
    for name, value in {'ID': 8, 'COUNT': 1, 'MIN': 8, 'MAX': 8, 'STEP': 1}.items():
        monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', str(value))
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(flags(files, output, '--shards'))['images'] == 12
    assert content(output) == base
    assert f'{output}: 12 DAD views of 12 images' in capsys.readouterr().out


# Processes

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(data.__file__).parents[2])}
ONE = (sys.executable, '-m', 'timm_dad', 'generate')
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *ONE[1:])
ACCELERATE = (
    *(sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2'),
    *('--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0', *ONE[1:]),
)


def start(launcher, argv, **kwargs):
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'start_new_session': True}
    return subprocess.Popen([*launcher, *argv], env=ENV, **{**pipes, **kwargs})


def run(launcher, argv, code=0, **kwargs):
    process = start(launcher, argv, **kwargs)
    output, error = process.communicate(timeout=180)
    assert process.returncode == code, error
    return output, error


def many(files, output, *more, **changes):
    return flags(files, output, *more, **{'data_dir': files / 'many', 'shard_size': 6, 'img_size': 32, **changes})


@pytest.fixture(scope='module')
def undisturbed(files, tmp_path_factory):
    """The bytes of a set that one process made at one go."""
    output = tmp_path_factory.mktemp('undisturbed') / 'set'
    stdout, stderr = run(ONE, many(files, output, '--dad-store-logits', '2'))
    assert '200 DAD views of 200 images' in stdout
    assert 'img/s' not in stderr  # bars are for terminals
    return tree(output)


@pytest.mark.slow
@pytest.mark.parametrize('launcher', [TORCHRUN, ACCELERATE])
def test_processes_started_together_make_the_same_bytes(files, undisturbed, tmp_path, launcher):
    output, _ = run(launcher, many(files, tmp_path / 'set', '--dad-store-logits', '2', '--workers', '1'))
    assert output.count('200 DAD views of 200 images') == 1
    assert_same_tree(tmp_path / 'set', undisturbed)
    run(launcher, many(files, tmp_path / 'set', '--dad-store-logits', '2', '--workers', '1'))  # nothing is left to do
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_parts_of_an_array_of_launchers_make_the_same_bytes(files, undisturbed, tmp_path, monkeypatch):
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2', '--shards')
    for task in (4, 2):
        for name, value in {'ID': task, 'COUNT': 2, 'MIN': 2, 'MAX': 4, 'STEP': 2}.items():
            monkeypatch.setitem(ENV, f'SLURM_ARRAY_TASK_{name}', str(value))
        output, _ = run(TORCHRUN, argv)
        assert ('200 DAD views' in output) is (task == 2)
        assert ('part 2/4 is done' in output) is (task == 4)
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_processes_share_a_stream_out(files, tmp_path):
    """timm's readers of streams give each process of a group a part of their own: here each must see all of it."""
    more = {'dataset': 'wds/', 'data_dir': files / 'wds', 'num_classes': 4, 'shard_size': 2}
    run(ONE, flags(files, tmp_path / 'one', **more))
    run(TORCHRUN, flags(files, tmp_path / 'two', **more))
    assert len(items(tmp_path / 'one')) == 12
    assert_same_tree(tmp_path / 'two', tree(tmp_path / 'one'))


@pytest.mark.slow
@pytest.mark.parametrize('claim', ['lock', 'lease'])
def test_runs_of_their_own_share_one_folder(files, undisturbed, tmp_path, claim):
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2', '--claim', claim)
    processes = [start(ONE, argv) for _ in range(3)]
    ends = [(process.communicate(timeout=180), process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * 3, ends
    assert_same_tree(tmp_path / 'set', undisturbed)


def wait_for(path, count, process, limit=60):
    """Wait until there are so many files, or the process ends."""
    end = time.monotonic() + limit
    while len(list(path.glob('*'))) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'times'), [(0, 6), (2, 3)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(files, undisturbed, tmp_path, workers, times):
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2', workers=workers)
    rng, kills = random.Random(workers), 0
    for _ in range(times):
        process = start(ONE, argv)
        done = len(list((tmp_path / 'set' / 'manifest').glob('*')))
        wait_for(tmp_path / 'set' / 'manifest', done + rng.randrange(1, 6), process)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        found = {name: data for name, data in tree(tmp_path / 'set').items() if not name.startswith('.work')}
        assert [name for name, data in found.items() if undisturbed.get(name) != data] == []
    assert kills >= 2
    run(ONE, argv)
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_all_processes_killed_and_another_number_of_them_goes_on(files, undisturbed, tmp_path):
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2')
    process = start(TORCHRUN, argv)
    wait_for(tmp_path / 'set' / 'manifest', 6, process)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    process.communicate()
    assert not (tmp_path / 'set' / 'index.json').exists()
    run(ONE, argv)
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_the_shards_of_a_killed_process_are_taken_over_by_the_other(files, undisturbed, tmp_path):
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2')
    processes = [start(ONE, argv) for _ in range(2)]
    wait_for(tmp_path / 'set' / 'manifest', 3, processes[0])
    processes[0].kill()
    processes[0].communicate()
    _, error = processes[1].communicate(timeout=180)
    assert processes[1].returncode == 0, error
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_one_line_and_is_gone_on_from(files, undisturbed, tmp_path):
    """The operating system refuses files of more than 1,000 bytes, as a full disk or a quota does."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2')
    _, error = run(ONE, argv, code=2, preexec_fn=limit)
    (line,) = (line for line in error.splitlines() if 'error' in line)
    assert line.startswith('timm-dad generate: error: ')
    assert 'cannot be written (File too large): provide the space or permission' in line
    assert 'Traceback' not in error
    run(ONE, argv)
    assert_same_tree(tmp_path / 'set', undisturbed)


@pytest.mark.slow
def test_an_error_of_any_process_is_one_line_and_none_hangs(files, tmp_path):
    write_images(tmp_path / 'data', [f'{name}/{index}.png' for name in 'abcd' for index in range(6)])
    run(ONE, flags(files, tmp_path / 'set', data_dir=tmp_path / 'data'))
    begin = time.monotonic()
    _, error = run(TORCHRUN, flags(files, tmp_path / 'set', '--seed', '1', data_dir=tmp_path / 'data'), code=1)
    assert time.monotonic() - begin < 60
    assert len([line for line in error.splitlines() if line.startswith('timm-dad generate: error')]) == 1
    assert 'is a set with other settings (views.seed: here 1, there 0)' in error


@pytest.mark.slow
def test_threads_do_not_matter(files, undisturbed, tmp_path):
    """torchrun gives its processes one thread, a plain start takes all cores: the bytes must not depend on it."""
    env = {**ENV, 'OMP_NUM_THREADS': '2'}
    argv = many(files, tmp_path / 'set', '--dad-store-logits', '2')
    done = subprocess.run([*ONE, *argv], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_tree(tmp_path / 'set', undisturbed)
