"""Label-free: the attack ascends the loss of the teacher's own answer, and the student learns from it alone."""

import pytest
import torch

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.task import DADTask

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
LABEL_FREE = DADLossConfig(task_weight=0, label_free=True)
ATTACKS = {
    'pixels': {'attack': AttackConfig(eps=3.0, step_size=1.5, num_steps=2)},
    'input': {'attack': AttackConfig(eps=3.0, step_size=3.0), 'attack_from': 'input'},
    'latent': {'attack': LatentAttackConfig()},
    'codes': {'attack': CodeAttackConfig(neighbours=8)},
    'keep label': {'attack': AttackConfig(eps=3.0, step_size=3.0), 'keep_label': True},
}
VIEW = ('x0', 'x_adv', 'distance', 'x_dad', 'dad_codes', 'dad_logits', 'kept')


@pytest.fixture
def build(teacher, vqgan):
    def build(**kwargs):
        return DADAugment(teacher, vqgan, mean=MEAN, std=STD, **kwargs)

    return build


@pytest.mark.parametrize('kwargs', ATTACKS.values(), ids=ATTACKS)
def test_views_are_those_of_the_teachers_answer_as_label_bit_by_bit(build, teacher, x_pix, kwargs):
    answer = teacher(x_pix).argmax(dim=-1)
    made = []
    for label_free, target in ((True, (answer + 1) % 5), (False, answer), (False, (answer + 1) % 5)):
        torch.manual_seed(3)
        made.append(build(**kwargs, label_free=label_free).make_views(x_pix, target))
    own, expected, other = made
    assert all(torch.equal(getattr(own, name), getattr(expected, name)) for name in VIEW)
    assert torch.equal(own.clean_logits, teacher(x_pix))
    assert not torch.equal(own.x_adv, other.x_adv)  # labels would make another view


def test_soft_targets_are_not_read_and_come_back_as_they_were(build, teacher, x_pix):
    target = torch.rand(4, 5).softmax(dim=1)
    torch.manual_seed(3)
    views, targets = build(**ATTACKS['pixels'], label_free=True)(x_pix, target)
    torch.manual_seed(3)
    expected, _ = build(**ATTACKS['pixels'])(x_pix, teacher(x_pix * _row(STD) + _row(MEAN)).argmax(dim=-1))
    assert torch.equal(views, expected)
    assert torch.equal(targets, torch.cat([target, target]))


def _row(values):
    return torch.tensor(values).view(1, 3, 1, 1)


def create_task(student, teacher, augment, **kwargs):
    student.zero_grad()
    return DADTask(student, teacher, augment, mean=MEAN, std=STD, verbose=False, **kwargs)


def gradients(student, task, input, target):
    torch.manual_seed(3)
    result = task(input, target)
    student.zero_grad()
    result['loss'].backward()
    return result, [parameter.grad.clone() for parameter in student.parameters()]


@pytest.mark.parametrize('pairs', [False, True])
def test_labels_have_no_part_in_the_gradient_of_the_student(student, teacher, build, x_pix, pairs):
    student.eval()  # batch norm would keep statistics of the first step
    augment = None if pairs else build(**ATTACKS['pixels'], label_free=True)
    input = torch.cat([x_pix, x_pix.flip(-1)]) if pairs else x_pix
    task = create_task(student, teacher, augment, loss=LABEL_FREE)
    label = torch.tensor([0, 1, 2, 3]).repeat(1 + pairs)
    (one, one_gradient), (other, other_gradient) = (
        gradients(student, task, input, target) for target in (label, label.flip(0) + 1)
    )
    assert all(torch.equal(*pair) for pair in zip(one_gradient, other_gradient, strict=True))
    assert any(gradient.any() for gradient in one_gradient)
    assert one['teacher_kept'] == other['teacher_kept']
    assert 'task_loss' not in one
    torch.testing.assert_close(one['loss'], 0.5 * one['kd_loss'] + 0.5 * one['dad_loss'])


def test_the_answer_that_is_kept_is_that_on_the_image(student, teacher, x_pix):
    task = create_task(student, teacher, None, loss=LABEL_FREE)
    clean, extra = x_pix, torch.cat([x_pix[:2], 1 - x_pix[2:]])
    result = task((torch.cat([clean, extra]) - _row(MEAN)) / _row(STD), torch.zeros(8, dtype=torch.long))
    kept = teacher(clean).argmax(dim=-1) == teacher(extra).argmax(dim=-1)
    assert result['teacher_kept'] == kept.float().mean()
    assert 0 < kept.sum() < 4


def test_task_weights_and_half_a_label_free_task_are_refused(student, teacher, build):
    for weights in ({}, {'task_weight': 0, 'extra_task_weight': 0.1}):
        with pytest.raises(ValueError, match=r'^label_free removes the task loss: task_weight and extra_task_weight'):
            DADLossConfig(label_free=True, **weights)
    for label_free, loss in ((True, None), (False, LABEL_FREE)):
        with pytest.raises(ValueError, match=r'^label_free must be the same for augment and loss'):
            create_task(student, teacher, build(label_free=label_free), loss=loss)
