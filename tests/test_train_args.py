"""Flags of ``train_dad.py`` against timm's own parser, read from a checkout that ``TIMM_SRC`` names."""

import argparse
import importlib.util
import os
from pathlib import Path

import pytest
import yaml

from timm_dad.flags.timm import REFUSED
from timm_dad.flags.train import create_parser, parse_args

pytestmark = pytest.mark.timm

# Stricter or better than timm's on purpose: they take what timm takes and name what it would only trip over later.
OTHER_CHOICES = {
    'amp_dtype', 'clip_mode', 'dist_bn', 'eval_metric', 'lr_base_scale', 'mixup_mode', 'model_dtype', 'remode',
    'worker_seeding',
}  # fmt: skip
# Flags whose default is another than timm's: as many workers as there are cores, up to timm's 4; new ones each epoch.
OTHER_DEFAULTS = {'workers', 'persistent_workers'}
# After v1.0.28: in main at aa4b5850, and in October 2026 (3c467449, 1.0.31).
LATER = ('train_', 'variable_batch', 'asl_', 'poly_', 'twoway_', 'db_')
NEW_DEFAULTS = {'decay_epochs': (90, None)}
# What an args.yaml of October 2026 says that one of v1.0.28 does not, but for the task of several labels.
OCTOBER = {
    **dict.fromkeys(('loss', 'class_stats', 'loss_pos_weight', 'loss_class_weight', 'loss_weight_max', 'poly_alpha')),
    **dict.fromkeys(('eval_metric', 'decay_epochs', 'lr_decay_fn', 'lr_stable_timescale', 'stop_epoch', 'save_epochs')),
    'loss_weight_power': 1.0, 'loss_weight_beta': 0.999, 'asl_gamma_pos': 1.0, 'asl_gamma_neg': 4.0, 'asl_clip': 0.05,
    'asl_reduction': 'batchmean', 'poly_epsilon': 2.0, 'poly_gamma': 0.0, 'twoway_tp': 4.0, 'twoway_tn': 1.0,
    'db_neg_scale': 2.0, 'db_init_bias': 0.05, 'db_focal_gamma': 2.0, 'pretrained_cfg_overlay': {},
    'model_ema_force_fp32': False, 'persistent_workers': True, 'smoothing': None,
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
    for name in theirs.keys() - OTHER_DEFAULTS:
        assert theirs[name].default in NEW_DEFAULTS.get(name, (ours[name].default,)), name
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
    later = {name for name in REFUSED if name.startswith(LATER)}
    assert set(REFUSED) - later <= flags(timm_parser).keys()


def test_a_config_of_timm_is_a_config_of_ours(timm_parser, tmp_path):
    # What timm's train.py writes as args.yaml: every flag, with its default.
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(timm_parser.parse_args(['--data-dir', 'pictures']))))
    args = parse_args(['--config', str(tmp_path / 'args.yaml')])
    assert args.data_dir == 'pictures'
    assert args.opt == 'sgd'


def test_a_config_of_todays_timm_is_a_config_of_ours(tmp_path):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({'data_dir': 'pictures', **OCTOBER}))
    args = parse_args(['--config', str(tmp_path / 'args.yaml')])
    assert (args.eval_metric, args.smoothing, args.decay_epochs, args.save_epochs) == ('top1', 0.1, 90, [])
    assert args.persistent_workers


def test_the_command_line_wins_over_the_config(tmp_path):
    (tmp_path / 'config.yaml').write_text('lr: 0.3\nopt: adamw\nmodel_kwargs: {output_stride: 8}\n')
    args = parse_args(['--data-dir', 'x', '--config', str(tmp_path / 'config.yaml'), '--lr', '0.1'])
    assert (args.lr, args.opt, args.model_kwargs) == (0.1, 'adamw', {'output_stride': 8})
