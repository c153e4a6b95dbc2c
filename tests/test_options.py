import re
from dataclasses import fields
from functools import partial

import numpy as np
import pytest

from timm_dad.dad_sets.formats import FormatConfig
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.data.images import Frame
from timm_dad.diagnosis.diagnose import DiagnoseConfig
from timm_dad.evaluation.attacks import EvalAttackConfig
from timm_dad.evaluation.predict import EvalConfig
from timm_dad.method.attack import AttackConfig
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.vqgan_training.optimize import OptimizerConfig

FRAME = Frame(size=(8, 8))
CONFIGS = (
    AttackConfig,
    CodeAttackConfig,
    DADLossConfig,
    DADSchedule,
    DiagnoseConfig,
    EvalAttackConfig,
    EvalConfig,
    FormatConfig,
    partial(GenerateConfig, frame=FRAME, files=FormatConfig()),
    LatentAttackConfig,
    partial(OptimizerConfig, steps=10),
)
NAMES = {
    int: 'a whole number', float: 'a number', str: 'text', float | None: 'a number or None', bool: 'True or False',
}  # fmt: skip


@pytest.mark.parametrize('config', CONFIGS)
def test_a_value_of_another_type_is_named(config):
    for field in fields(config()):
        for value in (True, '1', [1], 1.5j, b'x'):
            if type(value) is field.type:
                continue
            message = f'{field.name} must be {NAMES.get(field.type) or field.type.__name__}, got {value!r}'
            with pytest.raises(TypeError, match=f'^{re.escape(message)}$'):
                config(**{field.name: value})


def test_numbers_of_numpy_and_whole_ones_are_numbers():
    config = AttackConfig(eps=1, step_size=np.float32(0.5), num_steps=np.int64(2))
    assert (config.eps, config.step_size, config.num_steps) == (1, 0.5, 2)
    with pytest.raises(TypeError, match=r'num_steps must be a whole number, got 2\.0'):
        AttackConfig(num_steps=2.0)
