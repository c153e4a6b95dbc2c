"""Models of ``timm-dad evaluate``: SPECs, weights, classes, and how each wants its images cut."""

import argparse
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from clips import write_clip_folder
from folders import CLASSES, write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn

from timm_dad.commands.probe import main as probe
from timm_dad.data.images import Frame
from timm_dad.demo.data import class_names
from timm_dad.evaluation.models import (
    ModelOptions,
    ModelSpec,
    frame_of,
    open_model,
    parse_models,
    suite_classes,
    text_sketch,
    uncut_network,
)
from timm_dad.evaluation.runs import read_run
from timm_dad.evaluation.suites.suite import Part, Suite
from timm_dad.flags.train import create_parser
from timm_dad.teachers.heads import load_tower
from timm_dad.teachers.spec import DataClasses
from timm_dad.teachers.teacher import create_open_clip_teacher

WNIDS = ImageNetInfo().label_names()


def spec(text):
    return parse_models([text])[0]


def suite(names, **more):
    values = {'class_names': names, 'num_classes': len(names), 'parts': (Part(name='val', dataset=[]),), **more}
    return Suite(**{'name': 'suite', 'kind': 'ood', **values})


@pytest.fixture(scope='module')
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8))


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'expected', 'slug'),
    [
        ('resnet50.a1_in1k', ('resnet50.a1_in1k', 'timm:resnet50.a1_in1k'), 'resnet50.a1_in1k'),
        ('timm:resnet50/a=b.pth', ('resnet50/a=b.pth', 'timm:resnet50/a=b.pth'), 'resnet50-a-b.pth'),
        ('open_clip:ViT-L-14/openai', ('ViT-L-14/openai', 'open_clip:ViT-L-14/openai'), 'ViT-L-14-openai'),
        ('CLIP L=open_clip:ViT-L-14/openai', ('CLIP L', 'open_clip:ViT-L-14/openai'), 'CLIP-L'),
        ('r50=resnet50', ('r50', 'timm:resnet50'), 'r50'),
        ('demo', ('demo', 'demo'), 'demo'),
        ('probe:heads/a.safetensors', ('a', 'probe:heads/a.safetensors'), 'a'),
        ('run:output/train/dad', ('dad', 'run:output/train/dad'), 'dad'),
        ('teacher:output/train/dad/', ('dad-teacher', 'teacher:output/train/dad/'), 'dad-teacher'),
    ],
)
def test_names_and_specs(text, expected, slug):
    model = spec(text)
    assert (model.name, model.spec) == expected
    assert model.slug == slug


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['resnet50', 'timm:resnet50'], r'every model needs its own name, got resnet50 twice; write NAME=SPEC'),
        (['a b=resnet50', 'a-b=resnet18'], r'every model needs its own name, got a b twice'),
        (['clip:ViT-L-14/openai'], r'a model is SPEC or NAME=SPEC, .* timm:\.\.\., .* or demo, got .clip:ViT'),
        (['timm:'], r'a model is SPEC'),
        (['a='], r'a model is SPEC'),
        (['!=demo'], r'a name needs letters or digits, got .!=demo'),
    ],
)
def test_bad_specs(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_models(texts)


# --- how images are cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'resnet18.a1_in1k', 'vit_small_patch14_reg4_dinov2'])
@pytest.mark.parametrize('use_train_size', [False, True])
def test_timm_models_get_the_pixels_that_timms_validation_gives_them(name, use_train_size, picture):
    model = nn.Module()
    model.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    teacher = argparse.Namespace(model=model)
    config = resolve_data_config({}, model=model, use_test_size=not use_train_size)
    expected = create_transform(**config, use_prefetcher=True)(picture)
    frame = frame_of(teacher, use_train_size)
    assert np.array_equal(np.asarray(frame.transform()(picture)).transpose(2, 0, 1), expected)
    assert frame.size == tuple(config['input_size'][1:])


def test_the_test_size_is_taken_where_a_model_has_one():
    model = nn.Module()
    model.pretrained_cfg = timm.get_pretrained_cfg('resnet50.a1_in1k').to_dict()
    sizes = [frame_of(argparse.Namespace(model=model), train) for train in (False, True)]
    # The two rows of timm's results/results-imagenet.csv: 288 at 1.0, 224 at 0.95.
    assert [(size.size, size.crop_pct) for size in sizes] == [((288, 288), 1.0), ((224, 224), 0.95)]


@pytest.mark.parametrize('mode', ['center', 'border', 'squash'])
def test_crop_modes_are_timms(mode, picture):
    frame = Frame(size=(32, 48), crop_pct=0.8, crop_mode=mode, fill=(0.2, 0.4, 0.6))
    expected = create_transform(
        (3, 32, 48), interpolation='bicubic', crop_pct=0.8, crop_mode=mode, mean=(0.2, 0.4, 0.6), use_prefetcher=True
    )(picture)
    assert np.array_equal(np.asarray(frame.transform()(picture)).transpose(2, 0, 1), expected)


@pytest.mark.parametrize('mode', ['shortest', 'longest', 'squash'])
def test_open_clip_models_get_the_pixels_that_open_clip_gives_them(mode, picture, tmp_path):
    write_clip_folder(tmp_path, preprocess={'resize_mode': mode, 'interpolation': 'bilinear', 'fill_color': 7})
    teacher = create_open_clip_teacher(f'local-dir:{tmp_path}', ['cat', 'dog'])
    theirs = open_clip.image_transform(
        32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation='bilinear', fill_color=7
    )(picture)
    ours = np.asarray(frame_of(teacher).transform()(picture)).transpose(2, 0, 1)
    assert np.array_equal(ours, (theirs * 255).round().byte())


def test_only_networks_of_one_size_resize_images_that_go_in_as_they_are(tmp_path):
    def opened(name):
        file = tmp_path / f'{name}.pth'
        torch.save(timm.create_model(name, num_classes=4).state_dict(), file)
        return open_model(spec(f'timm:{name}/{file}'), DataClasses(num_classes=4), ModelOptions())

    x_pix = torch.rand(2, 3, 96, 64)
    uncut = suite(('a', 'b', 'c', 'd'), resize=False)
    model = opened('test_resnet')
    teacher = model.network
    assert model.frame.size == (160, 160)
    expected = teacher.model((x_pix - teacher.norm.mean) / teacher.norm.std)
    torch.testing.assert_close(model.network_for(uncut)(x_pix), expected)
    assert not torch.allclose(teacher(x_pix), expected)
    assert model.network_for(replace(uncut, resize=True)) is teacher
    model = opened('test_vit')
    assert model.uncut_network is None
    assert model.network_for(uncut)(x_pix).shape == (2, 4)
    # A config from a hub may not say it; the network does.
    teacher.model = timm.create_model('test_vit', dynamic_img_size=False)
    teacher.model.pretrained_cfg = {'input_size': (3, 160, 160)}
    assert uncut_network(teacher) is None


# --- classes --------------------------------------------------------------------------------------------------------


def test_the_logits_are_those_of_the_suites_classes():
    names = [WNIDS[index] for index in (7, 900, 3)]
    head = timm.create_model('test_vit')
    torch.manual_seed(1)
    with torch.no_grad():
        head.get_classifier().bias.normal_()
    data = suite_classes(suite(names), ModelOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, 'create_model', lambda *_, **__: head)
        model = open_model(spec('test_vit'), data, ModelOptions())
    logits = model.network(torch.full((1, 3, 160, 160), 0.5))
    assert logits.shape == (1, 3)
    whole = head.eval()((torch.full((1, 3, 160, 160), 0.5) - 0.5) / 0.5)
    torch.testing.assert_close(logits, whole[:, [7, 900, 3]])


def test_grouped_suites_ask_for_imagenets_classes():
    data = suite_classes(suite(('chair', 'bowl'), groups=((WNIDS[1],), (WNIDS[2], WNIDS[3]))), ModelOptions())
    assert data.num_classes == 1000
    assert list(data.class_names) == list(WNIDS)


def test_class_names_and_maps_are_by_suite():
    options = ModelOptions(class_names={'a': 'cat', 'b': 'dog', 'c': 'fish'}, class_map=['5', '6'])
    data = suite_classes(suite(('b', 'a')), options)
    assert data.spoken == ['dog', 'cat']
    assert data.class_map == ['5', '6']
    for bad, what in (({'class_names': ['cat']}, 'class names'), ({'class_map': {'a': '1'}}, 'class map')):
        with pytest.raises(ValueError, match=rf'suite suite: .*{what} .*in a separate call'):
            suite_classes(suite(('b', 'a')), ModelOptions(**bad))


def test_errors_name_the_model_and_no_flag_of_another_command(tmp_path):
    data = DataClasses(num_classes=3, class_names=['x', 'y', 'z'])
    save_file(timm.create_model('test_vit', num_classes=4).state_dict(), tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match=r'^me: .* has 4 classes and the data 3; .* give a class map'):
        open_model(spec(f'me=timm:test_vit/{tmp_path}/a.safetensors'), data, ModelOptions())
    with pytest.raises(ValueError, match=r'^resnext1: timm has no model'):
        open_model(spec('resnext1'), data, ModelOptions())


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint of four classes with a moving average."""
    file = tmp_path_factory.mktemp('weights') / 'a.pth.tar'
    with torch.random.fork_rng():
        torch.manual_seed(3)
        models = [timm.create_model('test_vit', num_classes=4) for _ in range(2)]
    torch.save({'state_dict': models[0].state_dict(), 'state_dict_ema': models[1].state_dict()}, file)
    return file, models


def test_the_moving_average_is_taken_where_there_is_one(checkpoint):
    file, (plain, ema) = checkpoint
    data = DataClasses(num_classes=4)
    for options, expected in ((ModelOptions(), ema), (ModelOptions(use_ema=False), plain)):
        model = open_model(spec(f'timm:test_vit/{file}'), data, options)
        assert torch.equal(model.network.model.get_classifier().weight, expected.get_classifier().weight)


def test_the_fingerprint_is_of_weights_classes_and_cut(checkpoint, tmp_path):
    file, _ = checkpoint
    one = f'timm:test_vit/{file}'
    data = DataClasses(num_classes=4, class_map=['0', '1', '2', '3'])
    other = DataClasses(num_classes=4, class_map=['0', '1', '3', '2'])
    prints = [
        open_model(spec(one), data, ModelOptions()).fingerprint,
        open_model(spec(one), other, ModelOptions()).fingerprint,
        open_model(spec(one), data, ModelOptions(use_ema=False)).fingerprint,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('timm_dad.evaluation.models.frame_of', lambda *_, **__: Frame(size=(32, 32)))
        prints.append(open_model(spec(one), data, ModelOptions()).fingerprint)
    assert len(set(prints)) == 4
    named = open_model(spec(f'name={one}'), data, ModelOptions(precision='bf16'))
    assert named.fingerprint == prints[0]
    assert named.network.model.dad_precision == 'bf16'


@pytest.mark.parametrize('change', [{'act_layer': 'silu'}, {'global_pool': 'max'}])
def test_the_fingerprint_is_of_layers_without_weights_too(tmp_path, change):
    state = timm.create_model('test_resnet', num_classes=4).state_dict()
    prints = []
    for name, model_kwargs in (('a', {}), ('b', change)):
        args = argparse.Namespace(model='test_resnet', num_classes=4, model_kwargs=model_kwargs)
        torch.save({'state_dict': state, 'args': args}, tmp_path / f'{name}.pth')
        model = open_model(spec(f'timm:test_resnet/{tmp_path}/{name}.pth'), DataClasses(num_classes=4), ModelOptions())
        prints.append(model.fingerprint)
    assert prints[0] != prints[1]


def test_the_fingerprint_is_of_the_text_tower(tmp_path):
    write_clip_folder(tmp_path)
    data = DataClasses(num_classes=2, class_names=['cat', 'dog'])

    def opened():
        return open_model(spec(f'clip=open_clip:local-dir:{tmp_path}'), data, ModelOptions())

    before, again = opened(), opened()
    assert before.fingerprint == again.fingerprint
    teacher = again.network
    teacher.model.text_features += 1e-7  # as on another machine
    assert text_sketch(teacher) == text_sketch(before.network)
    file = tmp_path / 'open_clip_model.safetensors'
    state = load_file(file)
    (name,) = (name for name in state if name.endswith('token_embedding.weight'))
    state[name] = state[name].flip(0).contiguous()
    save_file(state, file)
    after = opened()
    assert after.network.fingerprint() == before.network.fingerprint()  # a DAD set may be of either
    assert after.fingerprint != before.fingerprint


def test_a_probe_is_cut_as_its_tower(tmp_path):
    write_clip_folder(tmp_path / 'clip', preprocess={'resize_mode': 'squash'})
    pictures = write_pictures(tmp_path / 'pictures', train=4)
    flags = ['--data-dir', pictures, '--teacher', f'open_clip:local-dir:{tmp_path / "clip"}', '--workers', 0]
    probe([str(flag) for flag in (*flags, '--output', tmp_path / 'head.safetensors', '--device', 'cpu')])
    model = open_model(spec(f'probe:{tmp_path}/head.safetensors'), DataClasses(num_classes=4), ModelOptions())
    assert model.frame == Frame(size=(32, 32), crop_mode='squash')
    assert model.network(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_the_demo_knows_its_classes():
    data = DataClasses(num_classes=16, class_names=class_names())
    model = open_model(spec('demo'), data, ModelOptions())
    assert model.frame == Frame(size=(64, 64))
    assert model.network(torch.rand(2, 3, 64, 64)).shape == (2, 16)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, checkpoint):
    """A folder of a run as the trainer leaves it; call it with flags."""
    file, _ = checkpoint
    pictures = write_pictures(tmp_path / 'pictures', train=2)

    def write(*flags, state=None, name='model_best.pth.tar'):
        folder = tmp_path / 'run'
        folder.mkdir(exist_ok=True)
        common = ['--model', 'test_vit', '--num-classes', '4', '--data-dir', str(pictures)]
        args = create_parser().parse_args([*common, *flags])
        (folder / 'args.yaml').write_text(yaml.safe_dump(vars(args)))
        content = torch.load(file) if state is None else {'state_dict': state}
        torch.save(content, folder / name)
        return folder

    return write


def test_a_run_is_its_student_as_it_was_validated(run, checkpoint):
    flags = ('--img-size', '160', '--mean', '0.1', '0.2', '0.3', '--std', '0.5', '0.6', '0.7', '--crop-pct', '0.9')
    folder = run(*flags, '--interpolation', 'nearest')
    data = DataClasses(num_classes=4, class_names=CLASSES)
    for options, expected in zip((ModelOptions(use_ema=False), ModelOptions()), checkpoint[1], strict=True):
        model = open_model(spec(f'run:{folder}'), data, options)
        x_pix = torch.rand(2, 3, 160, 160)
        x_norm = (x_pix - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
        torch.testing.assert_close(model.network(x_pix), expected.eval()(x_norm))
    assert model.frame == Frame(size=(160, 160), interpolation='nearest', crop_pct=0.9, fill=(0.1, 0.2, 0.3))


def test_the_student_of_a_run_may_come_from_a_folder_of_another_number_of_classes(run, tmp_path):
    save_for_hf(timm.create_model('test_vit', num_classes=3), tmp_path / 'three', model_config={'num_classes': 3})
    folder = run('--model', f'local-dir:{tmp_path / "three"}')
    model = open_model(spec(f'run:{folder}'), DataClasses(num_classes=2, class_names=['tree', 'cat']), ModelOptions())
    assert model.network.class_index.tolist() == [CLASSES.index('tree'), CLASSES.index('cat')]
    assert load_tower(f'run:{folder}')[0](torch.rand(1, 3, 160, 160)).shape == (1, 64)


def test_classes_of_a_run_are_found_by_the_folders_of_its_training_data(run):
    folder = run()
    data = DataClasses(num_classes=2, class_names=['tree', 'cat'])
    model = open_model(spec(f'run:{folder}'), data, ModelOptions())
    assert model.network.class_index.tolist() == [CLASSES.index('tree'), CLASSES.index('cat')]
    with pytest.raises(
        ValueError, match=r'^run: timm:test_vit has 4 classes and the data 2; it knows 1 of them by name'
    ):
        open_model(spec(f'run:{folder}'), DataClasses(num_classes=2, class_names=['tree', 'bee']), ModelOptions())
    mapped = open_model(spec(f'run:{folder}'), DataClasses(num_classes=2, class_map=['3', 'dog']), ModelOptions())
    assert mapped.network.class_index.tolist() == [3, 1]


def test_a_run_whose_data_is_gone_is_taken_by_the_number_of_its_classes(run):
    folder = run('--data-dir', 'nowhere')
    assert open_model(spec(f'run:{folder}'), DataClasses(num_classes=4), ModelOptions()).network.class_index is None
    with pytest.raises(ValueError, match='the names of its classes are unknown'):
        open_model(spec(f'run:{folder}'), DataClasses(num_classes=3), ModelOptions())


def test_a_run_with_split_batch_norm_is_its_clean_branch(run):
    from timm.layers import convert_splitbn_model

    model = convert_splitbn_model(timm.create_model('test_resnet', num_classes=4), 2)
    folder = run('--model', 'test_resnet', '--split-bn', state=model.state_dict())
    x_pix = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ('mean', 'std'))
    opened = open_model(spec(f'run:{folder}'), DataClasses(num_classes=4), ModelOptions())
    torch.testing.assert_close(opened.network(x_pix), model.eval()((x_pix - mean) / std))


def test_another_checkpoint_of_a_run(run, checkpoint):
    folder = run(name='last.pth.tar')
    with pytest.raises(
        ValueError, match=r'has no model_best.pth.tar \(yet\); to use another checkpoint, give run:.*/FILE'
    ):
        open_model(spec(f'run:{folder}'), DataClasses(num_classes=4), ModelOptions())
    model = spec(f'run:{folder}/last.pth.tar')
    assert model.name == 'run'
    opened = open_model(model, DataClasses(num_classes=4), ModelOptions())
    assert torch.equal(opened.network.model.get_classifier().weight, checkpoint[1][1].get_classifier().weight)


def test_the_teacher_of_a_run(run):
    folder = run('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo')
    data = DataClasses(num_classes=16, class_names=class_names())
    model = open_model(spec(f'teacher:{folder}'), data, ModelOptions())
    assert model.name == 'run-teacher'
    assert model.fingerprint == open_model(spec('demo'), data, ModelOptions()).fingerprint
    both = run('--dad', '--dad-teacher', 'demo', 'demo', '--dad-vqgan', 'demo')
    ensemble = open_model(spec(f'teacher:{both}'), data, ModelOptions())
    assert ensemble.frame == model.frame
    torch.testing.assert_close(ensemble.network(torch.rand(2, 3, 64, 64)).softmax(dim=1).sum(dim=1), torch.ones(2))


def test_the_teachers_of_a_run_of_timms_script_have_the_temperatures_of_its_checkpoint(run):
    more = ('--dad', '--dad-teacher', 'demo', 'demo', '--dad-vqgan', 'demo', '--dad-temperature', 'auto')
    folder = run(*more)
    data = DataClasses(num_classes=16, class_names=class_names())
    with pytest.raises(ValueError, match=r'args.yaml says dad_temperature: auto .* write the numbers there'):
        open_model(spec(f'teacher:{folder}'), data, ModelOptions())
    args = read_run(str(folder))
    args.dad_temperature, args.dad_teacher_temperatures = 3.0, [2.0, 4.0]
    torch.save({'state_dict': {}, 'args': args}, folder / 'model_best.pth.tar')
    assert open_model(spec(f'teacher:{folder}'), data, ModelOptions()).network.temperatures == [2.0, 4.0]


def test_bad_runs(run, tmp_path):
    data = DataClasses(num_classes=4)
    with pytest.raises(ValueError, match=r'run:FOLDER is a folder of `timm-dad train`, with args.yaml'):
        open_model(spec(f'run:{tmp_path}/nowhere'), data, ModelOptions())
    with pytest.raises(ValueError, match=r'trained without --dad: it has no teacher'):
        open_model(spec(f'teacher:{run()}'), data, ModelOptions())
    with pytest.raises(ValueError, match=r'could not be loaded: .*model_best.pth.tar contains no weights by name'):
        open_model(spec(f'run:{run(state={})}'), data, ModelOptions())
    with pytest.raises(ValueError, match=r'images must have 3 channels, but the run has 1'):
        open_model(spec(f'run:{run("--in-chans", "1")}'), data, ModelOptions())
    folder = run()
    (folder / 'args.yaml').write_text('lr: 3\n')
    with pytest.raises(ValueError, match=r'args.yaml contains no flags of a training'):
        read_run(str(folder))


def test_model_specs_are_values():
    assert ModelSpec(name='a', spec='demo') == spec('a=demo')
