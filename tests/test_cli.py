"""The command ``timm-dad`` and the package as it is installed."""

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import timm_dad
import train_dad
from timm_dad.cli import COMMANDS, main


def test_train_is_train_dad(monkeypatch):
    seen = []
    monkeypatch.setattr(train_dad, 'main', seen.append)
    main(['train', '--dad', '--model', 'resnet50'])
    assert seen == [['--dad', '--model', 'resnet50']]


def test_help_names_the_commands_and_loads_none():
    program = """
import atexit, sys
from timm_dad.cli import main
atexit.register(lambda: print(sorted(sys.modules)))
main(['--help'])
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0
    for command, (*_, does) in COMMANDS.items():
        assert re.search(rf'^  {command} +{re.escape(does)}$', done.stdout, re.MULTILINE)
    assert "'timm_dad.cli'" in done.stdout
    assert "'torch'" not in done.stdout


@pytest.mark.parametrize('arguments', [['--version'], ['trian'], ['--bogus'], ['--help'], []])
def test_what_needs_no_command_loads_none(arguments):
    program = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; from timm_dad.cli import main; main()"
    done = subprocess.run([sys.executable, '-c', program, *arguments], capture_output=True, text=True)
    assert 'Traceback' not in done.stderr
    assert done.returncode == (0 if arguments in (['--version'], ['--help']) else 2)
    if arguments == ['--version']:
        assert done.stdout == f'timm-dad {timm_dad.__version__}\n'


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, '--help'])
    assert stop.value.code == 0
    assert 'usage: ' in capsys.readouterr().out


def test_public_names_are_all_and_no_others():
    assert set(timm_dad.__all__) <= set(dir(timm_dad))
    for name in timm_dad.__all__:
        assert getattr(timm_dad, name).__name__ == name
    with pytest.raises(AttributeError, match=r'no attribute .Nobody'):
        timm_dad.Nobody  # noqa: B018


def test_an_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['trian'])
    assert stop.value.code == 2
    assert "timm-dad: error: there is no command 'trian'; did you mean train?\n" == capsys.readouterr().err


@pytest.mark.slow
def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, '-m', 'timm_dad', 'train', '--help'], capture_output=True, text=True)
    assert done.returncode == 0
    assert '--dad-teacher' in done.stdout


def test_public_names_are_documented():
    for name in timm_dad.__all__:
        assert getattr(timm_dad, name).__doc__, name


def test_the_docstring_names_them_and_its_example_runs(capsys):
    text = inspect.getdoc(timm_dad)
    assert [name for name in timm_dad.__all__ if f'``{name}``' not in text] == []
    example = text.partition('::\n')[2].partition('\nTeachers:')[0]
    scope = {}
    exec(textwrap.dedent(example), scope)
    assert scope['loss'].isfinite()
    help(timm_dad)
    assert 'DADAugment, DADTask, DataClasses' in capsys.readouterr().out


def test_types_are_shipped():
    assert (Path(timm_dad.__file__).parent / 'py.typed').is_file()


@pytest.mark.parametrize(('module', 'extra'), [('open_clip', 'clip'), ('taming', 'vqgan')])
def test_a_missing_extra_is_one_line_that_says_what_to_install(module, extra, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stop:
        train_dad.main(['--output', str(tmp_path / 'output')])
    assert stop.value.code == 2
    assert f'pip install "timm-dad[{extra}]"' in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / 'output').exists()


def test_ctrl_c_ends_a_process_with_one_line_and_a_call_as_it_is(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt('--resume', 'auto')  # as a training says, here inside another command

    monkeypatch.setattr('timm_dad.commands.verify.main', stopped)
    with pytest.raises(KeyboardInterrupt):
        main(['verify', 'a b'])
    monkeypatch.setattr('sys.argv', ['timm-dad', 'verify', 'a b'])
    with pytest.raises(SystemExit, match='130'):
        main()
    assert capsys.readouterr().err == "\nInterrupted. Resume with: timm-dad verify 'a b'\n"
