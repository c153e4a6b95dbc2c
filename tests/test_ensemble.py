import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLoss, DADLossConfig
from timm_dad.method.task import DADTask
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher

NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


def build(size, mean, classes=5, num_classes=None, **more):
    model = timm.create_model('test_resnet', num_classes=classes, zero_init_last=False)
    nn.init.normal_(model.get_classifier().weight, std=5.0)
    norm = {'mean': (mean,) * 3, 'std': (0.3, 0.3, 0.3), 'input_size': (size, size)}
    return Teacher(model, **norm, num_classes=num_classes or classes, **more)


@pytest.fixture
def teachers():
    """Another size, normalization, interpolation and number of outputs each."""
    return [
        build(24, 0.5),
        build(40, 0.1, classes=9, num_classes=5, class_index=[8, 0, 3, 2, 5], interpolation='bilinear'),
    ]


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_softened_probabilities_are_averaged(teachers, x_pix, temperature):
    ensemble = TeacherEnsemble(teachers, [3, 1], temperature)
    expected = sum(w * (t(x_pix) / temperature).softmax(-1) for w, t in zip((0.75, 0.25), teachers, strict=True))
    torch.testing.assert_close((ensemble(x_pix) / temperature).softmax(-1), expected)
    assert ensemble.num_classes == 5
    assert (teachers[0](x_pix).softmax(-1) - teachers[1](x_pix).softmax(-1)).abs().max() > 0.1


def test_weights_are_equal_by_default(teachers, x_pix):
    torch.testing.assert_close(TeacherEnsemble(teachers)(x_pix), TeacherEnsemble(teachers, [0.2, 0.2])(x_pix))


def test_the_loss_gets_the_mean_of_the_soft_targets(teachers, x_pix):
    student, target = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    config = DADLossConfig(temperature=4.0)
    logits = TeacherEnsemble(teachers, temperature=4.0)(x_pix)
    kd_loss = DADLoss(config)(student, logits, None, None, target)['kd_loss']
    p = sum(0.5 * (teacher(x_pix) / 4).softmax(-1) for teacher in teachers)
    torch.testing.assert_close(kd_loss, 16 * F.kl_div((student / 4).log_softmax(-1), p, reduction='batchmean'))


def test_one_teacher_alone_keeps_its_logits_up_to_a_constant(teachers, x_pix):
    logits = TeacherEnsemble(teachers[:1], temperature=4.0)(x_pix)
    difference = logits - teachers[0](x_pix)
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-4, rtol=1e-4)


def test_gradients_of_the_attack_go_through_all_teachers(teachers, x_pix):
    target = torch.arange(4)

    def gradient(teacher):
        x = x_pix.clone().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(teacher(x), target), x)[0]

    both = gradient(TeacherEnsemble(teachers))
    for teacher in teachers:
        assert not torch.allclose(F.normalize(both.flatten(1)), F.normalize(gradient(teacher).flatten(1)), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in TeacherEnsemble(teachers).parameters())


def test_an_extreme_teacher_leaves_the_mean_finite(x_pix):
    teachers = [build(16, 0.5), build(16, 0.5)]
    nn.init.normal_(teachers[1].model.get_classifier().weight, std=1e6)
    assert TeacherEnsemble(teachers)(x_pix).isfinite().all()


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_the_precision_of_the_frozen_models_reaches_every_teacher(teachers, x_pix, precision):
    seen = []
    for teacher in teachers:
        teacher.model.get_classifier().register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    ensemble = TeacherEnsemble(teachers)
    prepare_frozen(ensemble, None, precision, torch.device('cpu'))
    assert ensemble(x_pix).dtype == torch.float32
    assert seen == [{'fp32': torch.float32, 'bf16': torch.bfloat16}[precision]] * 2


def test_a_task_trains_with_several_teachers(teachers, vqgan, student, x_pix):
    ensemble = TeacherEnsemble(teachers, temperature=4.0)
    augment = DADAugment(ensemble, vqgan, attack=AttackConfig(eps=1.0, step_size=0.5), **NORM)
    task = DADTask(student, ensemble, augment, **NORM, verbose=False)
    task.train()
    assert not any(module.training for module in ensemble.modules())
    before = [parameter.clone() for parameter in ensemble.parameters()]
    task(x_pix * 2 - 1, torch.arange(4))['loss'].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, ensemble.parameters(), strict=True))


@pytest.mark.parametrize(
    ('weights', 'temperature', 'match'),
    [
        ([1], 1, 'weights must be 2 positive numbers, one per teacher, got'),
        ([1, 0], 1, 'weights must be 2 positive numbers'),
        ([1, float('nan')], 1, 'weights must be 2 positive numbers'),
        ([float('inf'), 1], 1, 'weights must be 2 positive numbers'),
        (None, 0, 'temperature must be positive, got 0'),
        (None, float('nan'), 'temperature must be positive, got nan'),
    ],
)
def test_bad_weights_and_temperatures_are_refused(teachers, weights, temperature, match):
    with pytest.raises(ValueError, match=match):
        TeacherEnsemble(teachers, weights, temperature)


def test_teachers_of_other_classes_are_refused(teachers):
    with pytest.raises(ValueError, match=r'teachers must have the same number of classes, got \[5, 7\]'):
        TeacherEnsemble([teachers[0], build(16, 0.5, classes=7)])
