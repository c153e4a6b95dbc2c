"""precision.py: the faster precision is measured."""

import pytest
import torch

from timm_dad.frozen import precision
from timm_dad.frozen.precision import fastest_precision
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.heads import HeadClassifier, LinearHead
from timm_dad.teachers.teacher import Teacher

CPU = torch.device('cpu')


@pytest.mark.parametrize(('fp32', 'bf16', 'expected'), [(3.0, 1.0, 'bf16'), (1.0, 3.0, 'fp32'), (1.05, 1.0, 'fp32')])
def test_bf16_is_taken_where_it_is_a_tenth_faster(teacher, vqgan, monkeypatch, fp32, bf16, expected):
    lines = []
    monkeypatch.setattr(precision._logger, 'info', lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(precision, '_time', lambda network, batch, is_bf16: bf16 if is_bf16 else fp32)
    assert fastest_precision(teacher, vqgan, (16, 16), CPU) == expected
    assert lines == [
        f'--dad-precision auto: bf16 is {fp32 / bf16:.2f} times as fast as fp32 here, so {expected} is used'
    ]


def test_the_networks_are_run_in_both_precisions(teacher, vqgan, monkeypatch):
    dtypes, sizes = set(), set()

    def look(module, inputs, output):
        dtypes.add(output.dtype)
        sizes.add(tuple(inputs[0].shape))

    vqgan.encoder.conv_in.register_forward_hook(look)
    assert fastest_precision(teacher, vqgan, (15, 18), CPU, batch_size=3) in ('fp32', 'bf16')
    assert dtypes == {torch.float32, torch.bfloat16}
    assert sizes == {(3, 3, 16, 20) if vqgan.config.factor == 4 else (3, 3, 16, 18)}


@pytest.mark.parametrize('several', [False, True])
def test_without_a_vqgan_the_teacher_is_measured(teacher, several):
    dtypes = set()
    next(module for module in teacher.model.modules() if isinstance(module, torch.nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype)
    )
    model = TeacherEnsemble([teacher, teacher]) if several else teacher
    assert fastest_precision(model, None, (16, 16), CPU) in ('fp32', 'bf16')
    assert dtypes == {torch.float32, torch.bfloat16}


def test_a_teacher_with_a_linear_head_is_measured():
    visual = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(12, 6))
    model = HeadClassifier(visual, LinearHead(weight=torch.randn(4, 6), bias=torch.zeros(4)))
    teacher = Teacher(model, mean=[0.5] * 3, std=[0.5] * 3, input_size=(16, 16), num_classes=4)
    assert fastest_precision(teacher, None, (16, 16), CPU) in ('fp32', 'bf16')
