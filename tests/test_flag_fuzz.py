"""Whatever a flag is given: it parses, or the command ends with one line and exit code 2."""

import contextlib
import io
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_dad.cli import main
from timm_dad.commands import demo, generate, info, init, preview, probe
from timm_dad.diagnosis import command as diagnose
from timm_dad.evaluation import args as evaluate
from timm_dad.flags import train
from timm_dad.flags.config import parse_checked
from timm_dad.vqgan_training import args as vqgan

DAD = ('--dad-teacher', 'demo', '--dad-vqgan', 'demo')
# How a command reads its flags, its parser, and flags with which it would go on to work.
COMMANDS = {
    'train': (train.parse_args, train.create_parser, ('--data-dir', 'x', '--dad', *DAD)),
    'info': (partial(train.parse_args, create_parser=info.create_parser), info.create_parser, ('--data-dir', 'x')),
    'demo': (demo._parse_own, partial(train.create_parser, 'timm-dad demo'), ()),
    'generate': (generate.parse_args, generate.create_parser, ('--data-dir', 'x', '--output', 'y', *DAD)),
    'preview': (preview.parse_args, preview.create_parser, ()),
    'init': (init.parse_args, init.create_parser, ('x',)),
    'evaluate': (evaluate.parse_args, evaluate.create_parser, ('--model', 'demo', '--suite', 'a=x', '--output', 'y')),
    'diagnose': (diagnose.parse_args, diagnose.create_parser, ('--data-dir', 'x', '--ood', 'a=x', *DAD)),
    'probe': (
        partial(parse_checked, probe.create_parser, check=probe._check),
        probe.create_parser,
        ('--data-dir', 'x', '--output', 'y.safetensors'),
    ),
    'vqgan train': (
        lambda argv: vqgan.parse_args(['train', *argv]),
        partial(vqgan.create_parser, 'train'),
        ('--data-dir', 'x'),
    ),
    'vqgan distill': (
        lambda argv: vqgan.parse_args(['distill', *argv]),
        partial(vqgan.create_parser, 'distill'),
        ('--data-dir', 'x', '--vqgan', 'demo'),
    ),
}
VALUES = st.one_of(
    st.sampled_from(['nan', 'inf', '-inf', '-1', '0', '1', '2', '0.5', '1e400', '1e-400', '9' * 30, '9' * 5000, '1/0']),
    st.sampled_from(['', ' ', '-', '--', '=', 'a=b', '/', '.', '..', '\n', '\0', 'a\nb', 'timm:', 'probe:', 'a=']),
    st.sampled_from(['[', '{}', '[1, 2]', 'True', 'None', 'é', '\udcff', '😀', 'x' * 5000, '/dev/null', '%s', '%(x)d']),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


def outcome(parse, argv):
    """Exit code and what was said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            parse(argv)
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, said.getvalue()


@pytest.mark.parametrize('name', COMMANDS)
def test_the_flags_are_good_without_a_bad_one(name):
    parse, _, good = COMMANDS[name]
    assert outcome(parse, list(good)) == (0, '')


@pytest.mark.parametrize('name', COMMANDS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_value_of_any_flag_parses_or_is_one_line(name, data):
    parse, create_parser, good = COMMANDS[name]
    flags = [action.option_strings[0] for action in create_parser()._actions if action.option_strings]
    argv = list(good)
    for flag in data.draw(st.lists(st.sampled_from([flag for flag in flags if flag != '-h']), min_size=1, max_size=3)):
        argv += [flag, *data.draw(st.lists(VALUES, max_size=3))]
    code, said = outcome(parse, argv)
    assert code in (0, 2)
    if code == 2:
        assert said.startswith(f'timm-dad {name}: error: ')
        assert said.count('\n') == 1
        assert said.endswith('\n')


@pytest.mark.parametrize('value', ['x' * 300, 'a\nb'])
@pytest.mark.parametrize('flag', ['--dad-dir', '--dad-templates', '--config', '--interpolation'])
def test_a_path_that_is_none_is_one_line(flag, value):
    code, said = outcome(train.parse_args, [*COMMANDS['train'][2], flag, value])
    assert code == 2
    assert said.startswith('timm-dad train: error: --')
    assert said.count('\n') == 1


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_what_is_no_command_is_one_line(argv):
    code, said = outcome(main, argv)
    assert code == 2
    assert said.startswith('timm-dad: error: ')
    assert said.count('\n') == 1
