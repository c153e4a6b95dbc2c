"""A DAD set made for other data, classes, size or teacher is an error that names the difference; flags of --dad-dir."""

import shutil

import pytest
import torch
from dad_sets import CLASSES, change_settings, write_dad_set, write_greys
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from timm_dad.dad_sets.match import check_data, check_decoder, check_student, check_teacher
from timm_dad.data.images import Source
from timm_dad.flags.dad import build_task, check_dad_args
from timm_dad.flags.pairs import open_dad_set, pair_dataset, uses_cache, uses_pairs
from timm_dad.flags.teacher import create_teacher
from timm_dad.flags.train import parse_args
from timm_dad.vqgan.model import VQGAN

DATA_CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic'}


def folder(root):
    return create_dataset('', str(root), split='train')


@pytest.fixture
def greys(tmp_path):
    return write_greys(tmp_path / 'data')


@pytest.fixture
def dad_set(tmp_path, greys):
    return write_dad_set(tmp_path / 'set', folder(greys))


# Data.


def test_the_data_that_it_was_made_of_passes(dad_set, greys):
    check_data(dad_set, Source(folder(greys)))
    dad_set.class_names = None
    dad_set.settings['data']['listing'] = None
    check_data(dad_set, Source(folder(greys)))


def test_data_moved_elsewhere_passes(dad_set, greys, tmp_path):
    shutil.move(greys, tmp_path / 'moved')
    check_data(dad_set, Source(folder(tmp_path / 'moved')))


def test_other_numbers_of_images_are_named(dad_set, greys):
    (greys / 'train' / 'cat' / '03.png').unlink()
    with pytest.raises(ValueError, match='it was made from 24 images, but the data set has 23: train on the split'):
        check_data(dad_set, Source(folder(greys)))


def test_the_first_class_that_differs_is_named(dad_set, greys):
    (greys / 'train' / 'fish').rename(greys / 'train' / 'duck')
    with pytest.raises(ValueError, match="class 2 is 'fish' there but 'duck' here; train on the data set"):
        check_data(dad_set, Source(folder(greys)))


def test_another_number_of_classes_is_named(dad_set, greys):
    (greys / 'train' / 'wolf').mkdir()
    (greys / 'train' / 'cat' / '00.png').rename(greys / 'train' / 'wolf' / '00.png')
    with pytest.raises(ValueError, match='it was made for 4 classes, but the data set has 5'):
        check_data(dad_set, Source(folder(greys)))


def test_an_image_that_was_changed_is_named(dad_set, greys):
    Image.new('RGB', (40, 36), (1, 2, 3)).save(greys / 'train' / 'dog' / '01.png')
    with pytest.raises(ValueError, match=r'image 7 differs: source_sha256 [0-9a-f]{64} there, [0-9a-f]{64} here'):
        check_data(dad_set, Source(folder(greys)))


def test_a_label_that_was_changed_is_named(dad_set, greys):
    source = Source(folder(greys))
    source.reader.samples[9] = (source.reader.samples[9][0], 0)
    with pytest.raises(ValueError, match='image 9 differs: label 1 there, 0 here'):
        check_data(dad_set, source)


def test_an_image_that_was_renamed_is_named(dad_set, greys):
    (greys / 'train' / 'tree' / '05.png').rename(greys / 'train' / 'tree' / 'z.png')
    with pytest.raises(ValueError, match='image 23 differs: name tree/05 there, tree/z here'):
        check_data(dad_set, Source(folder(greys)))


def test_a_list_of_files_that_differs_beside_the_images_compared_is_an_error(dad_set, greys):
    dad_set.settings['data']['listing'] = '0' * 64
    with pytest.raises(ValueError, match='names or labels of the images have changed since it was made'):
        check_data(dad_set, Source(folder(greys)))


class Stream(IterableDataset):
    transform = None

    def __iter__(self):
        return iter(())


def test_a_set_of_files_is_not_one_of_a_stream(dad_set):
    with pytest.raises(
        ValueError, match='it identifies images by their file, but this kind of data set by their pixels'
    ):
        check_data(dad_set, Source(Stream()))


def test_a_damaged_manifest_is_named(dad_set, greys):
    (dad_set.root / 'manifest' / '000002.jsonl').unlink()
    with pytest.raises(ValueError, match=r'000002\.jsonl is damaged .*: restore it with timm-dad generate --repair'):
        check_data(dad_set, Source(folder(greys)))


# Student.


def test_classes_and_size_of_the_student(dad_set):
    check_student(dad_set, 4, (32, 32))
    with pytest.raises(ValueError, match='it was made for 4 classes, but the student has 10: set --num-classes, or'):
        check_student(dad_set, 10, (32, 32))
    with pytest.raises(ValueError, match='its views are 32 x 32, but the student takes 64 x 48: set --img-size 32, or'):
        check_student(dad_set, 4, (64, 48))
    dad_set.size = (32, 48)
    with pytest.raises(
        ValueError, match=r'views are 32 x 48, .* takes 32 x 32: set --input-size 3 32 48, or make a set'
    ):
        check_student(dad_set, 4, (32, 32))


# Teacher and VQGAN.


def test_another_teacher_is_an_error_that_says_what_the_set_was_made_with(greys, tmp_path, teacher):
    flags = {'dad_teacher': ['demo', 'timm:test_vit'], 'dad_templates': 'words.txt'}
    made = write_dad_set(tmp_path / 'set', folder(greys), teacher=teacher, teacher_flags=flags)
    check_teacher(made, teacher)
    with torch.no_grad():
        next(teacher.model.parameters()).add_(1)
    match = r'another teacher: --dad-teacher demo timm:test_vit --dad-templates words\.txt, with its files at that time'
    with pytest.raises(ValueError, match=match):
        check_teacher(made, teacher)
    made.settings['teacher']['flags'] = {}
    with pytest.raises(ValueError, match='another teacher: the default one, with its files at that time'):
        check_teacher(made, teacher)


def test_another_vqgan_is_an_error(greys, tmp_path, vqgan, vqgan_config):
    codes = torch.zeros(16, 16, dtype=torch.int64)
    made = write_dad_set(tmp_path / 'set', folder(greys), format='codes', vqgan=vqgan, vqgan_spec='x.safetensors',
                         pixels=lambda *_: codes)  # fmt: skip
    check_decoder(made, vqgan)
    with pytest.raises(ValueError, match=r'its codes come from another VQGAN: give the original x\.safetensors'):
        check_decoder(made, VQGAN(vqgan_config))


# Flags.


def parse(*flags):
    return parse_args(['--data-dir', 'x', '--num-classes', '4', '--img-size', '32', '--dad', *flags])


def error_of(capsys, *flags):
    with pytest.raises(SystemExit):
        parse(*flags)
    return capsys.readouterr().err.splitlines()[-1]


def logits(image, views):
    return torch.randn(1 + len(views), 4)


STORED = ('--dad-stored-logits', '--no-aug')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--dad-eps', '0.2'), '--dad-eps was fixed when the DAD set was made: leave it out, or make another set'),
        (('--dad-strict-size',), '--dad-strict-size was fixed when the DAD set was made'),
        (('--dad-keep-label',), '--dad-keep-label was fixed when the DAD set was made'),
        (('--dad-eps-sched', 'linear'), '--dad-eps-sched was fixed when the DAD set was made'),
        (('--dad-num-steps', '3'), '--dad-num-steps was fixed when the DAD set was made'),
        (('--dad-norm', 'linf'), '--dad-norm was fixed when the DAD set was made'),
        (('--dad-vqgan', 'demo'), '--dad-vqgan is not used: '),
        (('--dad-cache', '2'), '--dad-cache makes DAD views, which --dad-dir already provides: give only one of them'),
        (('--dad-view', 'random'), '--dad-dir provides DAD views: leave either --dad-view random or --dad-dir out'),
        (('--aug-splits', '2', '--resplit'), '--resplit counts only the splits of --aug-splits'),
        ((*STORED, '--dad-temperature', '2'), '--dad-temperature must be that of the stored logits, 4.0, got 2.0'),
        (
            ('--dad-stored-logits',),
            '--dad-stored-logits are for unaugmented pictures: add --no-aug, or reinforce the set',
        ),
        ((*STORED, '--mixup', '0.5'), 'for unaugmented pictures: leave --mixup out'),
        ((*STORED, '--cutmix', '0.5'), 'for unaugmented pictures: leave --cutmix out'),
        ((*STORED, '--cutmix-minmax', '0.2', '0.8'), 'for unaugmented pictures: leave --cutmix-minmax out'),
        ((*STORED, '--reprob', '0.5'), 'for unaugmented pictures: leave --reprob out'),
        ((*STORED, '--aug-splits', '2'), 'for unaugmented pictures: leave --aug-splits out'),
        ((*STORED, '--dad-teacher', 'demo'), '--dad-teacher is about the teacher, but --dad-stored-logits loads none'),
        ((*STORED, '--dad-teacher-temperatures', '1', '2'), '--dad-teacher-temperatures is about the teacher, but'),
        ((*STORED, '--dad-teacher-img-size', '64'), '--dad-teacher-img-size is about the teacher, but'),
        ((*STORED, '--dad-precision', 'bf16'), '--dad-precision is about the teacher, but --dad-stored-logits loads'),
    ],
)
def test_flags_that_do_not_go_with_a_set(greys, tmp_path, capsys, flags, message):
    write_dad_set(tmp_path / 'set', folder(greys), logits=logits)
    assert message in error_of(capsys, '--dad-dir', str(tmp_path / 'set'), *flags)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--dad-same-crop', '--dad-vqgan', 'demo'), '--dad-same-crop is for DAD views made before training'),
        (('--dad-same-crop', '--dad-view', 'random'), '--dad-same-crop is for DAD views made before training'),
        (('--dad-stored-logits', '--dad-vqgan', 'demo'), '--dad-stored-logits needs --dad-dir'),
        (('--dad-dir', 'nowhere'), '--dad-dir: nowhere contains no DAD set'),
    ],
)
def test_flags_that_need_a_set(capsys, flags, message):
    assert message in error_of(capsys, '--dad-teacher', 'demo', *flags)


def test_logits_that_are_not_there(dad_set, capsys):
    message = error_of(capsys, '--dad-dir', str(dad_set.root), *STORED)
    assert (
        f'--dad-stored-logits: {dad_set.root} has none; make a set with timm-dad generate --dad-store-logits' in message
    )


def test_a_set_takes_the_place_of_a_cache_that_a_config_names(dad_set):
    args = parse('--dad-dir', str(dad_set.root), '--dad-teacher', 'demo')
    args.dad_cache, args.dad_vqgan, args.dad_eps_sched = 4, 'demo', 'linear'
    check_dad_args(args, {'dad_dir': args.dad_dir})
    assert uses_pairs(args)
    assert not uses_cache(args)


def test_the_teachers_flags_are_the_sets_where_they_are_left_out(greys, tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join(CLASSES))
    names = str(tmp_path / 'names.txt')
    write_dad_set(tmp_path / 'set', folder(greys), teacher_flags={'dad_teacher': 'demo', 'dad_classnames': names})
    args = parse('--dad-dir', str(tmp_path / 'set'))
    assert (args.dad_teacher, args.dad_classnames, args.dad_templates) == ('demo', names, None)
    (tmp_path / 'moved.txt').write_text('\n'.join(CLASSES))
    args = parse('--dad-dir', str(tmp_path / 'set'), '--dad-classnames', str(tmp_path / 'moved.txt'))
    assert (args.dad_teacher, args.dad_classnames) == ('demo', str(tmp_path / 'moved.txt'))
    args = parse('--dad-dir', str(tmp_path / 'set'), '--dad-teacher', 'timm:test_vit')
    assert (args.dad_teacher, args.dad_classnames) == ('timm:test_vit', None)


def demo_teacher(greys):
    args = parse('--dad-teacher', 'demo', '--dad-vqgan', 'demo')
    return create_teacher(args, 4, Source(folder(greys)).class_names)


def build(args, student, greys):
    dad_set = open_dad_set(args, (32, 32))
    return build_task(args, student, DATA_CONFIG, CLASSES, dad_set=dad_set, device=torch.device('cpu'))


def test_a_task_of_a_set_has_its_teacher_and_no_vqgan(greys, tmp_path, student, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError('a VQGAN was loaded')

    monkeypatch.setattr('timm_dad.flags.dad.create_vqgan', never)
    monkeypatch.setattr('timm_dad.flags.pairs.load_vqgan', never)
    flags = {'dad_teacher': 'demo'}
    write_dad_set(tmp_path / 'set', folder(greys), teacher=demo_teacher(greys), teacher_flags=flags)
    task, augment = build(parse('--dad-dir', str(tmp_path / 'set')), student, greys)
    assert augment is task.augment is task.vqgan is None
    assert task.teacher.num_classes == 4
    (tmp_path / 'templates.txt').write_text('only a {}')
    other = parse('--dad-dir', str(tmp_path / 'set'), '--dad-templates', str(tmp_path / 'templates.txt'))
    match = r'--dad-dir .*set: it was made with another teacher: --dad-teacher demo, with'
    with pytest.raises(ValueError, match=match):
        build(other, student, greys)


def test_no_teacher_is_loaded_for_stored_logits(greys, tmp_path, student, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError('a teacher was loaded')

    monkeypatch.setattr('timm_dad.flags.dad.create_teacher', never)
    monkeypatch.setattr('timm_dad.flags.runs.create_teacher_by_spec', never)
    write_dad_set(tmp_path / 'set', folder(greys), logits=logits)
    task, augment = build(parse('--dad-dir', str(tmp_path / 'set'), *STORED), student, greys)
    assert augment is task.teacher is None
    assert task.stored.num_classes == 4


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data__num_classes': 5}, r'--dad-dir .*set: it was made for 5 classes, but the student has 4'),
        ({'views__size': [48, 48]}, r'--dad-dir .*set: its views are 48 x 48, but the student takes 32 x 32'),
    ],
)
def test_a_set_for_another_student_is_refused(dad_set, changes, message):
    change_settings(dad_set.root, **changes)
    with pytest.raises(ValueError, match=message):
        open_dad_set(parse('--dad-dir', str(dad_set.root), '--dad-teacher', 'demo'), (32, 32))


def test_a_set_that_is_not_finished_is_refused(dad_set):
    (dad_set.root / 'index.json').unlink()
    with pytest.raises(ValueError, match=r'--dad-dir .*is not finished: start the same timm-dad generate again'):
        open_dad_set(parse('--dad-dir', str(dad_set.root), '--dad-teacher', 'demo'), (32, 32))


def test_a_set_of_other_data_is_refused(dad_set, greys):
    args = parse('--dad-dir', str(dad_set.root), '--dad-teacher', 'demo')
    (greys / 'train' / 'cat' / '03.png').unlink()
    with pytest.raises(ValueError, match=r'--dad-dir .*set: it was made from 24 images, but the data set has 23'):
        pair_dataset(args, folder(greys), DATA_CONFIG, dad_set=open_dad_set(args, (32, 32)))


def test_the_vqgan_of_codes_is_the_sets_or_the_flags(greys, tmp_path, vqgan, vqgan_config, monkeypatch):
    loaded = []

    def load_vqgan(spec, strict_size):
        loaded.append(spec)
        return VQGAN(vqgan_config) if spec == 'other' else vqgan

    monkeypatch.setattr('timm_dad.flags.pairs.load_vqgan', load_vqgan)
    codes = torch.zeros(16, 16, dtype=torch.int64)
    write_dad_set(tmp_path / 'set', folder(greys), format='codes', vqgan=vqgan, vqgan_spec='there',
                  pixels=lambda *_: codes)  # fmt: skip
    flags = ('--dad-dir', str(tmp_path / 'set'), '--dad-teacher', 'demo')
    dad_set = open_dad_set(parse(*flags), (32, 32))
    assert dad_set.decoder is vqgan
    assert not any(parameter.requires_grad for parameter in vqgan.parameters())
    open_dad_set(parse(*flags, '--dad-vqgan', 'here'), (32, 32))
    assert loaded == ['there', 'here']
    with pytest.raises(ValueError, match=r'--dad-dir .*: its codes come from another VQGAN: give the original there'):
        open_dad_set(parse(*flags, '--dad-vqgan', 'other'), (32, 32))


def test_without_a_set_there_is_none(dad_set):
    assert open_dad_set(parse('--dad-teacher', 'demo', '--dad-vqgan', 'demo'), (32, 32)) is None
