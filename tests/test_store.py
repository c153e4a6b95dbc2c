"""Sets made in object stores, in memory and on a real S3 server: the same bytes, whatever fails."""

import errno
import itertools
import multiprocessing
import os
import re
import shlex
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from folders import picture
from stores import Counted, contents, quick_leases, s3_server
from test_claims import few_pictures
from test_generate import Stream, make, open_source, tree, write_images

from timm_dad.cli import main as command
from timm_dad.commands.generate import main as generate
from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.leases import Leases
from timm_dad.dad_sets.manifest import SETTINGS, canonical_json
from timm_dad.dad_sets.parts import Part
from timm_dad.dad_sets.store import Store, is_url
from timm_dad.dad_sets.store_claims import _LeaseObjects, store_claims
from timm_dad.dad_sets.store_errors import StoreError
from timm_dad.dad_sets.store_folder import check_place
from timm_dad.dad_sets.verify import verify
from timm_dad.data.images import Source

FORK = multiprocessing.get_context('fork')


@pytest.fixture(params=['memory', 's3'])
def url(request, memory):
    """A URL where there is nothing yet."""
    return 'memory://bucket' if request.param == 'memory' else request.getfixturevalue('bucket')


# Objects


@pytest.mark.parametrize(
    ('address', 'expected'),
    [('s3://a/b', True), ('memory://a', True), ('gs://a', True), ('a/b', False), ('/a', False), ('C:\\a', False),
     ('S3://a', True), ('C://a', False), ('://a', False), ('', False)],
)  # fmt: skip
def test_urls_are_not_folders(address, expected):
    assert is_url(address) is expected


def test_objects_are_written_read_listed_and_removed(url, tmp_path):
    store = Store(f'{url}/set/')
    assert store.names() == []
    store.write('a', b'1')
    store.write('a', b'12')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'b').write_bytes(b'3')
    (tmp_path / 'folder' / 'c').write_bytes(b'4')
    store.upload(tmp_path, ['folder/b', 'folder/c'])
    assert contents(store.url) == {'a': b'12', 'folder/b': b'3', 'folder/c': b'4'}
    assert store.names() == ['a', 'folder']
    assert store.names('folder') == ['b', 'c']
    assert {name: size for name, (size, _) in store.objects().items()} == {'a': 2, 'folder/b': 1, 'folder/c': 1}
    assert [store.exists(name) for name in ('a', 'folder', 'x')] == [True, False, False]
    store.bring(tmp_path / 'here', ['a', 'folder/b', 'x'])
    assert tree(tmp_path / 'here') == {'a': b'12', 'folder/b': b'3'}
    with pytest.raises(FileNotFoundError):
        store.read('x')
    store.remove(['a', 'x'])
    store.remove_folder('folder')
    store.remove_folder('folder')
    assert contents(store.url) == {}


def test_an_object_is_created_once_and_a_request_that_was_sent_twice_counts_once(url):
    store = Store(f'{url}/set')
    assert store.create('a', b'mine')
    assert not store.create('a', b'yours')
    assert store.create('a', b'mine')
    assert store.read('a') == b'mine'


def test_a_version_changes_with_the_object(url):
    store = Store(url)
    store.write('a', b'1')
    before = store.objects()
    time.sleep(0.01)
    store.write('a', b'2')
    assert before['a'][0] == store.objects()['a'][0]
    assert before['a'] != store.objects()['a']


@pytest.mark.parametrize('name', ['../a', '/a', 'a/../../b'])
def test_names_that_lead_out_of_the_folder_are_refused(memory, name, tmp_path):
    with pytest.raises(StoreError, match=r'^memory://bucket/set names a file outside its folder'):
        Store('memory://bucket/set').bring(tmp_path / 'set', [name])
    with pytest.raises(StoreError, match=r'^memory://bucket/set names a file outside its folder'):
        Store('memory://bucket/set').read(name)


def test_nothing_is_under_way_after_an_error(memory):
    begun, ended = [], []

    def work(item):
        begun.append(item)
        if item == 3:
            raise StoreError('no')
        time.sleep(0.01)
        ended.append(item)

    with pytest.raises(StoreError, match='no'):
        list(Store('memory://set').map(work, range(3000)))
    assert sorted(begun) == sorted([*ended, 3])
    assert len(begun) < 100
    assert list(Store('memory://set').map(abs, range(-2500, 0))) == [*range(2500, 0, -1)]


# Who makes what


@pytest.mark.parametrize('kind', ['auto', 'lease'])
def test_a_store_where_an_object_is_created_once_has_leases(url, kind):
    assert isinstance(store_claims(f'{url}/set', kind), Leases)
    assert contents(url) == {}


def test_one_without_has_the_parts_of_the_launcher_or_one(memory, monkeypatch, caplog):
    for name in ('RANK', 'SLURM_ARRAY_TASK_ID'):
        monkeypatch.delenv(name, raising=False)
    assert store_claims('simple://set') == Part(0, 1)
    assert (
        'simple://set: two processes can create the same object there; if there are several, give each --shards I/N'
        in caplog.text
    )
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert store_claims('simple://set') == Part(1, 3)
    with pytest.raises(ValueError, match=r'--claim lease: simple://set .*: give --shards I/N'):
        store_claims('simple://set', 'lease')
    with pytest.raises(ValueError, match=r'--claim lock: simple://set is in an object store'):
        store_claims('simple://set', 'lock')


def test_fsspecs_own_way_to_create_is_not_trusted(memory, monkeypatch):
    """It looks whether there is an object, and writes it then."""
    from fsspec import AbstractFileSystem

    monkeypatch.setattr(Counted, 'pipe_file', AbstractFileSystem.pipe_file)
    assert not Store('counted://set').has_exclusive_creation()


def test_a_lease_of_a_process_that_is_gone_is_taken_and_its_holder_notices(url):
    holder, other = quick_leases(url), quick_leases(url)
    assert holder.take('a')
    for _ in range(8):
        assert not other.take('a')
        time.sleep(0.05)
    holder._held['a']._ended.set()
    end = time.monotonic() + 30
    while not other.take('a') and time.monotonic() < end:
        time.sleep(0.02)
    assert other.holds('a')
    assert not holder.holds('a')
    for each in (holder, other):
        each.let_go('a')
    assert quick_leases(url).take('a')


def test_a_holder_whose_work_folder_is_gone_writes_nothing_more(url):
    holder = quick_leases(url)
    assert holder.take('a')
    Store(url).remove_folder('.work')
    assert not holder.holds('a')
    holder.let_go('a')
    assert contents(url) == {}


# Sets


@pytest.mark.parametrize('how', [{'format': 'folder', 'num_views': 2}, {'format': 'wds', 'top_k': 2, 'workers': 2},
                                 {'format': 'codes', 'shard_size': 30}])  # fmt: skip
def test_the_objects_are_the_files_of_a_local_set(url, tmp_path, how):
    source = open_source(write_images(tmp_path))
    summary = make(source, tmp_path / 'set', **how)
    assert make(source, f'{url}/set', **how) == summary
    assert contents(f'{url}/set') == tree(tmp_path / 'set')
    assert list(verify(f'{url}/set')) == []
    assert make(source, f'{url}/set/', **how) == summary  # finds nothing to do
    assert contents(url).keys() == {f'set/{name}' for name in tree(tmp_path / 'set')}


def test_so_are_those_of_a_stream_and_another_stream_is_refused(memory, tmp_path):
    source = few_pictures(Stream)
    make(source, tmp_path / 'set', shard_size=1)
    make(source, 'memory://set', shard_size=1)
    assert contents('memory://set') == tree(tmp_path / 'set')
    Store('memory://set').remove(['index.json', 'manifest/000003.jsonl'])
    other = Source(Stream([picture(index + 1) for index in range(4)], [0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r'memory://set (was made from another stream|is a set with other settings)'):
        make(other, 'memory://set', shard_size=1)


def test_nothing_is_left_on_this_machine(memory, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    make(few_pictures(), 'memory://set', shard_size=1)
    assert list(verify('memory://set')) == []
    assert list(tmp_path.iterdir()) == []


def test_parts_make_a_set_where_objects_can_be_created_twice(memory, tmp_path):
    source = few_pictures()
    make(source, tmp_path / 'set', shard_size=1)
    for index in (2, 0):
        assert make(source, 'simple://set', shard_size=1, claims=lambda url, i=index: Part(i, 3)) is None
    assert make(source, 'simple://set', shard_size=1, claims=lambda url: Part(1, 3))['images'] == 4
    assert contents('simple://set') == tree(tmp_path / 'set')


@pytest.mark.parametrize('seed', [0, 1])
def test_a_set_that_is_begun_while_the_url_is_looked_at_is_no_stranger(memory, monkeypatch, seed):
    store, settings, listing = Store('memory://set'), {'format_version': 1, 'views': {'seed': 0}}, Store.names

    def begun_before(self, folder=''):
        monkeypatch.undo()
        store.create(SETTINGS, canonical_json(settings))
        return listing(self, folder)

    monkeypatch.setattr(Store, 'names', begun_before)
    if seed:
        with pytest.raises(ValueError, match=r'other settings \(views.seed: here 1, there 0\)'):
            check_place(store.url, {**settings, 'views': {'seed': 1}})
    else:
        check_place(store.url, settings)


def test_what_is_there_is_not_mixed_with_another_set(memory):
    source = few_pictures()
    Store('memory://strange').write('a.txt', b'1')
    with pytest.raises(ValueError, match=r'memory://strange contains other objects \(a.txt\): choose a URL'):
        make(source, 'memory://strange')
    make(source, 'memory://set')
    with pytest.raises(ValueError, match=r'memory://set is a set with other settings \(views.seed: here 1, there 0\)'):
        make(source, 'memory://set', seed=1)
    Store('memory://set').remove(['dad_set.json'])
    expected = contents('memory://set')
    make(source, 'memory://set')
    assert expected.items() < contents('memory://set').items()


@pytest.mark.slow
def test_damage_is_named_and_made_again(url, tmp_path):
    source, how = few_pictures(), {'shard_size': 1, 'format': 'folder'}
    make(source, f'{url}/set', **how)
    whole, store = contents(f'{url}/set'), Store(f'{url}/set')
    views = sorted(name for name in whole if name.startswith('view0'))
    store.write(views[0], whole[views[0]][:-1])
    store.remove([views[1], 'manifest/000003.jsonl'])
    store.write('index.json', b'{}')
    found = {str(damage) for damage in verify(store.url)}
    assert found == {f'truncated: {views[0]}', f'missing: {views[1]}', 'altered: index.json'}
    make(source, store.url, repair=True, **how)
    assert contents(store.url) == whole


def test_verify_fetches_every_object_once(memory):
    make(few_pictures(), 'counted://set', shard_size=1, format='wds')
    Counted.fail_at(range(0))
    assert list(verify('counted://set')) == []
    fetched = [path for name, path in Counted.requests if name == 'cat_file']
    assert sorted(fetched) == sorted(f'/set/{name}' for name in contents('counted://set'))


def test_verify_takes_no_failure_of_a_store_for_damage(memory):
    make(few_pictures(), 'counted://set', shard_size=2, format='wds')
    for count in itertools.count():
        Counted.fail_at(range(count, count + 1))
        try:
            assert list(verify('counted://set')) == []
        except StoreError as error:
            assert 'QuotaExceeded' in str(error)  # noqa: PT017
        else:
            assert not Counted.failed()
            break
    assert count > 10


def test_there_is_no_set_to_verify(memory):
    with pytest.raises(ValueError, match=r'memory://set contains no DAD set \(no dad_set\.json\)'):
        list(verify('memory://set'))


# Whatever fails


def run(url, claims):
    make(few_pictures(), url, shard_size=2, format='wds', claims=claims)


def what_is_said(function, *args):
    """The line of the error that a function ends with; empty if there is none."""
    try:
        function(*args)
    except ValueError as error:
        return str(error)
    return ''


def slow_leases(url):
    """Leases that are not written to while a test runs, so that requests can be counted."""
    return Leases(_LeaseObjects(Store(url)), interval=60)


def impatient_leases(url):
    return Leases(_LeaseObjects(Store(url)), interval=0.01, missed=2)


@pytest.mark.slow
@pytest.mark.parametrize('step', [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(('lasts', 'effect'), [(1, False), (1, True), (10**9, False)])
def test_a_store_that_fails_at_any_request_is_gone_on_from(memory, step, lasts, effect):
    run('counted://undisturbed', slow_leases)
    expected = contents('counted://undisturbed')
    for count in itertools.count(0, step):
        url = f'counted://{count}'
        Counted.fail_at(range(count, count + lasts), effect=effect)
        said = what_is_said(run, url, slow_leases)
        assert re.match(rf'({url}.* the store refuses \(OSError: \[Errno 5\] QuotaExceeded\): once that|$)', said)
        failed = Counted.failed()
        Counted.fail_at(range(0))
        found = {name: data for name, data in contents(url).items() if not name.startswith('.work')}
        assert [name for name, data in found.items() if expected.get(name) != data] == []
        run(url, impatient_leases)
        assert contents(url) == expected
        if not failed:
            break
    assert count > 40


@pytest.mark.slow
def test_two_processes_at_once_make_the_bytes_of_one(bucket, tmp_path):
    source = open_source(write_images(tmp_path))
    make(source, tmp_path / 'set', shard_size=2)
    how = {'shard_size': 2, 'claims': quick_leases}
    children = [FORK.Process(target=make, args=(source, f'{bucket}/set'), kwargs=how) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert contents(f'{bucket}/set') == tree(tmp_path / 'set')


def killed_at(count, url):
    """Run in a process that is gone before its ``count``-th request; whether there was one."""
    child = FORK.Process(target=_run_until, args=(count, url))
    child.start()
    child.join(60)
    assert child.exitcode in (0, 9)
    return child.exitcode == 9


def _run_until(count, url):
    import s3fs

    calls, call = itertools.count(1), s3fs.S3FileSystem._call_s3

    async def counted(self, method, *args, **kwargs):
        if next(calls) == count:
            os._exit(9)
        return await call(self, method, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = counted
    run(url, quick_leases)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize('step', [50, pytest.param(5, marks=pytest.mark.slow)])
def test_a_worker_killed_at_any_request_to_a_server_is_gone_on_from(bucket, step):
    run(f'{bucket}/undisturbed', quick_leases)
    expected = contents(f'{bucket}/undisturbed')
    for count in itertools.count(1, step):
        url = f'{bucket}/{count}'
        killed = killed_at(count, url)
        found = {name: data for name, data in contents(url).items() if not name.startswith('.work')}
        assert [name for name, data in found.items() if expected.get(name) != data] == []
        run(url, quick_leases)
        assert contents(url) == expected
        if not killed:
            break
    assert count > 50


def test_a_shard_whose_lease_is_stolen_gets_no_manifest_from_its_first_holder(memory, monkeypatch, caplog):
    """The other process takes the shard while this one uploads it."""
    upload, url = Store.upload, 'memory://set'

    def late(store, root, names):
        upload(store, root, names)
        if any(name.startswith('shards') for name in names):
            monkeypatch.setattr(Store, 'upload', upload)
            other = impatient_leases(url)
            other.take('000000')
            time.sleep(0.05)
            assert other.take('000000')
            other.let_go('000000')

    monkeypatch.setattr(Store, 'upload', late)
    run(url, slow_leases)
    assert 'Shard 0: another process has taken it over' in caplog.text
    run('memory://undisturbed', slow_leases)
    assert contents(url) == contents('memory://undisturbed')


# What a store says


class AnsweredError(Exception):
    """An error as botocore has it."""

    def __init__(self, code):
        super().__init__(f'An error occurred ({code})')
        self.response = {'Error': {'Code': code}}


class NoCredentialsError(Exception):
    """As botocore names it."""


class EndpointConnectionError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (AnsweredError('NoSuchBucket'), 'there is no such bucket: check the name, or create it first'),
        (AnsweredError('RequestTimeTooSkewed'), "this machine's clock is off by too much for the store .*: set it"),
        (AnsweredError('AccessDenied'), r'access is denied \(AccessDenied: .*\): check the credentials'),
        (PermissionError('Forbidden'), r'access is denied \(PermissionError: Forbidden\)'),
        (NoCredentialsError('Unable to locate'), r'there are no credentials .*AWS_PROFILE'),
        (EndpointConnectionError('Could not connect'), r'cannot be reached .*: check the network and the address'),
        (ConnectionResetError(104, 'reset'), r'cannot be reached .* start the same command again to continue'),
        (TimeoutError('slow'), 'cannot be reached'),
        (AnsweredError('QuotaExceeded'), r'the store refuses \(QuotaExceeded: .*\): once that is fixed \(space, quota'),
        (OSError(28, 'No\nspace'), r'the store refuses \(OSError: \[Errno 28\] No space\)'),
    ],
)
@pytest.mark.parametrize('call', ['read', 'exists', 'names', 'write', 'create', 'objects', 'remove'])
def test_what_a_store_says_is_one_line_with_what_to_do(memory, error, said, call):
    store = Store('counted://set')
    arguments = {'names': [], 'objects': [], 'remove': [['a']], 'write': ['a', b'1'], 'create': ['a', b'1']}
    Counted.fail_at(range(100), error)
    with pytest.raises(StoreError, match=said) as caught:
        getattr(store, call)(*arguments.get(call, ['a']))
    assert str(caught.value).startswith('counted://set')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('address', 'error', 'message'),
    [
        ('nothing://set', ValueError, 'nothing://set cannot be opened as an object store: Protocol not known: nothing'),
        ('s3://', ValueError, r'a store is s3://BUCKET or s3://BUCKET/NAME, .*, got s3://'),
        ('memory://set*', ValueError, r'without any of \*\?\[\], got memory://set\*'),
        ('file:///tmp/set', ValueError, 'file:///tmp/set is a folder: give it without file://'),
        ('abfs://set', ImportError, 'abfs://set: the package for abfs:// is missing; Install adlfs'),
    ],
)
def test_urls_of_no_store_are_refused(address, error, message):
    with pytest.raises(error, match=message):
        Store(address)


def test_s3_asks_for_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 's3', raising=False)
    with pytest.raises(
        ImportError, match=r's3://a/set: the package for s3:// is missing; run: pip install "timm-dad\[store'
    ):
        Store('s3://a/set')


def test_a_store_whose_files_grow_is_warned_of(memory, caplog, monkeypatch):
    Store('memory://set').warn_of_halves()
    assert caplog.text == ''
    make(few_pictures(), 'counted://set')
    assert 'counted://set: files of counted:// may be left half-written' in caplog.text


def test_a_store_without_the_bucket_says_so_when_it_is_written_to(memory):
    """As Google's, whose error has no code."""
    Counted.fail_at(range(10), FileNotFoundError('b'))
    with pytest.raises(StoreError, match=r'^counted://set/a: there is no such bucket: check the name'):
        Store('counted://set').write('a', b'1')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_here_is_not_the_stores(memory, tmp_path, number):
    store = Store('counted://set')
    store.write('a', b'1')
    Counted.fail_at(range(10), OSError(number, 'full'))
    with pytest.raises(OSError, match='No space left on device') as caught:
        store.download('a', tmp_path / 'a')
    assert caught.value.filename == str(tmp_path / 'a')
    assert list(tmp_path.iterdir()) == []


def test_a_server_says_what_is_wrong(bucket, monkeypatch, s3_address):
    import s3fs

    with pytest.raises(StoreError, match=r's3://no-such/set/dad_set.json: there is no such bucket'):
        Store('s3://no-such/set').exists('dad_set.json')
    with pytest.raises(StoreError, match=r's3://no-such/set/a: there is no such bucket'):
        Store('s3://no-such/set').write('a', b'1')
    monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r'the store cannot be reached \(EndpointConnectionError'):
        Store(f'{bucket}/set').exists('dad_set.json')
    monkeypatch.setenv('AWS_ENDPOINT_URL', s3_address)
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'):
        monkeypatch.setenv(name, os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r'there are no credentials \(NoCredentialsError'):
        Store(f'{bucket}/set').exists('dad_set.json')


@pytest.mark.slow
def test_a_server_that_denies_access_is_one_line(monkeypatch, bucket):
    """``bucket`` sets the environment; the server that knows nobody is another one."""
    import s3fs

    with s3_server() as (address, _), monkeypatch.context() as patch:
        patch.setenv('AWS_ENDPOINT_URL', address)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir('ada')
        plain = {'Content-Type': 'text/plain'}
        urllib.request.urlopen(urllib.request.Request(f'{address}/moto-api/reset-auth', b'0', plain)).close()
        for call in (
            lambda store: store.exists('a'),
            lambda store: store.write('a', b'1'),
            lambda store: store.names(),
        ):
            with pytest.raises(StoreError, match=r's3://ada/set.*: access is denied .*: check the credentials'):
                call(Store('s3://ada/set'))


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_is_one_line(monkeypatch, bucket):
    """``bucket`` sets the environment; the server that goes is another one."""
    import s3fs

    upload = Store.upload
    with s3_server() as (address, process), monkeypatch.context() as patch:
        patch.setenv('AWS_ENDPOINT_URL', address)
        patch.setenv('AWS_MAX_ATTEMPTS', '1')
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir('ada')

        def late(store, root, names):
            process.kill()
            upload(store, root, names)

        patch.setattr(Store, 'upload', late)
        with pytest.raises(StoreError, match=r's3://ada/set/.*: the store cannot be reached .* to continue$'):
            run('s3://ada/set', slow_leases)


# The command


def pictures(tmp_path):
    """Flags of a few pictures, of classes with these names."""
    write_images(tmp_path, [f'{name}/{index}.png' for name in ('cat', 'dog') for index in range(2)])
    return ['--data-dir', str(tmp_path), '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--img-size', '16',
            '--batch-size', '2', '--shard-size', '1']  # fmt: skip


def test_generate_takes_a_url_and_says_so(memory, tmp_path, capsys):
    flags = pictures(tmp_path)
    for output in (str(tmp_path / 'set'), 'memory://set/'):
        generate([*flags, '--output', output])
    local, stored = capsys.readouterr().out.split('memory://set: ')
    assert stored.endswith('contact sheet            memory://set/contact_sheet.png\n')
    assert local.partition(': ')[2].splitlines()[:-1] == stored.splitlines()[:-1]
    assert contents('memory://set') == tree(tmp_path / 'set')


def test_parts_of_the_launcher_say_what_is_left(memory, tmp_path, capsys, monkeypatch):
    flags = [*pictures(tmp_path), '--output', 'simple://set']
    for index, whole in ((1, False), (0, True)):
        monkeypatch.setenv('SLURM_ARRAY_TASK_ID', str(index))
        for name, value in {'COUNT': 2, 'MIN': 0, 'MAX': 1, 'STEP': 1}.items():
            monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', str(value))
        assert (generate(flags) is not None) == whole
    said = capsys.readouterr().out
    assert 'simple://set: part 1/2 is done; 2 of 4 shards exist. The last of the other parts' in said
    assert 'simple://set: 4 DAD views of 4 images' in said


@pytest.mark.slow
@pytest.mark.parametrize('format', ['wds', pytest.param('codes', marks=pytest.mark.slow)])
def test_a_set_in_a_store_is_reinforced_as_a_local_one(memory, tmp_path, monkeypatch, format):
    monkeypatch.setenv('TIMM_DAD_CACHE', str(tmp_path / 'cache'))
    set_folder.cache_clear()
    flags = [*pictures(tmp_path), '--format', format, '--reinforce', '2', '--reinforce-top-k', '2']
    for output in (str(tmp_path / 'set'), 'memory://set'):
        generate([*flags, '--output', output])
    assert contents('memory://set') == tree(tmp_path / 'set')
    assert list(verify('memory://set')) == []
    set_folder.cache_clear()
    assert tree(set_folder('memory://set')) == tree(tmp_path / 'set')
    name = next(name for name in contents('memory://set') if name.startswith('reinforced/logits'))
    Store('memory://set').write(name, b'x')
    assert [str(damage) for damage in verify('memory://set')] == [f'truncated: {name}']
    set_folder.cache_clear()
    generate([*flags, '--output', 'memory://set', '--repair'])
    assert contents('memory://set') == tree(tmp_path / 'set')
    set_folder.cache_clear()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--output', 'nothing://set'], '--output nothing://set cannot be opened as an object store'),
        (['--output', 'counted://set'], '--output counted://set/dad_set.json: there is no such bucket'),
        (
            ['--output', 'memory://set', '--claim', 'lock'],
            '--claim lock: memory://set is in an object store, which has',
        ),
        (['--output', 'simple://set', '--claim', 'lease'], '--claim lease: simple://set is in a store where two'),
        (['--output', 'memory://strange'], 'memory://strange contains other objects (a.txt): choose a URL'),
    ],
)
def test_generate_refuses_what_it_cannot_do_in_one_line(memory, tmp_path, capsys, flags, message):
    Store('memory://strange').write('a.txt', b'1')
    Counted.fail_at(range(10), AnsweredError('NoSuchBucket'))
    if 'simple://set' in flags:
        Counted.fail_at(range(0))
    with pytest.raises(SystemExit) as caught:
        generate([*pictures(tmp_path), *flags])
    assert caught.value.code == 2
    assert f'timm-dad generate: error: {message}' in capsys.readouterr().err.splitlines()[-1]


def test_a_set_is_whole_though_its_work_folder_stays(memory, monkeypatch, caplog):
    def refuse(*_):
        raise StoreError('access is denied')

    with monkeypatch.context() as patch:
        patch.setattr(Store, 'remove_folder', refuse)
        make(few_pictures(), 'memory://set')
    assert 'memory://set/.work could not be removed: access is denied' in caplog.text
    assert list(verify('memory://set')) == []
    make(few_pictures(), 'memory://set')
    make(few_pictures(), 'memory://other')
    assert contents('memory://set') == contents('memory://other')


@pytest.mark.slow
def test_the_commands_of_the_page_run(bucket, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / 'docs/stores.md').read_text()
    block = page.partition('<!-- command: stores -->\n```bash\n')[2].partition('```')[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TIMM_DAD_CACHE', str(tmp_path / 'cache'))
    lines = [line for line in block.replace('\\\n', ' ').splitlines() if line.startswith('timm-dad ')]
    assert len(lines) == 3
    for line in lines:
        command(shlex.split(line.replace('s3://ada', bucket))[1:])
    assert any((tmp_path / 'output/stores').glob('*/summary.csv'))
