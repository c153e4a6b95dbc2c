import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_generate import assert_same_tree, items, make, open_source, tree, write_images

from timm_dad.commands.verify import main
from timm_dad.dad_sets.manifest import canonical_json, index_hash, read_json
from timm_dad.dad_sets.shards import ShardedFolder
from timm_dad.dad_sets.verify import Damage, verify

FORMATS = ('folder', 'wds', 'codes')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return open_source(write_images(tmp_path_factory.mktemp('pictures')))


@pytest.fixture(scope='module')
def sets(tmp_path_factory, source):
    """A set of each format, never touched."""
    root = tmp_path_factory.mktemp('sets')
    for format in FORMATS:
        _make(source, root / format, format)
    return root


def _make(source, root, format, **more):
    make(source, root, format=format, num_views=2, top_k=2, **more)


@pytest.fixture(params=FORMATS)
def format(request):
    return request.param


@pytest.fixture
def damaged(sets, tmp_path, format):
    """A copy to be damaged."""
    return shutil.copytree(sets / format, tmp_path / 'set')


def _run(root, capsys):
    """Exit code, and what it printed."""
    try:
        main([str(root)])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        message = '' if isinstance(error.code, int) else str(error.code)
    else:
        code, message = 0, ''
    captured = capsys.readouterr()
    return code, captured.out + captured.err + message


def _repair(source, root, format, output):
    """Do as the advice says."""
    assert 'damaged. To make them again: run the same timm-dad generate with --repair' in output, output
    _make(source, root, format, repair=True)


def _flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def _first(root, pattern):
    return sorted(root.glob(pattern))[0]


ITEMS = {'folder': 'view1/cat/*.png', 'wds': 'shards/*.tar', 'codes': 'shards/*.safetensors'}


def test_a_whole_set_is_whole(damaged, capsys):
    code, output = _run(damaged, capsys)
    assert code == 0
    assert f'{damaged} is whole' in output


DAMAGES = {
    'missing': lambda path: path.unlink(),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'empty': lambda path: path.write_bytes(b''),
    'first byte': lambda path: _flip(path, 0),
    'middle byte': lambda path: _flip(path, path.stat().st_size // 2),
    'longer': lambda path: path.write_bytes(path.read_bytes() + b'x'),
    'last byte': lambda path: _flip(path, -1),
}
KINDS = {'missing': 'missing', 'truncated': 'truncated', 'empty': 'truncated'}
FILES = ('item', 'manifest/000001.jsonl', 'logits/000002.safetensors', 'contact_sheet.png', 'class_map.txt')


@pytest.mark.parametrize(
    ('format', 'file'),
    [
        *(('folder', file) for file in FILES),
        ('wds', 'item'),
        ('wds', '_info.json'),
        ('wds', 'index.npy'),
        ('codes', 'item'),
    ],
    indirect=['format'],
)
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_found_named_and_made_good_by_the_advice(damaged, source, sets, format, capsys, file, damage):
    path = _first(damaged, ITEMS[format]) if file == 'item' else damaged / file
    DAMAGES[damage](path)
    code, output = _run(damaged, capsys)
    name = str(path.relative_to(damaged))
    kind = KINDS.get(damage, 'altered')
    assert code == 1
    assert re.search(rf'^({kind}|altered|missing): {re.escape(name)}', output, re.M), output
    if file != 'manifest/000001.jsonl':
        assert re.search(rf'^{kind}: {re.escape(name)}', output, re.M), output
    _repair(source, damaged, format, output)
    assert_same_tree(damaged, tree(sets / format))


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('file', ['index.json', 'dad_set.json'])
def test_damage_of_index_or_settings_is_found_named_and_made_good_by_the_advice(
    sets, source, tmp_path, capsys, file, damage
):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    DAMAGES[damage](root / file)
    code, output = _run(root, capsys)
    assert code == 1
    if file == 'index.json' and damage == 'missing':
        assert 'is not finished' in output
    else:
        assert file in output
    _make(source, root, 'folder', repair=True)
    assert_same_tree(root, tree(sets / 'folder'))


def test_the_repair_works_where_names_would_need_quotes(sets, source, tmp_path, capsys):
    root = shutil.copytree(sets / 'folder', tmp_path / "a set; of $mine's")
    (tmp_path / 'a').write_text('not of the set')
    (root / 'view0/cat/0.png').unlink()
    _, output = _run(root, capsys)
    _repair(source, root, 'folder', output)
    assert (tmp_path / 'a').exists()
    assert_same_tree(root, tree(sets / 'folder'))


def test_two_swapped_files_are_found_and_made_good(damaged, source, sets, format, capsys):
    one, other = sorted(damaged.glob(ITEMS[format]))[:2]
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    code, output = _run(damaged, capsys)
    assert code == 1
    for path in (one, other):
        assert str(path.relative_to(damaged)) in output
    _repair(source, damaged, format, output)
    assert_same_tree(damaged, tree(sets / format))


def test_the_view_inside_a_file_of_several_is_named(sets, source, tmp_path, capsys):
    for format in ('wds', 'codes'):
        root = shutil.copytree(sets / format, tmp_path / format)
        path = _first(root, ITEMS[format])
        place = items(root)[2]['views'][1]
        _flip(path, place['offset'] + place['bytes'] // 2)
        code, output = _run(root, capsys)
        name = str(path.relative_to(root))
        assert code == 1
        assert f'altered: {name}\n' in output
        assert f'altered: {name} (view 1 of cat/2)' in output
        assert output.count('altered') == 2


@pytest.mark.slow
@pytest.mark.parametrize('whole', [True, False])
def test_a_manifest_with_any_byte_altered_is_an_error_that_names_it_never_a_traceback(sets, tmp_path, whole):
    """Of a set that is not finished no hash of the manifest is known: there it must be no traceback, at least."""
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    path = root / 'manifest' / '000002.jsonl'
    data = path.read_bytes()
    if not whole:
        (root / 'index.json').unlink()
    for position in range(0, len(data), 7):
        for value in (data[position] ^ 1, ord('0'), ord('"')):
            if value == data[position]:
                continue
            path.write_bytes(data[:position] + bytes([value]) + data[position + 1 :])
            damages = list(verify(root))
            assert not whole or 'manifest/000002.jsonl' in {damage.path for damage in damages}


def test_an_altered_index_does_not_hide_other_damage(damaged, format, capsys):
    (damaged / 'index.json').write_bytes((damaged / 'index.json').read_bytes().replace(b'"images":20', b'"images":21'))
    path = _first(damaged, ITEMS[format])
    path.unlink()
    _, output = _run(damaged, capsys)
    assert 'index.json' in output
    assert str(path.relative_to(damaged)) in output


def test_the_advice_never_makes_a_set_whole_whose_manifest_is_altered(sets, source, tmp_path, capsys):
    """The index is gone, and with it the hash of the manifest: the set must not be called whole with a wrong label."""
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    (root / 'index.json').write_bytes((root / 'index.json').read_bytes().replace(b'"images":20', b'"images":21'))
    path = root / 'manifest' / '000000.jsonl'
    path.write_bytes(path.read_bytes().replace(b'"label":0', b'"label":1', 1))
    for _ in range(3):
        code, output = _run(root, capsys)
        if code == 0:
            break
        _repair(source, root, 'folder', output)
    assert_same_tree(root, tree(sets / 'folder'))


def test_an_index_that_was_written_anew_by_hand_does_not_hide_other_settings(sets, tmp_path, capsys):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    settings = read_json(root / 'dad_set.json')
    settings['views']['seed'] = 1
    (root / 'dad_set.json').write_bytes(canonical_json(settings) + b'\n')
    code, output = _run(root, capsys)
    assert code == 1
    assert 'altered: dad_set.json' in output


def test_index_hash_is_of_all_but_itself(sets):
    index = read_json(sets / 'folder' / 'index.json')
    assert index['sha256'] == index_hash(index) == index_hash({**index, 'sha256': 'x'})
    assert index_hash({**index, 'items': 21}) != index['sha256']


def test_several_shards_are_made_again_and_no_others(damaged, source, sets, format, capsys):
    paths = sorted(damaged.glob('view0/*/*.png' if format == 'folder' else ITEMS[format]))
    for path in (paths[0], paths[-1]):
        path.write_bytes(b'')
    kept = (damaged / 'manifest' / '000001.jsonl').stat().st_ino
    _, output = _run(damaged, capsys)
    _repair(source, damaged, format, output)
    assert (damaged / 'manifest' / '000001.jsonl').stat().st_ino == kept
    assert_same_tree(damaged, tree(sets / format))


def test_what_cannot_be_read_is_named_and_made_again_too(sets, source, tmp_path, capsys):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    path = root / 'view0' / 'cat' / '1.png'
    path.unlink()
    path.mkdir()
    shutil.rmtree(root / 'view1' / 'dog')
    (root / 'view1' / 'dog').write_text('no folder')
    code, output = _run(root, capsys)
    assert code == 1
    assert 'view0/cat/1.png' in output
    assert 'view1/dog/0.png' in output
    _repair(source, root, 'folder', output)
    assert_same_tree(root, tree(sets / 'folder'))


def test_a_repair_takes_nothing_from_a_set_of_other_flags_and_needs_something_whole(sets, source, tmp_path):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    (root / 'view0' / 'cat' / '1.png').unlink()
    before = tree(root)
    with pytest.raises(ValueError, match='is a set with other settings'):
        make(source, root, format='folder', num_views=2, top_k=2, seed=5, repair=True)
    assert tree(root) == before
    shutil.rmtree(root / 'manifest')
    (root / 'dad_set.json').write_bytes(b'')
    with pytest.raises(ValueError, match=r'nothing in it is intact, not even dad_set\.json: remove it'):
        _make(source, root, 'folder', repair=True)
    with pytest.raises(ValueError, match='contains no DAD set'):
        _make(source, tmp_path / 'nowhere', 'folder', repair=True)
    assert not (tmp_path / 'nowhere').exists()


def test_a_whole_set_is_left_as_it_is_by_a_repair(damaged, source, format):
    before = {path: path.stat().st_mtime_ns for path in damaged.rglob('*') if path.is_file()}
    _make(source, damaged, format, repair=True)
    assert {path: path.stat().st_mtime_ns for path in damaged.rglob('*') if path.is_file()} == before


def test_a_set_that_is_not_finished_is_checked_as_far_as_it_is(damaged, source, format, capsys):
    (damaged / 'index.json').unlink()
    (damaged / 'manifest' / '000002.jsonl').unlink()
    code, output = _run(damaged, capsys)
    assert code == 1
    assert f'{damaged} is not finished, but what exists is intact; run the same timm-dad generate to continue' in output
    path = _first(damaged, ITEMS[format])
    path.write_bytes(b'')
    code, output = _run(damaged, capsys)
    assert code == 1
    assert f'truncated: {path.relative_to(damaged)}' in output
    assert 'not finished, but what exists is intact' not in output


def test_every_byte_of_a_small_set_counts(sets, source, tmp_path):
    """Flip one bit in each file, at its start, in its middle and at its end: nothing goes unseen."""
    root = shutil.copytree(sets / 'wds', tmp_path / 'set')
    for path in sorted(path for path in root.rglob('*') if path.is_file()):
        data = path.read_bytes()
        for position in (0, len(data) // 3, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            try:
                found = list(verify(root))
            except ValueError as error:
                found = [error]
            assert found, f'{path.relative_to(root)}: byte {position} of {len(data)}'
            path.write_bytes(data)
    assert list(verify(root)) == []


@pytest.mark.parametrize('content', ['nothing', 'other files'])
def test_no_set_is_said_to_be_none(tmp_path, capsys, content):
    if content == 'other files':
        (tmp_path / 'x.txt').write_text('x')
    code, output = _run(tmp_path, capsys)
    assert code == 2
    assert 'timm-dad verify: error:' in output
    assert f'{tmp_path} contains no DAD set (no dad_set.json): make one with timm-dad generate' in output


def test_another_version_is_named(sets, tmp_path, capsys):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    path = root / 'dad_set.json'
    path.write_bytes(path.read_bytes().replace(b'"format_version":1', b'"format_version":9'))
    code, output = _run(root, capsys)
    assert code in (1, 2)
    assert 'has format version 9, but this timm_dad reads 1' in output


def test_damage_reads_as_one_line():
    assert str(Damage('missing', 'a/b.png')) == 'missing: a/b.png'
    assert str(Damage('altered', 'a.tar', 'view 1 of x')) == 'altered: a.tar (view 1 of x)'


@pytest.mark.slow
def test_command_exits_with_its_code(sets, tmp_path):
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    command = [sys.executable, '-m', 'timm_dad', 'verify', str(root)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    path = root / 'view0' / 'dog' / '0.png'
    path.write_bytes(b'')
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == 'truncated: view0/dog/0.png\n'
    assert '1 damaged. To make them again: run the same timm-dad generate with --repair' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_shard_that_is_being_made_again_is_not_whole(sets, source, tmp_path):
    """Whoever reads must not take the set for a whole one while a shard of it is made again."""
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    (root / 'manifest' / '000001.jsonl').unlink()
    folder = ShardedFolder(root, read_json(root / 'dad_set.json'), 20, 8)
    assert folder.pending() == [1]
    assert not folder.is_whole()


def test_what_is_refused_leaves_nothing_behind(sets, source, tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(ValueError, match=r'contains other files \(train\): choose an empty folder'):
        _make(source, tmp_path, 'folder')
    assert [path.name for path in tmp_path.iterdir()] == ['train']
    root = shutil.copytree(sets / 'folder', tmp_path / 'set')
    with pytest.raises(ValueError, match='is a set with other settings'):
        make(source, root, seed=5)
    assert_same_tree(root, tree(sets / 'folder'))


def test_a_full_disk_while_a_shard_is_claimed_is_no_error_of_the_data(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ShardedFolder, 'claim', full)
    with pytest.raises(ValueError, match=r'set cannot be written \(No space left on device\): provide the space'):
        _make(source, tmp_path / 'set', 'folder')
