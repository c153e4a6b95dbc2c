"""Two teachers of one architecture as one: weights on the line between theirs (WiSE-FT)."""

import pytest
import timm
import torch
import torch.nn.functional as F
from clips import add_clip_name, clip_config, normalize
from safetensors.torch import save_file
from test_teachers import NAMES, own_cache, parse  # noqa: F401 (a fixture)
from torch import nn

from timm_dad.evaluation.models import ModelOptions, open_model, parse_models
from timm_dad.flags.moved import absolute, find_here, without_folder
from timm_dad.flags.teacher import check_teacher_args, create_teacher
from timm_dad.teachers.spec import DataClasses, check_spec, create_teacher_by_spec, split_wise
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.wise import WiseTeacher
from timm_dad.teachers.zero_shot import ZeroShotClassifier

DATA = DataClasses(num_classes=3, class_names=NAMES)


def save_resnet(path, seed, classes=3, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model('test_resnet', num_classes=classes, zero_init_last=False, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save({'state_dict': model.state_dict()}, path)
    return model.eval()


@pytest.fixture
def files(tmp_path):
    """Files of two test_resnets, and the models."""
    return [(tmp_path / f'{seed}.pth', save_resnet(tmp_path / f'{seed}.pth', seed)) for seed in range(2)]


@pytest.fixture
def clips(tmp_path):
    """A CLIP, and an image tower of its kind with a linear head: their SPECs, the CLIP, tower and head."""
    file, clip = add_clip_name(tmp_path, 'wise-clip', clip_config())
    torch.manual_seed(3)
    visual, head = add_clip_name(tmp_path, 'wise-other', clip_config())[1].visual, torch.randn(3, 16)
    state = {f'visual.{name}': value for name, value in visual.state_dict().items()}
    save_file({**state, 'head.weight': head}, tmp_path / 'tuned.safetensors')
    return f'open_clip:wise-clip/{file}', f'open_clip:wise-clip/{tmp_path / "tuned.safetensors"}', clip, visual, head


def between(first, second, alpha):
    return {
        name: (1 - alpha) * value + alpha * second[name] if value.is_floating_point() else value
        for name, value in first.items()
    }


@pytest.mark.parametrize('alpha', ['0', '0.3', '1'])
def test_weights_are_on_the_line_between_those_of_two_timm_models(files, alpha):
    (one, first), (other, second) = files
    spec = f'wise:timm:test_resnet/{one}+timm:test_resnet/{other}@{alpha}'
    teacher = create_teacher_by_spec(spec, DATA)
    expected = timm.create_model('test_resnet', num_classes=3).eval()
    expected.load_state_dict(between(first.state_dict(), second.state_dict(), float(alpha)))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(teacher.model.state_dict()[name], value, msg=name)
    x_pix = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(teacher(x_pix), expected(teacher.normalize(x_pix)))
    assert teacher.num_classes == 3
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_zero_shot_clip_and_one_that_was_fine_tuned_with_a_head(clips):
    zero_shot, tuned, clip, visual, head = clips
    teacher = create_teacher_by_spec(f'wise:{zero_shot}+{tuned}@0.25', DATA)
    text = create_teacher_by_spec(zero_shot, DATA).model.text_features
    weight = 0.75 * clip.logit_scale.exp() * text.t() + 0.25 * head
    mixed = between(clip.visual.state_dict(), visual.state_dict(), 0.25)
    x_pix = torch.rand(2, 3, 32, 32)
    clip.visual.load_state_dict(mixed)
    with torch.no_grad():
        norm = (teacher.norm.mean.flatten().tolist(), teacher.norm.std.flatten().tolist())
        features = F.normalize(clip.visual(normalize(x_pix, *norm)), dim=-1)
        torch.testing.assert_close(teacher(x_pix), features @ weight.t(), atol=1e-3, rtol=1e-3)


def test_two_zero_shot_clips_at_the_ends_are_each_itself(clips, tmp_path):
    zero_shot = clips[0]
    torch.manual_seed(5)
    other = f'open_clip:wise-clip/{add_clip_name(tmp_path, "wise-third", clip_config())[0]}'
    x_pix = torch.rand(2, 3, 32, 32)
    for alpha, spec in (('0', zero_shot), ('1', other)):
        teacher = create_teacher_by_spec(f'wise:{zero_shot}+{other}@{alpha}', DATA)
        torch.testing.assert_close(teacher(x_pix), create_teacher_by_spec(spec, DATA)(x_pix), atol=1e-4, rtol=1e-4)


def test_the_fingerprint_knows_both_teachers_and_the_share(files):
    specs = [f'timm:test_resnet/{file}' for file, _ in files]

    def fingerprint(first, second, alpha):
        return create_teacher_by_spec(f'wise:{first}+{second}@{alpha}', DATA).fingerprint()

    found = [fingerprint(*specs, '0.5'), fingerprint(*specs, '0.4'), fingerprint(*specs[::-1], '0.5')]
    assert len(set(found)) == 3
    assert fingerprint(*specs, '.50') == found[0]


def simple(model=None, **more):
    norm = {'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'input_size': (32, 32), 'num_classes': 3, **more}
    return Teacher(model or timm.create_model('test_resnet', num_classes=3), **norm)


@pytest.mark.parametrize(
    ('second', 'match'),
    [
        ({'mean': (0.4,) * 3}, r'the mean of the first is \[0.5, 0.5, 0.5\], of the second \[0.4, 0.4, 0.4\]'),
        ({'std': (0.4,) * 3}, 'the standard deviation of the first'),
        ({'input_size': (24, 32)}, r'the size of the first is \(32, 32\), of the second \(24, 32\)'),
        ({'interpolation': 'bilinear'}, 'the interpolation of the first is bicubic'),
        ({'num_classes': 2, 'class_index': [0, 1]}, 'the number of classes of the first is 3, of the second 2'),
        ({'class_index': [2, 1, 0]}, "heads list the same classes in the same order, but these have the data's at"),
        (
            {'model': timm.create_model('test_vit', num_classes=3, img_size=32)},
            'the same architecture, but .* missing',
        ),
        ({'model': timm.create_model('test_resnet', num_classes=5), 'class_index': [0, 1, 2]}, 'heads list the same'),
    ],
)
def test_teachers_that_differ_are_refused(second, match):
    with pytest.raises(ValueError, match=f'^two teachers can be merged if .*{match}'):
        WiseTeacher(simple(), simple(**second), 0.5)


def test_weights_of_other_shapes_are_named():
    wide = timm.create_model('test_resnet', num_classes=3, stem_width=24)
    with pytest.raises(
        ValueError, match=r'the same architecture, but conv1.* of the first is \[.*\], of the second \['
    ):
        WiseTeacher(simple(), simple(wide), 0.5)


def test_another_activation_is_another_architecture():
    models = [nn.Sequential(nn.Flatten(), nn.Linear(12, 3), act()) for act in (nn.GELU, nn.SiLU)]
    with pytest.raises(ValueError, match='the first has GELU where the second has SiLU'):
        WiseTeacher(simple(models[0], input_size=(2, 2)), simple(models[1], input_size=(2, 2)), 0.5)
    dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, 3), nn.GELU())
    with pytest.raises(ValueError, match='missing'):  # by its names
        WiseTeacher(simple(models[0], input_size=(2, 2)), simple(dropped, input_size=(2, 2)), 0.5)


@pytest.mark.parametrize('alpha', [-0.1, 1.5, float('nan')])
def test_a_share_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match='the share of the second teacher must be from 0 to 1, got'):
        WiseTeacher(simple(), simple(), alpha)


@pytest.mark.parametrize(
    'spec',
    [
        'wise:', 'wise:timm:a@0.5', 'wise:timm:a+timm:b', 'wise:timm:a+timm:b@', 'wise:timm:a+timm:b@2',
        'wise:timm:a+timm:b@nan', 'wise:timm:a+timm:b@1e-1', 'wise:timm:a+timm:b+timm:c@0.5', 'wise:a+b@0.5',
        'wise:wise:timm:a+timm:b@0.5+timm:c@0.5',
    ],
)  # fmt: skip
def test_specs_that_are_none(spec):
    with pytest.raises(
        ValueError, match=r'must be wise:A\+B@ALPHA, with two SPECs and the share of B from 0 to 1, got'
    ):
        check_spec(spec)


def test_a_spec_may_hold_plus_and_at_signs_of_its_own():
    spec = 'wise:timm:a/x+y@2.pth+open_clip:hf-hub:o/r@main@0.25'
    assert split_wise(spec) == ('timm:a/x+y@2.pth', 'open_clip:hf-hub:o/r@main', 0.25)


def test_flags_know_what_the_two_are(clips, tmp_path):
    zero_shot, tuned, *_ = clips
    (tmp_path / 'names.txt').write_text('dog\nred car\ntree\n')
    both = ('--num-classes', '3', '--dad-teacher', f'wise:{zero_shot}+{tuned}@0.5')
    names = ('--dad-classnames', str(tmp_path / 'names.txt'))
    args, given = parse(*both, *names)
    check_teacher_args(args, given)
    teacher = create_teacher(args, 3, ['a', 'b', 'c'])
    assert isinstance(teacher, WiseTeacher)
    assert teacher.zero_shot == [True, False]
    for flags, match in (
        ((*both[:3], 'wise:timm:a+timm:b@0.5', *names), '--dad-classnames is for zero-shot teachers, got'),
        ((*both, '--dad-teacher-img-size', '48'), '--dad-teacher-img-size is for timm: and run:, got'),
        ((*both, '--dad-teacher-checkpoint', str(tmp_path / 'names.txt')), 'is for timm: and open_clip:, got'),
        ((*both[:3], 'wise:timm:a@0.5'), '--dad-teacher must be wise:A'),
    ):
        with pytest.raises(ValueError, match=match):
            check_teacher_args(*parse(*flags))


def test_two_demos_make_a_demo():
    data = DataClasses(num_classes=3, class_names=NAMES)
    x_pix = torch.rand(2, 3, 32, 32)
    demo, both = (create_teacher_by_spec(spec, data) for spec in ('demo', 'wise:demo+demo@0.5'))
    assert isinstance(demo.model, ZeroShotClassifier)
    torch.testing.assert_close(both(x_pix), demo(x_pix), atol=1e-4, rtol=1e-4)


def test_sets_keep_and_find_the_files_of_both(files, tmp_path, monkeypatch):
    (one, _), (other, _) = files
    monkeypatch.chdir(tmp_path)
    spec = f'wise:timm:test_resnet/{one.name}+timm:test_resnet/{other.name}@0.5'
    kept = f'wise:timm:test_resnet/{one}+timm:test_resnet/{other}@0.5'
    assert absolute(spec) == kept
    assert absolute([spec, 'demo']) == [kept, 'demo']
    assert without_folder(kept) == spec
    moved = tmp_path / 'elsewhere'
    moved.mkdir()
    for path in (one, other):
        path.rename(moved / path.name)
    assert find_here(kept, moved / 'set', '--dad-teacher') == kept.replace(str(tmp_path), str(moved))


def test_evaluate_takes_one_as_a_model():
    (model,) = parse_models(['soup=wise:timm:a+timm:b@0.5'])
    assert (model.name, model.spec) == ('soup', 'wise:timm:a+timm:b@0.5')
    with pytest.raises(ValueError, match='must be wise:A'):
        parse_models(['wise:timm:a@0.5'])
    demo, both = (open_model(one, DATA, ModelOptions()) for one in parse_models(['demo', 'wise:demo+demo@0.5']))
    x_pix = torch.rand(2, 3, *both.frame.size)
    assert both.frame == demo.frame
    torch.testing.assert_close(both.network(x_pix), demo.network(x_pix), atol=1e-4, rtol=1e-4)
    assert both.fingerprint != demo.fingerprint
