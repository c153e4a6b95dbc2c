"""Flags of ``train_dad.py`` against timm's own parser, read from a checkout that ``TIMM_SRC`` names."""

import argparse
import importlib.util
import os
from pathlib import Path

import pytest
import yaml

from timm_dad.flags.timm import REFUSED
from timm_dad.flags.train import create_parser, parse_args

# Stricter or better than timm's on purpose: they take what timm takes and name what it would only trip over later.
OTHER_CHOICES = {
    'amp_dtype', 'clip_mode', 'dist_bn', 'eval_metric', 'lr_base_scale', 'mixup_mode', 'model_dtype', 'remode',
    'worker_seeding',
}  # fmt: skip


@pytest.fixture(scope='module')
def timm_parser():
    root = os.environ.get('TIMM_SRC')
    if not root:
        pytest.skip("TIMM_SRC names no folder with timm's train.py")
    spec = importlib.util.spec_from_file_location('timm_train', Path(root) / 'train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser


def flags(parser):
    return {action.dest: action for action in parser._actions if not isinstance(action, argparse._HelpAction)}


def test_every_flag_of_timm_is_ours(timm_parser):
    theirs, ours = flags(timm_parser), flags(create_parser())
    assert theirs.keys() <= ours.keys()
    for name, action in theirs.items():
        assert set(action.option_strings) <= set(ours[name].option_strings), name


def test_defaults_and_types_are_timms(timm_parser):
    theirs, ours = flags(timm_parser), flags(create_parser())
    for name in theirs.keys() - {'workers'}:  # as many as there are cores, up to timm's 4
        assert theirs[name].default == ours[name].default, name
    assert theirs['workers'].default == 4 >= ours['workers'].default >= 1
    for name in theirs.keys() - REFUSED.keys():
        assert isinstance(ours[name], type(theirs[name])), name
        # argparse leaves a value without a type a string.
        assert (theirs[name].type or str) == (ours[name].type or str), name
        assert theirs[name].nargs == ours[name].nargs, name
        assert theirs[name].const == ours[name].const, name
    for name in theirs.keys() - OTHER_CHOICES - REFUSED.keys():
        assert theirs[name].choices == ours[name].choices, name


def test_what_is_refused_is_timms(timm_parser):
    # Scheduled resolution came after v1.0.28.
    later = {name for name in REFUSED if name.startswith('train_') or name == 'variable_batch_loss_scale'}
    assert set(REFUSED) - later <= flags(timm_parser).keys()


def test_a_config_of_timm_is_a_config_of_ours(timm_parser, tmp_path):
    # What timm's train.py writes as args.yaml: every flag, with its default.
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(timm_parser.parse_args(['--data-dir', 'pictures']))))
    args = parse_args(['--config', str(tmp_path / 'args.yaml')])
    assert args.data_dir == 'pictures'
    assert args.opt == 'sgd'


def test_the_command_line_wins_over_the_config(tmp_path):
    (tmp_path / 'config.yaml').write_text('lr: 0.3\nopt: adamw\nmodel_kwargs: {output_stride: 8}\n')
    args = parse_args(['--data-dir', 'x', '--config', str(tmp_path / 'config.yaml'), '--lr', '0.1'])
    assert (args.lr, args.opt, args.model_kwargs) == (0.1, 'adamw', {'output_stride': 8})
