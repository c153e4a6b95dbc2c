import errno
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import filelock
import pytest
from torch.utils.data import DataLoader

from timm_dad.common.files import write_file
from timm_dad.dad_sets.manifest import (
    ShardManifest,
    canonical_json,
    differences,
    manifest_path,
    read_json,
    sync_folders,
)
from timm_dad.dad_sets.parts import Part
from timm_dad.dad_sets.shards import ShardedFolder, check_folder

FORK = multiprocessing.get_context('fork')
SETTINGS = {'format_version': 1, 'views': {'seed': 0}}


def open_folder(root, num_images=10, shard_size=4, settings=None, claims=None):
    return ShardedFolder(root, settings or SETTINGS, num_images, shard_size, claims)


def commit(folder, shard):
    path = folder.root / f'view0/{shard}.png'
    write_file(path, b'x', sync=True, work=folder.work('x'))
    items = [{'index': index, 'views': [{'path': f'view0/{shard}.png'}]} for index in folder.shard_range(shard)]
    header = {'shard': shard, 'items': len(items), 'settings': folder.settings_id, 'files': []}
    folder.commit(shard, ShardManifest(header, items))


def in_process(root, function):
    """What ``function`` of a folder returns in a process of its own."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=lambda: theirs.send(function(open_folder(root))))
    process.start()
    assert ours.poll(30)
    process.join()
    return ours.recv()


def claims(folder):
    """Which of three shards a process gets."""
    return [folder.claim(shard) for shard in range(3)]


# Shards


@pytest.mark.parametrize(('num_images', 'shard_size'), [(10, 4), (8, 4), (1, 4), (4, 1), (3, 100)])
def test_shards_hold_every_image_once(tmp_path, num_images, shard_size):
    folder = open_folder(tmp_path, num_images, shard_size)
    indices = [index for shard in folder.pending() for index in folder.shard_range(shard)]
    assert indices == list(range(num_images))
    assert all(len(folder.shard_range(shard)) <= shard_size for shard in folder.pending())


def test_a_shard_is_done_when_its_manifest_is_there(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.pending() == [0, 1, 2]
    assert folder.claim(2)
    assert folder.pending() == [0, 1, 2]
    commit(folder, 2)
    assert folder.is_done(2)
    assert (folder.done(), folder.pending(), folder.images_done()) == ({2}, [0, 1], 2)
    assert open_folder(tmp_path).pending() == [0, 1]
    assert not folder.claim(2)


def test_strange_files_beside_the_manifests_are_no_shards(tmp_path):
    folder = open_folder(tmp_path)
    folder.claim(0)
    commit(folder, 0)
    for name in ('.nfs0001.jsonl', 'notes.jsonl', '000001.jsonl~'):
        (tmp_path / 'manifest' / name).write_text('')
    assert folder.done() == {0}
    assert folder.pending() == [1, 2]


# Claims


def test_one_process_has_a_shard(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.claim(0)
    assert folder.claim(0)  # again: it is its own
    assert in_process(tmp_path, claims) == [False, True, True]
    commit(folder, 0)
    assert in_process(tmp_path, claims) == [False, True, True]


def test_what_a_process_lets_go_of_is_free(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.claim(0)
    assert folder.claim(1)
    folder.release()
    assert in_process(tmp_path, claims) == [True, True, True]


def test_shards_of_a_killed_process_are_free(tmp_path):
    def claim_and_wait(pipe):
        folder = open_folder(tmp_path)
        pipe.send(folder.claim(1))
        time.sleep(60)

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=claim_and_wait, args=(theirs,))
    process.start()
    assert ours.recv()
    folder = open_folder(tmp_path)
    assert claims(folder) == [True, False, True]
    process.kill()
    process.join()
    assert folder.claim(1)


def test_data_loading_processes_that_end_free_nothing(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.claim(1)
    assert len(list(DataLoader(range(8), num_workers=2, batch_size=2))) == 4
    child = FORK.Process(target=folder.release)  # the worst that one can do with its copy
    child.start()
    child.join()
    assert not in_process(tmp_path, lambda other: other.claim(1))


@pytest.mark.slow
def test_many_processes_never_have_one_shard_at_a_time(tmp_path):
    """Each says when it has a shard and when it lets go of it; nobody comes between."""
    root, log = tmp_path / 'set', tmp_path / 'log'

    def say(*words):
        with log.open('a') as file:
            file.write(' '.join(str(word) for word in words) + '\n')

    def work():
        folder = open_folder(root, 30, 1)
        while pending := folder.pending():
            for shard in pending:
                if folder.claim(shard):
                    say(shard, os.getpid(), 'in')
                    time.sleep(0.002)
                    say(shard, os.getpid(), 'out')
                    commit(folder, shard)
        with folder.finishing() as first:
            if first:
                say('finish')
                (root / 'index.json').write_text('{}')

    processes = [FORK.Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    lines = [line.split() for line in log.read_text().splitlines()]
    assert lines.count(['finish']) == 1
    for shard in range(30):
        own = [line[1:] for line in lines if line[0] == str(shard)]
        assert [word for _, word in own] == ['in', 'out']
        assert own[0][0] == own[1][0]
    assert not (root / '.work').exists()


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_and_no_soft_lock_taken(tmp_path, monkeypatch, code):
    """flock answers ENOSYS or ENOTSUP on some network file systems."""
    import fcntl

    def refuse(*_):
        raise OSError(code, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with pytest.raises(
        ValueError, match=r'is on a file system without locks \(flock\): choose .* or give .*--claim lease'
    ):
        open_folder(tmp_path)


# Start


def test_the_settings_are_kept_and_compared(tmp_path):
    open_folder(tmp_path)
    assert read_json(tmp_path / 'dad_set.json') == SETTINGS
    with pytest.raises(ValueError, match=r'set with other settings \(views\.seed: here 1, there 0\): give the same'):
        open_folder(tmp_path, settings={**SETTINGS, 'views': {'seed': 1}})


def test_no_more_than_three_differences_are_named(tmp_path):
    open_folder(tmp_path, settings={f'k{index}': index for index in range(9)})
    with pytest.raises(ValueError, match='other settings') as caught:
        open_folder(tmp_path, settings={f'k{index}': -1 for index in range(9)})
    assert str(caught.value).count(': here ') == 3


def test_other_files_are_refused_and_named(tmp_path):
    for name in 'dcba':
        (tmp_path / name).write_text('')
    with pytest.raises(ValueError, match=r'contains other files \(a, b, c\): choose an empty folder'):
        open_folder(tmp_path)


@pytest.mark.parametrize('seed', [0, 1])
def test_a_set_that_is_begun_while_the_folder_is_looked_at_is_no_stranger(tmp_path, monkeypatch, seed):
    listing = Path.iterdir

    def begun_before(folder):
        monkeypatch.undo()
        open_folder(tmp_path)
        return listing(folder)

    monkeypatch.setattr(Path, 'iterdir', begun_before)
    if seed:
        with pytest.raises(ValueError, match=r'other settings \(views.seed: here 1, there 0\)'):
            check_folder(tmp_path, {**SETTINGS, 'views': {'seed': 1}})
    else:
        check_folder(tmp_path, SETTINGS)


def test_two_that_start_at_once_agree(tmp_path):
    errors = []

    def start(seed):
        try:
            open_folder(tmp_path / 'set', settings={'seed': seed})
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert all('other settings' in str(error) for error in errors)


def test_killed_before_the_settings_were_there_it_begins_anew(tmp_path):
    (tmp_path / '.work' / 'start-other-1').mkdir(parents=True)
    (tmp_path / '.work' / 'start-other-1' / 'dad_set.json').write_text('{"half')
    assert open_folder(tmp_path).pending() == [0, 1, 2]


def test_a_shard_taken_out_of_a_whole_set_makes_it_unfinished(tmp_path):
    folder = open_folder(tmp_path)
    for shard in range(3):
        folder.claim(shard)
        commit(folder, shard)
    (tmp_path / 'index.json').write_text('{}')
    open_folder(tmp_path)
    assert (tmp_path / 'index.json').exists()
    assert not (tmp_path / '.work').exists()
    manifest_path(tmp_path, 1).unlink()
    assert open_folder(tmp_path).pending() == [1]
    assert not (tmp_path / 'index.json').exists()


def test_a_set_that_others_finish_while_it_is_opened_stays_finished(tmp_path, monkeypatch):
    """The last shard and the index may come between any two looks at the folder."""
    looked = []

    def finish_after_a_look(folder):
        looked.append(folder)
        (tmp_path / 'index.json').write_text('{}')
        return {0, 1}  # what was there a moment ago

    monkeypatch.setattr(ShardedFolder, 'done', finish_after_a_look)
    open_folder(tmp_path)
    assert (tmp_path / 'index.json').exists() == bool(looked)


def other_process_first(monkeypatch, root, then):
    """Let another process begin, with ``SETTINGS``, just before this one writes its own settings."""
    link = os.link

    def late(*names):
        monkeypatch.setattr(os, 'link', link)
        for shard in range(3):
            folder = open_folder(root, claims=Part(0, 1))
            folder.claim(shard)
            commit(folder, shard)
        then(*names)

    monkeypatch.setattr(os, 'link', late)


OTHER = {**SETTINGS, 'views': {'seed': 1}}


def test_settings_never_take_the_place_of_another_process(tmp_path, monkeypatch):
    other_process_first(monkeypatch, tmp_path, then=os.link)
    with pytest.raises(ValueError, match='set with other settings'):
        open_folder(tmp_path, settings=OTHER, claims=Part(0, 1))
    assert read_json(tmp_path / 'dad_set.json') == SETTINGS


def test_shards_of_two_settings_are_no_set_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, 'Operation not permitted')

    other_process_first(monkeypatch, tmp_path, then=refuse)
    folder = open_folder(tmp_path, settings=OTHER, claims=Part(0, 1))
    assert read_json(tmp_path / 'dad_set.json') == OTHER
    with (
        pytest.raises(ValueError, match=r'000000\.jsonl has other settings than .* choose an empty'),
        folder.finishing(),
    ):
        pytest.fail('it is being finished')


# End


def all_done(root):
    """A folder whose shards are all whole."""
    folder = open_folder(root)
    for shard in range(3):
        folder.claim(shard)
        commit(folder, shard)
    return folder


def in_threads(function, count):
    """What a function returns in threads, or the errors that it raises."""
    ends = []

    def run():
        try:
            ends.append(function())
        except OSError as error:
            ends.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize('trial', range(5))
def test_one_finishes_and_the_others_wait(tmp_path, trial):
    """Whoever comes last takes the locks away, from under those who still wait for one."""
    all_done(tmp_path)

    def finish():
        with open_folder(tmp_path).finishing() as first:
            if first:
                time.sleep(0.06 + 0.01 * trial)
                (tmp_path / 'index.json').write_text('{}')
        return first

    assert sorted(in_threads(finish, 4), key=str) == [False, False, False, True]
    assert not (tmp_path / '.work').exists()


@pytest.mark.parametrize('trial', range(5))
def test_many_may_start_at_once_on_a_whole_set(tmp_path, trial):
    all_done(tmp_path)
    (tmp_path / 'index.json').write_text('{}')
    assert [len(found) if isinstance(found, list) else found for found in _pending(tmp_path)] == [0] * 6
    assert not (tmp_path / '.work').exists()


def _pending(root):
    def start():
        folder = open_folder(root)
        return folder.pending() + [shard for shard in range(3) if folder.claim(shard)]

    return in_threads(start, 6)


def test_if_the_one_that_finishes_fails_the_next_one_does(tmp_path):
    folder = open_folder(tmp_path)
    with pytest.raises(OSError, match='No space'), folder.finishing():
        _full()
    with folder.finishing() as first:
        assert first


def test_a_whole_set_is_not_claimed(tmp_path):
    folder = open_folder(tmp_path)
    (tmp_path / 'index.json').write_text('{}')
    assert not folder.claim(0)


def test_a_lock_outlives_no_error(tmp_path):
    with pytest.raises(ValueError, match='other settings'):
        open_folder(tmp_path) and open_folder(tmp_path, settings={'x': 1})
    with filelock.FileLock(tmp_path / '.work' / 'locks' / 'start.lock', timeout=0):
        pass


# Files


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / 'a' / 'b.txt'
    write_file(path, b'old', sync=True, work=tmp_path / 'work')
    for name in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _full)
            with pytest.raises(OSError, match='No space'):
                write_file(path, b'new', sync=True, work=tmp_path / 'work')
        assert path.read_bytes() == b'old'
    write_file(path, b'new', sync=True, work=tmp_path / 'work')
    assert path.read_bytes() == b'new'
    assert list((tmp_path / 'work').iterdir()) == []


def _full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, function=function: calls.append(name) or function(*args))
    write_file(tmp_path / 'a', b'x', sync=True, work=tmp_path / 'work')
    assert calls == ['fsync', 'replace']


def test_a_manifest_gets_its_name_after_all_folders_are_on_the_disk(tmp_path, monkeypatch):
    folder, calls = open_folder(tmp_path), []
    folder.claim(0)
    for name in ('fsync', 'replace'):
        function = getattr(os, name)

        def watched(*args, name=name, function=function):
            target = args[-1] if name == 'replace' else os.readlink(f'/proc/self/fd/{args[0]}')
            calls.append((name, os.path.relpath(target, tmp_path)))
            return function(*args)

        monkeypatch.setattr(os, name, watched)
    commit(folder, 0)
    assert calls.index(('replace', 'view0/0.png')) < calls.index(('fsync', 'view0'))
    assert calls.index(('fsync', 'view0')) < calls.index(('replace', 'manifest/000000.jsonl'))
    assert calls[-1] == ('fsync', 'manifest')


def test_folders_are_synced(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    sync_folders(tmp_path, [tmp_path / 'a' / 'b' / 'file', tmp_path / 'file'])


@pytest.mark.parametrize('value', [{'b': 1, 'a': [1, None, 'é\n\u2028']}, {'x': 0.1, 'y': 1e-9, 'z': True}])
def test_equal_values_give_equal_bytes_that_are_one_line(value):
    data = canonical_json(value)
    assert canonical_json(dict(reversed(value.items()))) == data
    assert json.loads(data) == value
    assert len(data.splitlines()) == 1


def test_a_manifest_comes_back():
    items = [{'index': index, 'name': f'é\u2028\x85 {index}\n', 'views': []} for index in range(3)]
    manifest = ShardManifest({'shard': 1, 'items': 3}, items)
    assert ShardManifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    'data', [b'', b'[]', b'{}', b'null', b'{"shard":0,"items":1}', b'{"shard":0,"items":0}\n{}', b'{"shard":0', b'\xff']
)
def test_what_is_no_whole_manifest_is_refused(data):
    with pytest.raises(ValueError, match=r'is incomplete|not enough values|Expecting|delimiter|decode'):
        ShardManifest.from_bytes(data)


def test_differences_are_named():
    here = {'a': 1, 'b': {'c': [1, 2], 'd': 'x' * 100}, 'e': None}
    assert differences(here, {**here}) == []
    assert differences(here, json.loads(json.dumps(here))) == []
    there = {'a': 2, 'b': {'c': [1], 'd': 'x' * 99}, 'f': {'g': 1}}
    assert differences(here, there) == [
        'a: here 1, there 2',
        'b.c: here [1, 2], there [1]',
        f'b.d: here "{"x" * 56}..., there "{"x" * 56}...',
        'f.g: here null, there 1',
    ]


@pytest.mark.parametrize('content', [b'', b'[1]', b'"x"', b'\xff', b'{"a":'])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.json is damaged: '):
        read_json(tmp_path / 'a.json')
