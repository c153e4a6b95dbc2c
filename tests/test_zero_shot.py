import logging
import os

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clips import add_clip_name, clip_config, normalize, write_clip_folder
from safetensors.torch import load_file
from timm.data import ImageNetInfo

from timm_dad.common.cache import cache_dir
from timm_dad.evaluation.models import frame_of
from timm_dad.method.loss import DADLoss, DADLossConfig
from timm_dad.teachers import zero_shot
from timm_dad.teachers.backbones import load_open_clip
from timm_dad.teachers.teacher import create_open_clip_teacher
from timm_dad.teachers.zero_shot import (
    check_templates,
    default_templates,
    is_imagenet,
    spoken_names,
    zero_shot_head,
)
from timm_dad.vqgan.presets import PRESETS, preset_of_cached

NAMES = ['dog', 'red car', 'tree']
TEMPLATES = ['a photo of a {}.', 'an emoji of a {}']
WNIDS = list(ImageNetInfo().label_names())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))


@pytest.fixture
def heads_computed(monkeypatch):
    """How often open_clip computed a head."""
    calls = []
    build = open_clip.build_zero_shot_classifier
    monkeypatch.setattr(
        open_clip, 'build_zero_shot_classifier', lambda *args, **kwargs: calls.append(args) or build(*args, **kwargs)
    )
    return calls


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / 'clip'
    write_clip_folder(folder)
    return folder


def head_of(folder, names=NAMES, templates=TEMPLATES):
    return create_open_clip_teacher(f'local-dir:{folder}', names, templates).model.text_features


def cached_files():
    return sorted(path.name for path in cache_dir().iterdir())


# Class names and templates.


def test_imagenet_is_known_by_its_folders_or_its_number_of_classes():
    assert is_imagenet(WNIDS, 1000)
    assert is_imagenet(WNIDS[::-1], 1000)
    assert is_imagenet(None, 1000)
    assert not is_imagenet(None, 999)
    assert not is_imagenet(WNIDS[:100], 100)
    assert not is_imagenet([f'class {i}' for i in range(1000)], 1000)


def test_names_of_imagenet_are_open_clips_in_the_order_of_the_data():
    assert spoken_names(WNIDS) == list(open_clip.IMAGENET_CLASSNAMES)
    assert spoken_names(WNIDS[::-1]) == list(open_clip.IMAGENET_CLASSNAMES)[::-1]
    assert spoken_names(['cat', 'dog']) == ['cat', 'dog']
    assert spoken_names(None, 5) is None


def test_a_thousand_classes_without_names_are_taken_for_imagenets_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert spoken_names(None, 1000) == list(open_clip.IMAGENET_CLASSNAMES)
    assert "they are assumed to be ImageNet's" in caplog.text


def test_a_wordnet_id_outside_imagenet_1k_has_its_first_lemma():
    outside = next(name for name in ImageNetInfo('imagenet-22k').label_names() if name not in set(WNIDS))
    lemma = ImageNetInfo('imagenet-22k').label_name_to_description(outside).split(',')[0]
    assert spoken_names([WNIDS[0], outside]) == ['tench', lemma]


def test_templates_of_imagenet_are_open_clips():
    expected = [template('{}') for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    for names, count in ((WNIDS, 1000), (WNIDS[3:7], 4), (None, 1000)):
        assert default_templates(names, count) == expected
    assert len(expected) == 80
    for names, count in ((['cat', 'dog'], 2), (['cat', WNIDS[0]], 2), (None, 10)):
        assert list(default_templates(names, count)) == ['a photo of a {}.']
    check_templates(expected)


@pytest.mark.parametrize('template', ['a photo', 'a {} of a {}', 'a {name}', 'a {} in {color}', '{{}}'])
def test_a_template_that_str_format_would_not_fill_is_refused(template):
    with pytest.raises(ValueError, match=r'a template needs \{\} where the class name goes, got'):
        check_templates(['a {}', template])


# The cache of text heads.


def test_a_head_is_computed_once_and_the_second_teacher_is_the_same(clip, heads_computed):
    x_pix = torch.rand(2, 3, 32, 32)
    first = create_open_clip_teacher(f'local-dir:{clip}', NAMES, TEMPLATES)
    second = create_open_clip_teacher(f'local-dir:{clip}', NAMES, TEMPLATES)
    assert len(heads_computed) == 1
    assert torch.equal(first(x_pix), second(x_pix))
    assert len(cached_files()) == 1  # and nothing half written


def test_other_users_can_read_a_cached_head(clip, tmp_path):
    head_of(clip)
    (tmp_path / 'opened').touch()
    assert (cache_dir() / cached_files()[0]).stat().st_mode == (tmp_path / 'opened').stat().st_mode


def test_the_cached_head_is_open_clips(clip):
    model, tokenizer = load_open_clip(f'local-dir:{clip}')[0], open_clip.get_tokenizer(f'local-dir:{clip}')
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES)
    head_of(clip)
    torch.testing.assert_close(load_file(cache_dir() / cached_files()[0])['text_features'], expected)
    torch.testing.assert_close(head_of(clip), expected)


def changed_weights(folder):
    model = write_clip_folder(folder)
    torch.nn.init.normal_(model.transformer.resblocks[0].mlp.c_fc.weight)
    write_clip_folder(folder, model=model)


def changed_config(folder):
    """The same weights, in more heads."""
    model = load_open_clip(f'local-dir:{folder}')[0]
    write_clip_folder(folder, clip_config(text={'heads': 4}), model)


def changed_activation(folder):
    model = load_open_clip(f'local-dir:{folder}')[0]
    write_clip_folder(folder, clip_config(quick_gelu=True), model)


def changed_tokenizer(folder):
    model = load_open_clip(f'local-dir:{folder}')[0]
    write_clip_folder(folder, clip_config(text={'tokenizer_kwargs': {'clean': 'whitespace'}}), model)


@pytest.mark.parametrize('change', [changed_weights, changed_config, changed_activation, changed_tokenizer])
def test_a_change_of_the_model_is_a_new_head(clip, heads_computed, change):
    names = ['dog', 'Red Car', 'tree']  # a car in small letters and this one are the same to a tokenizer
    head_of(clip, names)
    change(clip)
    changed = head_of(clip, names)
    assert len(heads_computed) == 2
    for path in cache_dir().iterdir():
        path.unlink()
    assert torch.equal(changed, head_of(clip, names))


@pytest.mark.parametrize(
    ('names', 'templates'),
    [
        (NAMES[::-1], TEMPLATES),
        (NAMES[:2], TEMPLATES),
        (['dog', 'red car', 'trees'], TEMPLATES),
        (NAMES, TEMPLATES[:1]),
        (NAMES, TEMPLATES[::-1]),
        (NAMES, ['a photo of a {}.', 'an emoji of a {}!']),
    ],
)
def test_a_change_of_names_or_templates_is_a_new_head(clip, heads_computed, names, templates):
    head_of(clip)
    head_of(clip, names, templates)
    assert len(heads_computed) == 2


def test_a_change_of_the_tokenizers_files_alone_is_a_new_head(clip, heads_computed, monkeypatch):
    head_of(clip)
    tokenizer = open_clip.get_tokenizer(f'local-dir:{clip}')
    monkeypatch.setattr(open_clip, 'get_tokenizer', lambda name: lambda texts: tokenizer(texts).clamp(max=49000))
    head_of(clip)
    assert len(heads_computed) == 2


@pytest.mark.parametrize('module', [open_clip, torch])
def test_another_version_is_a_new_head(clip, heads_computed, monkeypatch, module):
    head_of(clip)
    monkeypatch.setattr(module, '__version__', '0.0.0')
    head_of(clip)
    assert len(heads_computed) == 2


def test_a_change_of_the_image_tower_alone_is_not(clip, heads_computed):
    model = load_open_clip(f'local-dir:{clip}')[0]
    head_of(clip)
    torch.nn.init.normal_(model.visual.conv1.weight)
    write_clip_folder(clip, model=model)
    head_of(clip)
    assert len(heads_computed) == 1


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'empty', 'text', 'another'])
def test_a_damaged_head_is_computed_again(clip, heads_computed, damage, caplog):
    whole = head_of(clip)
    path = cache_dir() / cached_files()[0]
    content = path.read_bytes()
    if damage == 'another':
        path.unlink()
        head_of(clip, NAMES[::-1])
        (cache_dir() / cached_files()[0]).replace(path)
    else:
        path.write_bytes(
            {
                'truncated': content[:-10],
                'flipped': content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
                'empty': b'',
                'text': b'this is no head',
            }[damage]
        )
    before = len(heads_computed)
    assert torch.equal(head_of(clip), whole)
    assert len(heads_computed) == before + 1
    assert 'is damaged and is computed again' in caplog.text
    assert torch.equal(head_of(clip), whole)
    assert len(heads_computed) == before + 1


def test_without_a_place_to_keep_it_there_is_a_head_and_a_warning(clip, caplog):
    cache_dir().parent.mkdir(parents=True)
    cache_dir().write_text('a file where the folder should be')
    assert head_of(clip).shape == (16, 3)
    assert 'The zero-shot head cannot be stored' in caplog.text


def test_a_head_that_cannot_be_written_whole_is_not_there(clip, monkeypatch):
    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    head_of(clip)
    assert not list(cache_dir().iterdir())


def test_heads_are_cached_where_vqgans_are_and_torch_hub_moves_both(clip, tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / 'torch_home' / 'hub' / 'timm_dad'
    monkeypatch.setattr(torch.hub, '_hub_dir', None)  # what set_dir sets
    torch.hub.set_dir(tmp_path / 'elsewhere')
    head_of(clip)
    assert cached_files() == os.listdir(tmp_path / 'elsewhere' / 'timm_dad')
    name, preset = next(iter(PRESETS.items()))
    assert preset_of_cached(tmp_path / 'elsewhere' / 'timm_dad' / f'{name}.ckpt') == preset


def test_the_text_tower_comes_back_to_the_cpu_in_its_precision(clip):
    model, config = load_open_clip(f'local-dir:{clip}')
    tf32 = torch.backends.cuda.matmul.allow_tf32
    zero_shot_head(model, open_clip.get_tokenizer(f'local-dir:{clip}'), NAMES, TEMPLATES, config, torch.device('cpu'))
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    assert {parameter.device.type for parameter in model.parameters()} == {'cpu'}


# What the teacher does with it.


def test_scale_and_temperature_are_applied_once(clip):
    """Logits are scale * cos, and the loss divides them by T once: checked against probabilities made by hand."""
    teacher = create_open_clip_teacher(f'local-dir:{clip}', NAMES, TEMPLATES)
    model = load_open_clip(f'local-dir:{clip}')[0]
    x_pix, temperature = torch.rand(4, 3, 32, 32), 4.0
    with torch.no_grad():
        image = F.normalize(model.encode_image(normalize(x_pix)), dim=-1)
        cosines = image @ teacher.model.text_features
        scale = model.logit_scale.exp()
    logits = teacher(x_pix)
    torch.testing.assert_close(logits, scale * cosines, atol=1e-4, rtol=1e-4)
    assert cosines.abs().max() <= 1 + 1e-5
    student = torch.randn(4, 3)
    config = DADLossConfig(temperature=temperature, task_weight=0, kd_weight=1, dad_weight=0)
    parts = DADLoss(config)(student, logits, None, None, torch.zeros(4, dtype=torch.long))
    p, q = (scale * cosines / temperature).softmax(dim=-1), (student / temperature).softmax(dim=-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(dim=-1).mean()
    torch.testing.assert_close(parts['kd_loss'], expected, atol=1e-4, rtol=1e-4)


def test_weights_of_a_tag_get_the_activation_that_they_were_trained_with(tmp_path, monkeypatch):
    """open_clip only warns: ViT-L-14/openai, the default teacher, would run with GELU in place of QuickGELU."""
    _, model = add_clip_name(tmp_path, 'tiny-openai', clip_config(quick_gelu=True))
    add_clip_name(tmp_path, 'tiny-openai', clip_config())  # the list's config has another activation than the tag
    tag = open_clip.pretrained._pcfg('nowhere', quick_gelu=True)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-openai', {'openai': tag})
    torch.save(model.state_dict(), tmp_path / 'quick.pt')
    monkeypatch.setattr(open_clip.factory, 'download_pretrained', lambda *args, **kwargs: str(tmp_path / 'quick.pt'))
    x_norm = torch.randn(2, 3, 32, 32)
    by_tag = load_open_clip('tiny-openai/openai')[0]
    by_file = load_open_clip('tiny-openai/openai', str(tmp_path / 'quick.pt'))[0]
    with torch.no_grad():
        expected = model.encode_image(x_norm)
        torch.testing.assert_close(by_tag.encode_image(x_norm), expected)
        torch.testing.assert_close(by_file.encode_image(x_norm), expected)
        plain = load_open_clip(f'tiny-openai/{tmp_path / "quick.pt"}')[0].encode_image(x_norm)
    assert not torch.allclose(plain, expected, atol=1e-4)


@pytest.fixture
def tags(tmp_path, monkeypatch):
    """Name tags of an architecture, each with its preprocessing; returns a file of weights of it."""

    def add(*preprocess):
        file, _ = add_clip_name(tmp_path, 'tiny-tagged')
        cfgs = {f'tag{i}': open_clip.pretrained._pcfg('nowhere', **more) for i, more in enumerate(preprocess)}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-tagged', cfgs)
        return file

    return add


SQUASHED = {'mean': (0, 0, 0), 'std': (1, 1, 1), 'interpolation': 'bilinear', 'resize_mode': 'squash'}


def test_weights_from_a_file_are_normalized_as_all_tags_are(tags, caplog):
    file = tags(SQUASHED, SQUASHED)
    teacher = create_open_clip_teacher(f'tiny-tagged/{file}', NAMES)
    assert teacher.norm.mean.flatten().tolist() == [0, 0, 0]
    assert teacher.norm.std.flatten().tolist() == [1, 1, 1]
    assert teacher.interpolation == 'bilinear'
    assert frame_of(teacher).crop_mode == 'squash'
    assert 'normalization' not in caplog.text


@pytest.mark.parametrize('preprocess', [(), (SQUASHED, {**SQUASHED, 'interpolation': 'bicubic'})])
def test_weights_from_a_file_get_clips_normalization_with_a_warning_otherwise(tags, caplog, preprocess):
    file = tags(*preprocess)
    teacher = create_open_clip_teacher(f'tiny-tagged/{file}', NAMES)
    assert teacher.norm.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    (warning,) = [line for line in caplog.text.splitlines() if 'normalization' in line]
    assert f'open_clip:tiny-tagged/{file}: ' in warning
    assert "CLIP's normalization" in warning
    assert '--dad-teacher open_clip:tiny-tagged/TAG --dad-teacher-checkpoint FILE' in warning


def test_a_tag_that_is_named_says_all_of_it(tags):
    file = tags(SQUASHED, {})
    teacher = create_open_clip_teacher('tiny-tagged/tag0', NAMES, checkpoint_path=str(file))
    assert teacher.interpolation == 'bilinear'
    assert frame_of(teacher).crop_mode == 'squash'


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module.', '_orig_mod.module.', 'module._orig_mod.'])
def test_weights_of_compiled_and_parallel_models_are_read(clip, tmp_path, prefix):
    expected = load_open_clip(f'local-dir:{clip}')[0].state_dict()
    changed = {name: value + 1 for name, value in expected.items()}
    torch.save({'state_dict': {prefix + name: value for name, value in changed.items()}}, tmp_path / 'w.pt')
    found = load_open_clip(f'local-dir:{clip}', str(tmp_path / 'w.pt'))[0].state_dict()
    assert all(torch.equal(value, changed[name]) for name, value in found.items())


def test_open_clip_weights_that_are_damaged_are_refused_in_one_line(clip, tmp_path):
    state = load_open_clip(f'local-dir:{clip}')[0].state_dict()
    torch.save({'state_dict': state}, tmp_path / 'w.pt')
    raw = bytearray((tmp_path / 'w.pt').read_bytes())
    raw[raw.find(state['visual.conv1.weight'].numpy().tobytes()) + 3] ^= 0x40
    (tmp_path / 'w.pt').write_bytes(raw)
    with pytest.raises(ValueError, match=r'w\.pt is damaged: .* does not match its checksum'):
        load_open_clip(f'local-dir:{clip}', str(tmp_path / 'w.pt'))


# Prompts that the text tower cannot tell apart.


LEAD = 'a picture that was drawn by a vendor of phones and that shows, among many other things, a '


def test_classes_whose_prompts_are_cut_to_the_same_tokens_are_refused(clip):
    with pytest.raises(
        ValueError, match=r"the classes '.* dog' and '.* red car' have the same tokens in a context of 16"
    ):
        head_of(clip, [LEAD + name for name in NAMES])


def test_prompts_that_are_cut_are_a_warning(clip, caplog):
    head_of(clip, ['dog', f'red {LEAD}', 'tree'])
    assert "2 of 6 prompts are longer than the context of 16 tokens and are cut, such as '" in caplog.text
    caplog.clear()
    head_of(clip, ['dog', ' '.join(9 * 'a'), 'tree'])  # 16 tokens with the template, begin and end
    assert 'longer' not in caplog.text


def test_classes_of_one_name_are_a_warning(clip, caplog):
    caplog.set_level('WARNING', logger='timm_dad')
    head_of(clip, ['dog', 'tree', 'dog'])
    assert 'Several classes are called dog: the teacher cannot tell them apart' in caplog.text
    caplog.clear()
    head_of(clip, NAMES)
    assert caplog.text == ''


@pytest.mark.usefixtures('tf32')
def test_the_cosines_are_computed_without_tf32(clip):
    classifier = create_open_clip_teacher(f'local-dir:{clip}', NAMES).model
    switches = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
                switches.append(torch.backends.cuda.matmul.allow_tf32)
            return super().__torch_function__(function, types, args, kwargs or {})

    classifier.text_features = classifier.text_features.as_subclass(Watched)
    classifier(torch.rand(2, 3, 32, 32))
    assert switches == [False]
    assert torch.backends.cuda.matmul.allow_tf32


def test_the_default_teachers_weights_want_quick_gelu():
    assert open_clip.get_pretrained_cfg('ViT-L-14', 'openai')['quick_gelu']
    assert not open_clip.get_model_config('ViT-L-14').get('quick_gelu')


def test_content_hash_sees_names_types_shapes_values_and_facts():
    base = {'a': torch.zeros(2, 2)}
    others = [
        ({'b': torch.zeros(2, 2)}, None),
        ({'a': torch.zeros(4)}, None),
        ({'a': torch.zeros(2, 2, dtype=torch.int32)}, None),
        ({'a': torch.tensor([[0.0, 0.0], [0.0, 1e-30]])}, None),
        (base, {'fact': 1}),
    ]
    hashes = [zero_shot.content_hash(base), *(zero_shot.content_hash(*other) for other in others)]
    assert len(set(hashes)) == len(hashes)
    strided = torch.zeros(2, 2, 2, 2).to(memory_format=torch.channels_last)
    assert zero_shot.content_hash({'a': strided}) == zero_shot.content_hash({'a': torch.zeros(2, 2, 2, 2)})


def test_a_model_with_a_logit_bias_has_the_probabilities_of_one_without(tmp_path):
    """SigLIP: one bias for all classes."""
    config = clip_config(init_logit_bias=-10)
    model = write_clip_folder(tmp_path / 'siglip', config)
    assert model.logit_bias == -10
    teacher = create_open_clip_teacher(f'local-dir:{tmp_path / "siglip"}', NAMES, TEMPLATES)
    x_pix = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        image = F.normalize(model.encode_image(normalize(x_pix)), dim=-1)
        logits = model.logit_scale.exp() * image @ teacher.model.text_features + model.logit_bias
    torch.testing.assert_close(teacher(x_pix).softmax(-1), logits.softmax(-1), atol=1e-5, rtol=1e-4)
