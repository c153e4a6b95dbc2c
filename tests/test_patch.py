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

from timm_dad.cli import main
from timm_dad.commands import patch as patch_module
from timm_dad.commands.patch import PATCHES, patch_file

REPO = Path(__file__).parents[1]
TIMM_SRC = os.environ.get('TIMM_SRC', '')
BEFORE = ''.join(f'line {number}\n' for number in range(40)).encode()
AFTER = BEFORE.replace(b'line 5\n', b'line 5\nnew = 1\nnew = 2\n').replace(b'line 30\n', b'line thirty\n')

# Other versions of the file: what they change is not what the patch changes, so they can be made of it patched, too.
VERSIONS = {
    'the same': lambda content: content,
    'lines added': lambda content: b'# new\n' * 50 + content.replace(b'line 15\n', b'line 15\n# more\n'),
    'lines taken out': lambda content: content.replace(b'line 0\nline 1\n', b'').replace(b'line 20\n', b''),
    'a line renamed': lambda content: content.replace(b'line 15', b'line fifteen'),
    'blocks moved': lambda content: b''.join(reversed(content.partition(b'line 20\n'))),
    'the lines again, not from the first letter': lambda content: content + b'a line 4\nline 5\nline 6\nline 7\n',
    'CR LF': lambda content: content.replace(b'\n', b'\r\n'),
    'CR LF in places': lambda content: re.sub(rb'(?<=line [12]\d)\n(?=line 2)', b'\r\n', content, count=5),
    'CR LF in one half': lambda content: content.replace(b'\n', b'\r\n', content[: content.find(b'20')].count(b'\n')),
    'no last line end': lambda content: content.removesuffix(b'\n'),
    'not UTF-8': lambda content: content.replace(b'line 15', b'line \xe9\x00\x0c\x85'),
}


@pytest.fixture
def known(tmp_path, monkeypatch):
    """The patch of a train.py of 40 lines, in a folder in the place of ``patches/``."""
    folder = tmp_path / 'patches'
    folder.mkdir()
    lines = [content.decode().splitlines(keepends=True) for content in (BEFORE, AFTER)]
    diff = ''.join(difflib.unified_diff(*lines, 'a/train.py', 'b/train.py', n=2))
    (folder / 'timm-train.patch').write_text(f'A patch.\n\n{diff}')
    monkeypatch.setattr(patch_module, 'PATCHES', folder)
    return folder / 'timm-train.patch'


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'checkout' / 'train.py'
    path.parent.mkdir()
    path.write_bytes(BEFORE)
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures('known')
@pytest.mark.parametrize('version', VERSIONS)
def test_patch_and_revert_restore_the_very_bytes_and_the_mode(script, version):
    before, after = (VERSIONS[version](content) for content in (BEFORE, AFTER))
    script.write_bytes(before)
    assert 'the lines of timm-train.patch are in' in patch_file(script.parent)
    assert script.read_bytes() == after
    assert script.stat().st_mode & 0o777 == 0o755
    assert 'the lines of timm-train.patch are out again' in patch_file(script, revert=True)
    assert script.read_bytes() == before
    assert script.stat().st_mode & 0o777 == 0o755
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
    subprocess.run(['git', 'apply', known], cwd=script.parent, check=True)
    assert script.read_bytes() == AFTER
    assert 'nothing to do' in patch_file(script)


@pytest.mark.parametrize(
    ('content', 'revert', 'missing'),
    [
        (BEFORE.replace(b'line 6\n', b'line six\n'), False, [' line 6\n']),
        (BEFORE.replace(b'line 29\n', b''), False, [' line 29\n']),
        (BEFORE.replace(b'line 30\n', b'line 30 \n'), False, ['-line 30\n']),
        (BEFORE.replace(b'line 5\n', b'line 5\nline 5.5\n'), False, ['+new = 1\n']),
        (BEFORE.replace(b'line 5\n', b'line 5\r\n'), False, ['+new = 1\n']),
        (BEFORE + BEFORE[: len(BEFORE) // 2], False, ['+new = 1\n']),
        (BEFORE + BEFORE, False, ['+new = 1\n', '-line 30\n']),
        (AFTER.replace(b'line thirty\n', b'line 30\n'), False, ['+new = 1\n']),
        (AFTER.replace(b'new = 2\n', b'new = 3\n'), False, ['+new = 1\n', '-line 30\n']),
        (AFTER.replace(b'new = 2\n', b'new = 3\n'), True, ['+new = 1\n']),
        (AFTER.replace(b'line 31\n', b'line thirty-one\n'), True, ['+line thirty\n']),
        (b'', False, ['+new = 1\n', '-line 30\n']),
        (b'', True, ['+new = 1\n', '-line 30\n']),
    ],
)
def test_a_file_without_the_lines_around_a_change_is_left_alone_and_they_are_shown(
    known, script, content, revert, missing, capsys
):
    script.write_bytes(content)
    with pytest.raises(ValueError, match='missing there, or stand there more than once') as error:
        patch_file(script, revert=revert)
    message, shown = str(error.value), capsys.readouterr().out
    assert script.read_bytes() == content
    assert all(line in shown for line in missing)
    assert shown.count('@@ -') == len(missing)
    assert str(script) in message
    assert f'All changes, to {"undo" if revert else "make"} by hand, are in {known}' in message


@pytest.mark.usefixtures('known')
def test_another_file_is_refused(tmp_path):
    (tmp_path / 'setup.cfg').write_text('[metadata]\n')
    with pytest.raises(ValueError, match=r'must be train\.py or pyproject\.toml of timm'):
        patch_file(tmp_path / 'setup.cfg')


def test_a_link_to_itself_is_an_error_of_the_system(tmp_path):
    (tmp_path / 'train.py').symlink_to(tmp_path / 'train.py')
    with pytest.raises(OSError, match=r'train\.py'):
        patch_file(tmp_path / 'train.py')


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
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith('timm-dad patch: error: ')
        assert str(path) in error


@pytest.mark.parametrize(
    ('name', 'numbers'), [('timm-train.patch', '9\t1\ttrain.py\n'), ('timm-extra.patch', '3\t0\tpyproject.toml\n')]
)
def test_a_patch_is_one_of_git_that_names_its_bases(name, numbers):
    done = subprocess.run(['git', 'apply', '--numstat', PATCHES / name], capture_output=True, text=True, check=True)
    assert done.stdout == numbers
    header, _, _ = (PATCHES / name).read_text().partition('---')
    assert re.findall(r'^Base: .+?/.+? (.+), commit [0-9a-f]{40}$', header, re.MULTILINE) == [
        'v1.0.28',
        'main (1.0.29.dev0)',
    ]


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
    program = 'from timm_dad.commands.patch import PATCHES; print(PATCHES)'
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path / 'site', capture_output=True, text=True)
    assert done.stdout.strip() == f'{tmp_path / "site" / "timm_dad" / "patches"}', done.stderr


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
    patch = PATCHES / {'train.py': 'timm-train.patch', 'pyproject.toml': 'timm-extra.patch'}[name]
    subprocess.run(['git', 'apply', patch], cwd=tmp_path, check=True)
    assert file.read_bytes() == patched
    assert patched != original
    if name == 'train.py':
        compile(patched, name, 'exec')
