"""What is measured, with tiny models on pictures of noise: images, views, features, risks, the whole and its report."""

import copy
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from clips import write_clip_folder
from conftest import DDCONFIG, NUM_CLASSES, SIZE, _spread
from folders import CLASSES, write_pictures
from PIL import Image
from timm.data import create_dataset
from torch import nn

from timm_dad.dad_sets.maker import view_seed
from timm_dad.data.images import Frame, Source
from timm_dad.diagnosis.data import (
    Batch,
    MadeViews,
    Sample,
    random_crop,
    sample_indices,
    sample_suite,
)
from timm_dad.diagnosis.diagnose import DiagnoseConfig, _one_class, diagnose, risks
from timm_dad.diagnosis.outputs import OutputCollector, Outputs, image_features
from timm_dad.diagnosis.report import format_report, write_report
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import Centre, DADAugment
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.loss import distillation_loss
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.heads import LinearHead, create_head_teacher
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher
from timm_dad.vqgan.model import VQGAN, VQGANConfig

FRAME = Frame(size=(SIZE, SIZE))
NO_ATTACK = AttackConfig(eps=0.0, step_size=0.0, num_steps=0, random_start=0.0)


class Pictures:
    """Noise with labels in turn."""

    def __init__(self, count, num_classes=NUM_CLASSES, seed=0):
        rng = np.random.default_rng(seed)
        self.images = [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)) for _ in range(count)]
        self.num_classes = num_classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % self.num_classes


def sampled(count=8, num_classes=NUM_CLASSES, seed=0, classes=None):
    return Sample(Pictures(count, num_classes, seed), range(count), FRAME, classes)


def small_model(name, size):
    """A model on pixels whose untrained logits name several classes."""
    model = timm.create_model(name, num_classes=NUM_CLASSES)
    nn.init.normal_(model.get_classifier().weight, std=50.0)
    return Teacher(model, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(size, size), num_classes=NUM_CLASSES)


@pytest.fixture(scope='module')
def models():
    """Teacher, another model, and a VQGAN; none is changed by what is measured."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VQGANConfig(ddconfig=DDCONFIG, n_embed=32, embed_dim=4)
        return SimpleNamespace(
            teacher=small_model('test_efficientnet', 24),
            other=small_model('test_resnet', SIZE),
            vqgan=_spread(VQGAN(config)).eval(),
        )


@pytest.fixture
def teacher(models):
    return models.teacher


@pytest.fixture
def other(models):
    return models.other


@pytest.fixture
def vqgan(models):
    return models.vqgan


@pytest.fixture(scope='module')
def found(models):
    """What is measured of two different models."""
    return measure(models.teacher, models.vqgan, models.other)


@pytest.fixture(scope='module')
def found_without_student(models):
    return measure(models.teacher, models.vqgan)


def made(teacher, vqgan, attack=None, seed=0):
    augment = DADAugment(
        teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=attack or AttackConfig(eps=2, step_size=1)
    )
    return MadeViews(augment, seed)


def batch_of(count=4, seed=0):
    x_pix = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return Batch(x_pix, torch.arange(count) % NUM_CLASSES, range(count))


# Images.


def test_a_sample_is_seeded_without_repetition_and_in_order():
    found = sample_indices(100, 20, seed=3)
    assert found == sample_indices(100, 20, seed=3) != sample_indices(100, 20, seed=4)
    assert found == sorted(set(found))
    assert len(found) == 20
    assert set(found) <= set(range(100))
    assert sample_indices(5, 20, seed=3) == [0, 1, 2, 3, 4]


def test_images_of_a_folder_are_framed_and_keep_their_labels_and_places(tmp_path):
    source = Source(create_dataset('', write_pictures(tmp_path, train=2) / 'train'))
    images = Sample(source, [1, 6], FRAME)
    (batch,) = images.batches('clean', 4, 8, 0, torch.device('cpu'))
    assert batch.x_pix.shape == (2, 3, SIZE, SIZE)
    assert (batch.label.tolist(), batch.indices) == ([0, 3], [1, 6])
    expected = [FRAME.transform()(source.read(index).image) for index in (1, 6)]
    assert (255 * batch.x_pix).round().byte().permute(0, 2, 3, 1).tolist() == [np.asarray(i).tolist() for i in expected]


@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_does_not_decode_is_named(tmp_path, workers):
    root = write_pictures(tmp_path, train=2) / 'train'
    (root / 'dog' / '1.png').write_bytes(b'no picture')
    images = Sample(Source(create_dataset('', root)), range(8), FRAME)
    with pytest.raises(ValueError, match=r'^[^\n]*dog/1\.png does not decode'):
        list(images.batches('clean', 4, 8, workers, torch.device('cpu')))


def test_batches_are_all_images_in_order_in_0_to_1():
    batches = list(sampled(7).batches('clean', NUM_CLASSES, 3, 0, torch.device('cpu')))
    assert [len(batch.x_pix) for batch in batches] == [3, 3, 1]
    assert [index for batch in batches for index in batch.indices] == list(range(7))
    assert [label for batch in batches for label in batch.label.tolist()] == [0, 1, 2, 3, 4, 0, 1]
    assert batches[0].x_pix.max() <= 1 < 255 * batches[0].x_pix.max()


@pytest.mark.parametrize(('classes', 'allowed'), [(None, 4), ([3, 0], 2)])
def test_labels_that_are_none_of_the_classes(classes, allowed):
    with pytest.raises(ValueError, match=f'odd: labels must be from 0 to {allowed - 1}, got 0 to 4'):
        list(sampled(classes=classes).batches('odd', 4, 8, 0, torch.device('cpu')))


def suite(class_names, parts=(3,), groups=None, num_classes=None, name='odd', resize=True, multi_labels=None):
    names = ('threshold0.7', 'matched-frequency', 'top-images')
    return SimpleNamespace(
        name=name,
        resize=resize,
        parts=[
            SimpleNamespace(name=part, dataset=Pictures(count, seed=count), multi_labels=multi_labels)
            for part, count in zip(names, parts, strict=False)
        ],
        class_names=class_names,
        num_classes=num_classes or len(class_names or ()),
        groups=groups,
    )


@pytest.mark.parametrize(
    ('there', 'here', 'classes'),
    [
        (('a', 'b', 'c'), ('a', 'b', 'c'), None),
        (('c', 'a'), ('a', 'b', 'c'), [2, 0]),
        (None, ('a', 'b', 'c'), None),
        (('a', 'b', 'c'), None, None),
    ],
)
def test_classes_of_a_suite_are_looked_up_by_name(there, here, classes):
    found = sample_suite(suite(there, num_classes=None if there else 3), here, 3, range, FRAME)
    assert found.classes == classes


def test_a_suite_is_sampled_over_all_its_parts():
    found = sample_suite(suite(None, parts=(3, 5), num_classes=5), None, 5, lambda count: [0, count - 1], FRAME)
    assert len(found) == 2
    (batch,) = found.batches('odd', 5, 8, 0, torch.device('cpu'))
    assert (batch.label.tolist(), batch.indices) == ([0, 4], [0, 7])
    (alone,) = Sample(Pictures(5, seed=5), [4], FRAME).batches('odd', 5, 8, 0, torch.device('cpu'))
    torch.testing.assert_close(batch.x_pix[1:], alone.x_pix)


def test_a_suite_is_sampled_as_it_is_evaluated():
    cut = Frame(size=(16, 16), crop_pct=0.5)
    found = sample_suite(suite(None, (3, 5, 4), num_classes=5, name='imagenet-v2'), None, 5, range, cut)
    assert (len(found), found.frame) == (5, cut)  # matched-frequency alone
    assert sample_suite(suite(None, num_classes=3, resize=False), None, 3, range, cut).frame.crop_pct == 1.0
    with pytest.raises(ValueError, match='odd has several right labels a picture: leave it out'):
        sample_suite(suite(None, num_classes=3, multi_labels=[[0, 1]] * 3), None, 3, range, cut)


def test_suites_whose_classes_are_not_the_models():
    with pytest.raises(ValueError, match=r"^odd must have classes of the data, but \['z'\] are not among them"):
        sample_suite(suite(('a', 'z')), ('a', 'b'), 2, range, FRAME)
    with pytest.raises(ValueError, match=r'^odd has 4 classes without names, but the data has 3'):
        sample_suite(suite(None, num_classes=4), ('a', 'b', 'c'), 3, range, FRAME)
    with pytest.raises(ValueError, match=r'^odd groups classes'):
        sample_suite(suite(('a',), groups=(('n1', 'n2'),)), ('a',), 1, range, FRAME)


# Views.


def test_views_are_those_of_the_augmentation_and_depend_on_the_image_alone(teacher, vqgan):
    batch = batch_of()
    views = made(teacher, vqgan)(batch)
    assert tuple(views) == MadeViews.names
    torch.testing.assert_close(views['Q(x)'], vqgan(batch.x_pix))
    assert (views['DAD'] - views['Q(x)']).abs().max() > 1e-3
    last = Batch(batch.x_pix[3:], batch.label[3:], [3])
    for name, view in made(teacher, vqgan)(last).items():
        assert view.min() >= 0
        assert view.max() <= 1
        torch.testing.assert_close(view, views[name][3:], atol=1e-4, rtol=0)
    assert not torch.equal(made(teacher, vqgan, seed=1)(batch)['DAD'], views['DAD'])


def test_a_random_crop_is_seeded_and_leaves_the_random_state_alone():
    batch, state = batch_of(), torch.get_rng_state()
    crops = random_crop(batch, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert crops.shape == batch.x_pix.shape
    assert torch.equal(crops, random_crop(batch, seed=0))
    assert not torch.equal(crops, random_crop(batch, seed=1))
    assert (crops != batch.x_pix).flatten(1).any(dim=1).all()


def test_codes_are_counted_over_batches(teacher, vqgan):
    views, batch = made(teacher, vqgan), batch_of()
    for rows in (slice(0, 2), slice(2, 4)):
        views(Batch(batch.x_pix[rows], batch.label[rows], list(batch.indices)[rows]))
    codes, found = vqgan.encode_to_codes(batch.x_pix), views.codebook()
    again = vqgan.encode_to_codes(vqgan.decode_codes(codes))
    assert found['size'] == 32
    assert found['clean']['used'] == len(codes.unique())
    p = codes.flatten().bincount().double() / codes.numel()
    assert found['clean']['perplexity'] == pytest.approx(math.exp(-(p[p > 0] * p[p > 0].log()).sum()))
    assert found['changed_without_attack'] == pytest.approx((again != codes).double().mean().item(), abs=0.01)
    generators = [torch.Generator().manual_seed(view_seed(0, index, 0)) for index in range(4)]
    attacked = views.augment.attack_centre(
        Centre(vqgan(batch.x_pix), batch.x_pix.shape[-2:], codes), batch.label, generator=generators
    )
    assert found['DAD']['used'] == len(attacked.dad_codes.unique())
    assert found['changed'] == pytest.approx((attacked.dad_codes != codes).double().mean().item(), abs=0.01)


def test_without_an_attack_codes_change_by_encoding_alone(teacher, vqgan):
    views = made(teacher, vqgan, NO_ATTACK)
    views(batch_of())
    found = views.codebook()
    assert found['changed'] == found['changed_without_attack'] > 0


def test_where_the_label_filter_leaves_a_reconstruction_nothing_changes(teacher, vqgan):
    """Also without an attack, so that the attack never changes fewer codes than none."""
    batch = batch_of()
    views = made(teacher, vqgan, AttackConfig(eps=5, step_size=5))
    views.augment.keep_label = True
    views(batch)
    codes, found = vqgan.encode_to_codes(batch.x_pix), views.codebook()
    generators = [torch.Generator().manual_seed(view_seed(0, index, 0)) for index in range(4)]
    centre = views.augment.find_centre(batch.x_pix, batch.label)
    kept = views.augment.attack_centre(centre, batch.label, generator=generators).kept
    assert not kept.all()
    again = vqgan.encode_to_codes(vqgan.decode_codes(codes))
    calm = ((again != codes) & kept[:, None, None]).double().mean().item()
    assert found['changed_without_attack'] == pytest.approx(calm, abs=0.01)


def test_an_attack_on_latents_starts_at_the_codes_of_the_image(teacher, vqgan):
    views = made(teacher, vqgan, LatentAttackConfig())
    views(batch_of())
    assert views.codebook()['changed_without_attack'] == 0
    assert views.codebook()['changed'] > 0.2


# Features.


def test_features_are_what_the_head_gets(teacher, x_pix):
    features = image_features(teacher, x_pix)
    torch.testing.assert_close(teacher.model.get_classifier()(features), teacher(x_pix), atol=1e-3, rtol=1e-4)


def test_features_of_a_zero_shot_teacher_have_unit_length(tmp_path, x_pix):
    write_clip_folder(tmp_path / 'clip')
    clip = create_open_clip_teacher(f'local-dir:{tmp_path / "clip"}', CLASSES)
    features = image_features(clip, x_pix)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(clip.model.logit_scale * features @ clip.model.text_features, clip(x_pix))


@pytest.mark.parametrize('kind', ['timm', 'zero-shot', 'probe', 'several'])
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_features_are_in_the_precision_of_the_teacher(teacher, other, tmp_path, x_pix, kind, precision):
    write_clip_folder(tmp_path / 'clip')
    if kind == 'zero-shot':
        teacher = create_open_clip_teacher(f'local-dir:{tmp_path / "clip"}', CLASSES)
    elif kind == 'probe':
        head = LinearHead(weight=torch.randn(5, 16), bias=torch.randn(5))
        teacher = create_head_teacher(head, f'open_clip:local-dir:{tmp_path / "clip"}', 5)
    elif kind == 'several':
        teacher = TeacherEnsemble([teacher, other])
    teacher = copy.deepcopy(teacher)
    expected = image_features(teacher, x_pix)
    prepare_frozen(teacher, precision=precision)
    features = image_features(teacher, x_pix)
    assert features.dtype == torch.float32
    assert not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, atol=0.05 * float(expected.abs().max()), rtol=0)


def test_features_of_several_teachers_are_side_by_side(teacher, other, x_pix):
    both = image_features(TeacherEnsemble([teacher, other]), x_pix)
    torch.testing.assert_close(both, torch.cat([image_features(one, x_pix) for one in (teacher, other)], dim=1))


def test_a_network_without_features(x_pix):
    plain = Teacher(nn.Flatten(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(SIZE, SIZE), num_classes=2)
    with pytest.raises(ValueError, match="Flatten has no features: it needs timm's forward_features"):
        image_features(plain, x_pix)


def test_outputs_are_gathered_by_set_and_role(teacher, other, x_pix):
    collector = OutputCollector({'teacher': teacher, 'student': other})
    for rows in (slice(0, 3), slice(3, 4)):
        collector.add('all', x_pix[rows], torch.arange(4)[rows])
        collector.add('some', x_pix[rows], torch.zeros(4)[rows], classes=[4, 1])
    assert collector.labels()['all'].tolist() == [0, 1, 2, 3]
    found = collector.outputs()
    torch.testing.assert_close(found['all']['student'].logits, other(x_pix), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found['some']['teacher'].logits, teacher(x_pix)[:, [4, 1]], atol=1e-3, rtol=1e-4)
    assert found['all']['teacher'].features.shape == (4, image_features(teacher, x_pix).shape[1])


# Risks.


def test_risks_of_counted_images():
    teacher = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]])
    student = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    label = torch.tensor([0, 1, 1, 2])
    outputs = {'teacher': Outputs(teacher, torch.zeros(4, 1)), 'student': Outputs(student, torch.zeros(4, 1))}
    found = risks(outputs, label, temperature=2.0)
    assert (found['teacher_error'], found['student_error'], found['disagreement']) == (0.5, 0.75, 0.5)
    right, wrong = math.log(math.e**2 + 2) - 2, math.log(math.e**2 + 2)
    assert found['teacher_loss'] == pytest.approx((2 * right + 2 * wrong) / 4)
    assert found['student_loss'] == pytest.approx(F.cross_entropy(student, label).item())
    assert found['divergence'] == pytest.approx(distillation_loss(student, teacher, 2.0).item())
    assert set(risks({'teacher': outputs['teacher']}, label, 2.0)) == {'teacher_loss', 'teacher_error'}


# The whole.


def measure(teacher, vqgan, student=None, oods=None, **config):
    config = DiagnoseConfig(**{'batch_size': 5, 'num_splits': 2, **config})
    oods = oods or {'near': sampled(seed=0), 'far': sampled(6, seed=1)}
    return diagnose(sampled(), made(teacher, vqgan), oods, teacher, student, config)


def test_a_student_that_is_the_teacher_is_limited_by_it_alone(teacher, vqgan):
    found = measure(teacher, vqgan, teacher)
    assert set(found['risks']) == {'clean', 'Q(x)', 'DAD', 'random crop', 'near', 'far'}
    for of in found['risks'].values():
        assert of['disagreement'] == 0
        assert of['divergence'] == pytest.approx(0, abs=1e-5)
        assert of['student_error'] == of['teacher_error']
    assert found['terms']['mean']['limiting'] == 'teacher'
    assert found['terms']['far']['teacher'] == found['risks']['far']['teacher_error'] > 0
    assert found['risks']['near'] == pytest.approx(found['risks']['clean'])
    assert found['images'] == {'clean': 8, 'Q(x)': 8, 'DAD': 8, 'random crop': 8, 'near': 8, 'far': 6}


def test_terms_and_risks_are_of_the_same_answers(found):
    for name in ('near', 'far'):
        terms, of = found['terms'][name], found['risks'][name]
        assert terms['fit'] == pytest.approx(found['risks']['DAD']['disagreement'])
        assert terms['fit'] + terms['shift'] == pytest.approx(of['disagreement'])
        assert (terms['teacher'], terms['student_error']) == pytest.approx((of['teacher_error'], of['student_error']))
        assert of['student_error'] <= terms['bound'] + 1e-9


def test_distances_in_the_features_of_each_model(found):
    found = found['distances']
    assert set(found) == {'teacher', 'student'}
    assert found['teacher'] != found['student']
    pairs = {(pair['from'], pair['to']): pair for pair in found['teacher']['pairs']}
    floors = found['teacher']['noise_floors']
    assert set(floors) == {'clean', 'Q(x)', 'DAD', 'random crop', 'near', 'far'}
    for (one, two), pair in pairs.items():
        less = (floors[one]['mean'] + floors[two]['mean']) / 2
        assert pair['excess']['mean'] == pytest.approx(pair['distance']['mean'] - less)
    assert pairs['clean', 'far']['nearer_than_clean'] is pairs['clean', 'DAD']['nearer_than_clean'] is None
    nearer = pairs['clean', 'far']['excess']['mean'] - pairs['DAD', 'far']['excess']['mean']
    assert pairs['DAD', 'far']['nearer_than_clean']['mean'] == pytest.approx(nearer)


def test_views_that_are_the_ood_data_are_nearer_to_it_than_clean_images(teacher, vqgan):
    class Stripes(MadeViews):
        """An augmentation that makes dark pictures, the OOD data's look."""

        def __call__(self, batch):
            return {**super().__call__(batch), 'DAD': batch.x_pix / 8}

    pictures = Pictures(40)
    dark = Pictures(40, seed=1)
    dark.images = [image.point(lambda value: value // 8) for image in dark.images]
    augment = DADAugment(teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=NO_ATTACK)
    found = diagnose(
        Sample(pictures, range(40), FRAME),
        Stripes(augment),
        {'dark': Sample(dark, range(40), FRAME)},
        teacher,
        teacher,
    )
    pairs = {(pair['from'], pair['to']): pair for pair in found['distances']['teacher']['pairs']}
    nearer = pairs['DAD', 'dark']['nearer_than_clean']
    assert nearer['mean'] > 10 * nearer['std']
    assert pairs['DAD', 'dark']['excess']['mean'] < pairs['clean', 'dark']['excess']['mean'] / 5
    assert 'DAD views are nearer than clean images to dark.' in format_report(_limited_by(found, 'shift'))


def test_outputs_of_other_classes_are_left_out(teacher, vqgan):
    classes = [4, 1]
    images = sampled(num_classes=2, classes=classes)
    found = measure(teacher, vqgan, oods={'some': images})['risks']['some']
    (batch,) = images.batches('some', NUM_CLASSES, 20, 0, torch.device('cpu'))
    logits = teacher(batch.x_pix)[:, classes]
    assert found['teacher_error'] == pytest.approx((logits.argmax(1) != batch.label).double().mean().item())
    assert found['teacher_loss'] == pytest.approx(F.cross_entropy(logits, batch.label).item(), rel=1e-3)


def test_two_runs_are_equal(models, found):
    assert json.dumps(measure(models.teacher, models.vqgan, models.other)) == json.dumps(found)


@pytest.mark.parametrize('setting', [{'distance': 'sliced'}, {'num_splits': 3}, {'seed': 1}])
def test_settings_of_the_distances(teacher, vqgan, found_without_student, setting):
    assert measure(teacher, vqgan, **setting)['distances'] != found_without_student['distances']


def test_the_temperature_is_that_of_the_divergence_and_batches_do_not_count(models, found):
    other = measure(models.teacher, models.vqgan, models.other, temperature=1.0, batch_size=20)['risks']
    for name, of in found['risks'].items():
        assert of['divergence'] != pytest.approx(other[name]['divergence'], rel=0.01)
        assert {**of, 'divergence': 0} == pytest.approx({**other[name], 'divergence': 0}, rel=1e-3)


@pytest.mark.parametrize('names', [(), ('DAD',), ('near', 'clean'), ('near', 'mean')])
def test_names_of_ood_sets(teacher, vqgan, names):
    with pytest.raises(ValueError, match='OOD sets need names other than'):
        diagnose(sampled(), made(teacher, vqgan), {name: sampled() for name in names}, teacher)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('distance', 'far'),
        ('num_splits', 0),
        ('batch_size', 0),
        ('seed', -1),
        ('workers', -1),
        ('temperature', 0.0),
        ('temperature', math.inf),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=f'^{field} must be'):
        DiagnoseConfig(**{field: value})


# The report.


def _limited_by(found, limiting):
    mean = {**found['terms']['mean'], 'limiting': limiting}
    return {**found, 'terms': {**found['terms'], 'mean': mean}}


@pytest.mark.parametrize(
    ('limiting', 'says'),
    [
        ('teacher', 'a stronger or more robust teacher'),
        ('fit', 'train longer, or use a larger student'),
        ('shift', 'a larger --dad-eps'),
    ],
)
def test_the_last_paragraph_names_the_limiting_term_and_what_follows(found, limiting, says):
    text = format_report(_limited_by(found, limiting))
    last = text.strip().split('\n\n')[-1]
    assert f'**{limiting}**' in last
    assert says in last
    assert 'proves nothing' in last


def test_what_the_vqgan_costs_is_read_before_the_terms(found):
    errors = {name: found['risks'][name]['teacher_error'] for name in ('clean', 'Q(x)')}
    assert found['vqgan_cost'] == errors['Q(x)'] - errors['clean']
    for cost, first in ((0.04, False), (0.18, True)):
        risks = {name: {**of, 'teacher_error': 0.6 + cost * (name == 'Q(x)')} for name, of in found['risks'].items()}
        text = format_report({**_limited_by(found, 'teacher'), 'vqgan_cost': cost, 'risks': risks})
        assert f'is 60.0 % on clean images and {60 + 100 * cost:.1f} % on Q(x)' in text
        assert f'costs {100 * cost:.1f} points' in text
        assert ('**the VQGAN comes first**' in text) == first
        assert ('Before that, improve the VQGAN' in text.strip().split('\n\n')[-1]) == first
    assert 'What the VQGAN costs' not in format_report({**found, 'vqgan_cost': None})  # of a set that is made


def test_a_teacher_that_gives_one_class_is_noted(found):
    logits = torch.eye(3)[torch.zeros(20).long()]
    other = torch.eye(3)[torch.arange(20) % 3]
    outputs = {name: {'teacher': Outputs(of, of)} for name, of in (('DAD', logits), ('clean', other), ('one', logits))}
    labels = {'DAD': torch.arange(20) % 3, 'clean': torch.arange(20) % 3, 'one': torch.zeros(20).long()}
    assert _one_class(outputs, labels) == {'DAD': 1.0}
    text = format_report({**found, 'one_class': {'DAD': 0.97}})
    assert 'The teacher predicts one class for 97 % of the images of DAD' in text


def test_without_pot_there_are_no_distances_and_one_line(teacher, vqgan, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'ot', None)
    found = measure(teacher, vqgan, teacher)
    assert found['distances'] == {}
    text = format_report(_limited_by(found, 'shift'))
    assert 'Wasserstein' not in text
    assert 'was not measured' in text
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == ('No Wasserstein distances, because they need POT: ot is missing; run: pip install "timm-dad[eval]"')


def test_tables_hold_the_numbers(found):
    rows = [line.split('|')[1:-1] for line in format_report(found).splitlines() if line.startswith('| DAD')]
    cells = [cell.strip() for cell in rows[0]]
    of = found['risks']['DAD']
    assert cells[1:4] == ['8', f'{100 * of["teacher_error"]:.1f}', f'{of["teacher_loss"]:.3f}']
    assert cells[6] == f'{100 * of["disagreement"]:.1f}'
    itself = next(row for row in rows if row[1].strip() == 'itself')
    assert itself[2].strip().startswith(f'{found["distances"]["teacher"]["noise_floors"]["DAD"]["mean"]:.4g} ± ')
    assert len({len(line) for line in format_report(found).split('## ')[1].splitlines() if line.startswith('|')}) == 1


def test_without_a_student_no_term_is_named(found_without_student):
    found = found_without_student
    text = format_report(found)
    assert found['terms'] is None
    assert set(found['distances']) == {'teacher'}
    assert 'Without --student there is no limiting term' in text
    assert 'student error' not in text


def test_files_are_written_whole(tmp_path):
    paths = write_report(tmp_path / 'new' / 'folder', {'a': 1}, 'text\n')
    names = ['diagnose.json', 'diagnose.md']
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / 'new' / 'folder').iterdir()) == sorted(names)
    assert json.loads(paths[0].read_text()) == {'a': 1}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'--output .*file/folder cannot be written'):
        write_report(tmp_path / 'file' / 'folder', {}, '')
