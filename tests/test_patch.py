"""``timm-dad patch``: on files made here, and with TIMM_SRC on timm's own."""

import difflib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from timm_dad import patch as patch_module
from timm_dad.cli import main
from timm_dad.patch import PATCHES, object_name, patch_file, timm_patches

REPO = Path(__file__).parents[1]
TIMM_SRC = os.environ.get('TIMM_SRC', '')
BEFORE = ''.join(f'line {number}\n' for number in range(40)).encode()
AFTER = BEFORE.replace(b'line 5\n', b'line 5\nnew = 1\nnew = 2\n').replace(b'line 30\n', b'line thirty\n')


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A folder of one patch, for a train.py of 40 lines, in the place of ``patches/``."""
    folder = tmp_path / 'patches'
    folder.mkdir()
    lines = [content.decode().splitlines(keepends=True) for content in (BEFORE, AFTER)]
    diff = ''.join(difflib.unified_diff(*lines, 'a/train.py', 'b/train.py'))
    (folder / 'timm-1.patch').write_text(
        f'A patch.\nBase: some/repository v1, commit {"1" * 40}\n\ndiff --git a/train.py b/train.py\n'
        f'index {object_name(BEFORE)}..{object_name(AFTER)} 100755\n{diff}'
    )
    monkeypatch.setattr(patch_module, 'PATCHES', folder)
    return folder


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'checkout' / 'train.py'
    path.parent.mkdir()
    path.write_bytes(BEFORE)
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures('known')
def test_patch_and_revert_restore_the_very_bytes_and_the_mode(script):
    assert 'v1; +3 -1 lines with timm-1.patch' in patch_file(script.parent)
    assert script.read_bytes() == AFTER
    assert script.stat().st_mode & 0o777 == 0o755
    assert 'byte by byte' in patch_file(script, revert=True)
    assert script.read_bytes() == BEFORE
    assert [path.name for path in script.parent.iterdir()] == ['train.py']


@pytest.mark.usefixtures('known')
@pytest.mark.parametrize('revert', [False, True])
def test_a_second_time_does_nothing(script, revert):
    patch_file(script)
    if revert:
        patch_file(script, revert=True)
    content, written = script.read_bytes(), script.stat().st_mtime_ns
    assert 'nothing to do' in patch_file(script, revert=revert)
    assert (script.read_bytes(), script.stat().st_mtime_ns) == (content, written)


@pytest.mark.usefixtures('known')
def test_a_link_stays_a_link(script, tmp_path):
    (tmp_path / 'link.py').symlink_to(script)
    patch_file(tmp_path / 'link.py')
    assert (tmp_path / 'link.py').is_symlink()
    assert script.read_bytes() == AFTER


def test_git_applies_it_to_the_same_bytes(known, script):
    subprocess.run(['git', 'apply', known / 'timm-1.patch'], cwd=script.parent, check=True)
    assert script.read_bytes() == AFTER
    assert 'nothing to do' in patch_file(script)


@pytest.mark.usefixtures('known')
@pytest.mark.parametrize(
    ('content', 'reason', 'git_can'),
    [
        (BEFORE.replace(b'line 15', b'line fifteen'), 'not byte by byte that of timm v1', True),
        (BEFORE.replace(b'line 6\n', b'line six\n'), 'not byte by byte that of timm v1', False),
        (BEFORE.replace(b'\n', b'\r\n'), 'its lines end with CR LF', False),
        (BEFORE.replace(b'line 6\n', b'import timm_dad\n'), 'it has lines of timm_dad', False),
    ],
)
def test_an_unknown_file_is_left_alone_with_the_reason_and_the_lines(script, content, reason, git_can):
    script.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        patch_file(script)
    message = str(error.value)
    assert script.read_bytes() == content
    assert '\n+new = 1\n+new = 2\n' in message
    assert f'timm-dad run {script}' in message
    assert ('git apply' in message) is git_can


def test_the_git_command_of_a_refusal_works(known, script):
    edited = BEFORE.replace(b'line 15', b'line fifteen')
    script.write_bytes(edited)
    with pytest.raises(ValueError, match='git apply') as error:
        patch_file(script)
    command = re.search(r'git apply .*', str(error.value))[0]
    assert str(known) in command
    subprocess.run(command.split(), cwd=script.parent, check=True)
    assert 'has the lines of timm_dad already' in patch_file(script)
    with pytest.raises(ValueError, match=r'git apply -R .*\n.*take out the lines') as error:
        patch_file(script, revert=True)
    subprocess.run(re.search(r'git apply .*', str(error.value))[0].split(), cwd=script.parent, check=True)
    assert script.read_bytes() == edited


@pytest.mark.usefixtures('known')
def test_another_file_is_refused(tmp_path):
    (tmp_path / 'setup.cfg').write_text('[metadata]\n')
    with pytest.raises(ValueError, match=r'must be train\.py or pyproject\.toml of timm'):
        patch_file(tmp_path / 'setup.cfg')


def test_a_patch_refuses_a_file_that_it_is_not_for():
    with pytest.raises(ValueError, match=r'timm-extra\.patch is for the file 157c46b2'):
        next(patch for patch in timm_patches() if patch.target == 'pyproject.toml').apply(b'[project]\n')


@pytest.mark.usefixtures('known')
def test_a_write_that_fails_leaves_the_file_as_it_was(script, monkeypatch):
    def fail(*_):
        raise OSError('no space')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space'):
        patch_file(script)
    assert script.read_bytes() == BEFORE
    assert [path.name for path in script.parent.iterdir()] == ['train.py']


@pytest.mark.usefixtures('known')
def test_the_command_says_what_it_did_and_how_to_undo_it(script, capsys):
    main(['patch', str(script)])
    undo = capsys.readouterr().out.splitlines()[-1]
    assert undo == f'undo: timm-dad patch {script} --revert'
    main(undo.split()[2:])
    assert script.read_bytes() == BEFORE
    script.write_bytes(b'print()\n')
    for path in (script, script.parent / 'nothing.py'):
        with pytest.raises(SystemExit) as stop:
            main(['patch', str(path)])
        assert str(stop.value.code).startswith('timm-dad patch: error: ')
        assert str(path) in str(stop.value.code)


def test_the_headers_name_their_bases():
    patches = {patch.path.name: patch for patch in timm_patches()}
    assert {name: patch.bases for name, patch in patches.items()} == {
        'timm-1.0.28.patch': ('v1.0.28',),
        'timm-main.patch': ('main (1.0.29.dev0)',),
        'timm-extra.patch': ('v1.0.28', 'main (1.0.29.dev0)'),
    }
    assert [patch.size for patch in patches.values()] == ['+9 -1', '+3 -0', '+9 -1']


def test_every_package_and_patch_is_installed():
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    setuptools = tomllib.loads((REPO / 'pyproject.toml').read_text())['tool']['setuptools']
    folders = {path.parent.relative_to(REPO) for path in (REPO / 'timm_dad').rglob('*.py')}
    assert set(setuptools['packages']) == {'.'.join(folder.parts) for folder in folders} | {'timm_dad.patches'}
    assert REPO / setuptools['package-dir']['timm_dad.patches'] == PATCHES


@pytest.mark.slow
def test_a_wheel_holds_the_patches(tmp_path):
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'train_dad.py'):
        shutil.copy(REPO / name, tmp_path)
    for name in ('timm_dad', 'patches'):
        shutil.copytree(REPO / name, tmp_path / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '.'], cwd=tmp_path, check=True)
    zipfile.ZipFile(next(tmp_path.glob('*.whl'))).extractall(tmp_path / 'site')
    installed = {path.name for path in (tmp_path / 'site' / 'timm_dad' / 'patches').iterdir()}
    assert {path.name for path in PATCHES.glob('*.patch')} == installed
    program = 'from timm_dad.patch import PATCHES, timm_patches; print(PATCHES, len(timm_patches()))'
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path / 'site', capture_output=True, text=True)
    assert done.stdout.strip() == f'{tmp_path / "site" / "timm_dad" / "patches"} 3', done.stderr


@pytest.mark.skipif(not TIMM_SRC, reason='TIMM_SRC names no checkout of timm')
@pytest.mark.parametrize('name', ['train.py', 'pyproject.toml'])
def test_timms_own_file_is_patched_as_git_does_it(tmp_path, name):
    source = Path(TIMM_SRC) / name
    if not source.is_file():
        pytest.skip(f'{TIMM_SRC} has no {name}')
    file = tmp_path / name
    shutil.copy(source, file)
    patch_file(file, revert=True)  # whatever state the checkout is in
    original = file.read_bytes()
    patch_file(file)
    patched = file.read_bytes()
    patch_file(file, revert=True)
    assert file.read_bytes() == original
    path = next(patch.path for patch in timm_patches() if patch.before == object_name(original))
    subprocess.run(['git', 'apply', path], cwd=tmp_path, check=True)
    assert file.read_bytes() == patched
    if name == 'train.py':
        compile(patched, name, 'exec')
