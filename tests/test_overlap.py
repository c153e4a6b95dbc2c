"""overlap.py: views made one batch ahead are the same views, and nothing else that is drawn changes."""

import pytest
import torch
from timm.utils import random_seed

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.training.overlap import prepared_ahead

TARGET = torch.tensor([0, 1, 2, 3])


@pytest.fixture
def make_task(student, teacher, vqgan):
    def make(**schedule):
        augment = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=AttackConfig(eps=2.0))
        return DADTask(student, teacher, augment, schedule=DADSchedule(**schedule), verbose=False)

    return make


def batches(x_pix, count):
    for index in range(count):
        random_seed(index)
        yield index, (x_pix + 0.01 * index).clamp(0, 1) * 2 - 1, TARGET


def student_noise():
    """What a student's dropout would draw."""
    return torch.rand(3)


@pytest.mark.parametrize('schedule', [{}, {'prob': 0.5}, {'every': 2, 'replay': 8}], ids=str)
@pytest.mark.parametrize('count', [0, 1, 5])
def test_batches_and_draws_are_those_without_it(make_task, x_pix, schedule, count):
    found = []
    for ahead in (False, True):
        task, own = make_task(**schedule), []
        items = prepared_ahead(batches(x_pix, count), task) if ahead else batches(x_pix, count)
        for index, input, target, *prepared in items:
            result = task(input, target, *prepared)
            own.append((index, result['output'].detach(), result['loss'].detach(), student_noise()))
        found.append(own)
    assert [item[0] for item in found[1]] == list(range(count))
    for without, ahead in zip(*found, strict=True):
        for a, b in zip(without[1:], ahead[1:], strict=True):
            assert torch.equal(a, b)


def test_views_are_made_before_the_batch_in_front_is_given_out(make_task, x_pix):
    task, seen = make_task(), []

    def watched():
        for batch in batches(x_pix, 3):
            seen.append(batch[0])
            yield batch

    ahead = prepared_ahead(watched(), task)
    assert next(ahead)[0] == 0
    assert seen == [0, 1]
    assert task.next_batch == 2
    assert next(ahead)[0] == 1
    assert seen == [0, 1, 2]
