"""The command ``timm-dad`` and the package as it is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import timm_dad
import train_dad
from timm_dad.cli import main


def test_train_is_train_dad(monkeypatch):
    seen = []
    monkeypatch.setattr(train_dad, 'main', seen.append)
    main(['train', '--dad', '--model', 'resnet50'])
    assert seen == [['--dad', '--model', 'resnet50']]


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--help'])
    assert stop.value.code == 0
    assert '{train,demo,patch,run,convert' in capsys.readouterr().out


def test_an_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['trian'])
    assert stop.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, '-m', 'timm_dad', 'train', '--help'], capture_output=True, text=True)
    assert done.returncode == 0
    assert '--dad-teacher' in done.stdout


def test_public_names_are_documented():
    for name in timm_dad.__all__:
        assert getattr(timm_dad, name).__doc__, name


def test_types_are_shipped():
    assert (Path(timm_dad.__file__).parent / 'py.typed').is_file()


@pytest.mark.parametrize(('module', 'extra'), [('open_clip', 'clip'), ('taming', 'vqgan')])
def test_a_missing_extra_is_one_line_that_says_what_to_install(module, extra, tmp_path):
    (tmp_path / 'hide.py').write_text(
        f'import sys\nsys.modules[{module!r}] = None\nimport train_dad\ntrain_dad.main()\n'
    )
    done = subprocess.run([sys.executable, tmp_path / 'hide.py'], capture_output=True, text=True, cwd=tmp_path,
                          env={'PYTHONPATH': str(Path(train_dad.__file__).parent), 'OMP_NUM_THREADS': '1'})  # fmt: skip
    assert done.returncode != 0
    assert f'pip install "timm-dad[{extra}]"' in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / 'output').exists()
