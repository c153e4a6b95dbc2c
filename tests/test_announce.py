"""The command that a training names at its end."""

import argparse
import shlex

import pytest
from folders import write_pictures

from timm_dad.evaluation.args import parse_args
from timm_dad.evaluation.suites.open import parse_suite
from timm_dad.training.announce import log_best


@pytest.mark.parametrize(
    ('data', 'suite'),
    [
        ({'dataset': 'demo/noto'}, 'demo/noto'),
        ({'data_dir': '{data}', 'val_split': 'val'}, 'val={data}/validation'),
        ({'data_dir': '{data}', 'val_split': ''}, 'NAME=FOLDER'),
        ({'dataset': 'hfds/a/b', 'val_split': 'test'}, 'val=hfds/a/b,split=test'),
        ({'dataset': 'torch/cifar10', 'data_dir': 'c'}, 'val=torch/cifar10,root=c,split=validation'),
        ({'dataset': 'wds/x', 'data_dir': 'c'}, 'NAME=FOLDER'),
    ],
)
def test_the_next_command_is_one_of_timm_dad_evaluate(tmp_path, caplog, data, suite):
    caplog.set_level('INFO', logger='timm_dad')
    root = write_pictures(tmp_path / 'my data', train=1, validation=1)
    flags = {'dataset': '', 'data_dir': None, 'val_split': 'validation', **data}
    flags = {name: value and value.format(data=root) for name, value in flags.items()}
    log_best(argparse.Namespace(**flags), tmp_path / 'my run', {'best_metric': 54.31, 'best_epoch': 6}, 'top1')
    (line,) = (record.getMessage() for record in caplog.records)
    said, _, command = line.partition('; next: timm-dad evaluate ')
    assert said == f'Best: top-1 54.31 (epoch 6), {tmp_path}/my run/model_best.pth.tar'
    argv = shlex.split(command)
    assert suite.format(data=root) in argv
    if 'NAME' not in suite:
        (given,) = parse_args(argv).suite
        assert parse_suite(given)[1] == suite.format(data=root).removeprefix('val=')


def test_without_a_metric_nothing_is_said(tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    log_best(argparse.Namespace(), tmp_path, {}, 'loss')
    assert not caplog.records
