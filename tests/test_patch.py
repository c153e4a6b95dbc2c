"""``timm-dad patch``: on files made here, and with TIMM_SRC on timm's own."""

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from train_scripts import OCTOBER, SCRIPT, VERSIONS

from timm_dad.cli import main
from timm_dad.commands.patch import PATCHES, patch_file
from timm_dad.commands.train_script import add_lines

pytestmark = pytest.mark.timm

REPO = Path(__file__).parents[1]
TIMM_SRC = os.environ.get('TIMM_SRC', '')

# DAD's lines in the script, those with names of its variables among them.
LINES = """
from timm_dad import timm_train as dad
    dad.add_dad_args(parser)
    dad.check_args(args)
        dataset_train, collate_fn = dad.pair_views(args, dataset_train, data_config, collate_fn)
        task = dad.choose_task(args, ClassificationTask, dataset_train, data_config)(
            dad.set_epoch(task, epoch)
"""[1:].splitlines()
RENAMED = """
from timm_dad import timm_train as dad
    dad.add_dad_args(flag_parser)
    dad.check_args(options)
        pictures, collate = dad.pair_views(options, pictures, config, collate)
        training = dad.choose_task(options, ClassificationTask, pictures, config)(
            dad.set_epoch(training, number)
"""[1:].splitlines()
AFTER = add_lines(SCRIPT.encode())
AS_BYTES = {
    **{name: text.encode() for name, text in VERSIONS.items()},
    'CR LF': SCRIPT.replace('\n', '\r\n').encode(),
    'CR LF in places': re.sub(r'(?<=[a-z)])\n(?= +a)', '\r\n', SCRIPT).encode(),
    'no last line end': SCRIPT.removesuffix('\n').encode(),
    'not UTF-8': SCRIPT.replace('seen = []', "seen = ['\xe9\x0c']", 1)
    .replace('\n', '# coding: latin-1\n', 1)
    .encode('latin-1'),
}


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'checkout' / 'train.py'
    path.parent.mkdir()
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize('version', AS_BYTES)
def test_lines_go_beside_their_calls_and_out_again_to_the_very_bytes(script, version):
    before = AS_BYTES[version]
    script.write_bytes(before)
    assert 'the lines of timm-train.patch are added' in patch_file(script.parent)
    after = script.read_bytes()
    lines = [content.decode('latin-1').splitlines() for content in (before, after)]
    changes = [line for line in difflib.ndiff(*lines) if line[0] in '+-']
    wanted = RENAMED if version == 'other names' else LINES
    if version == 'a name of a module':
        wanted = [line.replace('args, Cl', 'args, timm.task.Cl') for line in wanted]
    assert [line[2:] for line in changes if line[0] == '+'] == wanted
    assert len(changes) == len(wanted) + 1
    assert (b'\r' in after) == (b'\r' in before)
    if version == 'CR LF':
        assert after.count(b'\n') == after.count(b'\r\n')
    compile(after, version, 'exec')
    assert script.stat().st_mode & 0o777 == 0o755
    assert 'the lines of timm-train.patch are removed' in patch_file(script, revert=True)
    assert script.read_bytes() == before
    assert script.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in script.parent.iterdir()] == ['train.py']


@pytest.mark.parametrize('revert', [False, True])
def test_a_second_time_does_nothing(script, revert):
    patch_file(script)
    if revert:
        patch_file(script, revert=True)
    content, written = script.read_bytes(), script.stat().st_mtime_ns
    assert 'nothing to do' in patch_file(script, revert=revert)
    assert (script.read_bytes(), script.stat().st_mtime_ns) == (content, written)


def test_a_link_stays_a_link(script, tmp_path):
    (tmp_path / 'link.py').symlink_to(script)
    patch_file(tmp_path / 'link.py')
    assert (tmp_path / 'link.py').is_symlink()
    assert script.read_bytes() == AFTER


@pytest.mark.parametrize('text', [SCRIPT, OCTOBER])
def test_git_applies_the_patch_to_the_same_bytes(script, text):
    script.write_text(text)
    patch_file(script)
    patched = script.read_bytes()
    script.write_text(text)
    subprocess.run(['git', 'apply', PATCHES / 'timm-train.patch'], cwd=script.parent, check=True)
    assert script.read_bytes() == patched
    assert 'nothing to do' in patch_file(script)


MISSING = {
    'from timm': ('from timm', 'from tim', 'no import of timm'),
    'parser': ('argparse.ArgumentParser', 'Flags', r'no `parser = argparse\.ArgumentParser\(\.\.\.\)`'),
    'flags': ('_parse_args(', '_read_flags(', r'no `args = _parse_args\(\)` in a function'),
    'flags twice': (
        '    seen.append((epoch',
        '    args = _parse_args()\n    seen.append((epoch',
        '2 `args = _parse_args',
    ),
    'loader': (' create_loader(', ' make_loader(', 'no `loader = create_loader'),
    'another loader': ('    loader_train,\n', '    shown(loader_train),\n', 'no `loader = create_loader'),
    'collate': ('collate_fn=collate_fn', 'collate=collate_fn', r'no `loader = create_loader\(.*collate_fn=collate'),
    'size': ("input_size=data_config['input_size']", 'input_size=args.size', r'input_size=config\[\.\.\.\]'),
    'task': (' ClassificationTask(', ' PlainTask(', r'no `task = ClassificationTask\(\.\.\.\)`'),
    'epoch': ('for epoch in range(args.epochs):', 'while epoch := next(epochs, None):', 'no `for epoch in'),
    'train': ('train_one_epoch(', 'train_it(', 'no call of train_one_epoch'),
    'own line': (
        '        loader_train = c',
        '        x = 1; loader_train = c',
        'no line of its own for the statement in line',
    ),
    'Python': ('def main():', 'def main:', 'no Python'),
}


@pytest.mark.parametrize('what', MISSING)
def test_a_script_without_the_place_of_a_line_is_left_alone_and_the_place_named(script, what):
    old, new, message = MISSING[what]
    assert old in SCRIPT
    content = SCRIPT.replace(old, new).encode()
    script.write_bytes(content)
    with pytest.raises(ValueError, match=f'is unchanged: .*{message}') as error:
        patch_file(script)
    assert script.read_bytes() == content
    assert str(error.value).startswith(str(script))
    assert str(error.value).endswith(f'add the lines of {PATCHES / "timm-train.patch"} by hand')
    assert 'nothing to do' in patch_file(script, revert=True)


@pytest.mark.parametrize('revert', [False, True])
def test_other_lines_of_dad_are_left_alone(script, revert):
    content = AFTER.replace(b'dad.set_epoch(task, epoch)', b'task.set_epoch(epoch)')
    script.write_bytes(content)
    with pytest.raises(ValueError, match='its lines of timm_dad are not those of this version'):
        patch_file(script, revert=revert)
    assert script.read_bytes() == content


EXTRAS = {
    'none': (
        '[project]\nname = "timm"\nkeywords = [\n  "x",\n]\n\n[project.urls]\n',
        '[project.optional-dependencies]\n{}\n\n',
    ),
    'some': ('[project]\nname = "timm"\n\n[project.optional-dependencies]\nx = ["y"]\n', '{}\n'),
}


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('kind', EXTRAS)
def test_the_extra_goes_to_the_others_or_before_the_next_table(tmp_path, kind, end):
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    before, lines = (text.replace('\n', end) for text in EXTRAS[kind])
    file = tmp_path / 'pyproject.toml'
    file.write_bytes(before.encode())
    patch_file(file)
    after = file.read_bytes().decode()
    assert lines.format("dad = ['timm-dad']") in after
    assert tomllib.loads(after)['project']['optional-dependencies']['dad'] == ['timm-dad']
    patch_file(file, revert=True)
    assert file.read_bytes() == before.encode()
    file.write_bytes(b'[tool]\n')
    with pytest.raises(ValueError, match=r'found no table \[project\]'):
        patch_file(file)


def test_another_file_is_refused(tmp_path):
    (tmp_path / 'setup.cfg').write_text('[metadata]\n')
    with pytest.raises(ValueError, match=r'must be train\.py or pyproject\.toml of timm'):
        patch_file(tmp_path / 'setup.cfg')


def test_a_link_to_itself_is_an_error_of_the_system(tmp_path):
    (tmp_path / 'train.py').symlink_to(tmp_path / 'train.py')
    with pytest.raises(OSError, match=r'train\.py'):
        patch_file(tmp_path / 'train.py')


def test_a_write_that_fails_leaves_the_file_as_it_was(script, monkeypatch):
    def fail(*_):
        raise OSError('no space')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space'):
        patch_file(script)
    assert script.read_bytes() == SCRIPT.encode()
    assert [path.name for path in script.parent.iterdir()] == ['train.py']


def test_the_command_says_what_it_did_and_how_to_undo_it(script, capsys):
    main(['patch', str(script)])
    undo = capsys.readouterr().out.splitlines()[-1]
    assert undo == f'undo: timm-dad patch {script} --revert'
    main(undo.split()[2:])
    assert script.read_bytes() == SCRIPT.encode()
    script.write_bytes(b'print()\n')
    for path in (script, script.parent / 'nothing.py'):
        with pytest.raises(SystemExit) as stop:
            main(['patch', str(path)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith('timm-dad patch: error: ')
        assert str(path) in error


@pytest.mark.parametrize(
    ('name', 'numbers'), [('timm-train.patch', '6\t1\ttrain.py\n'), ('timm-extra.patch', '3\t0\tpyproject.toml\n')]
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
