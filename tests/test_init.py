import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from folders import CLASSES, write_pictures
from pages import run_commands
from PIL import ExifTags, Image

from timm_dad.commands import generate, init, init_measure, init_proposal, preview
from timm_dad.commands import info as info_command
from timm_dad.commands.init_measure import Seconds
from timm_dad.commands.init_proposal import Data, Machine, config_text, propose
from timm_dad.common.cache import cache_dir
from timm_dad.data.held_out import hold_out
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.diagnosis import command as diagnose
from timm_dad.evaluation import args as evaluate
from timm_dad.flags import train
from timm_dad.teachers.spec import DEFAULT_TEACHER
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan_training import args as vqgan

SECOND = Seconds(student=1, teacher=1, view=1, vqgan=1)
MACHINE = Machine(cores=2, memory=8, gpu='', missing=frozenset(), cached=False, offline='none here')
DATA = Data(
    flags={'data_dir': 'photos'}, name='photos', train_split='train', val_split='val', num_classes=3,
    suite='val=photos/val', named=True, spoken=True, streams=False, count=120, side=300,
)  # fmt: skip
PARSERS = {
    'train': train.parse_args,
    'info': lambda argv: train.parse_args(argv, create_parser=info_command.create_parser),
    'vqgan': vqgan.parse_args,
    'generate': generate.parse_args,
    'preview': preview.parse_args,
    'evaluate': evaluate.parse_args,
    'diagnose': diagnose.parse_args,
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory, of a machine without network or GPU, where nothing is measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init_proposal, '_why_offline', lambda: 'none here')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(init, 'measure', lambda *_: SECOND)
    return tmp_path


def parse(command):
    """What a command line of ``timm-dad`` asks for."""
    _, name, *flags = shlex.split(command, comments=True)
    return PARSERS[name](flags)


def printed_commands(text):
    return [line.strip() for line in text.partition('Next:\n')[2].splitlines()]


def test_all_commands_take_the_file(work, capsys):
    write_pictures(work / 'photos', train=8, val=2)
    init.main(['photos'])
    out = capsys.readouterr().out
    commands = printed_commands(out)
    assert out.count(', to train first\n') == 2
    assert [line.partition(' #')[0].rstrip() for line in commands] == [
        'timm-dad train --config dad.yaml --no-dad --experiment teacher',
        'timm-dad vqgan train --config dad.yaml',
        'timm-dad preview --config dad.yaml',
        'timm-dad train --config dad.yaml',
        'timm-dad evaluate --config dad.yaml',
    ]
    teacher, of_vqgan, seen, student, evaluated = map(parse, commands)
    assert (teacher.dad, teacher.output, teacher.experiment) == (False, 'output/photos', 'teacher')
    assert (student.dad, student.experiment, student.dad_cache, student.val_split) == (True, 'student', 2, 'val')
    assert (of_vqgan.init, of_vqgan.val_split, of_vqgan.steps) == ('demo', 'val', 100)
    assert seen.split == 'val'
    assert evaluated.model == ['student=run:output/photos/student', 'teacher=run:output/photos/teacher']
    assert (evaluated.suite, evaluated.corrupt) == (['val=photos/val'], [])
    others = [parse(f'timm-dad {name} --config dad.yaml') for name in ('info', 'generate', 'diagnose')]
    for args in (student, seen, *others):
        assert (args.dad_teacher, args.dad_attack) == ('run:output/photos/teacher', 'latent')
        assert args.dad_vqgan == of_vqgan.output + '/best.safetensors'
    for args in (teacher, student, of_vqgan, seen, *others):
        assert (args.data_dir, args.img_size) == ('photos', 32)
    assert others[1].split == others[2].split == 'train'


def test_times_are_of_all_steps():
    proposal = replace(propose(MACHINE, DATA), epochs=10, views=2, vqgan_steps=5)
    seconds = Seconds(student=1, teacher=2, view=3, vqgan=4)
    times = {'teacher': 10 * 120 * 1, 'vqgan': 5 * 16 * 4, 'student': 2 * 120 * 3 + 10 * 120 * (2 * 1 + 2 * 2)}
    assert seconds.of_steps(proposal, 120) == times
    online = replace(proposal, views=0)
    assert seconds.of_steps(online, 120)['student'] == 10 * 120 * 3 + 10 * 120 * (2 * 1 + 2 * 2)
    assert [init._about(value) for value in (None, 5, 600, 9000)] == [
        '', ', about 1 min', ', about 10 min', ', about 2 h'
    ]  # fmt: skip


def test_measured_seconds_are_those_of_the_networks():
    seconds = init_measure.measure(
        replace(propose(MACHINE, DATA), model='test_resnet', img_size=32), 3, torch.device('cpu')
    )
    assert 0 < seconds.teacher < seconds.view
    assert seconds.teacher < seconds.student
    assert seconds.vqgan > 0
    assert load_vqgan(DEMO_VQGAN).config.factor == init._FACTOR


GPU = {'gpu': 'a GPU, 80 GB'}


@pytest.mark.parametrize(
    ('machine', 'data', 'teacher', 'vqgan_spec', 'img_size', 'pretrained'),
    [
        ({}, {}, 'run:output/photos/teacher', 'output/photos/vqgan/best.safetensors', 64, False),
        ({'cached': True, 'offline': ''}, {}, 'run:output/photos/teacher', 'output/photos/vqgan/best.safetensors', 64,
         False),
        (GPU, {}, 'run:output/photos/teacher', 'output/photos/vqgan/best.safetensors', 128, False),
        ({**GPU, 'cached': True}, {}, DEFAULT_TEACHER, init_proposal.PUBLIC_VQGAN, 224, False),
        ({**GPU, 'offline': ''}, {}, DEFAULT_TEACHER, init_proposal.PUBLIC_VQGAN, 224, True),
        ({**GPU, 'offline': '', 'missing': frozenset({'clip'})}, {}, 'run:output/photos/teacher',
         'output/photos/vqgan/best.safetensors', 128, False),
        ({**GPU, 'offline': ''}, {'spoken': False}, 'run:output/photos/teacher',
         'output/photos/vqgan/best.safetensors', 128, False),
        ({}, {'side': 50}, 'run:output/photos/teacher', 'output/photos/vqgan/best.safetensors', 48, False),
        ({}, {'side': 20}, 'run:output/photos/teacher', 'output/photos/vqgan/best.safetensors', 32, False),
        ({}, {'streams': True}, 'run:output/photos/teacher', 'demo', 64, False),
    ],
)  # fmt: skip
def test_a_proposal_is_of_machine_and_data(machine, data, teacher, vqgan_spec, img_size, pretrained):
    proposal = propose(replace(MACHINE, **machine), replace(DATA, **data))
    assert (proposal.teacher, proposal.vqgan, proposal.img_size) == (teacher, vqgan_spec, img_size)
    assert proposal.pretrained is pretrained


def test_what_is_given_goes_before_the_machine():
    given = propose(MACHINE, DATA, 'timm:resnet50', 'demo', 96)
    assert (given.teacher, given.vqgan, given.img_size) == ('timm:resnet50', 'demo', 96)
    assert not given.missing()
    assert len(propose(MACHINE, DATA).missing()) == 2


@pytest.mark.parametrize(
    ('count', 'memory', 'batch_size', 'steps'), [(120, 8, 32, 100), (40, 8, 16, 100), (1600, 2, 16, 1000)]
)
def test_batch_and_steps_are_of_data_and_memory(count, memory, batch_size, steps):
    proposal = propose(replace(MACHINE, memory=memory), replace(DATA, count=count))
    assert (proposal.batch_size, proposal.vqgan_steps) == (batch_size, steps)


def test_views_that_would_fill_the_disk_are_not_kept():
    assert propose(MACHINE, DATA).views == 2
    assert propose(MACHINE, replace(DATA, count=10**10)).views == 0
    assert propose(MACHINE, replace(DATA, streams=True)).views == 0


@pytest.mark.parametrize('name', ['a b', 'a: #b', "o'hara", 'été', '[x]', '- y', 'yes', '5', 'a\nb', 'x' * 200])
def test_any_name_is_one_line_of_yaml(name):
    flags = {'data_dir': f'{name}/photos', 'class_map': name}
    text = config_text(propose(MACHINE, DATA), replace(DATA, flags=flags, suite=f'val={name}'), MACHINE, ['x'])
    content = yaml.safe_load(text)
    assert content['evaluate']['suite'] == [f'val={name}']
    found = content['train, info, generate, preview, diagnose, vqgan train']
    assert {key: found[key] for key in flags} == flags


def test_a_missing_extra_is_installed_first_and_not_asked_for():
    machine = replace(MACHINE, missing=frozenset({'vqgan', 'eval'}))
    proposal = propose(machine, DATA)
    commands = init.next_commands('dad.yaml', DATA, machine, proposal, seen=False, times={})
    assert commands[0][0] == "pip install 'timm-dad[vqgan]'"
    assert 'timm-dad info --config dad.yaml' in dict(commands)
    assert 'corrupt' not in yaml.safe_load(config_text(proposal, DATA, machine, []))['evaluate']


def test_the_cache_of_the_hub_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(init_proposal.constants, 'HF_HUB_CACHE', str(tmp_path))
    assert not init_proposal._is_cached('ada/lace/movq')
    folder = tmp_path / 'models--ada--lace' / 'snapshots' / 'abc'
    (folder / 'movq').mkdir(parents=True)
    (folder / 'model.safetensors').touch()
    assert init_proposal._is_cached('ada/lace')
    assert not init_proposal._is_cached('ada/lace/movq')
    (folder / 'movq' / 'weights.bin').touch()
    assert init_proposal._is_cached('ada/lace/movq')


@pytest.mark.parametrize(('offline', 'says'), [(True, 'HF_HUB_OFFLINE is set'), (False, 'the hub cannot be reached: ')])
def test_it_says_why_nothing_can_be_downloaded(offline, says, monkeypatch):
    monkeypatch.setattr(init_proposal.constants, 'HF_HUB_OFFLINE', offline)
    monkeypatch.setattr(init_proposal.constants, 'ENDPOINT', 'http://127.0.0.1:9')  # the port that discards
    assert init_proposal._why_offline().startswith(says)


def test_a_flat_folder_is_split_by_links(work, capsys):
    write_pictures(work, photos=(10, 1, 4, 10))
    (work / 'photos' / 'empty').mkdir()
    init.main(['photos'])
    out = capsys.readouterr().out
    assert 'every fifth picture of a class is held out, as links in photos-split' in out
    assert 'odd: train: folders without pictures, which do not count as classes: empty' in out
    splits = {split: links(work / 'photos-split' / split) for split in ('train', 'val')}
    assert {split: [len(names) for names in of.values()] for split, of in splits.items()} == {
        'train': [8, 1, 3, 8], 'val': [2, 1, 1, 2],
    }  # fmt: skip
    assert not splits['train']['cat'] & splits['val']['cat']
    args = parse('timm-dad train --config dad.yaml')
    assert (args.data_dir, args.train_split, args.val_split) == ('photos-split', 'train', 'val')
    Image.new('RGB', (40, 40)).save(work / 'photos' / 'cat' / 'new.png')
    init.main(['photos', '--force'])
    again = {split: links(work / 'photos-split' / split) for split in ('train', 'val')}
    assert again['val']['tree'] == splits['val']['tree']
    assert len(again['train']['cat'] | again['val']['cat']) == 11


def links(root):
    """Names of the links to pictures, by class; all are there."""
    assert all(path.is_symlink() and path.is_file() for path in root.glob('*/*'))
    return {name: {path.name for path in (root / name).iterdir()} for name in CLASSES}


@pytest.mark.parametrize('link', [False, True])
def test_only_its_own_links_are_replaced(tmp_path, link):
    write_pictures(tmp_path, photos=2)
    hold_out(tmp_path / 'photos', tmp_path / 'split')
    kept = tmp_path / 'split' / 'train' / 'cat' / 'mine.png'
    kept.symlink_to(tmp_path) if link else kept.touch()
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match=r'mine\.png is not a link into .*photos: move it away'):
        hold_out(tmp_path / 'photos', tmp_path / 'split')
    assert sorted(tmp_path.rglob('*')) == before


def test_links_are_its_own_however_the_folder_is_written(work):
    write_pictures(work, photos=5)
    hold_out(Path('..') / work.name / 'photos', Path('split'))
    first = links(work / 'split' / 'train')
    hold_out(work / 'photos', work / 'split')
    assert links(work / 'split' / 'train') == first


def test_links_are_not_written_among_the_pictures(work, monkeypatch, capsys):
    write_pictures(work, photos=5)
    before = sorted(work.rglob('*'))
    monkeypatch.chdir(work / 'photos')
    with pytest.raises(SystemExit):
        init.main(['.'])
    assert 'start in another folder, or give --output in one' in capsys.readouterr().err
    assert sorted(work.rglob('*')) == before


def test_pictures_in_folders_of_a_class_are_not_dropped(work, capsys):
    write_pictures(work, photos=5)
    (work / 'photos' / 'cat' / 'more').mkdir()
    Image.new('RGB', (36, 36)).save(work / 'photos' / 'cat' / 'more' / '0.png')
    with pytest.raises(SystemExit):
        init.main(['photos'])
    assert 'but in cat there are some in sub-folders: move them up, or make the splits' in capsys.readouterr().err
    assert not (work / 'photos-split').exists()


def test_the_map_of_classes_is_found_in_a_flat_folder(work, capsys):
    write_pictures(work, photos=(5, 5, 5, 5))
    (work / 'photos' / 'map.txt').write_text('\n'.join(reversed(CLASSES)))
    init.main(['photos', '--class-map', 'map.txt'])
    assert parse('timm-dad train --config dad.yaml').class_map == 'photos/map.txt'


def test_models_of_other_data_with_the_same_name_are_refused(work, capsys):
    for folder in ('a', 'b'):
        write_pictures(work / folder / 'pics', train=4, val=1)
    teacher = work / 'output' / 'pics' / 'teacher'
    teacher.mkdir(parents=True)
    (teacher / 'args.yaml').write_text('data_dir: a/pics')
    init.main(['a/pics'])
    with pytest.raises(SystemExit) as raised:
        init.main(['b/pics', '--output', 'b.yaml'])
    assert raised.value.code == 2
    assert 'output/pics/teacher was trained on ' in capsys.readouterr().err
    assert not (work / 'b.yaml').exists()


def test_the_vqgan_takes_few_pictures(work, capsys):
    write_pictures(work / 'photos', train=2, val=1)
    init.main(['photos'])
    assert parse('timm-dad vqgan train --config dad.yaml').batch_size == 2 * len(CLASSES)


@pytest.mark.parametrize(
    ('folders', 'data_dir', 'splits'),
    [
        (('train', 'val'), 'photos', ('train', 'val')),
        (('training', 'valid'), 'photos', ('training', 'valid')),
        (('train', 'test'), 'photos', ('train', 'test')),
        (('train', 'val', 'test'), 'photos', ('train', 'val')),
        (('train',), 'photos-split', ('train', 'val')),
    ],
)
def test_the_splits_that_are_there_are_found(work, folders, data_dir, splits):
    write_pictures(work / 'photos', **dict.fromkeys(folders, 2))
    init.main(['photos'])
    args = parse('timm-dad train --config dad.yaml')
    assert (args.data_dir, args.train_split, args.val_split) == (data_dir, *splits)


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_it_says_what_is_odd_and_what_to_mend(work, capsys):
    write_pictures(work / 'photos', train=(22, 1, 2, 0), val=(2, 2, 0, 1))
    train_folder = work / 'photos' / 'train'
    for name, mode in (('0.png', 'L'), ('1.png', 'RGBA')):
        Image.new(mode, (12, 50)).save(train_folder / 'cat' / name)
    (train_folder / 'fish' / '0.png').write_bytes(b'no picture')
    Image.new('RGB', (36, 36)).save(train_folder / 'cat' / '2.png', exif=turned(6))
    for name, orientation in (('3.png', 1), ('4.png', 0)):  # upright; unknown, as some cameras write
        Image.new('RGB', (36, 36)).save(train_folder / 'cat' / name, exif=turned(orientation))
    init.main(['photos', '--img-size', '32'])
    out = capsys.readouterr().out
    assert 'train: 25 pictures in 3 classes, 1 to 22 a class; shorter side 12 to 36 px, median 36;' in out
    assert 'odd: train: folders without pictures, which do not count as classes: tree' in out
    assert 'odd: train: classes with only one picture: dog' in out
    assert 'odd: train: classes of very unequal size: cat has 22 pictures, dog 1' in out
    assert 'odd: train: not all pictures are RGB (all are converted, without transparency): RGB 22, L 1, RGBA 1' in out
    assert 'odd: train: 1 of 24 pictures are stored turned, as their EXIF data say; timm ignores that' in out
    assert 'odd: train: 2 of 24 pictures have a side below 32 px, and are enlarged' in out
    assert 'To mend before training: 1 of 25 pictures of train do not decode: repair or remove them:' in out
    assert 'fish/0.png (cannot identify image file' in out
    assert 'same classes: tree only in val; fish only in train' in out
    assert 'Then run again: timm-dad init photos --img-size 32 --force\n' in out
    content = yaml.safe_load(Path('dad.yaml').read_text())
    assert content['train, info']['val_split'] == 'val'


def test_pictures_that_timm_reads_otherwise_are_told(work, capsys):
    write_pictures(work / 'photos', train=3, val=2)
    folder = work / 'photos' / 'train'
    (folder / 'nested' / 'cat').mkdir(parents=True)
    Image.new('RGB', (36, 36)).save(folder / 'nested' / 'cat' / '9.png')
    for name in ('5.webp', '6.webp', '7.bmp'):
        Image.new('RGB', (36, 36)).save(folder / 'dog' / name)
    init.main(['photos'])
    out = capsys.readouterr().out
    assert 'cat 4' in out
    assert 'odd: train: pictures in sub-folders, whose class is the innermost folder: nested\n' in out
    assert 'odd: train: pictures that timm does not read (convert them to .png or .jpg): 1 .bmp, 2 .webp\n' in out
    assert 'folders without pictures' not in out


def test_teacher_and_vqgan_that_are_there_are_looked_at(work, capsys, monkeypatch):
    monkeypatch.setattr(init, '_LOOK', 4)
    monkeypatch.setattr(preview, '_DEFAULT_IMAGES', 1)
    flags = ['--dataset', 'demo/noto', '--dad-teacher', 'demo', '--dad-vqgan', 'demo']
    init.main(flags)
    out = capsys.readouterr().out
    assert 'Check: DAD on 4 pictures: teacher right on x 100%' in out
    assert (work / 'output' / 'noto' / 'preview' / 'preview.png').is_file()
    assert [line.split()[1] for line in printed_commands(out)] == ['train', 'evaluate']
    assert parse('timm-dad vqgan train --config dad.yaml').dataset == 'demo/noto'


def test_what_must_be_mended_is_not_looked_at(work, capsys):
    write_pictures(work / 'photos', train=2, val=(2, 2, 2, 0))
    init.main(['photos', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--img-size', '32'])
    assert 'timm-dad preview' in capsys.readouterr().out
    assert not (work / 'output').exists()


def test_classes_that_are_numbers_or_of_a_map_are_taken(work, capsys):
    write_pictures(work / 'photos', train=2, val=2)
    (work / 'map.txt').write_text('tree\ndog\nfish\ncat\n')
    init.main(['photos', '--class-map', 'map.txt'])
    assert 'folders without pictures' not in capsys.readouterr().out
    assert parse('timm-dad train --config dad.yaml').class_map == 'map.txt'
    for split in ('train', 'val'):
        for number, name in enumerate(CLASSES):
            (work / 'photos' / split / name).rename(work / 'photos' / split / str(number))
    args = init.create_parser().parse_args(['--data-dir', 'photos'])
    args.train_split, args.val_split = 'train', 'val'
    data, _ = init.look_at_data(args, work / 'photos' / 'train')
    assert (data.named, data.spoken) == (True, False)


def test_a_data_set_of_datasets_is_looked_at(work, capsys):
    pytest.importorskip('datasets')
    write_pictures(work / 'pictures', train=3, validation=2)
    init.main(['--dataset', 'hfds/pictures', '--data-dir', str(cache_dir() / 'hfds')])
    assert 'train: 12 pictures in 4 classes, 3 a class' in capsys.readouterr().out
    assert parse('timm-dad train --config dad.yaml').dataset == 'hfds/pictures'
    (suite,) = parse('timm-dad evaluate --config dad.yaml').suite
    assert suite.startswith('val=hfds/pictures,root=')


@pytest.mark.slow
def test_the_commands_of_the_page_run(work, monkeypatch, capsys):
    monkeypatch.setattr(init_proposal, '_EPOCHS', 1)
    monkeypatch.setattr(init_proposal, '_VQGAN_STEPS', (2, 2))
    write_pictures(work / 'photos', train=6, val=4)
    assert run_commands('init') == 9
    out = capsys.readouterr().out
    assert 'Check: DAD on 24 pictures' in out
    assert out.count('to train first') == 2  # of the first look alone
    made = {path.name for path in (work / 'output' / 'photos').iterdir()}
    assert made == {'teacher', 'vqgan', 'preview', 'student', 'evaluate', 'views', 'diagnose'}
