import argparse
import re
from pathlib import Path

import pytest
import yaml

from timm_dad.commands import demo, generate, info, preview, probe
from timm_dad.diagnosis import command as diagnose
from timm_dad.evaluation import args as evaluate
from timm_dad.flags import train
from timm_dad.flags.config import (
    COMMANDS,
    add_config_arg,
    config_flags,
    parse_checked,
    parse_flags,
    read_config,
)
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import given_flags
from timm_dad.flags.timm import add_timm_args
from timm_dad.vqgan_training import args as vqgan


def create_parser():
    parser = Parser(prog='timm-dad test')
    add_config_arg(parser)
    parser.add_argument('--output', required=True)
    parser.add_argument('--name', default='x')
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--kind', choices=('a', 'b'), default='a')
    parser.add_argument('--flag', action='store_true')
    parser.add_argument('--dad', action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument('--suite', nargs='+', action='extend', default=[])
    parser.add_argument('--size', type=int, nargs=2)
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--images', type=int)
    group.add_argument('--index', type=int, nargs='+')
    return parser


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / 'a.yaml'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def parse(*argv):
    return parse_flags(create_parser, argv)


def test_a_line_without_a_value_is_the_default(config):
    args, _, configured = parse('--config', config('output: out\nlr:\nsize:\nsuite: null\n'))
    assert (args.lr, args.size, args.suite) == (0.1, None, [])
    assert set(configured) == {'output', 'size'}


def test_true_is_a_list_flag_without_values(config):
    given = ['--model', 'demo', '--suite', 'a=demo/noto', '--output', 'out', '--config']
    assert evaluate.parse_args([*given, config('corrupt: true\n')]).corrupt == []
    assert evaluate.parse_args([*given, config('corrupt:\n')]).corrupt is None


def test_the_command_line_goes_before_the_file_and_the_file_before_defaults(config):
    path = config('output: out\nlr: 1e-3\nepochs: 5\ndad: true\nflag: true\nsuite: [a, b]\nsize: [2, 3]\nkind: b\n')
    args, given, configured = parse('--config', path, '--epochs', '7', '--no-dad')
    assert (args.output, args.lr, args.epochs, args.dad, args.flag) == ('out', 1e-3, 7, False, True)
    assert (args.name, args.kind, args.suite, args.size) == ('x', 'b', ['a', 'b'], [2, 3])
    assert given == {'config': path, 'epochs': 7, 'dad': False}
    assert configured['epochs'] == 5


def test_what_extends_a_flag_of_the_command_line_replaces_the_file(config):
    path = config('output: out\nsuite: [a, b]\n')
    assert parse('-c', path, '--suite', 'c', '--suite', 'd')[0].suite == ['c', 'd']
    assert parse('-c', path)[0].suite == ['a', 'b']
    assert parse('-c', config('output: out\nsuite: demo/noto'))[0].suite == ['demo/noto']  # and not its characters


def test_one_of_two_that_exclude_each_other_counts(config, capsys):
    path = config('output: out\nindex: [1]\n')
    args = parse('-c', path, '--images', '3')[0]
    assert (args.images, args.index) == (3, None)
    with pytest.raises(SystemExit):
        parse('-c', config('output: out\nindex: [1]\nimages: 2\n'))
    assert '--images and --index exclude each other' in capsys.readouterr().err


def test_a_flag_that_must_be_given_may_be_in_the_file(config, capsys):
    with pytest.raises(SystemExit):
        parse('-c', config('lr: 1\n'))
    assert capsys.readouterr().err == 'timm-dad test: error: the following arguments are required: --output\n'


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('lr: [3', "a.yaml, line 1, column 7: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (b'name: \xff', 'a.yaml, line 1, column 7: not UTF-8; save the file as UTF-8'),
        ('lr: [1, 2]', 'a.yaml: lr has the bad value [1, 2]: it must be a number'),
        ('lr: fast', "lr has the bad value 'fast': invalid float value: 'fast'"),
        ('lr: .nan', "lr has the bad value nan: must be a finite number, got 'nan'"),
        ('lr: true', 'lr has the bad value True: it must be a number'),
        ('epochs: 2.5', 'epochs has the bad value 2.5: it must be a whole number'),
        ('name: 5', "name has the bad value 5: it must be text (in quotes: '5')"),
        ('name: {a: 1}', "name has the bad value {'a': 1}: it must be a single text"),
        ('kind: c', "kind has the bad value 'c': invalid choice: 'c' (choose from 'a', 'b')"),
        ('flag: 1', 'flag has the bad value 1: it must be true or false'),
        ('dad: maybe', "dad has the bad value 'maybe': it must be true or false"),
        ('size: [1]', 'size has the bad value [1]: it must have 2 values'),
        ('suite: [a, 5]', "suite has the bad value ['a', 5]: it must be text (in quotes: '5')"),
        ('lrr: 1', "must map flags to values; these are not flags: ['lrr']; did you mean lr?"),
        ('1: 2\nx: 3', "these are not flags: ['1', 'x']"),
        ('[a]', 'must map flags to values'),
        ('just text', 'must map flags to values'),
        ('2024-01-99: 1', 'not valid YAML'),
    ],
)
def test_a_bad_file_is_one_line(config, capsys, text, error):
    with pytest.raises(SystemExit) as stop:
        parse('--output', 'x', '--config', config(text))
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith('timm-dad test: error: --config ')
    assert error in line
    assert line.count('\n') == 1


SECTIONS = """
output: out
train, generate:
  lr: 1
  epochs: 5
vqgan train, generate:
  name: b
evaluate:  # nothing, or comments alone
train:
  kind: b
"""


@pytest.mark.parametrize(
    ('command', 'flags'),
    [
        ('train', {'lr': 1.0, 'epochs': 5, 'kind': 'b'}),
        ('generate', {'lr': 1.0, 'epochs': 5, 'name': 'b'}),
        ('vqgan train', {'name': 'b'}),
        ('evaluate', {}),
        ('test', {}),
    ],
)
def test_a_section_is_for_the_commands_that_it_names(config, command, flags):
    parser = create_parser()
    parser.prog = f'timm-dad {command}'
    assert read_config(parser, config(SECTIONS)) == {'output': 'out', **flags}


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('train: {lrr: 1}', "must map flags to values; these are not flags: ['lrr']; did you mean lr?"),
        ('train: 5', "a.yaml: the section 'train' must map flags to values, got 5"),
        ('generate: [lr]', "the section 'generate' must map flags to values, got ['lr']"),
        ('train, generat: {lr: 1}', "but 'generat' is none; did you mean generate?"),
        ('trian: {lr: 1}', "these are not flags: ['trian']; did you mean train?"),
        ('lr: 1\ntrain, info: {lr: 2}', "lr comes twice for train, the second time in 'train, info': keep one"),
        ('train, info: {lr: 2}\nlr: 1', "lr comes twice for train, the second time in 'lr': keep one"),
        ('train: {lr: fast}', "a.yaml: lr has the bad value 'fast'"),
    ],
)
def test_a_bad_section_is_refused(config, text, error):
    parser = create_parser()
    parser.prog = 'timm-dad train'
    with pytest.raises(ValueError, match=r'^--config ') as raised:
        read_config(parser, config(text))
    assert error in str(raised.value)


def test_sections_are_named_by_the_commands_with_config():
    parsers = [
        *(train.create_parser(), info.create_parser(), train.create_parser(demo.PROGRAM), generate.create_parser()),
        *(preview.create_parser(), evaluate.create_parser(), diagnose.create_parser(), probe.create_parser()),
        *(vqgan.create_parser('train'), vqgan.create_parser('distill')),
    ]
    assert [parser.prog.removeprefix('timm-dad ') for parser in parsers] == list(COMMANDS)
    for parser in parsers:
        names = {action.dest for action in parser._actions}
        assert 'config' in names
        assert not names & set(COMMANDS)  # a section or a flag


@pytest.mark.parametrize('command', [generate, diagnose, evaluate, probe])
def test_the_command_line_alone_need_not_have_what_the_file_gives(command):
    assert given_flags(command.create_parser(), ['--config', 'a.yaml']) == {'config': 'a.yaml'}


def test_a_file_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        parse('--config', 'nowhere.yaml')
    assert "--config must be a YAML file, got 'nowhere.yaml', which does not exist" in capsys.readouterr().err


def test_checks_see_both_and_speak_in_one_line(config, capsys):
    def check(args, given):
        raise ValueError(f'{args.lr} {sorted(given)}')

    with pytest.raises(SystemExit) as stop:
        parse_checked(create_parser, ['-c', config('lr: 2'), '--output', 'x'], check)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "timm-dad test: error: 2.0 ['config', 'output']\n"


def test_what_a_training_writes_is_a_config_of_one(tmp_path):
    flags = vars(train.parse_args(['--data-dir', 'x', '--opt-kwargs', 'a=1', '--dad', '--dad-vqgan', 'demo']))
    path = tmp_path / 'args.yaml'
    path.write_text(yaml.safe_dump(flags))
    assert vars(train.parse_args(['--config', str(path), '--data-dir', 'x'])) == {**flags, 'config': str(path)}


@pytest.mark.parametrize('words', [['a'], ['=', 'b'], ['a=' + '[' * 10_000]])
def test_values_by_name_are_parsed_or_refused(words, capsys):
    parser = Parser(prog='x')
    add_timm_args(parser)
    try:
        parser.parse_args(['--opt-kwargs', *words])
    except SystemExit as stop:
        assert stop.code == 2  # noqa: PT017
    assert capsys.readouterr().err.count('\n') <= 1


def test_the_file_of_the_documentation_is_one(tmp_path):
    text = (Path(__file__).parents[1] / 'docs/command_line.md').read_text()
    path = tmp_path / 'pets.yaml'
    path.write_text(re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1])
    args = parse_flags(generate.create_parser, ['--config', str(path), '--output', 'x', '--dad-eps', '0.2'])[0]
    assert (args.dad_eps, args.dad_compile, len(args.dad_teacher), args.data_dir) == (0.2, True, 2, 'pets')


def test_flags_of_a_file_become_words(tmp_path):
    parser = Parser(prog='x')
    add_timm_args(parser)
    parser.add_argument('--dad', action=argparse.BooleanOptionalAction, default=False)
    path = tmp_path / 'a.yaml'
    path.write_text('dad: false\nno_aug: false\nchannels_last: true\nepochs: 2\nscale: [0.5, 1]\nopt_kwargs: {a: 1}\n')
    words = config_flags(parser, read_config(parser, str(path)))
    assert words == ['--no-dad', '--channels-last', '--epochs', '2', '--scale', '0.5', '1.0', '--opt-kwargs', 'a=1']


def test_the_demo_takes_flags_of_its_arms_from_a_file(tmp_path, capsys):
    path = tmp_path / 'a.yaml'
    path.write_text('seeds: [1, 2]\noutput: out\nepochs: 2\ndad_eps: 0.2\n')
    args, extra = demo._parse_own(['--config', str(path), '--output', 'mine', '--epochs', '1'])
    assert (args.seeds, args.output) == ([1, 2], 'mine')
    assert extra == ['--epochs', '2', '--dad-eps', '0.2', '--epochs', '1']
    path.write_text('seed: 5\n')
    with pytest.raises(SystemExit):
        demo.main(['--config', str(path)])
    assert '--seed is set by the demo itself' in capsys.readouterr().err
    assert not Path('mine').exists()
