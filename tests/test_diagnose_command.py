"""``timm-dad diagnose`` in this process, flag by flag, on a few of the demo's pictures."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from folders import write_pictures, write_wds
from safetensors.torch import save_file
from tiny import save_tiny
from torch import nn

from timm_dad.cli import main as cli
from timm_dad.commands.generate import main as generate
from timm_dad.demo.data import DEMO_VQGAN, class_names
from timm_dad.diagnosis.command import create_parser, main, make_frame, parse_args
from timm_dad.teachers.backbones import INTERPOLATIONS
from timm_dad.vqgan.load import load_vqgan

DEMO = '--dataset demo/noto --ood demo/twemoji --dad-teacher demo --dad-vqgan demo'.split()
STUDENT = '--img-size 32 --student timm:test_resnet/ROOT/student.safetensors'.split()
SMALL = '--images 6 --batch-size 6 --workers 0 --device cpu --splits 1'.split()


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Folders of pictures and a checkpoint of a student for each data set."""
    root = tmp_path_factory.mktemp('diagnose')
    write_pictures(root / 'data', train=2, validation=2)
    write_pictures(root / 'ood', val=2)
    (root / 'ood' / 'val' / 'fish').rename(root / 'ood' / 'val' / 'whale')
    write_pictures(root / 'more', val=2)
    (root / 'wds').mkdir()
    write_wds(root / 'wds', [str(index) for index in range(12)], [index % 4 for index in range(12)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, num_classes in (('student', 16), ('small', 4)):
            model = timm.create_model('test_resnet', num_classes=num_classes)
            nn.init.normal_(model.get_classifier().weight, std=5.0)
            save_file(model.state_dict(), root / f'{name}.safetensors')
    (root / 'names.txt').write_text('\n'.join(reversed(class_names())))
    (root / 'templates.txt').write_text('an abstract painting of a {}.\n')
    (root / 'map.txt').write_text('\n'.join(str(15 - label) for label in range(16)))
    (root / 'folders.txt').write_text('tree\nfish\ndog\ncat\n')
    return root


def run(root, output, *flags, base=DEMO):
    output = root / output
    main([*base, *SMALL, '--output', str(output), *(str(flag).replace('ROOT', str(root)) for flag in flags)])
    return json.loads((output / 'diagnose.json').read_text())


@pytest.fixture(scope='module')
def base(root):
    return run(root, 'base', '--img-size', '32')


@pytest.fixture(scope='module')
def with_student(root):
    return run(root, 'with-student', *STUDENT)


def error(capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('timm-dad diagnose: error: ')
    return last


# What it measures and writes.


def test_the_demo_end_to_end(root, with_student, capsys):
    flags = [flag.replace('ROOT', str(root)) for flag in STUDENT]
    cli(['diagnose', *DEMO, *SMALL, '--output', str(root / 'again'), *flags])
    out = capsys.readouterr().out
    for name in ('diagnose.json', 'diagnose.md', 'diagnose.html'):
        assert (root / 'again' / name).read_bytes() == (root / 'with-student' / name).read_bytes()
        assert str(root / 'again' / name) in out
    assert (root / 'again' / 'diagnose.md').read_text() in out
    assert 'The term that limits this student is **' in out
    assert with_student['images'] == dict.fromkeys(with_student['risks'], 6)
    assert with_student['codebook']['size'] == 1024
    assert with_student['risks']['clean']['teacher_error'] < 0.5 < with_student['risks']['clean']['student_error']


def test_without_a_folder_it_is_printed_alone(root, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert json.loads(json.dumps(main([*DEMO, *SMALL, '--img-size', '32']))) == base
    out = capsys.readouterr().out
    assert out.strip() == (root / 'base' / 'diagnose.md').read_text().strip()
    assert not list(tmp_path.iterdir())


def test_without_a_student(base):
    assert base['terms'] is None
    assert base['settings']['student'] is None
    assert base['settings']['img_size'] == [32, 32]


def test_a_student_that_is_the_teacher_follows_it(root):
    found = run(root, 'same', '--img-size', '32', '--student', 'demo')
    assert found['risks']['DAD']['disagreement'] == 0
    assert found['terms']['mean']['limiting'] == 'teacher'


def test_the_size_of_the_images_is_the_students_or_else_the_teachers():
    teacher = SimpleNamespace(input_size=(64, 64))
    student = SimpleNamespace(frame=SimpleNamespace(size=(48, 40)))
    flags = [*DEMO, '--output', 'x']
    assert make_frame(parse_args(flags), teacher, student).size == (48, 40)
    assert make_frame(parse_args(flags), teacher, None).size == (64, 64)
    assert make_frame(parse_args([*flags, '--img-size', '24']), teacher, student).size == (24, 24)


CHANGES = {
    '--dataset': ('demo/noto-v1', 'risks'),
    '--ood': ('demo/emojione', 'risks'),
    '--images': ('5', 'images'),
    '--split': ('train', 'risks'),
    '--img-size': ('40', 'risks'),
    '--crop-pct': ('0.5', 'risks'),
    '--dad-eps': ('3', 'risks'),
    '--dad-norm': ('linf', 'risks'),
    '--dad-num-steps': ('3', 'risks'),
    '--dad-random-start': ('0', 'risks'),
    '--dad-classnames': ('ROOT/names.txt', 'risks'),
    '--dad-templates': ('ROOT/templates.txt', 'risks'),
    '--dad-precision': ('bf16', 'risks'),
    '--dad-attack-from': ('input', 'risks'),
    '--dad-attack': ('latent', 'risks'),
    '--distance': ('sliced', 'distances'),
    '--splits': ('2', 'distances'),
    '--seed': ('1', 'risks'),
}
# Step size and label filter show where the attack is large.
STRONG = ('--dad-eps', '3', '--dad-random-start', '0')


@pytest.mark.slow
@pytest.mark.parametrize('flag', CHANGES)
def test_flags_change_what_is_measured(root, base, flag):
    value, part = CHANGES[flag]
    found = run(root, f'flag{flag}', '--img-size', '32', flag, *value.split())
    assert found[part] != base[part]


@pytest.mark.slow
def test_interpolation_is_that_of_resizing(root):
    # The demo's pictures have 32 pixels: at that size there is nothing to resize.
    one, other = (run(root, f'to40{name}', '--img-size', '40', '--interpolation', name) for name in INTERPOLATIONS)
    assert one['risks'] != other['risks']


@pytest.mark.slow
@pytest.mark.parametrize('flags', [('--dad-step-size', '3'), ('--dad-step-size', '3', '--dad-keep-label')])
def test_flags_of_a_strong_attack(root, flags):
    before = run(root, 'strong', *STRONG, *flags[:-1] if flags[-1] == '--dad-keep-label' else ())
    assert run(root, 'stronger', *STRONG, *flags)['risks']['DAD'] != before['risks']['DAD']


@pytest.mark.slow
def test_flags_of_attacks_on_latents_and_codes(root):
    latent, codes = ('--dad-attack', 'latent'), ('--dad-attack', 'codes')
    save_tiny(load_vqgan(DEMO_VQGAN), root / 'tiny.safetensors')
    for attack, *flags in (
        (latent, ('--dad-start-size', '1'), ('--dad-gradient-vqgan', 'ROOT/tiny.safetensors')),
        (codes, ('--dad-neighbours', '2'), ('--dad-candidates', '1')),
    ):
        before = run(root, 'attack', *attack)['risks']['DAD']
        for flag in flags:
            assert run(root, 'other', *attack, *flag)['risks']['DAD'] != before, flag


@pytest.mark.slow
def test_flags_of_several_teachers_and_of_one_with_a_head(root, base):
    student = 'timm:test_resnet/ROOT/student.safetensors'
    several = ('--dad-teacher', 'demo', student)
    found = run(root, 'several', *several)
    assert found['risks'] != base['risks']
    for flags in (
        ('--dad-teacher-weights', '5', '1'),
        ('--dad-temperature', '1'),
        ('--dad-teacher-temperatures', '0.1', '9'),
    ):
        assert run(root, 'weighted', *several, *flags)['risks'] != found['risks'], flags
    one = run(root, 'one', '--dad-teacher', student)
    assert run(root, 'map', '--dad-teacher', student, '--dad-class-map', 'ROOT/map.txt')['risks'] != one['risks']
    checkpoint = ('--dad-teacher', 'timm:test_resnet', '--dad-teacher-checkpoint', 'ROOT/student.safetensors')
    assert run(root, 'checkpoint', *checkpoint)['risks'] == one['risks']
    assert run(root, 'size', '--dad-teacher', student, '--dad-teacher-img-size', '24')['risks'] != one['risks']


@pytest.mark.slow
def test_the_temperature_of_the_divergence(root, with_student):
    found = run(root, 'temperature', *STUDENT, '--dad-temperature', '1')
    assert found['risks']['clean']['divergence'] != with_student['risks']['clean']['divergence']


# Folders, classes, streams.

FOLDER = '--data-dir ROOT/data --dad-teacher timm:test_resnet/ROOT/small.safetensors --dad-vqgan demo --img-size 32'


def folder(root, text=FOLDER):
    return text.replace('ROOT', str(root)).split()


@pytest.fixture(scope='module')
def of_folders(root):
    return run(root, 'folder', '--ood', 'odd=ROOT/more', base=folder(root))


def test_folders_and_ood_data_of_the_same_classes(of_folders):
    assert of_folders['images']['odd'] == 6


def test_ood_data_with_other_classes(root, capsys):
    flags = [*folder(root), *SMALL, '--ood', f'odd={root}/ood', '--output', str(root / 'x')]
    assert "--ood odd must have classes of the data, but ['whale'] are not among them" in error(capsys, flags)


def test_a_class_map_gives_the_labels(root, of_folders):
    flags = ('--ood', 'odd=ROOT/more', '--num-classes', '4', '--class-map', 'ROOT/folders.txt')
    found = run(root, 'mapped', *flags, base=folder(root))
    assert found['risks']['clean'] != of_folders['risks']['clean']


def test_streams_have_no_index(root, capsys):
    flags = ['--dataset', 'wds/', '--data-dir', f'{root}/wds', '--split', 'train', '--num-classes', '4']
    rest = ['--ood', f'odd={root}/more', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--output', f'{root}/x']
    assert 'is a stream' in error(capsys, [*flags, *rest])


def test_keys_reach_timm(tmp_path, capsys):
    flags = [*DEMO, '--input-key', 'image2', '--target-key', 'label2', '--output', str(tmp_path)]
    assert '--input-key is for --dataset hfds/' in error(capsys, flags)
    args = parse_args([*flags, '--dataset', 'hfds/pictures'])
    assert (args.input_key, args.target_key) == ('image2', 'label2')


@pytest.mark.parametrize('flag', ['--dataset-download', '--dataset-trust-remote-code'])
def test_flags_of_data_sets_are_refused_elsewhere(flag, tmp_path, capsys):
    flags = [*DEMO, flag, '--output', str(tmp_path)]
    assert f'{flag} is for --dataset ' in error(capsys, flags)
    assert getattr(parse_args([*flags, '--dataset', 'hfds/pictures']), flag.strip('-').replace('-', '_'))


# A set made before.


@pytest.fixture(scope='module')
def dad_set(root):
    """A set of DAD views of 8 pictures; the flags that it was made with."""
    write_pictures(root / 'made', validation=2)
    write_pictures(root / 'shift', val=2)
    flags = '--dad-teacher demo --dad-vqgan demo --img-size 32 --batch-size 8 --dad-eps 2'.split()
    set_flags = f'--data-dir {root}/made --train-split validation --output {root}/set --workers 0 --device cpu'
    generate([*set_flags.split(), *flags])
    return flags


def test_the_views_of_a_set_are_those_that_are_made(root, dad_set):
    data = ('--data-dir', f'{root}/made', '--ood', f'odd={root}/shift')
    stored = run(root, 'stored', '--dad-dir', f'{root}/set', base=data)
    online = run(root, 'online', *dad_set, base=data)
    assert stored['codebook'] is None
    assert stored['settings']['dad_teacher'] == 'demo'
    assert stored['settings']['img_size'] == [32, 32]
    for name in ('clean', 'DAD', 'random crop', 'odd'):
        assert stored['risks'][name] == pytest.approx(online['risks'][name], rel=0.02), name
    assert stored['risks']['DAD']['teacher_loss'] != pytest.approx(stored['risks']['clean']['teacher_loss'], rel=0.02)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--img-size', '40'), '--img-size was fixed when the DAD set was made: leave it out'),
        (('--dad-eps', '1'), '--dad-eps was fixed when the DAD set was made'),
        (('--dad-vqgan', 'demo'), '--dad-vqgan is not used'),
        (('--data-dir', 'ROOT/data'), 'image 0 differs'),
        (('--dad-teacher', 'timm:test_resnet/ROOT/small.safetensors'), 'it was made with another teacher'),
    ],
)
def test_what_does_not_go_with_a_set(root, dad_set, capsys, flags, message):
    data = ['--data-dir', f'{root}/made', '--ood', f'odd={root}/shift', '--dad-dir', f'{root}/set']
    flags = [flag.replace('ROOT', str(root)) for flag in flags]
    assert message in error(capsys, [*data, *SMALL, '--output', str(root / 'x'), *flags])


# Bad input.


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--images 3', '--images must be 4 or more, got 3'),
        ('--img-size 0', '--img-size must be 1 or more, got 0'),
        ('--num-classes 1', '--num-classes must be 2 or more, got 1'),
        ('--num-classes 9', '--num-classes must be 16, as in the data, got 9'),
        ('--crop-pct 2', '--crop-pct: crop_pct must be more than 0'),
        ('--splits 0', '--splits: num_splits must be 1 or more, got 0'),
        ('--seed -1', '--seed must be 0 or more'),
        ('--workers -1', '--workers: workers must be 0 or more'),
        ('--batch-size 0', '--batch-size: batch_size must be 1 or more'),
        ('--dad-temperature 2', '--dad-temperature is for comparing --student'),
        ('--student demo --dad-temperature 0', '--dad-temperature: temperature must be positive'),
        ('--device tpu', "--device must be cuda or cpu, got 'tpu'"),
        ('--dad-eps -1', '--dad-eps'),
        ('--dad-micro-batch -1', '--dad-micro-batch'),
        ('--ood twemoji', "--ood must be NAME=PATH or demo/STYLE, got 'twemoji'"),
        ('--ood odd=/nowhere', '--ood odd=/nowhere'),
        ('--ood demo/twemoji demo/twemoji', '--ood: every set needs a name of its own'),
        ('--ood DAD=demo/twemoji', 'OOD sets need names other than'),
        ('--student probe:nothing', '--student'),
        ('--student timm:nothing', 'timm has no model'),
        ('--student open_clip', '--student'),
        ('--split train --dataset demo/twemoji', 'the demo has no train pictures of twemoji'),
        ('--dad-strict-size --img-size 33', 'image size must be a multiple of 4'),
        ('--dad-dir /nowhere', '--dad-dir: /nowhere contains no DAD set'),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, message):
    assert message in error(capsys, [*DEMO, *SMALL, '--output', str(tmp_path), *flags.split()])


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--ood demo/twemoji --dad-vqgan demo', '--data-dir must name a folder'),
        ('--dataset demo/noto --ood demo/twemoji --dad-teacher demo', '--dad-vqgan must name the weights of a VQGAN'),
        ('--dataset demo/noto --ood demo/twemoji --dad-vqgan demo', '--dad-teacher must be given'),
        ('--dataset demo/noto --dad-vqgan demo', 'the following arguments are required: --ood'),
    ],
)
def test_missing_flags(tmp_path, capsys, flags, message):
    assert message in error(capsys, [*flags.split(), *SMALL, '--output', str(tmp_path)])


def test_data_without_labels_is_refused(tmp_path, capsys):
    message = '--no-labels does not work here: data is compared class by class; leave it out'
    assert message in error(capsys, [*DEMO, '--no-labels', '--output', str(tmp_path)])


def test_the_output_is_a_folder(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert 'file is not a folder' in error(capsys, [*DEMO, '--output', str(tmp_path / 'file')])


def test_too_few_images(root, tmp_path, capsys):
    write_pictures(tmp_path / 'few', val=(1, 1, 1, 0))
    (tmp_path / 'few' / 'val' / 'tree').rmdir()
    flags = [*folder(root), *SMALL, '--ood', f'few={tmp_path}/few', '--output', str(tmp_path / 'x')]
    assert 'few must have 4 images or more, got 3' in error(capsys, flags)


def test_every_flag_is_tested():
    known = {
        *CHANGES,
        '--help',
        '--config',
        '--dad-teacher',
        '--dad-vqgan',
        '--dad-keep-label',
        '--dad-step-size',
        '--dad-strict-size',
        '--dad-compile',
    }
    source = open(__file__).read()
    flags = {flag for action in create_parser()._actions for flag in action.option_strings if flag.startswith('--')}
    assert {flag for flag in flags - known if f'{flag} ' not in source and f"'{flag}'" not in source} == set()
