import json
import logging
import sys
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.hub import load_error
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher, create_timm_teacher

NAMES = ['dog', 'red car', 'tree']
TEMPLATES = ['a photo of a {}.', 'an emoji of a {}', 'the {} in line art']
MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.4, 0.6)
TEXT_CFG = {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1}
VISION_CFGS = {
    'ViT': {'image_size': 32, 'layers': 1, 'width': 32, 'head_width': 16, 'patch_size': 16},
    'ModifiedResNet': {'image_size': 32, 'layers': [1, 1, 1, 1], 'width': 8, 'head_width': 16, 'patch_size': None},
}


def normalize(x_pix, mean, std):
    return (x_pix - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def smooth_images(size):
    # Between 0.25 and 0.75: bicubic resizing cannot leave [0, 1], so clipping does not matter.
    return 0.25 + 0.5 * torch.rand(3, 3, *size)


@pytest.fixture
def images():
    return smooth_images((32, 32))


@pytest.fixture
def clip_folder(tmp_path):
    """Write a real, small CLIP as open_clip's ``local-dir:`` takes it."""

    def build(vision='ViT', weights=True):
        config = {'embed_dim': 16, 'vision_cfg': VISION_CFGS[vision], 'text_cfg': TEXT_CFG}
        content = {'model_cfg': config, 'preprocess_cfg': {'mean': MEAN, 'std': STD}}
        folder = tmp_path / f'clip-{vision}'
        folder.mkdir()
        (folder / 'open_clip_config.json').write_text(json.dumps(content))
        model = open_clip.CLIP(**config).eval()
        if weights:
            save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
        return folder, model

    return build


@pytest.fixture
def clip_name(tmp_path):
    """A small CLIP under a name of open_clip's own list, and a file with weights of it."""
    config = {'embed_dim': 16, 'vision_cfg': VISION_CFGS['ViT'], 'text_cfg': TEXT_CFG}
    (tmp_path / 'tiny-clip.json').write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / 'tiny-clip.json')
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    return 'tiny-clip', tmp_path / 'weights.safetensors', model


def zero_shot_logits(model, tokenizer, x_norm, names, templates):
    """The zero-shot classifier of CLIP's paper, from open_clip's own two encoders."""
    with torch.no_grad():
        columns = []
        for name in names:
            prompts = tokenizer([template.replace('{}', name) for template in templates])
            features = model.encode_text(prompts)
            mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
            columns.append(mean / mean.norm())
        image = model.encode_image(x_norm)
        return model.logit_scale.exp() * (image / image.norm(dim=1, keepdim=True)) @ torch.stack(columns, dim=1)


@pytest.mark.parametrize('size', [(16, 16), (40, 40), (24, 16), (24, 24)])
def test_own_size_and_own_normalization_are_applied(teacher, size):
    x_pix = smooth_images(size)
    cfg = timm.get_pretrained_cfg('test_efficientnet').to_dict()
    resized = x_pix if size == (24, 24) else F.interpolate(x_pix, (24, 24), mode='bicubic', antialias=True)
    torch.testing.assert_close(teacher(x_pix), teacher.model(normalize(resized, cfg['mean'], cfg['std'])))


def test_an_image_of_the_own_size_is_not_resampled():
    teacher = Teacher(nn.Flatten(), mean=MEAN, std=STD, input_size=(4, 5), num_classes=60)
    x_pix = torch.rand(2, 3, 4, 5)
    assert torch.equal(teacher(x_pix), normalize(x_pix, MEAN, STD).flatten(1))


def test_what_the_network_gets_is_in_range_after_resizing():
    teacher = Teacher(nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(24, 24), num_classes=3)
    x_pix = (torch.rand(2, 3, 16, 16) > 0.5).float()  # edges, where bicubic overshoots
    assert teacher.normalize(x_pix).min() >= 0
    assert teacher.normalize(x_pix).max() <= 1


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode(teacher, x_pix):
    before = teacher(x_pix)
    teacher.train()
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher(x_pix), before)


def test_the_network_handed_over_is_frozen_and_in_evaluation_mode():
    model = timm.create_model('test_resnet', num_classes=5).train()
    Teacher(model, mean=MEAN, std=STD, input_size=(16, 16), num_classes=5)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_reach_the_pixels_through_the_resizing(teacher, x_pix):
    (gradient,) = torch.autograd.grad(teacher(x_pix.requires_grad_(True)).logsumexp(dim=1).sum(), x_pix)
    assert gradient.shape == x_pix.shape
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize('std', [(0.5, 0.0, 0.5), (0.5, 0.5, -1.0)])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match=r'std must be positive, up to 1 .*, got'):
        Teacher(nn.Flatten(), mean=MEAN, std=std, input_size=(4, 4), num_classes=48)


def test_requests_of_the_hub_are_not_printed_again_and_again(monkeypatch, caplog):
    def no_network(*_, **__):
        logging.getLogger('huggingface_hub.utils._http').warning('thrown while requesting HEAD')
        raise huggingface_hub.errors.LocalEntryNotFoundError('cannot find the file\non the disk')

    monkeypatch.setattr(timm, 'create_model', no_network)
    with pytest.raises(ValueError, match=r'could not be loaded: cannot find the file; on the disk .*HF_HUB_OFFLINE=1'):
        create_timm_teacher('test_resnet', 5)
    assert caplog.text == ''
    logging.getLogger('huggingface_hub.utils._http').warning('another one')
    assert 'another one' in caplog.text


def test_errors_of_many_lines_become_one():
    text = load_error(RuntimeError('\n'.join(f'line {i} ' + 'x' * (500 if i == 1 else 0) for i in range(9))))
    assert text == f'line 0; line 1 {"x" * 193} ...; line 2; and 6 more'


@pytest.mark.parametrize('package', ['huggingface_hub', 'httpx', 'httpx2', 'requests'])
def test_an_error_of_the_network_says_how_to_do_without(package):
    error = type('ConnectError', (Exception,), {'__module__': f'{package}.errors'})
    assert 'HF_HUB_OFFLINE=1' in load_error(error('no route'))


GOOD = {'mean': MEAN, 'std': STD, 'input_size': (4, 4), 'num_classes': 48}


@pytest.mark.parametrize(
    ('bad', 'match'),
    [
        ({'mean': 0.5}, 'mean must be 3 numbers, one per channel, .*got 0.5'),
        ({'mean': (0.5,)}, r'mean must be 3 numbers, one per channel, .*got \(0.5,\)'),
        ({'mean': 'abc'}, "mean must be 3 numbers, one per channel, got 'abc'"),
        ({'std': (0.5, float('nan'), 0.5)}, 'std must be positive, up to 1'),
        ({'std': (0.5, float('inf'), 0.5)}, 'std must be positive, up to 1'),
        ({'input_size': 4}, r'input_size of the teacher must be \(h, w\) in pixels, got 4'),
        ({'input_size': (4, 0)}, r'input_size of the teacher must be \(h, w\) in pixels, got \(4, 0\)'),
        ({'input_size': (3, 4, 4)}, r'input_size of the teacher must be \(h, w\) in pixels'),
        ({'input_size': (4.5, 4)}, r'input_size of the teacher must be \(h, w\) in pixels'),
        ({'num_classes': -1}, 'num_classes of the teacher must be a positive integer, got -1'),
        ({'num_classes': 4.0}, 'num_classes of the teacher must be a positive integer, got 4.0'),
        ({'num_classes': True}, 'num_classes of the teacher must be a positive integer, got True'),
        ({'class_index': [1, 2]}, r'class_index must hold 48 outputs of the network, from 0, got 2: \[1, 2\]'),
        ({'class_index': [-1] * 48}, 'class_index must hold 48 outputs'),
    ],
)
def test_arguments_of_a_teacher_are_checked(bad, match):
    with pytest.raises(ValueError, match=match):
        Teacher(nn.Flatten(), **{**GOOD, **bad})


def test_a_teacher_is_made_of_a_module():
    with pytest.raises(TypeError, match=r'model of the teacher must be a torch\.nn\.Module, got function'):
        Teacher(lambda x: x, **GOOD)


def test_a_size_may_be_a_list():
    x_pix = torch.rand(2, 3, 4, 4)
    assert torch.equal(
        Teacher(nn.Flatten(), **{**GOOD, 'input_size': [4, 4]})(x_pix), Teacher(nn.Flatten(), **GOOD)(x_pix)
    )


@pytest.mark.parametrize(('model', 'count'), [(nn.Flatten(), 7), (nn.Identity(), 3)])
def test_logits_that_are_not_of_the_classes_are_refused(model, count):
    teacher = Teacher(model, **{**GOOD, 'num_classes': count})
    with pytest.raises(ValueError, match=rf'the teacher must give logits \[B, {count}\], one per class, got'):
        teacher(torch.rand(2, 3, 4, 4))


def test_weights_that_are_not_finite_are_refused():
    for value in (float('nan'), float('inf')):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48))
        nn.init.constant_(model[1].bias, value)
        with pytest.raises(ValueError, match=r'weights of the network must be finite, got NaN or infinity in 1\.bias$'):
            Teacher(model, **GOOD)


def test_logits_that_are_not_finite_are_refused():
    class Overflow(nn.Module):
        def forward(self, x_norm):
            return x_norm.flatten(1) * 1e38 * 1e38

    with pytest.raises(ValueError, match='the logits of the teacher are not finite'):
        Teacher(Overflow(), **GOOD)(torch.rand(2, 3, 4, 4))


def test_a_teacher_says_what_is_inside():
    teacher = Teacher(nn.Flatten(), **GOOD)
    assert repr(teacher) == f'Teacher(Flatten, 48 classes, 4x4, mean={list(MEAN)}, std={list(STD)}, bicubic)'
    both = repr(TeacherEnsemble([teacher, teacher], [1, 3], temperature=4))
    assert both == f'TeacherEnsemble([{teacher!r}, {teacher!r}], weights=[0.25, 0.75], temperature=4)'


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet.r160_in1k'])
def test_a_timm_teacher_is_the_checkpoint_with_the_normalization_of_its_model(tmp_path, name):
    model = timm.create_model(name.split('.')[0], num_classes=5).eval()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    teacher = create_timm_teacher(name, 5, checkpoint_path=str(tmp_path / 'model.pth'))
    cfg = timm.get_pretrained_cfg(name.split('.')[0]).to_dict()
    assert teacher.input_size == cfg['input_size'][1:]
    assert teacher.num_classes == 5
    x_pix = smooth_images((48, 48))
    resized = F.interpolate(x_pix, cfg['input_size'][1:], mode=cfg['interpolation'], antialias=True)
    expected = model(normalize(resized, cfg['mean'], cfg['std']))
    torch.testing.assert_close(teacher(x_pix), expected, atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.fixture
def timm_folder(tmp_path):
    """A real timm model, with its own mean and size, as timm's ``local-dir:`` takes it."""
    cfg = {'mean': MEAN, 'std': STD, 'input_size': (3, 32, 32)}
    model = timm.create_model('test_resnet', num_classes=5, pretrained_cfg_overlay=cfg).eval()
    save_for_hf(model, tmp_path / 'timm', safe_serialization=True)
    return tmp_path / 'timm', model


def test_a_timm_teacher_from_a_folder_brings_the_normalization_of_the_folder(timm_folder, images):
    folder, model = timm_folder
    teacher = create_timm_teacher(f'local-dir:{folder}', 5)
    assert teacher.input_size == (32, 32)
    torch.testing.assert_close(teacher(images), model(normalize(images, MEAN, STD)), atol=1e-5, rtol=1e-5)


def test_a_timm_teacher_of_other_classes_is_refused(timm_folder):
    with pytest.raises(ValueError, match=r'timm:local-dir:.* has 5 classes and the data 7'):
        create_timm_teacher(f'local-dir:{timm_folder[0]}', 7)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    torch.save(timm.create_model('test_resnet', num_classes=5).state_dict(), tmp_path / 'model.pth')
    with pytest.raises(ValueError, match='timm:test_resnet has 5 classes and the data 7'):
        create_timm_teacher('test_resnet', 7, checkpoint_path=str(tmp_path / 'model.pth'))


@pytest.mark.parametrize(
    ('name', 'match'),
    [
        ('resnet18_nope', r"timm has no model 'resnet18_nope' .*close: .*resnet18"),
        ('xyzzy.in1k', r"timm has no model 'xyzzy\.in1k'"),
        ('test_resnet.nope', r'timm:test_resnet\.nope could not be loaded.*nope'),
        ('botnet50ts_256', 'timm:botnet50ts_256 could not be loaded.*[Nn]o pretrained weights'),
        ('local-dir:/nowhere/at/all', 'timm:local-dir:/nowhere/at/all could not be loaded'),
    ],
)
def test_an_unknown_timm_teacher_is_refused(name, match):
    with pytest.raises(ValueError, match=match):
        create_timm_teacher(name, 5)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r'timm:test_resnet could not be loaded: there is no checkpoint .*nowhere\.pth$'
    ):
        create_timm_teacher('test_resnet', 5, checkpoint_path=str(tmp_path / 'nowhere.pth'))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_checkpoint_that_is_none_is_refused(tmp_path, suffix):
    (tmp_path / 'model').with_suffix(suffix).write_text('this is no checkpoint')
    with pytest.raises(ValueError, match='timm:test_resnet could not be loaded'):
        create_timm_teacher('test_resnet', 5, checkpoint_path=str((tmp_path / 'model').with_suffix(suffix)))


@pytest.mark.parametrize('vision', ['ViT', 'ModifiedResNet'])
def test_a_zero_shot_teacher_computes_what_open_clip_does(clip_folder, images, vision):
    folder, model = clip_folder(vision)
    teacher = create_open_clip_teacher(f'local-dir:{folder}', NAMES, TEMPLATES)
    tokenizer = open_clip.get_tokenizer(f'local-dir:{folder}')
    expected = zero_shot_logits(model, tokenizer, normalize(images, MEAN, STD), NAMES, TEMPLATES)
    torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 1e-2
    assert teacher.input_size == (32, 32)
    assert teacher.num_classes == 3


def test_the_default_template_is_a_photo(clip_folder, images):
    folder, model = clip_folder()
    teacher = create_open_clip_teacher(f'local-dir:{folder}', NAMES)
    tokenizer = open_clip.get_tokenizer(f'local-dir:{folder}')
    expected = zero_shot_logits(model, tokenizer, normalize(images, MEAN, STD), NAMES, ['a photo of a {}.'])
    torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_templates_and_class_names_change_the_logits(clip_folder, images):
    name = f'local-dir:{clip_folder()[0]}'
    logits = create_open_clip_teacher(name, NAMES, ['a {}'])(images)
    assert not torch.allclose(logits, create_open_clip_teacher(name, NAMES, ['no {}'])(images), atol=1e-3)
    swapped = create_open_clip_teacher(name, NAMES[::-1], ['a {}'])(images)
    torch.testing.assert_close(logits, swapped.flip(1), atol=1e-4, rtol=1e-4)


def test_the_text_tower_is_dropped_and_the_rest_frozen(clip_folder):
    folder, model = clip_folder()
    teacher = create_open_clip_teacher(f'local-dir:{folder}', NAMES)
    names = {name for name, _ in teacher.named_parameters()}
    assert names == {f'model.visual.{name}' for name, _ in model.visual.named_parameters()}
    total = sum(parameter.numel() for parameter in teacher.parameters())
    assert total == sum(parameter.numel() for parameter in model.visual.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.train().modules())


def test_weights_come_from_a_file_after_the_name_or_beside_it(clip_name, images):
    name, weights, model = clip_name
    by_name = create_open_clip_teacher(f'{name}/{weights}', NAMES)
    by_path = create_open_clip_teacher(name, NAMES, checkpoint_path=str(weights))
    assert torch.equal(by_name(images), by_path(images))
    x_norm = normalize(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    tokenizer = open_clip.get_tokenizer(name)
    expected = zero_shot_logits(model, tokenizer, x_norm, NAMES, ['a photo of a {}.'])
    torch.testing.assert_close(by_name(images), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_beside_a_folder_is_not_ignored(clip_folder, clip_name, images):
    # open_clip itself ignores it with a warning. Either it counts, or it is refused.
    folder, _ = clip_folder()
    _, weights, model = clip_name
    tokenizer = open_clip.get_tokenizer(f'local-dir:{folder}')
    expected = zero_shot_logits(model, tokenizer, normalize(images, MEAN, STD), NAMES, TEMPLATES)
    try:
        teacher = create_open_clip_teacher(f'local-dir:{folder}', NAMES, TEMPLATES, checkpoint_path=str(weights))
    except ValueError as error:
        assert 'checkpoint' in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_a_folder_without_weights_is_refused(clip_folder):
    # open_clip goes on with random weights: a teacher that knows nothing.
    folder, _ = clip_folder(weights=False)
    with pytest.raises(ValueError, match=r'open_clip:local-dir:.* could not be loaded'):
        create_open_clip_teacher(f'local-dir:{folder}', NAMES)


def test_broken_weights_are_refused(clip_folder):
    folder, _ = clip_folder()
    (folder / 'open_clip_model.safetensors').write_text('this is no checkpoint')
    with pytest.raises(ValueError, match=r'open_clip:local-dir:.* could not be loaded'):
        create_open_clip_teacher(f'local-dir:{folder}', NAMES)


def test_weights_of_another_model_are_refused(clip_folder):
    folder, _ = clip_folder()
    other, _ = clip_folder('ModifiedResNet')
    (other / 'open_clip_model.safetensors').replace(folder / 'open_clip_model.safetensors')
    with pytest.raises(ValueError, match=r'open_clip:local-dir:.* could not be loaded'):
        create_open_clip_teacher(f'local-dir:{folder}', NAMES)


@pytest.mark.parametrize(
    ('name', 'match'),
    [
        ('ViT-Nope/openai', r"open_clip has no model 'ViT-Nope' .*ViT-L-14"),
        ('ViT-B-32/nope', r"open_clip:ViT-B-32/PRETRAINED takes a file or one of .*'openai'.* got 'nope'"),
        ('ViT-B-32', "open_clip:ViT-B-32/PRETRAINED takes a file or one of .*'openai'.* got 'nothing'"),
        ('ViT-B-32/', "open_clip:ViT-B-32/PRETRAINED takes a file or one of .*'openai'.* got 'nothing'"),
        ('local-dir:/nowhere/at/all', 'open_clip:local-dir:/nowhere/at/all could not be loaded.*not found'),
    ],
)
def test_an_unknown_open_clip_teacher_is_refused(name, match):
    with pytest.raises(ValueError, match=match):
        create_open_clip_teacher(name, NAMES)


@pytest.mark.parametrize('templates', [['a photo.'], ['a {}', 'a photo of a {'], []])
def test_a_template_without_a_place_for_the_name_is_refused(templates):
    with pytest.raises(ValueError, match=r'a template needs \{\} where the class name goes, got \['):
        create_open_clip_teacher('ViT-B-32/openai', NAMES, templates)


def test_without_open_clip_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(ImportError, match=r'^open_clip is missing; run: pip install "timm-dad\[clip\]"$'):
        create_open_clip_teacher('ViT-B-32/openai', NAMES)


def test_a_coca_is_a_zero_shot_teacher(tmp_path, images):
    # Its image tower returns tokens beside the features.
    config = json.loads((Path(open_clip.__file__).parent / 'model_configs' / 'coca_base.json').read_text())
    config['vision_cfg'].update(image_size=32, layers=1, width=64, patch_size=16, attn_pooler_heads=4, head_width=32)
    config['text_cfg'].update(layers=1, width=64, heads=2)
    config['multimodal_cfg'].update(layers=1, width=64, heads=2)
    config['embed_dim'] = 32
    (tmp_path / 'tiny-coca.json').write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / 'tiny-coca.json')
    weights = tmp_path / 'weights.pt'
    torch.save(open_clip.create_model('tiny-coca').state_dict(), weights)
    logits = create_open_clip_teacher('tiny-coca', NAMES, checkpoint_path=str(weights))(images)
    assert logits.shape == (len(images), len(NAMES))
    assert logits.isfinite().all()


def test_a_timm_teacher_without_a_normalization_is_refused(timm_folder, monkeypatch):
    create_model = timm.create_model

    def create(*args, **kwargs):
        model = create_model(*args, **kwargs)
        model.pretrained_cfg = {'input_size': (3, 32, 32)}
        return model

    monkeypatch.setattr(timm, 'create_model', create)
    with pytest.raises(ValueError, match='does not state its normalization'):
        create_timm_teacher(f'local-dir:{timm_folder[0]}', 5)
