import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from timm_dad.common.files import replacing, write_file, write_files


@pytest.mark.parametrize('content', ['é\r\n', 'é\r\n'.encode()])
def test_a_file_is_replaced_whole(tmp_path, content):
    (tmp_path / 'a.csv').write_text('old')
    write_file(tmp_path / 'a.csv', content)
    assert (tmp_path / 'a.csv').read_bytes() == 'é\r\n'.encode()
    assert os.listdir(tmp_path) == ['a.csv']


def test_folders_are_made_and_work_is_done_in_the_given_one(tmp_path):
    path, work = tmp_path / 'a' / 'b.txt', tmp_path / 'work'
    with replacing(path, work=work) as temporary:
        assert temporary.parent == work
        assert not path.exists()
        temporary.write_text('x')
    assert path.read_text() == 'x'
    assert list(work.iterdir()) == []


def test_a_name_may_be_as_long_as_file_systems_allow(tmp_path):
    write_file(tmp_path / f'{"x" * 251}.png', b'x')
    assert (tmp_path / f'{"x" * 251}.png').read_bytes() == b'x'


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('place', ['writer', 'replace', 'fsync'])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, monkeypatch, error, place):
    path = tmp_path / 'a.txt'
    path.write_text('old')

    def fail(*args):
        raise error

    def write():
        with replacing(path, sync=True) as temporary:
            temporary.write_text('half of it')
            if place == 'writer':
                fail()

    if place != 'writer':
        monkeypatch.setattr(os, place, fail)
    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ['a.txt']
    assert path.read_text() == 'old'


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / 'report.md').mkdir()
    with pytest.raises(ValueError, match=r'report\.md must be a file, but it is a folder: move it away'):
        write_file(tmp_path / 'report.md', '')
    assert os.listdir(tmp_path) == ['report.md']


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with replacing(tmp_path / 'a.txt') as first, replacing(tmp_path / 'a.txt') as second:
        first.write_text('first')
        second.write_text('second')
    assert (tmp_path / 'a.txt').read_text() == 'first'  # the one that ended last
    assert os.listdir(tmp_path) == ['a.txt']


def _by_safetensors(path):
    save_file({'a': torch.zeros(1)}, path)


def _by_numpy(path):
    np.savez(path, a=np.zeros(1))  # puts .npz after other suffixes


def _by_torch(path):
    torch.save({}, path)


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize('write', [_by_safetensors, _by_numpy, _by_torch])
def test_every_writer_leaves_the_mode_of_a_newly_opened_file(tmp_path, write, umask, mode):
    path = tmp_path / f'a.{"npz" if write is _by_numpy else "safetensors"}'
    before = os.umask(umask)
    try:
        with replacing(path) as temporary:
            write(temporary)
        (tmp_path / 'opened').write_bytes(b'')
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode == stat.S_IMODE((tmp_path / 'opened').stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == [path.name, 'opened']
    assert path.stat().st_size > 0


def test_the_mode_of_an_old_file_is_kept(tmp_path):
    path = tmp_path / 'a.safetensors'
    path.touch()
    path.chmod(0o750)
    with replacing(path) as temporary:
        _by_safetensors(temporary)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.ENOSPC, 'No space left on device'),
        SafetensorError('I/O error: No space left on device (os error 28)'),
    ],
)
def test_what_a_disk_says_names_the_file(tmp_path, error):
    with pytest.raises(OSError, match=r'No space left on device: .*a\.txt') as found, replacing(tmp_path / 'a.txt'):
        raise error
    assert found.value.errno == errno.ENOSPC
    other = OSError(errno.ENOENT, 'No such file or directory', 'b.txt')
    with pytest.raises(OSError, match=r'b\.txt'), replacing(tmp_path / 'a.txt'):
        raise other


@pytest.mark.parametrize('by', [OSError, None])
def test_what_torch_makes_of_a_full_disk_names_the_file(tmp_path, by):
    failure = RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598')
    failure.__context__ = by and by(errno.ENOSPC, 'No space left on device')
    message = r'No space left on device: .*a\.pt' if by else 'unexpected pos'
    with pytest.raises(by or RuntimeError, match=message), replacing(tmp_path / 'a.pt'):
        raise failure


@pytest.fixture
def files(tmp_path):
    return {tmp_path / 'set' / f'{index % 3}' / f'{index}.png': bytes([index]) * 9 for index in range(20)}


def test_files_that_belong_together_are_on_the_disk_before_one_has_its_name(tmp_path, files, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, function=function: calls.append(name) or function(*args))
    write_files(files, tmp_path / 'work')
    assert calls == ['fsync'] * 20 + ['replace'] * 20
    assert {path: path.read_bytes() for path in files} == files
    assert os.listdir(tmp_path / 'work') == []


@pytest.mark.parametrize('function', ['write_bytes', 'fsync'])
def test_where_one_of_them_does_not_fit_none_has_its_name(tmp_path, files, monkeypatch, function):
    (full,) = [path for path in files if path.name == '7.png']
    done, owner = getattr(os if function == 'fsync' else Path, function), os if function == 'fsync' else Path

    def filling(at, *args):
        content = Path(f'/proc/self/fd/{at}').read_bytes() if function == 'fsync' else args[0]
        if content == files[full]:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return done(at, *args)

    monkeypatch.setattr(owner, function, filling)
    with pytest.raises(OSError, match=r'No space left on device: .*/7\.png'):
        write_files(files, tmp_path / 'work')
    assert [path for path in files if path.exists()] == []
    assert os.listdir(tmp_path / 'work') == []
