"""Teachers of one's own training run at the size and with the normalization, crop and network of that training."""

import argparse
import json

import pytest
import timm
import torch
import yaml
from clips import normalize, write_clip_folder
from folders import CLASSES, write_pictures
from timm.models import save_for_hf

from timm_dad.data.images import Frame
from timm_dad.evaluation.models import ModelOptions, open_model, parse_models
from timm_dad.flags.runs import create_spec_teacher, trained_classes
from timm_dad.flags.teacher import check_teacher_args, create_teacher
from timm_dad.flags.train import create_parser
from timm_dad.teachers import trained
from timm_dad.teachers.heads import load_tower
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec
from timm_dad.teachers.teacher import create_timm_teacher
from timm_dad.teachers.trained import read_trained

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
FLAGS = {
    'model': 'test_resnet.r160_in1k', 'img_size': 64, 'mean': list(MEAN), 'std': list(STD),
    'interpolation': 'bilinear', 'crop_pct': 0.75,
}  # fmt: skip
DATA = DataClasses(num_classes=4)


def resnet(classes=4):
    return timm.create_model('test_resnet', num_classes=classes, zero_init_last=False).eval()


def in_the_checkpoint(folder, model):
    args = argparse.Namespace(**FLAGS)
    torch.save({'state_dict': model.state_dict(), 'args': args}, folder / 'own.pth')


def in_args_yaml(folder, model):
    torch.save({'state_dict': model.state_dict()}, folder / 'own.pth')
    (folder / 'args.yaml').write_text(yaml.safe_dump(FLAGS))


def in_config_json(folder, model):
    torch.save(model.state_dict(), folder / 'own.pth')
    cfg = {'input_size': [3, 64, 64], 'mean': MEAN, 'std': STD, 'interpolation': 'bilinear', 'crop_pct': 0.75}
    content = {'architecture': 'test_resnet', 'pretrained_cfg': cfg}
    (folder / 'config.json').write_text(json.dumps(content))


def test_the_size_may_be_given_as_three_numbers(tmp_path):
    args = argparse.Namespace(**{**FLAGS, 'img_size': None, 'input_size': (3, 64, 32)})
    torch.save({'state_dict': resnet().state_dict(), 'args': args}, tmp_path / 'own.pth')
    assert create_timm_teacher('test_resnet', 4, str(tmp_path / 'own.pth')).input_size == (64, 32)


@pytest.mark.parametrize('said', [in_the_checkpoint, in_args_yaml, in_config_json])
def test_an_own_teacher_runs_as_it_was_trained(tmp_path, caplog, said):
    caplog.set_level('INFO', logger='timm_dad')
    model, x_pix = resnet(), torch.rand(2, 3, 64, 64)
    said(tmp_path, model)
    teacher = create_timm_teacher(f'test_resnet/{tmp_path}/own.pth', 4)
    assert (teacher.input_size, teacher.interpolation) == ((64, 64), 'bilinear')
    torch.testing.assert_close(teacher(x_pix), model(normalize(x_pix, MEAN, STD)), atol=1e-5, rtol=1e-5)
    assert 'images of 64x64, mean 0.2, 0.3, 0.4, std 0.5, 0.6, 0.7, bilinear (from ' in caplog.text
    place = {in_the_checkpoint: 'own.pth', in_args_yaml: 'args.yaml', in_config_json: 'config.json'}[said]
    assert f'{tmp_path}/{place})' in caplog.text
    (spec,) = parse_models([f'own=timm:test_resnet/{tmp_path}/own.pth'])
    opened = open_model(spec, DATA, ModelOptions())
    crop = {'crop_pct': 0.75, 'crop_mode': 'center'}
    assert opened.frame == Frame(size=(64, 64), interpolation='bilinear', fill=MEAN, **crop)
    tower, norm = load_tower(f'timm:test_resnet/{tmp_path}/own.pth')
    assert norm['input_size'] == (64, 64)
    assert tower(x_pix).shape == (2, model.num_features)


def test_class_names_beside_a_file_are_those_of_a_folder(tmp_path):
    """As many classes in another order are not taken to be those of the data."""
    config = {'num_classes': 3, 'label_names': ['c', 'a', 'b']}
    save_for_hf(resnet(3), tmp_path, model_config=config, safe_serialization=True)
    for spec in ('test_resnet/model.safetensors', 'local-dir:'):
        name = spec.replace('/', f'/{tmp_path}/') if '/' in spec else f'{spec}{tmp_path}'
        teacher = create_timm_teacher(name, 3, class_names=['a', 'b', 'c'])
        assert teacher.class_index.tolist() == [1, 2, 0]
        with pytest.raises(ValueError, match='it knows 0 of them by name'):
            create_timm_teacher(name, 3, class_names=['x', 'y', 'z'])


def test_the_file_is_read_once(tmp_path, monkeypatch):
    in_the_checkpoint(tmp_path, resnet())
    reads = []
    monkeypatch.setattr(
        trained, 'read_checkpoint', lambda path: reads.append(path) or torch.load(path, weights_only=False)
    )
    monkeypatch.setattr('timm.models._helpers.load_state_dict', None)
    create_timm_teacher(f'test_resnet/{tmp_path}/own.pth', 4)
    assert len(reads) == 1


def test_without_a_word_of_the_training_it_is_as_timm_says(tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    torch.save(resnet().state_dict(), tmp_path / 'own.pth')
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({**FLAGS, 'model': 'test_vit'}))  # of another network
    assert create_timm_teacher(f'test_resnet/{tmp_path}/own.pth', 4).input_size == (160, 160)
    assert '(from timm)' in caplog.text


@pytest.mark.parametrize('said', [in_the_checkpoint, in_args_yaml, in_config_json])
def test_a_size_that_is_given_goes_before_all(tmp_path, caplog, said):
    caplog.set_level('INFO', logger='timm_dad')
    said(tmp_path, resnet())
    teacher = create_timm_teacher(f'test_resnet/{tmp_path}/own.pth', 4, img_size=96)
    assert teacher.input_size == (96, 96)
    assert 'images of 96x96, mean 0.2' in caplog.text


@pytest.mark.parametrize(
    'bad', [{'img_size': [1, 2]}, {'mean': 'x'}, {'std': [0.1, 0.2]}, {'input_size': 5}, {'img_size': 'big'}]
)
def test_flags_that_say_nothing_are_refused_in_one_line(tmp_path, bad):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({**FLAGS, **bad}))
    torch.save(resnet().state_dict(), tmp_path / 'own.pth')
    with pytest.raises(ValueError, match=r'args\.yaml does not describe the image format') as caught:
        create_timm_teacher(f'test_resnet/{tmp_path}/own.pth', 4)
    assert '\n' not in str(caught.value)


# Networks of one size.


@pytest.fixture
def vit():
    return timm.create_model('test_vit', num_classes=4, img_size=64).eval()


def save_vit(folder, vit, **more):
    args = argparse.Namespace(model='test_vit', img_size=64, **more)
    torch.save({'state_dict': vit.state_dict(), **({'args': args} if more else {})}, folder / 'vit.pth')


def test_a_vit_of_another_size_is_what_its_training_made(tmp_path, vit):
    save_vit(tmp_path, vit, model_kwargs={'img_size': 64})
    teacher, x_pix = create_timm_teacher(f'test_vit/{tmp_path}/vit.pth', 4), torch.rand(2, 3, 64, 64)
    cfg = vit.pretrained_cfg
    torch.testing.assert_close(teacher(x_pix), vit(normalize(x_pix, cfg['mean'], cfg['std'])), atol=1e-5, rtol=1e-5)


def test_bare_weights_of_a_vit_of_another_size_need_their_size(tmp_path, vit):
    save_vit(tmp_path, vit)
    with pytest.raises(ValueError, match=r'--dad-teacher-img-size.*size mismatch for pos_embed') as caught:
        create_timm_teacher(f'test_vit/{tmp_path}/vit.pth', 4)
    assert '\n' not in str(caught.value)
    teacher, x_pix = create_timm_teacher(f'test_vit/{tmp_path}/vit.pth', 4, img_size=64), torch.rand(2, 3, 64, 64)
    cfg = vit.pretrained_cfg
    torch.testing.assert_close(teacher(x_pix), vit(normalize(x_pix, cfg['mean'], cfg['std'])), atol=1e-5, rtol=1e-5)


def test_positions_of_a_vit_are_interpolated_to_a_size_that_is_given(tmp_path, vit):
    save_vit(tmp_path, vit, model_kwargs={'img_size': 64})
    teacher = create_timm_teacher(f'test_vit/{tmp_path}/vit.pth', 4, img_size=96)
    vit.set_input_size(img_size=(96, 96))
    x_pix, cfg = torch.rand(2, 3, 96, 96), vit.pretrained_cfg
    torch.testing.assert_close(teacher(x_pix), vit(normalize(x_pix, cfg['mean'], cfg['std'])), atol=1e-5, rtol=1e-5)


# Trainings: run:FOLDER.


@pytest.fixture
def run(tmp_path):
    """A folder as timm's train.py and ``timm-dad train`` leave it, and its network."""
    folder, model = tmp_path / 'run', resnet()
    folder.mkdir()
    pictures = write_pictures(tmp_path / 'pictures', train=1)
    (folder / 'args.yaml').write_text(yaml.safe_dump({**FLAGS, 'data_dir': str(pictures)}))
    torch.save({'state_dict': model.state_dict()}, folder / 'model_best.pth.tar')
    return folder, model


@pytest.mark.parametrize('file', ['', '/model_best.pth.tar'])
def test_a_run_is_a_teacher(run, file):
    folder, model = run
    teacher, x_pix = create_spec_teacher(f'run:{folder}{file}', DATA), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(teacher(x_pix), model(normalize(x_pix, MEAN, STD)), atol=1e-5, rtol=1e-5)
    mirrored = create_spec_teacher(f'run:{folder}', DataClasses(num_classes=4, class_names=CLASSES[::-1]))
    torch.testing.assert_close(mirrored(x_pix), teacher(x_pix).flip(1))
    bigger = create_spec_teacher(f'run:{folder}', DATA, img_size=96)
    assert bigger.input_size == (96, 96)


def test_classes_of_a_run_that_are_not_the_datas_are_refused(run):
    with pytest.raises(ValueError, match='knows 0 of them by name'):
        create_spec_teacher(f'run:{run[0]}', DataClasses(num_classes=4, class_names=list('abcd')))


def test_branches_of_split_batch_norm_are_left_out(run):
    folder, model = run
    state = model.state_dict()
    aux = {name.replace('bn1.', 'bn1.aux_bn.0.'): value for name, value in state.items() if 'bn1.' in name}
    torch.save({'state_dict': {**state, **aux}}, folder / 'model_best.pth.tar')
    assert aux.keys() - state.keys()
    create_teacher_by_spec(f'run:{folder}', DATA)


def test_what_a_folder_says_of_data_never_downloads_or_runs_code(monkeypatch, tmp_path):
    monkeypatch.setattr('timm_dad.data.datasets.create_timm_dataset', lambda *_, **__: pytest.fail('it was opened'))
    evil = {'dataset_trust_remote_code': True, 'dataset_download': True}
    assert trained_classes({'dataset': 'hfds/evil/repo', **evil}) is None
    assert trained_classes({'dataset': 'torch/cifar10', 'data_dir': str(tmp_path), **evil}) is None
    assert trained_classes({'dataset': 5, 'data_dir': [1]}) is None
    asked = []
    monkeypatch.setattr('timm_dad.data.datasets.create_timm_dataset', lambda *_, **kwargs: asked.append(kwargs))
    (tmp_path / 'train').mkdir()
    trained_classes({'data_dir': str(tmp_path), **evil})
    assert (asked[0]['download'], asked[0]['trust_remote_code']) == (False, False)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda folder: (folder / 'args.yaml').write_text('a: [3'), r'run:FOLDER is a folder .* expected'),
        (lambda folder: (folder / 'args.yaml').write_bytes(b'\xff\xfe\xfd'), r'run:FOLDER is a folder .* not UTF-8'),
        (lambda folder: (folder / 'args.yaml').write_text('model: 5'), r'model must be a name of timm, got 5'),
        (lambda folder: (folder / 'args.yaml').unlink(), r'run:FOLDER is a folder .* No such file'),
        (lambda folder: (folder / 'model_best.pth.tar').unlink(), r'has no model_best\.pth\.tar \(yet\)'),
        (lambda folder: (folder / 'model_best.pth.tar').write_bytes(b''), r'model_best\.pth\.tar is empty'),
    ],
)
def test_folders_that_are_no_runs_are_refused_in_one_line(run, change, match):
    change(run[0])
    with pytest.raises(ValueError, match=match) as caught:
        create_spec_teacher(f'run:{run[0]}', DATA)
    assert '\n' not in str(caught.value)


def test_a_teacher_of_one_size_takes_no_other(tmp_path):
    write_clip_folder(tmp_path / 'clip')
    data = DataClasses(num_classes=2, class_names=['cat', 'dog'])
    with pytest.raises(ValueError, match='takes only one size: leave --dad-teacher-img-size out'):
        create_teacher_by_spec(f'open_clip:local-dir:{tmp_path}/clip', data, img_size=64)


def test_a_folder_of_the_hub_says_it_itself(tmp_path):
    model = timm.create_model('test_resnet', num_classes=4, pretrained_cfg_overlay={'input_size': (3, 48, 48)})
    save_for_hf(model, tmp_path / 'hub', safe_serialization=True)
    assert create_timm_teacher(f'local-dir:{tmp_path}/hub', 4).input_size == (48, 48)
    assert create_timm_teacher(f'test_resnet/{tmp_path}/hub/model.safetensors', 4).input_size == (48, 48)
    assert create_timm_teacher(f'local-dir:{tmp_path}/hub', 4, img_size=64).input_size == (64, 64)


@pytest.mark.parametrize('content', [{'epoch': 3}, [torch.zeros(2)], {'state_dict': {}}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'own.pth')
    with pytest.raises(ValueError, match=r'own\.pth contains no weights by name'):
        read_trained(tmp_path / 'own.pth')


# Flags.


def flags(*argv):
    args = create_parser().parse_args(['--dad', '--num-classes', '4', *argv])
    return args, {name: value for name, value in vars(args).items() if f'--{name.replace("_", "-")}' in argv}


@pytest.mark.parametrize(
    ('argv', 'match'),
    [
        (('--dad-teacher', 'run:a', '--dad-teacher-img-size', '0'), 'must be a side in pixels, got 0'),
        (('--dad-teacher', 'demo', '--dad-teacher-img-size', '64'), 'is for timm: and run:, got --dad-teacher demo'),
        (('--dad-teacher', 'run:a', '--dad-teacher-checkpoint', __file__), 'is for timm: and open_clip:, got .* run:a'),
    ],
)
def test_flags_that_a_teacher_cannot_take_are_refused(argv, match):
    with pytest.raises(ValueError, match=match):
        check_teacher_args(*flags(*argv))


def test_runs_are_members_of_an_ensemble(run):
    folder, _ = run
    args, given = flags('--dad-teacher', f'run:{folder}', f'timm:test_resnet/{folder}/model_best.pth.tar')
    check_teacher_args(args, given)
    ensemble = create_teacher(args, 4, CLASSES)
    assert [member.input_size for member in ensemble.teachers] == [(64, 64)] * 2
    args.dad_teacher_img_size = 96
    assert [member.input_size for member in create_teacher(args, 4, CLASSES).teachers] == [(96, 96)] * 2
