"""SPECs of ``--dad-teacher``, the flags about it, and what real files of timm and open_clip become."""

import argparse
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from clips import MEAN, STD, add_clip_name, clip_config, normalize, write_clip_folder
from timm.data import ImageNetInfo

from timm_dad.flags import teacher as teacher_args
from timm_dad.flags.dad import add_dad_args
from timm_dad.flags.teacher import check_teacher_args, create_teacher
from timm_dad.teachers import spec as teachers
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.spec import DEFAULT_TEACHER, FINE_TUNED_TEACHER, DataClasses, create_teacher_by_spec
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher
from timm_dad.teachers.zero_shot import ZeroShotClassifier

NAMES = ['dog', 'red car', 'tree']
WNIDS = list(ImageNetInfo().label_names())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))


def parse(*flags):
    parser = argparse.ArgumentParser()
    add_dad_args(parser)
    parser.add_argument('--num-classes', type=int)
    args = parser.parse_args(['--dad', *flags])
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    return args, given


def parsed(*flags):
    return parse(*flags)[0]


@pytest.fixture
def clip(tmp_path):
    write_clip_folder(tmp_path / 'clip')
    return f'open_clip:local-dir:{tmp_path / "clip"}'


@pytest.fixture
def checkpoint(tmp_path):
    """A file with weights of test_resnet with ImageNet's 1000 outputs, and the model."""
    model = timm.create_model('test_resnet', zero_init_last=False).eval()
    torch.nn.init.normal_(model.get_classifier().weight, std=5.0)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'resnet.pth')
    return tmp_path / 'resnet.pth', model


def expected_logits(model, x_pix):
    cfg = model.pretrained_cfg
    x_pix = F.interpolate(x_pix, cfg['input_size'][1:], mode=cfg['interpolation'], antialias=True).clamp(0, 1)
    with torch.no_grad():
        return model(normalize(x_pix, cfg['mean'], cfg['std']))


# Size, normalization and interpolation.


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_an_open_clip_teacher_is_resized_as_its_config_says(tmp_path, interpolation):
    model = write_clip_folder(tmp_path / 'clip', preprocess={'interpolation': interpolation})
    teacher = create_open_clip_teacher(f'local-dir:{tmp_path / "clip"}', NAMES)
    x_pix = torch.rand(2, 3, 48, 40)
    resized = F.interpolate(x_pix, (32, 32), mode=interpolation, antialias=True).clamp(0, 1)
    with torch.no_grad():
        features = F.normalize(model.encode_image(normalize(resized)), dim=-1)
    expected = model.logit_scale.exp() * features @ teacher.model.text_features
    torch.testing.assert_close(teacher(x_pix), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('interpolation', ['nearest', 'lanczos', 'random'])
def test_an_interpolation_that_cannot_be_done_is_refused(interpolation):
    with pytest.raises(ValueError, match=f"must be one of .'bicubic', 'bilinear'., got '{interpolation}'"):
        Teacher(torch.nn.Flatten(), mean=MEAN, std=STD, input_size=(4, 4), num_classes=48, interpolation=interpolation)


@pytest.mark.parametrize('student_size', [224, 160])
def test_a_teacher_at_336_takes_students_of_other_sizes(tmp_path, student_size):
    write_clip_folder(tmp_path / 'clip', clip_config(vision={'image_size': 336, 'patch_size': 56}))
    teacher = create_open_clip_teacher(f'local-dir:{tmp_path / "clip"}', NAMES)
    assert teacher.input_size == (336, 336)
    x_pix = torch.rand(1, 3, student_size, student_size, requires_grad=True)
    (gradient,) = torch.autograd.grad(teacher(x_pix).logsumexp(1).sum(), x_pix)
    assert gradient.shape == x_pix.shape
    assert gradient.abs().sum() > 0


# Classes.


def test_outputs_of_other_classes_are_left_out():
    model = torch.nn.Flatten()
    whole = Teacher(model, mean=MEAN, std=STD, input_size=(2, 2), num_classes=12)
    part = Teacher(model, mean=MEAN, std=STD, input_size=(2, 2), num_classes=3, class_index=[7, 0, 11])
    x_pix = torch.rand(2, 3, 2, 2)
    assert torch.equal(part(x_pix), whole(x_pix)[:, [7, 0, 11]])


def test_an_imagenet_teacher_labels_a_subset_by_its_wordnet_ids(checkpoint):
    file, model = checkpoint
    names, x_pix = [WNIDS[7], WNIDS[0], WNIDS[999]], torch.rand(2, 3, 48, 48)
    teacher = create_teacher_by_spec(f'timm:test_resnet/{file}', DataClasses(num_classes=3, class_names=names))
    torch.testing.assert_close(teacher(x_pix), expected_logits(model, x_pix)[:, [7, 0, 999]], atol=1e-4, rtol=1e-4)
    assert teacher.num_classes == 3


def test_a_class_map_goes_before_names(checkpoint, tmp_path):
    file, model = checkpoint
    x_pix = torch.rand(2, 3, 48, 48)
    (tmp_path / 'map.json').write_text(json.dumps({'goldfish': 1, 'hen': WNIDS[8]}))
    (tmp_path / 'map.csv').write_text(f'teacher,class\n1,goldfish\n{WNIDS[8]},hen\n')
    (tmp_path / 'map.txt').write_text('1\n8\n')
    for name in ('map.json', 'map.csv', 'map.txt'):
        args = parsed('--dad-teacher', f'timm:test_resnet/{file}', '--dad-class-map', str(tmp_path / name))
        teacher = create_teacher(args, 2, ['goldfish', 'hen'])
        torch.testing.assert_close(teacher(x_pix), expected_logits(model, x_pix)[:, [1, 8]], atol=1e-4, rtol=1e-4)


def test_a_checkpoint_fine_tuned_on_as_many_classes_keeps_its_order(tmp_path):
    """Its head was trained on the data, in the data's order, even if names of ImageNet could be sorted otherwise."""
    model = timm.create_model('test_resnet').eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    data = DataClasses(num_classes=1000, class_names=WNIDS[::-1])
    teacher = create_teacher_by_spec('timm:test_resnet', data, str(tmp_path / 'model.pth'))
    assert teacher.class_index is None


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        ('{"cat": 1}', r"--dad-class-map: the teacher's classes name 1 of 2 classes of the data; .* \['dog'\]"),
        (
            '{"cat": 1, "dog": 1000}',
            r'must name a class of the teacher, by index from 0 to 999',
        ),
        ('{"cat": 1, "dog": "hound"}', r"\(such as \['n01440764', 'n01443537'\]\), got \['hound'\]"),
        ('[1, 2, 3]', "there are 3 teacher's classes for 2 classes"),
    ],
)
def test_a_wrong_class_map_says_what_is_wrong(checkpoint, tmp_path, content, match):
    (tmp_path / 'map.json').write_text(content)
    args = parsed('--dad-teacher', f'timm:test_resnet/{checkpoint[0]}', '--dad-class-map', str(tmp_path / 'map.json'))
    with pytest.raises(ValueError, match=match):
        create_teacher(args, 2, ['cat', 'dog'])


def test_classes_that_match_nothing_are_an_error_that_names_the_flag(checkpoint):
    args = parsed('--dad-teacher', f'timm:test_resnet/{checkpoint[0]}')
    with pytest.raises(ValueError, match=r'--dad-teacher timm:.* knows 0 of them by name .* give a class map'):
        create_teacher(args, 2, ['cat', 'dog'])


# hf-hub: as the hub's own cache lays it out.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put folders into the cache of huggingface_hub, as repositories."""
    cache = tmp_path / 'hub'
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)

    def add(folder, repository):
        commit = 'a' * 40
        root = cache / f'models--{repository.replace("/", "--")}'
        shutil.copytree(folder, root / 'snapshots' / commit)
        (root / 'refs').mkdir()
        (root / 'refs' / 'main').write_text(commit)

    return add


def test_an_open_clip_repository_of_the_hub(tmp_path, hub):
    model = write_clip_folder(tmp_path / 'clip')
    hub(tmp_path / 'clip', 'org/tiny-clip')
    data, x_pix = DataClasses(num_classes=3, class_names=NAMES), torch.rand(2, 3, 32, 32)
    teacher = create_teacher_by_spec('open_clip:hf-hub:org/tiny-clip', data)
    by_folder = create_teacher_by_spec(f'open_clip:local-dir:{tmp_path / "clip"}', data)
    assert torch.equal(teacher(x_pix), by_folder(x_pix))
    with pytest.raises(ValueError, match='open_clip:hf-hub:org/none could not be loaded'):
        create_teacher_by_spec('open_clip:hf-hub:org/none', data)
    assert model.visual.image_size == (32, 32)


def test_a_timm_repository_of_the_hub_with_names_of_its_classes(tmp_path, hub):
    model = timm.create_model('test_resnet', num_classes=3).eval()
    config = {'label_names': NAMES}
    timm.models.save_for_hf(model, tmp_path / 'timm', model_config=config, safe_serialization=True)
    hub(tmp_path / 'timm', 'org/tiny-timm')
    x_pix = torch.rand(2, 3, 48, 48)
    data = DataClasses(num_classes=2, class_names=['tree', 'dog'])
    teacher = create_teacher_by_spec('timm:hf-hub:org/tiny-timm', data)
    torch.testing.assert_close(teacher(x_pix), expected_logits(model, x_pix)[:, [2, 0]], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='timm:hf-hub:org/none could not be loaded'):
        create_teacher_by_spec('timm:hf-hub:org/none', data)


# Defaults.


@pytest.fixture
def created(monkeypatch):
    """What open_clip's factory would be asked for."""
    calls = []

    def create(name, names, templates, checkpoint=None, *, device=None):
        calls.append((f'open_clip:{name}', list(names), list(templates)))
        model = ZeroShotClassifier(torch.nn.Flatten(), torch.zeros(48, len(names)), 1.0)
        return Teacher(model, mean=MEAN, std=STD, input_size=(4, 4), num_classes=len(names))

    monkeypatch.setattr(teachers, 'create_open_clip_teacher', create)
    return calls


@pytest.mark.parametrize('names', [WNIDS, None])
def test_without_the_flag_imagenet_has_plain_clip_with_open_clips_names_and_templates(created, names):
    args, given = parse('--num-classes', '1000')
    check_teacher_args(args, given)
    create_teacher(args, 1000, names)
    templates = [template('{}') for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert created == [(DEFAULT_TEACHER, list(open_clip.IMAGENET_CLASSNAMES), templates)]


def test_the_teachers_that_help_names_exist():
    model, tag = DEFAULT_TEACHER.removeprefix('open_clip:').split('/')
    assert tag in open_clip.list_pretrained_tags_by_model(model)
    cfg = timm.get_pretrained_cfg(FINE_TUNED_TEACHER.removeprefix('timm:'))
    assert (cfg.num_classes, cfg.tag) == (1000, 'openai_ft_in1k')


def test_the_teachers_of_the_docs_exist():
    text = (Path(__file__).parents[1] / 'docs' / 'teachers.md').read_text()
    section = text[text.index('## Which one: by cost') : text.index('## Zero-shot on your own classes')]
    names = re.findall(r'^\| (?:\*\*)?`([^`:]+)`', section, re.MULTILINE)
    known = set(open_clip.list_pretrained())
    for name in names:
        assert tuple(name.split('/')) in known if '/' in name else timm.get_pretrained_cfg(name).tag, name
    assert len(names) == 25


@pytest.mark.parametrize(('count', 'names'), [(4, None), (1000, [f'class {i}' for i in range(1000)]), (2, WNIDS[:2])])
def test_without_the_flag_other_data_are_an_error(count, names):
    with pytest.raises(ValueError, match=f'--dad-teacher must be given: its default, .* data has {count} others'):
        create_teacher(parsed(), count, names)


def test_templates_and_names_of_files_go_before_defaults(created, tmp_path):
    (tmp_path / 'names.json').write_text(json.dumps(dict(zip(WNIDS, map(str, range(1000)), strict=True))))
    (tmp_path / 'templates.txt').write_text('one {}\n\ntwo {}\n')
    files = ('--dad-classnames', str(tmp_path / 'names.json'), '--dad-templates', str(tmp_path / 'templates.txt'))
    create_teacher(parsed('--dad-teacher', 'open_clip:ViT-B-32/openai', *files), 3, WNIDS[5:8])
    assert created == [('open_clip:ViT-B-32/openai', ['5', '6', '7'], ['one {}', 'two {}'])]


def test_a_bad_templates_file_is_named(tmp_path, clip):
    (tmp_path / 'templates.txt').write_text('a photo\n')
    args = parsed('--dad-teacher', clip, '--dad-templates', str(tmp_path / 'templates.txt'))
    with pytest.raises(ValueError, match=r'--dad-templates .*templates.txt: a template needs \{\}'):
        create_teacher(args, 3, NAMES)


def test_zero_shot_without_any_names_is_an_error(clip):
    with pytest.raises(ValueError, match='needs class names, but the data has none: give class names'):
        create_teacher(parsed('--dad-teacher', clip), 3, None)


# Several.


def test_several_teachers_are_averaged_at_the_distillation_temperature(clip, tmp_path):
    model = timm.create_model('test_resnet', num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    specs = [clip, f'timm:test_resnet/{tmp_path / "model.pth"}']
    args = parsed('--dad-teacher', *specs, '--dad-teacher-weights', '3', '1', '--dad-temperature', '2')
    ensemble = create_teacher(args, 3, NAMES)
    assert isinstance(ensemble, TeacherEnsemble)
    x_pix = torch.rand(2, 3, 40, 40)
    each = [create_teacher(parsed('--dad-teacher', spec), 3, NAMES) for spec in specs]
    expected = 0.75 * (each[0](x_pix) / 2).softmax(-1) + 0.25 * (each[1](x_pix) / 2).softmax(-1)
    torch.testing.assert_close((ensemble(x_pix) / 2).softmax(-1), expected)


def test_one_teacher_stays_a_word_and_a_config_may_hold_a_list():
    assert parsed('--dad-teacher', 'demo').dad_teacher == 'demo'
    args = parsed()
    assert teacher_args.teacher_specs(args) == []
    for value, expected in (('demo', ['demo']), (['demo', 'timm:x'], ['demo', 'timm:x'])):
        args.dad_teacher = value
        assert teacher_args.teacher_specs(args) == expected


# Bad flags.


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        (
            ('--num-classes', '10'),
            '--dad-teacher must be given: its default, open_clip:ViT-L.* has 10 others',
        ),
        (('--dad-teacher', 'demo', 'clip'), "--dad-teacher must be .* got 'clip'"),
        (('--dad-teacher', 'demo', '--dad-teacher-weights', '1'), '--dad-teacher-weights is for several teachers'),
        (('--dad-teacher', 'demo', 'demo', '--dad-teacher-weights', '1'), 'one weight each, got'),
        (
            ('--dad-teacher', 'demo', 'demo', '--dad-teacher-weights', '1', '0'),
            'weights must be positive and finite, got',
        ),
        (('--dad-teacher', 'demo', 'timm:x', '--dad-teacher-checkpoint', '{file}'), 'is for one teacher: write timm:'),
        (
            ('--dad-teacher', 'demo', '--dad-class-map', '{file}'),
            '--dad-class-map is for teachers with their own head',
        ),
        (('--dad-teacher', 'probe:x', '--dad-classnames', '{file}'), '--dad-classnames is for zero-shot .* probe:x'),
        (('--dad-teacher', 'timm:x', '--dad-templates', '{file}'), '--dad-templates is for zero-shot .* timm:x'),
        (('--dad-teacher', 'probe:x', '--dad-teacher-checkpoint', '{file}'), 'is for timm: and open_clip:, got'),
        (('--dad-teacher', 'timm:x', '--dad-class-map', 'nowhere'), "--dad-class-map must be a file, got 'nowhere'"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_built(tmp_path, flags, match):
    (tmp_path / 'file').write_text('x')
    args, given = parse(*(flag.format(file=tmp_path / 'file') for flag in flags))
    with pytest.raises(ValueError, match=match):
        check_teacher_args(args, given)


def test_a_file_of_an_open_clip_model_is_still_zero_shot(tmp_path):
    file, _ = add_clip_name(tmp_path, 'tiny-zero-shot')
    data = DataClasses(num_classes=3, class_names=NAMES)
    teacher = create_teacher_by_spec(f'open_clip:tiny-zero-shot/{file}', data)
    assert teacher.model.text_features.shape == (16, 3)


def test_files_that_no_teacher_reads_are_refused(tmp_path, clip):
    """Only the file of an open_clip model says whether it has a head of its own."""
    add_clip_name(tmp_path, 'tiny-own-head')
    visual = open_clip.create_model('tiny-own-head').visual
    state = {f'visual.{name}': value for name, value in visual.state_dict().items()}
    torch.save({**state, 'head.weight': torch.randn(3, 16)}, tmp_path / 'tuned.pt')
    own_head = f'open_clip:tiny-own-head/{tmp_path / "tuned.pt"}'
    (tmp_path / 'three.txt').write_text('a {}\nb {}\nc {}\n')
    (tmp_path / 'map.txt').write_text('2\n1\n0\n')
    three, classes = str(tmp_path / 'three.txt'), str(tmp_path / 'map.txt')
    for flag in ('--dad-classnames', '--dad-templates'):
        with pytest.raises(ValueError, match=r'are for zero-shot teachers, but .* have their own heads'):
            create_teacher(parsed('--dad-teacher', own_head, flag, three), 3, NAMES)
        create_teacher(parsed('--dad-teacher', own_head, clip, flag, three), 3, NAMES)
    with pytest.raises(ValueError, match=r'--dad-class-map is for teachers with their own head, but .* zero-shot'):
        create_teacher(parsed('--dad-teacher', clip, '--dad-class-map', classes), 3, NAMES)
    x_pix = torch.rand(2, 3, 32, 32)
    plain = create_teacher(parsed('--dad-teacher', own_head), 3, NAMES)(x_pix)
    mapped = create_teacher(parsed('--dad-teacher', own_head, '--dad-class-map', classes), 3, NAMES)(x_pix)
    torch.testing.assert_close(mapped, plain.flip(1))
