import math

import pytest
import torch
from torch import nn

from timm_dad.method.loss import DADLoss, DADLossConfig, distillation_loss, hard_labels, teacher_cross_entropy

PARTS = ('task_loss', 'kd_loss', 'dad_loss')


def logits_of(*rows):
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float32).log()


@pytest.fixture
def batch():
    """Student and teacher logits on both views, and labels, of 3 images and 4 classes."""
    return (*torch.randn(4, 3, 4).unbind(), torch.tensor([0, 3, 1]))


def test_distillation_is_the_mean_kl_of_the_images():
    # KL([.5 .5] || [.25 .75]) = .5 log 2 + .5 log 2/3 and KL([.75 .25] || [.25 .75]) = .75 log 3 - .25 log 3
    student = logits_of([0.25, 0.75], [0.25, 0.75])
    teacher = logits_of([0.5, 0.5], [0.75, 0.25])
    expected = ((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) + 0.5 * math.log(3)) / 2
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_divides_logits_by_the_temperature_and_multiplies_by_its_square():
    # Logits log 16 and log 81 at T = 4 are log 2 and log 3: probabilities (2, 1) / 3 and (3, 1) / 4.
    student, teacher = logits_of([16.0, 1.0]), logits_of([81.0, 1.0])
    expected = 4**2 * (3 / 4 * math.log((3 / 4) / (2 / 3)) + 1 / 4 * math.log((1 / 4) / (1 / 3)))
    assert distillation_loss(student, teacher, 4.0).item() == pytest.approx(expected, rel=1e-4)


def test_distillation_is_zero_at_the_teacher_and_blind_to_a_shift():
    logits = torch.randn(3, 4)
    assert distillation_loss(logits + 2.0, logits, 4.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(logits, torch.randn(3, 4), 4.0) > 0


def test_distillation_is_finite_for_certain_teachers_and_students():
    # Probabilities that underflow to zero: 0 log 0 is 0.
    sure = torch.tensor([[200.0, 0.0, -200.0]])
    assert distillation_loss(sure, sure, 1.0).item() == 0
    # KL = 1 * (log 1 - log p) with log p = -400
    assert distillation_loss(sure.flip(1), sure, 1.0).item() == pytest.approx(400, rel=1e-5)


def test_the_loss_is_the_sum_written_by_hand():
    student, teacher = [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]
    student_dad, teacher_dad = [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]
    logits = [logits_of(x) for x in (student, teacher, student_dad, teacher_dad)]
    result = DADLoss(DADLossConfig(temperature=1.0))(*logits, torch.tensor([1]))
    task = -math.log(0.3)
    kd = 0.6 * math.log(3) + 0.1 * math.log(0.1 / 0.5)
    dad = 0.25 * math.log(2.5) + 0.5 * math.log(5) + 0.25 * math.log(0.25 / 0.8)
    assert [result[name].item() for name in PARTS] == pytest.approx([task, kd, dad], rel=1e-5)
    assert result['loss'].item() == pytest.approx(task + kd / 2 + dad / 2, rel=1e-5)
    assert set(result) == {'loss', *PARTS}
    assert all(value.shape == () for value in result.values())


def test_the_defaults_are_the_released_settings():
    config = DADLossConfig()
    assert (config.temperature, config.task_weight, config.kd_weight, config.dad_weight) == (4.0, 1.0, 0.5, 0.5)


def test_soft_targets_of_one_class_equal_the_label(batch):
    *logits, target = batch
    soft = nn.functional.one_hot(target, 4).float()
    torch.testing.assert_close(DADLoss()(*logits, soft)['loss'], DADLoss()(*logits, target)['loss'])


def test_soft_targets_weigh_the_classes():
    # -(.25 log .2 + .75 log .5)
    logits = logits_of([0.2, 0.3, 0.5])
    result = DADLoss()(logits, logits, logits, logits, torch.tensor([[0.25, 0.0, 0.75]]))
    assert result['task_loss'].item() == pytest.approx(-(0.25 * math.log(0.2) + 0.75 * math.log(0.5)), rel=1e-5)


@pytest.mark.parametrize('part', PARTS)
def test_each_weight_scales_its_part_only(batch, part):
    weights = {'task_weight': 0.7, 'kd_weight': 1.3, 'dad_weight': 0.4}
    name = part.replace('_loss', '_weight')
    before = DADLoss(DADLossConfig(**weights))(*batch)
    after = DADLoss(DADLossConfig(**{**weights, name: weights[name] + 2}))(*batch)
    torch.testing.assert_close(after['loss'] - before['loss'], 2 * before[part])
    for other in PARTS:
        assert torch.equal(after[other], before[other])  # parts are before their weights


def test_the_temperature_changes_the_distillation_only(batch):
    cold, hot = (DADLoss(DADLossConfig(temperature=t))(*batch) for t in (1.0, 8.0))
    assert torch.equal(cold['task_loss'], hot['task_loss'])
    assert not torch.isclose(cold['kd_loss'], hot['kd_loss'])
    assert not torch.isclose(cold['dad_loss'], hot['dad_loss'])


def test_a_criterion_replaces_the_task_loss(batch):
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    result = DADLoss(criterion=smooth)(*batch)
    torch.testing.assert_close(result['task_loss'], smooth(batch[0], batch[-1]))
    assert not torch.isclose(result['task_loss'], DADLoss()(*batch)['task_loss'])


def test_the_teacher_gets_no_gradient_and_each_view_its_own(batch):
    student, teacher, student_dad, teacher_dad, target = batch
    logits = [x.clone().requires_grad_(True) for x in (student, teacher, student_dad, teacher_dad)]
    DADLoss()(*logits, target)['loss'].backward()
    assert logits[1].grad is None
    assert logits[3].grad is None
    # The gradient of T^2 KL / B in the student is T (softmax(s / T) - softmax(t / T)) / B.
    expected = 0.5 * 4 * ((student_dad / 4).softmax(dim=1) - (teacher_dad / 4).softmax(dim=1)) / 3
    torch.testing.assert_close(logits[2].grad, expected)
    assert logits[0].grad.abs().sum() > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_distilled_in_fp32(dtype):
    student, teacher = (torch.randn(8, 50) * 5).to(dtype), (torch.randn(8, 50) * 5).to(dtype)
    result = distillation_loss(student, teacher, 4.0)
    assert result.dtype == torch.float32
    assert result == distillation_loss(student.float(), teacher.float(), 4.0)
    assert teacher_cross_entropy(teacher, torch.zeros(8, dtype=torch.long)).dtype == torch.float32


def test_teacher_cross_entropy_is_one_number_per_image():
    logits = logits_of([0.2, 0.8], [0.5, 0.5])
    expected = torch.tensor([-math.log(0.8), -math.log(0.5)])
    torch.testing.assert_close(teacher_cross_entropy(logits, torch.tensor([1, 0])), expected)
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    expected = torch.tensor([-(math.log(0.2) + math.log(0.8)) / 2, -math.log(0.5)])
    torch.testing.assert_close(teacher_cross_entropy(logits, soft), expected)


def test_hard_labels_are_the_likeliest_classes():
    assert hard_labels(torch.tensor([2, 0])).tolist() == [2, 0]
    assert hard_labels(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])).tolist() == [2, 0]


@pytest.mark.parametrize('which', range(4))
def test_logits_of_another_shape_are_refused(batch, which):
    *logits, target = batch
    logits[which] = torch.randn(3, 5)
    with pytest.raises(
        ValueError, match=r'student and teacher logits of both views must have the same shape \[B, K\].*\(3, 5\)'
    ):
        DADLoss()(*logits, target)


@pytest.mark.parametrize('temperature', [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=f'temperature must be positive, got {temperature}'):
        DADLossConfig(temperature=temperature)


@pytest.mark.parametrize('name', ['task_weight', 'kd_weight', 'dad_weight'])
@pytest.mark.parametrize('weight', [-0.5, math.nan, math.inf])
def test_a_negative_weight_is_refused(name, weight):
    with pytest.raises(ValueError, match=f'{name} must be 0 or more and finite, got {weight}'):
        DADLossConfig(**{name: weight})
    assert getattr(DADLossConfig(**{name: 0.0}), name) == 0
