"""Who makes what of a set, and workers that are killed at any operation on files."""

import errno
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import picture
from test_generate import Memory, Stream, assert_same_tree, make, tree
from test_shards import commit, open_folder

from timm_dad.common.files import write_file
from timm_dad.dad_sets import claims
from timm_dad.dad_sets import leases as leases_module
from timm_dad.dad_sets.claims import Locks, file_system, locks_work, open_claims
from timm_dad.dad_sets.leases import Leases
from timm_dad.dad_sets.manifest import found_shards
from timm_dad.dad_sets.parts import Part, Shards
from timm_dad.dad_sets.verify import verify
from timm_dad.data.images import Source

FORK = multiprocessing.get_context('fork')
WAYS = ['lock', 'lease', 'part']


class Clock:
    """What ``leases`` takes for ``time.monotonic``."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases_module, 'time', clock)
    return clock


@pytest.fixture
def leases(tmp_path):
    """Makes leases of one folder, as processes have them; they end with the test."""
    made = []

    def create(**kwargs):
        made.append(Leases(tmp_path, **kwargs))
        return made[-1]

    yield create
    for each in made:
        for name in list(each._held):
            each.let_go(name)


def fall_silent(holder, name):
    """Let a holder write to its lease no more, as if its process were asleep."""
    holder._held[name]._ended.set()
    holder._held[name]._thread.join()


# Locks and leases


@pytest.mark.parametrize('kind', [Locks, Leases])
def test_one_process_has_a_name_until_it_lets_go(tmp_path, kind):
    one, other = kind(tmp_path), kind(tmp_path)
    assert one.take('a')
    assert one.holds('a')
    assert not other.take('a')
    assert other.take('b')
    one.let_go('a')
    assert other.take('a')
    assert not one.take('a')
    for name in 'ab':
        other.let_go(name)


@pytest.mark.parametrize('kind', [Locks, Leases])
def test_a_copy_in_a_forked_process_frees_nothing(tmp_path, kind):
    one = kind(tmp_path)
    one.take('a')
    child = FORK.Process(target=one.let_go, args=('a',))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert not kind(tmp_path).take('a')
    one.let_go('a')


def test_a_lease_of_a_killed_process_is_taken_after_a_minute_of_the_observers_clock(tmp_path, leases, clock):
    def take_and_die():
        assert Leases(tmp_path).take('a')
        os._exit(0)

    child = FORK.Process(target=take_and_die)
    child.start()
    child.join(30)
    one, late = leases(), leases()
    for now, taken in ((1000, False), (1030, False), (1060, False), (1060.1, True)):
        clock.now = now
        assert one.take('a') is taken
    assert not late.take('a')


def test_a_lease_that_is_written_to_is_never_taken(leases):
    one, other = leases(interval=0.02), leases(interval=0.02, missed=10)
    assert one.take('a')
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert not other.take('a')
        time.sleep(0.01)
    assert one.holds('a')


@pytest.mark.parametrize('there', [0, 2**33])
def test_clocks_of_machines_and_times_of_files_do_not_matter(tmp_path, leases, clock, there):
    one, other = leases(interval=0.01), leases()
    assert one.take('a')
    for now in range(0, 1000, 50):
        clock.now = now
        os.utime(tmp_path / '.work/leases/a.0', (there, there))
        assert not other.take('a')
        before, end = (tmp_path / '.work/leases/a.0').read_bytes(), time.monotonic() + 10
        while (tmp_path / '.work/leases/a.0').read_bytes() == before and time.monotonic() < end:
            time.sleep(0.002)


def test_a_lease_says_who_has_it(tmp_path, leases):
    holder = leases()
    holder.take('a')
    state, host, process, token, count = (tmp_path / '.work/leases/a.0').read_text().split()
    assert state == 'held'
    assert host == os.uname().nodename
    assert int(process) == os.getpid()
    assert len(token) == 32
    assert int(count) == 0
    holder.let_go('a')
    assert (tmp_path / '.work/leases/a.0').read_text().split() == ['free', host, process, token, count]


def test_one_of_two_observers_takes_over(leases, clock, monkeypatch):
    holder, one, other = leases(), leases(), leases()
    holder.take('a')
    fall_silent(holder, 'a')
    assert not one.take('a')
    assert not other.take('a')
    clock.now = 61
    assert one.take('a')
    monkeypatch.setattr(other, '_look', lambda name: 0)  # it looked before the first one took it
    assert not other.take('a')
    assert one.holds('a')
    assert not holder.holds('a')


def test_a_holder_notices_that_its_lease_is_stolen_even_when_the_thief_is_done(leases, clock):
    holder, thief = leases(), leases()
    holder.take('a')
    fall_silent(holder, 'a')
    thief.take('a')
    clock.now = 61
    assert thief.take('a')
    thief.let_go('a')
    assert not holder.holds('a')
    holder.let_go('a')
    assert leases().take('a')


def test_a_name_that_many_had_is_looked_at_where_it_was_last(tmp_path, leases, monkeypatch):
    one, other = leases(), leases()
    for _ in range(20):
        assert one.take('a')
        one.let_go('a')
    assert one.take('a')
    assert not other.take('a')
    exists, looked = Path.exists, []
    monkeypatch.setattr(Path, 'exists', lambda path: looked.append(path) or exists(path))
    assert not other.take('a')
    assert [path.name for path in looked] == ['a.20', 'a.21']
    shutil.rmtree(tmp_path / '.work')
    assert other.take('a')
    assert (tmp_path / '.work/leases/a.0').exists()


def test_a_holder_notices_that_the_work_folder_is_gone(tmp_path, leases):
    holder = leases()
    holder.take('a')
    (tmp_path / '.work/leases/a.0').unlink()
    assert not holder.holds('a')


def test_a_shard_whose_lease_is_stolen_is_thrown_away(tmp_path, leases, clock, caplog):
    one, other = (open_folder(tmp_path, claims=leases()) for _ in range(2))
    assert one.claim(1)
    fall_silent(one.claims, '000001')
    assert not other.claim(1)
    clock.now = 61
    assert other.claim(1)
    commit(one, 1)
    assert 'Shard 1: another process has taken it over' in caplog.text
    assert one.missing() == [0, 1, 2]
    assert not one.claim(1)
    commit(other, 1)
    assert one.missing() == [0, 2]


def test_a_disk_that_is_full_ends_no_lease_and_lets_none_begin(leases, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    one, tried = leases(interval=0.01), []
    assert one.take('a')
    monkeypatch.setattr(os, 'pwrite', lambda *args: tried.append(args) or full())
    end = time.monotonic() + 10
    while len(tried) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(tried) >= 3
    assert one.holds('a')
    with pytest.raises(OSError, match='No space'):
        one.take('b')
    monkeypatch.undo()


@pytest.mark.parametrize('way', ['lease', 'part'])
@pytest.mark.parametrize('count', range(1, 22, 4))
def test_a_full_disk_is_one_line_and_is_gone_on_from(tmp_path, monkeypatch, way, count):
    """A disk that is full for all of the process, leases included."""
    source, calls, fsync = few_pictures(), itertools.count(1), os.fsync

    def full(file):
        if next(calls) >= count:
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(file)

    def run():
        for index in (0, 1):
            make(source, tmp_path, shard_size=2, claims=claims_of(way, index))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(ValueError, match=r'cannot be written \(No space left on device\): provide the space'):
            run()
    run()
    assert list(verify(tmp_path)) == []
    assert (tmp_path / 'index.json').exists()


# Which of them


def test_locks_work_here_and_the_test_leaves_nothing_behind(tmp_path):
    assert locks_work(tmp_path)
    assert not any((tmp_path / '.work' / 'locks').iterdir())


def test_locks_that_keep_no_second_process_out_do_not_work(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, '_TRY_LOCK', 'pass')
    assert not locks_work(tmp_path)


def test_a_work_folder_that_goes_while_locks_are_tried_says_nothing_against_them(tmp_path, monkeypatch):
    """Another process has finished the set, and taken the folder away."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'mkdir', lambda *args, **kwargs: None)
        assert locks_work(tmp_path)
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, 'run', lambda *args, **more: shutil.rmtree(tmp_path / '.work') or run(*args, **more)
    )
    assert locks_work(tmp_path)


def _refuse(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')


@pytest.mark.parametrize(
    ('kind', 'system', 'works', 'expected'),
    [
        ('auto', 'ext4', True, Locks),
        ('auto', 'ext4', False, Leases),
        ('auto', 'nfs4', True, Leases),
        ('auto', '', True, Leases),
        ('lock', 'nfs4', True, Locks),
        ('lease', 'ext4', True, Leases),
    ],
)
def test_auto_takes_what_works(tmp_path, monkeypatch, kind, system, works, expected):
    monkeypatch.setattr(claims, 'file_system', lambda path: system)
    if not works:
        monkeypatch.setattr('fcntl.flock', _refuse)
    assert type(open_claims(tmp_path, kind)) is expected


def test_locks_are_refused_where_they_do_not_work(tmp_path, monkeypatch):
    monkeypatch.setattr('fcntl.flock', _refuse)
    with pytest.raises(ValueError, match=r'--claim lock: .* does not keep a second process out: give --claim lease'):
        open_claims(tmp_path, 'lock')


def test_the_file_system_is_that_of_the_nearest_mount_and_the_last_one_there(tmp_path, monkeypatch):
    mount = namedtuple('Mount', 'mountpoint fstype')
    mounts = [mount('/', 'ext4'), mount(str(tmp_path / 'a'), 'autofs'), mount(str(tmp_path / 'a'), 'nfs4')]
    monkeypatch.setattr(claims, 'psutil', SimpleNamespace(disk_partitions=lambda all: mounts if all else []))
    (tmp_path / 'a').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    for name, expected in (('a/b/c', 'nfs4'), ('a', 'nfs4'), ('link/b', 'nfs4'), ('ab', 'ext4')):
        assert file_system(tmp_path / name) == expected
    mounts.clear()
    assert file_system(tmp_path) == ''


# Parts


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_parts_have_every_shard_once(count):
    made = [shard for index in range(count) for shard in range(20) if Part(index, count).makes(shard)]
    assert sorted(made) == list(range(20))


def array(number, count, first=0, last=None, step=1):
    """What Slurm sets for a task."""
    last = first + (count - 1) * step if last is None else last
    values = {'ID': number, 'COUNT': count, 'MIN': first, 'MAX': last, 'STEP': step}
    return {f'SLURM_ARRAY_TASK_{name}': str(value) for name, value in values.items()}


def launched(rank, world_size):
    """What torchrun and accelerate set for a process."""
    return {'RANK': str(rank), 'WORLD_SIZE': str(world_size)}


@pytest.mark.parametrize(
    ('text', 'environ', 'expected'),
    [
        ('0/1', {}, (0, 1)),
        ('3/4', array(1, 2), (3, 4)),
        ('auto', array(2, 4), (2, 4)),
        ('auto', array(9, 3, first=5, step=2), (2, 3)),
        ('auto', array(3, 1, first=3), (0, 1)),
        ('auto', launched(1, 2), (1, 2)),
        ('auto', array(2, 4, first=1) | launched(1, 8), (9, 32)),
    ],
)
def test_a_part_is_given_or_taken_from_the_launcher(text, environ, expected):
    part = Part.parse(text, environ)
    assert (part.index, part.count) == expected


@pytest.mark.parametrize(
    ('text', 'environ', 'message'),
    [
        *((text, {}, r'must be I/N with I from 0 to N - 1, got') for text in ('5/4', '4/4', '0/0')),
        *((text, {}, r'must be I/N, such as 0/4') for text in ('a/b', '1', '', '-1/4', '1/4/2', '1.0/2', '9' * 5000)),
        ('auto', {}, r'auto needs SLURM_ARRAY_TASK_ID or RANK, but neither is set: give I/N'),
        ('auto', {'SLURM_ARRAY_TASK_ID': '1'}, r"auto needs a number in SLURM_ARRAY_TASK_COUNT, got 'nothing'"),
        ('auto', array('x', 2), r"auto needs a number in SLURM_ARRAY_TASK_ID, got 'x'"),
        ('auto', array(7, 4), r'array of 4 tasks, 0 to 3 by 1, and task 7 of it, which do not go together'),
        ('auto', array(0, 3, last=5), r'array of 3 tasks, 0 to 5 by 1'),
        ('auto', array(6, 3, first=5, step=2), r'task 6 of it'),
        ('auto', array(0, 1, step=0), r'by 0'),
        ('auto', launched(2, 2), r'auto finds RANK=2 and WORLD_SIZE=2'),
        ('auto', {'RANK': '0'}, r"auto needs a number in WORLD_SIZE, got 'nothing'"),
    ],
)
def test_parts_that_there_are_not_are_refused(text, environ, message):
    with pytest.raises(ValueError, match=message):
        Part.parse(text, environ)


@pytest.mark.parametrize('kind', [Memory, Stream])
def test_shards_by_number_are_made_and_no_others_and_whoever_makes_the_last_one_finishes(tmp_path, kind):
    source = few_pictures(kind)
    expected = make(source, tmp_path / 'one', shard_size=1)
    for numbers, done in (((), set()), ((3, 1), {1, 3}), ((3, 0), {0, 1, 3})):
        assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root, own=numbers: Shards(own)) is None
        assert found_shards(tmp_path / 'set') == done
    assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Shards((2,))) == expected
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'one'))
    assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Shards(())) == expected


@pytest.mark.parametrize('kind', [Memory, Stream])
def test_the_part_that_sees_all_others_done_finishes_the_set(tmp_path, kind):
    source = few_pictures(kind)
    expected = make(source, tmp_path / 'one', shard_size=1)
    for index in (2, 0):
        assert make(source, tmp_path / 'parts', shard_size=1, claims=lambda root, i=index: Part(i, 3)) is None
        assert not (tmp_path / 'parts' / 'index.json').exists()
    assert make(source, tmp_path / 'parts', shard_size=1, claims=lambda root: Part(1, 3)) == expected
    assert_same_tree(tmp_path / 'parts', tree(tmp_path / 'one'))


def test_the_same_without_parts_finishes_the_set_and_a_part_that_has_no_shard_does(tmp_path):
    source = few_pictures()
    expected = make(source, tmp_path / 'one')
    assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Part(0, 2)) is None
    make(source, tmp_path / 'set', shard_size=1)
    assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Part(8, 9))['images'] == expected['images']


def test_a_set_that_is_finished_under_the_hands_of_a_process_is_finished(tmp_path, monkeypatch):
    """The same part started twice: whoever is first takes the other one's work folder away."""
    source, replace = few_pictures(), os.replace
    expected = make(source, tmp_path / 'one', shard_size=1)

    def late(here, there):
        if str(there).endswith('000001.jsonl'):
            monkeypatch.setattr(os, 'replace', replace)
            make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Part(0, 1))
        replace(here, there)

    monkeypatch.setattr(os, 'replace', late)
    assert make(source, tmp_path / 'set', shard_size=1, claims=lambda root: Part(0, 1)) == expected
    assert os.replace is replace
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'one'))


# Workers that are killed


def few_pictures(kind=Memory):
    return Source(kind([picture(index) for index in range(4)], [0, 1, 2, 3]))


def work(root, way, index=0):
    """Make a small set of text; ``way`` says who makes what, and parts 0 and 1 are all of it."""
    folder = open_folder(root, claims=claims_of(way, index)(root))
    while pending := folder.pending():
        with folder.until_whole():
            for shard in pending:
                if folder.claim(shard):
                    commit(folder, shard)
        time.sleep(folder.claims.pause if folder.pending() else 0)
    if not folder.missing():
        with folder.finishing() as first:
            if first:
                for name in ('class_map.txt', 'index.json'):
                    write_file(folder.root / name, b'{}', sync=True, work=folder.work('finish'))
    folder.release()


def claims_of(way, index=0):
    if way == 'lease':
        return lambda root: Leases(root, interval=0.01, missed=2)
    return Locks if way == 'lock' else lambda root: Part(index, 2)


def killed_at(count, target, *args):
    """Run in a process that is gone before its ``count``-th operation on a file; whether there was one."""
    child = FORK.Process(target=_run_until, args=(count, target, args))
    child.start()
    child.join(60)
    assert child.exitcode in (0, 9)
    return child.exitcode == 9


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = ('os.rename', 'os.remove', 'os.link', 'os.mkdir', 'os.rmdir', 'os.chmod', 'os.truncate', 'fcntl.flock')


def _run_until(count, target, args):
    calls = itertools.count(1)

    def operation(*_):
        if next(calls) == count:
            os._exit(9)

    def watch(event, args):
        if event in OPERATIONS or (event == 'open' and isinstance(args[0], str) and args[2] & WRITING):
            operation()

    sys.addaudithook(watch)  # of the interpreter: however the file is written, Path and filelock included
    pwrite = os.pwrite
    os.fsync = operation  # a process that dies takes no bytes of the disk's along
    os.pwrite = lambda *args: operation() or pwrite(*args)
    target(*args)
    os._exit(0)


def assert_whole_so_far(root, expected):
    """What has its final name has its final content."""
    found = {name: data for name, data in tree(root).items() if not name.startswith('.work')}
    assert [name for name, data in found.items() if expected.get(name) != data] == []


@pytest.mark.slow
@pytest.mark.parametrize('step', [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('way', WAYS)
def test_a_worker_killed_at_any_operation_on_a_file_is_gone_on_from(tmp_path, monkeypatch, way, step):
    monkeypatch.setattr(os, 'fsync', lambda file: None)
    for index in (0, 1):
        work(tmp_path / 'undisturbed', way, index)
    expected = tree(tmp_path / 'undisturbed')
    assert {'index.json', 'manifest/000002.jsonl', 'view0/1.png'} < expected.keys()
    for count in itertools.count(1, step):
        root = tmp_path / f'{count}'
        killed = killed_at(count, work, root, way)
        assert_whole_so_far(root, expected)
        for index in (0, 1):
            work(root, way, index)
        assert_same_tree(root, expected)
        if not killed:
            break
    assert count > 40


@pytest.mark.slow
@pytest.mark.parametrize(('way', 'format'), [('lock', 'folder'), ('lease', 'wds'), ('part', 'codes')])
def test_generate_killed_at_any_operation_on_a_file_is_gone_on_from(tmp_path, monkeypatch, way, format):
    monkeypatch.setattr(os, 'fsync', lambda file: None)
    source, how = few_pictures(), {'shard_size': 2, 'top_k': 2, 'format': format}
    make(source, tmp_path / 'undisturbed', **how)
    expected = tree(tmp_path / 'undisturbed')

    def run(root, index=0):
        make(source, root, claims=claims_of(way, index), **how)

    for count in itertools.count(1):
        root = tmp_path / f'{count}'
        killed = killed_at(count, run, root)
        assert_whole_so_far(root, expected)
        run(root, 1)
        run(root, 0)
        assert_same_tree(root, expected)
        if not killed:
            break
    assert count > 40


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_workers_at_one_set_are_killed_and_others_finish_it(tmp_path, way):
    """Several at a time, each killed somewhere: leases are taken over while others make shards."""
    work(tmp_path / 'undisturbed', 'lock')
    expected = tree(tmp_path / 'undisturbed')
    for count in range(8, 60, 4):
        root = tmp_path / f'{count}'
        children = [
            FORK.Process(target=_run_until, args=(count + 7 * number, work, (root, way, number % 2)))
            for number in range(4)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            assert child.exitcode in (0, 9)
        for index in (0, 1):
            work(root, way, index)
        assert_same_tree(root, expected)
