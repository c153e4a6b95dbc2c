"""Sets and data of object stores, fetched into a cache: once, whole, and compared with their hashes."""

import json
import logging
import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from dad_sets import CLASSES, write_greys, write_taught_set
from filelock import FileLock
from stores import Counted, contents
from test_claims import few_pictures
from test_generate import make, tree
from timm.data import create_dataset

import train_dad
from timm_dad.commands.verify import main as verify
from timm_dad.common.cache import cache_dir
from timm_dad.dad_sets import store_cache
from timm_dad.dad_sets.hub import cached_repo, set_folder
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.store import Store
from timm_dad.dad_sets.store_cache import data_folder, fetch_data, fetch_set
from timm_dad.dad_sets.store_errors import StoreError
from timm_dad.flags.data import create_dataset as dataset_of_flags
from timm_dad.flags.train import parse_args

FORK = multiprocessing.get_context('fork')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, memory):
    """The cache of one test."""
    monkeypatch.setenv('TIMM_DAD_CACHE', str(tmp_path / 'cache'))
    set_folder.cache_clear()
    data_folder.cache_clear()
    yield tmp_path / 'cache'
    set_folder.cache_clear()
    data_folder.cache_clear()


def put(folder, url):
    """Put the files of a folder into a store."""
    store = Store(url)
    store.upload(folder, sorted(tree(folder)))
    return url


def fetched():
    """How often each object was read since the last look."""
    counts = Counter(path for name, path in Counted.requests if name == 'cat_file')
    Counted.fail_at(range(0))
    return counts


def make_set(url='counted://bucket/set', **how):
    make(few_pictures(), url, **{'shard_size': 2, 'top_k': 2, **how})
    Counted.fail_at(range(0))
    return url


# Sets


@pytest.mark.parametrize('format', ['folder', 'wds', 'codes'])
def test_a_set_is_fetched_once_and_is_the_one_in_the_store(cache, format):
    url = make_set(format=format)
    root = fetch_set(url)
    counts = fetched()
    assert tree(root) == contents(url)
    assert set(counts.values()) == {1}
    assert root.parent == cache / 'sets'
    fetched()
    assert fetch_set(f'{url}/') == root
    assert fetched().keys() == {'/bucket/set/dad_set.json', '/bucket/set/index.json'}
    assert DADSet(set_folder(url)).num_images == 4
    assert cached_repo(root) == cached_repo(root / 'reinforced') == root


def test_a_set_that_changed_is_fetched_anew_and_the_old_one_stays(cache):
    url = make_set()
    old = fetch_set(url)
    before = tree(old)
    Store(url).remove_folder('')
    make_set(seed=1)
    assert fetch_set(url) != old
    assert tree(fetch_set(url)) == contents(url) != before
    assert tree(old) == before


def test_its_size_is_told_before_it_is_fetched(caplog):
    url = make_set()
    caplog.set_level(logging.INFO, 'timm_dad')
    root = fetch_set(url)
    told = [record.getMessage() for record in caplog.records if 'fetching' in record.getMessage()]
    files = {name: data for name, data in tree(root).items() if not name.startswith('manifest')}
    del files['index.json'], files['dad_set.json']
    size = sum(map(len, files.values())) / 1e6
    assert told == [f'{url}: fetching {len(files)} files of {size:.1f} MB into {root.parent}']


def test_there_must_be_room_for_it(monkeypatch, cache):
    url = make_set()
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 10, 1))
    with pytest.raises(ValueError, match=rf'{url} needs 0.0 MB, but {cache}/sets has 0.0 MB free: .* TIMM_DAD_CACHE'):
        fetch_set(url)


@pytest.mark.parametrize('missing', ['index.json', 'dad_set.json'])
def test_a_set_that_is_not_finished_or_not_there_is_refused(missing):
    url = make_set()
    Store(url).remove([missing])
    with pytest.raises(
        ValueError, match='is not finished: start the same' if missing == 'index.json' else 'no DAD set'
    ):
        fetch_set(url)


def test_a_fetch_that_fails_at_any_request_goes_on_with_what_is_missing(cache):
    url = make_set(format='folder')
    number = len(contents(url))
    for count in range(0, 100):
        shutil.rmtree(cache, ignore_errors=True)
        Counted.fail_at(range(count, 10**9), ConnectionResetError('reset'))
        try:
            fetch_set(url)
        except StoreError as error:
            assert 'cannot be reached' in str(error)  # noqa: PT017
        failed, there = Counted.failed(), len(list(cache.glob('sets/.*.part/**/*.*')))
        assert not any(cache.glob('sets/.*.part/**/.*'))
        assert bool(failed) != any(cache.glob('sets/set-*'))
        fetched()
        root = fetch_set(url)
        assert sum(fetched().values()) <= number - max(0, there - 2) + 2 * (
            not failed
        )  # settings and index are asked for
        assert tree(root) == contents(url)
        if not failed:
            break
    assert count > 10


def test_half_a_file_of_a_fetch_that_was_killed_is_fetched_again(cache):
    url = make_set(format='wds')
    root = fetch_set(url)
    part = root.with_name(f'.{root.name}.part')
    root.rename(part)
    shard = part / 'shards' / '000000.tar'
    shard.write_bytes(shard.read_bytes()[:-1] + b'x')
    fetched()
    assert fetch_set(url) == root
    assert '/bucket/set/shards/000000.tar' in fetched()
    assert tree(root) == contents(url)


@pytest.mark.parametrize('name', ['shards/000001.tar', 'manifest/000001.jsonl', 'contact_sheet.png'])
@pytest.mark.parametrize('gone', [False, True])
def test_damage_in_the_store_is_named_with_what_makes_it_again(cache, name, gone):
    url = make_set(format='wds')
    store = Store(url)
    if gone:
        store.remove([name])
    else:
        store.write(name, store.read(name)[:-1] + b'x')
    how = 'is missing' if gone else 'has changed'
    with pytest.raises(ValueError, match=f'{url}/{name} {how}: timm-dad verify {url} lists all damage'):
        fetch_set(url)
    assert not any(cache.glob('sets/set-*'))


def test_an_index_that_was_altered_is_named():
    url = make_set()
    index = json.loads(Store(url).read('index.json'))
    index['shards'][0]['path'] = '../../x'
    Store(url).write('index.json', json.dumps(index).encode())
    with pytest.raises(ValueError, match=f'{url}/index.json was altered'):
        fetch_set(url)


@pytest.mark.slow
def test_one_process_of_a_machine_fetches_and_the_others_wait(bucket):
    make(few_pictures(), f'{bucket}/set', shard_size=1)
    ours, theirs = FORK.Pipe()

    def fetch():
        calls, download = [], Store.download
        Store.download = lambda store, name, path: calls.append(name) or download(store, name, path)
        theirs.send((fetch_set(f'{bucket}/set'), len(calls)))

    children = [FORK.Process(target=fetch) for _ in range(2)]
    for child in children:
        child.start()
    assert all(ours.poll(60) for _ in children[:1])
    (root, one), (other_root, other) = ours.recv(), ours.recv()
    for child in children:
        child.join(30)
    assert root == other_root
    assert sorted((one, other)) == [0, len(contents(f'{bucket}/set')) - 2]
    assert tree(root) == contents(f'{bucket}/set')


def test_a_cache_without_locks_is_refused(monkeypatch, cache):
    url = make_set()

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, 'acquire', refuse)
    with pytest.raises(ValueError, match=rf'{cache}/sets is on a file system without locks .* set TIMM_DAD_CACHE'):
        fetch_set(url)


def test_damage_in_the_cache_says_what_to_remove():
    root = set_folder(make_set(format='folder'))
    view = next(root.glob('view0/*/*.png'))
    view.write_bytes(b'x')
    with pytest.raises(ValueError, match=f'remove {root} to fetch it again'):
        DADSet(root).image(0, 0, str(view.relative_to(root / 'view0').with_suffix('')))


def test_verify_says_that_a_set_is_whole_damaged_unfinished_or_none(capsys, cache):
    url = make_set(format='folder')
    verify([url])
    assert capsys.readouterr().out == f'{url} is whole\n'
    Store(url).remove(['index.json'])
    with pytest.raises(SystemExit, match=f'{url} is not finished, but what exists is intact'):
        verify([url])
    view = next(name for name in contents(url) if name.startswith('view0'))
    Store(url).write(view, b'x')
    with pytest.raises(
        SystemExit, match=r'1 damaged\. To make them again: run the same timm-dad generate with --repair'
    ):
        verify([url])
    assert capsys.readouterr().out == f'truncated: {view}\n'
    with pytest.raises(SystemExit) as caught:
        verify(['memory://none'])
    assert caught.value.code == 2
    assert 'memory://none contains no DAD set' in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.slow
def test_training_reads_it_as_a_local_set_and_keeps_the_address(tmp_path, bucket):
    write_greys(tmp_path / 'data')
    dataset = create_dataset('', root=str(tmp_path / 'data'), split='train')
    local = write_taught_set(tmp_path / 'taught', dataset)
    url = put(local, f'{bucket}/set')
    data = put(tmp_path / 'data', f'{bucket}/data')
    losses = {}
    for name, (images, views) in {'local': (tmp_path / 'data', local), 'fetched': (data, url)}.items():
        train_dad.main([
            '--data-dir', str(images), '--val-split', 'train', '--model', 'test_resnet', '--img-size', '32',
            '--num-classes', '4', '--dad', '--dad-dir', str(views), '--epochs', '1', '-b', '8', '-j', '0',
            '--output', str(tmp_path), '--experiment', name,
        ])  # fmt: skip
        losses[name] = (tmp_path / name / 'summary.csv').read_text()
    assert f'dad_dir: {url}\n' in (tmp_path / 'fetched' / 'args.yaml').read_text()
    assert f'data_dir: {data}\n' in (tmp_path / 'fetched' / 'args.yaml').read_text()
    assert losses['fetched'] == losses['local']


# Data


def test_data_is_fetched_once_and_anew_when_it_changed(tmp_path, cache):
    write_greys(tmp_path / 'data')
    url = put(tmp_path / 'data', 'counted://bucket/data')
    fetched()
    root = fetch_data(url)
    assert tree(root) == tree(tmp_path / 'data')
    assert root.parent == cache / 'data'
    assert set(fetched().values()) == {1}
    assert fetch_data(url) == root
    assert not fetched()
    Store(url).write('train/cat/00.png', b'1')
    assert fetch_data(url) != root
    assert (fetch_data(url) / 'train/cat/00.png').read_bytes() == b'1'


def test_folders_that_a_tool_made_objects_of_are_none(tmp_path):
    store = Store('memory://data')
    store.write('train/a.png', b'1')
    store._fs.store['/data/train/'] = store._fs.store['/data/train/a.png']
    assert store.objects().keys() == {'train/a.png'}


def test_data_that_is_not_there_or_half_there_is_refused():
    args = parse_args(['--data-dir', 'memory://none', '--model', 'test_resnet'])
    with pytest.raises(ValueError, match=r'^--data-dir memory://none is empty: check the name'):
        dataset_of_flags(args, 'train', split_flag='--train-split')
    store = Store('counted://data')
    store.write('a.png', b'12')
    wanted = store_cache._Wanted('a.png', 3)
    with pytest.raises(ValueError, match=r'counted://data/a.png has changed: another process writes there'):
        store_cache._fetch(store, Path(os.environ['TIMM_DAD_CACHE']), [wanted])


def test_a_split_is_looked_for_in_what_was_fetched(tmp_path):
    write_greys(tmp_path / 'data')
    url = put(tmp_path / 'data', 'memory://data')
    args = parse_args(['--data-dir', url, '--model', 'test_resnet'])
    dataset = dataset_of_flags(args, 'train', split_flag='--train-split')
    assert list(dataset.reader.class_to_idx) == list(CLASSES)
    with pytest.raises(ValueError, match=r"--val-split must be a folder in .*, got 'test'"):
        dataset_of_flags(args, 'test', split_flag='--val-split')


def test_the_cache_is_torch_hubs_or_that_of_the_variable(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / 'cache'
    monkeypatch.delenv('TIMM_DAD_CACHE')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert cache_dir() == tmp_path / 'hub' / 'timm_dad'
