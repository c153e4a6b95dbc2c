import argparse
import math
import re

import pytest

from timm_dad.commands import demo, generate, info, preview, probe
from timm_dad.diagnosis import command as diagnose
from timm_dad.evaluation import args as evaluate
from timm_dad.flags import train
from timm_dad.flags.parser import Parser, add_alias, did_you_mean
from timm_dad.vqgan_training import args as vqgan

PARSERS = {
    'train': train.create_parser,
    'info': info.create_parser,
    'generate': generate.create_parser,
    'preview': preview.create_parser,
    'evaluate': evaluate.create_parser,
    'diagnose': diagnose.create_parser,
    'probe': probe.create_parser,
    'vqgan train': lambda: vqgan.create_parser('train'),
    'vqgan distill': lambda: vqgan.create_parser('distill'),
}


@pytest.fixture
def parser():
    parser = Parser(prog='timm-dad test', description='It tests.')
    group = parser.add_argument_group('DAD: attack')
    add_alias(group, group.add_argument('--dad-eps', type=float, default=0.1, help='radius'), '--eps')
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0], help='100 %% of it')
    parser.add_argument_group('Other').add_argument('--seed', type=int, default=0, help='seed')
    return parser


@pytest.mark.parametrize('name', PARSERS)
def test_the_help_tells_every_default(name):
    parser = PARSERS[name]()
    assert parser.prog == f'timm-dad {name}'
    for action in parser._actions:
        default = action.default
        if action.help == argparse.SUPPRESS or default in (None, '', [], {}, argparse.SUPPRESS):
            continue
        if isinstance(default, bool):
            continue
        text = parser._get_formatter()._get_help_string(action)
        assert 'default' in text, action.option_strings
    assert 'usage: timm-dad' in parser.format_help()


def test_a_default_is_as_the_command_line_has_it(parser):
    text = ' '.join(parser.format_help().split())
    assert 'radius (default: 0.1)' in text
    assert '100 % of it (default: 0.08 1)' in text
    assert 'seed (default: 0)' in text


@pytest.mark.parametrize('name', ['train', 'generate', 'preview', 'diagnose'])
def test_the_groups_of_dad_come_first(name):
    titles = [group.title for group in PARSERS[name]()._action_groups if group._group_actions]
    titles = [title for title in titles if title not in ('options', 'positional arguments')]
    number = sum(title.startswith('DAD: ') for title in titles)
    assert number >= 3
    assert all(title.startswith('DAD: ') for title in titles[:number])
    for group in PARSERS[name]()._action_groups:
        for action in group._group_actions:
            assert not action.dest.startswith('dad') or group.title.startswith('DAD: '), action.dest


def test_the_help_of_a_group_is_that_group_alone(capsys):
    with pytest.raises(SystemExit) as stop:
        train.create_parser().parse_args(['--help', 'dad'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = set(re.findall(r'^  (--[\w-]+)', text, re.MULTILINE))
    actions = train.create_parser()._actions
    ours = {action.option_strings[0] for action in actions if action.dest.startswith(('dad', 'no_labels'))}
    assert flags == ours


def test_a_group_that_is_not_there_is_an_error(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(['--help', 'nonsense'])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith('there is no such group; the groups are options, DAD: attack, Other\n')


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['--dad-epsilon', '3'], 'unrecognized arguments: --dad-epsilon 3; did you mean --dad-eps?'),
        (['--dad-epsilon=3'], 'unrecognized arguments: --dad-epsilon=3; did you mean --dad-eps?'),
        (['--zzz'], 'unrecognized arguments: --zzz'),
        (['--see', '3'], 'unrecognized arguments: --see 3; did you mean --seed?'),  # no abbreviations
        (['--seed', 'a\nb'], "argument --seed: invalid int value: 'a\\nb'"),
        (['--dad-eps', 'nan'], "argument --dad-eps: must be a finite number, got 'nan'"),
        (['--eps', 'x'], "argument --dad-eps: invalid float value: 'x'"),
        (['--scale', '1', '1e999'], "argument --scale: must be a finite number, got '1e999'"),
    ],
)
def test_an_error_is_one_line_and_ends_with_2(parser, capsys, arguments, error):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f'timm-dad test: error: {error}\n'


def test_an_alias_is_the_flag_and_is_not_shown(parser):
    assert parser.parse_args(['--eps', '0.5']).dad_eps == 0.5
    assert '--eps' not in parser.format_help().replace('--dad-eps', '')


@pytest.mark.parametrize(
    ('name', 'old', 'new'),
    [
        ('generate', '--train-split', '--split'),
        ('probe', '--train-split', '--split'),
        ('probe', '--teacher', '--dad-teacher'),
        ('probe', '--precision', '--dad-precision'),
        ('evaluate', '--classnames', '--dad-classnames'),
        ('evaluate', '--templates', '--dad-templates'),
        ('evaluate', '--class-map', '--dad-class-map'),
        ('evaluate', '--precision', '--dad-precision'),
    ],
)
def test_older_names_of_flags_stay(name, old, new):
    parser = PARSERS[name]()
    known = parser._option_string_actions
    assert known[old] is known[new]


def test_the_nearest_word_is_suggested():
    assert did_you_mean('trian', ['train', 'info']) == '; did you mean train?'
    assert did_you_mean(5, ['train', 'info']) == ''


def test_the_demo_names_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(['--bogus'])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith('timm-dad demo: error: unrecognized arguments: --bogus')


def test_numbers_of_an_attack_are_fractions_or_decimals():
    number = evaluate._number
    assert math.isclose(number('4/255'), 4 / 255)
    assert number('0.5') == 0.5
    for text in ('1/0', 'x', '1/2/3', ''):
        with pytest.raises(argparse.ArgumentTypeError, match='must be a number such as'):
            number(text)
