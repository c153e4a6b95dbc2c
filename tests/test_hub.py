"""Sets of the hub, from its own cache: links, read-only files, revisions, and errors in one line."""

import os
import subprocess
import sys

import pytest
from dad_sets import write_dad_set, write_greys, write_taught_set
from hub_cache import COMMIT, put_repo, use_cache
from huggingface_hub import errors
from test_generate import make
from timm.data import create_dataset

import train_dad
from timm_dad.commands.generate import main as generate
from timm_dad.commands.verify import main as verify
from timm_dad.common.hub import hub_errors
from timm_dad.dad_sets.hub import cached_repo, set_folder
from timm_dad.dad_sets.read import DADSet
from timm_dad.data.images import Source
from timm_dad.diagnosis.command import parse_args as diagnose_args

NAME = 'ada/dad-greys'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    set_folder.cache_clear()
    return use_cache(monkeypatch, tmp_path / 'hub')


@pytest.fixture
def dataset(tmp_path):
    return create_dataset('', root=str(write_greys(tmp_path / 'data')), split='train')


@pytest.mark.parametrize('format', ['folder', 'wds'])
def test_a_set_of_the_cache_is_whole_and_read_through_its_links(cache, tmp_path, dataset, format, capsys):
    make(Source(dataset), tmp_path / 'set', format=format)
    made = DADSet(tmp_path / 'set')
    snapshot = put_repo(cache, 'datasets', NAME, tmp_path / 'set')
    assert set_folder(f'hf://{NAME}') == snapshot
    found = DADSet(set_folder(f'hf://{NAME}'))
    for index, name in ((0, 'cat/00'), (23, 'tree/05')):
        assert found.image(index, 0, name).tobytes() == made.image(index, 0, name).tobytes()
    verify([f'hf://{NAME}'])
    assert capsys.readouterr().out == f'hf://{NAME} is whole\n'


@pytest.mark.parametrize('address', [f'hf://{NAME}@v1', f'hf://datasets/{NAME}@v1', f'hf://{NAME}@{COMMIT}'])
def test_a_revision_is_a_branch_a_tag_or_a_commit(cache, tmp_path, dataset, address):
    write_dad_set(tmp_path / 'set', dataset)
    snapshot = put_repo(cache, 'datasets', NAME, tmp_path / 'set', revision='v1')
    assert set_folder(address) == snapshot
    with pytest.raises(ValueError, match=r'hf://ada/dad-greys: HF_HUB_OFFLINE is set'):
        set_folder(f'hf://{NAME}')


def test_a_folder_is_itself(tmp_path):
    assert set_folder(str(tmp_path)) == set_folder(tmp_path) == tmp_path
    assert cached_repo(tmp_path) is None


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('hf://', r"is hf://USER/NAME or hf://USER/NAME@REVISION, got 'hf://'"),
        ('hf://greys', 'There is no USER'),
        ('hf://ada/greys/train', "got 'hf://ada/greys/train'"),
        ('hf://ada/gre ys', "got 'hf://ada/gre ys'"),
        ('hf://ada/greys@', 'no revision after @'),
    ],
)
def test_an_address_that_is_none_is_refused(address, message):
    with pytest.raises(ValueError, match=message):
        set_folder(address)


class _Response:
    def __init__(self, status):
        self.status_code, self.headers, self.request = status, {}, None


def _hub_error(kind, status, text):
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.response = _Response(status)
    return error


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (_hub_error(errors.RepositoryNotFoundError, 404, 'gone'), r'^it: there is no such repository.*hf auth login'),
        (_hub_error(errors.GatedRepoError, 403, 'gated'), 'hf auth login'),
        (_hub_error(errors.HfHubHTTPError, 401, 'no'), 'HF_TOKEN'),
        (_hub_error(errors.RevisionNotFoundError, 404, 'gone'), 'no such revision: give a branch, a tag or a commit'),
        (
            _hub_error(errors.HfHubHTTPError, 503, 'down\nfor today'),
            r'cannot do it now \(HfHubHTTPError: down; for today\): start',
        ),
        (_hub_error(errors.HfHubHTTPError, 429, 'too many'), 'cannot do it now'),
        (_hub_error(errors.HfHubHTTPError, 400, 'license is none'), r'refuses it \(HfHubHTTPError: license is none\)$'),
        (errors.LocalEntryNotFoundError('no way'), 'cannot be reached, and the cache does not contain it'),
    ],
)
def test_what_the_hub_says_is_one_line_with_the_fix(error, message):
    with pytest.raises(ValueError, match=message) as caught, hub_errors('it'):
        raise error
    assert '\n' not in str(caught.value)


def test_an_error_of_the_network_is_the_hubs_and_others_are_not():
    kind = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == 'HTTPError')
    with pytest.raises(ValueError, match=r'it: the hub cannot be reached \(HTTPError: no route\)'), hub_errors('it'):
        raise kind('no route')
    with pytest.raises(KeyError), hub_errors('it'):
        raise KeyError('other')


def test_damage_in_the_cache_says_what_to_remove(cache, tmp_path, dataset, capsys):
    make(Source(dataset), tmp_path / 'set')
    snapshot = put_repo(cache, 'datasets', NAME, tmp_path / 'set')
    view = snapshot / 'view0/cat/00.png'
    view.unlink()
    repo = cache / 'datasets--ada--dad-greys'
    with pytest.raises(ValueError, match=f'00.png is damaged .*: remove {repo} to fetch it again'):
        DADSet(snapshot).image(0, 0, 'cat/00')
    with pytest.raises(SystemExit, match=f'1 damaged. To fetch them again: remove {repo}'):
        verify([f'hf://{NAME}'])
    assert 'missing: view0/cat/00.png' in capsys.readouterr().out
    (snapshot / 'index.json').unlink()
    with pytest.raises(ValueError, match='not finished: its upload was interrupted'):
        DADSet(snapshot)


@pytest.mark.slow
def test_training_reads_it_as_a_local_set_and_keeps_the_address(cache, tmp_path, dataset):
    root = write_taught_set(tmp_path / 'taught', dataset)
    put_repo(cache, 'datasets', NAME, root)
    before = {path: os.readlink(path) if path.is_symlink() else '' for path in cache.rglob('*')}
    losses = {}
    for name, address in {'local': str(root), 'fetched': f'hf://{NAME}@main'}.items():
        train_dad.main([
            '--data-dir', str(tmp_path / 'data'), '--val-split', 'train', '--model', 'test_resnet', '--img-size', '32',
            '--num-classes', '4', '--dad', '--dad-dir', address, '--epochs', '1', '-b', '8', '-j', '0',
            '--output', str(tmp_path), '--experiment', name,
        ])  # fmt: skip
        losses[name] = (tmp_path / name / 'summary.csv').read_text()
        assert f'dad_dir: {address}\n' in (tmp_path / name / 'args.yaml').read_text()
    assert losses['fetched'] == losses['local']
    assert {path: os.readlink(path) if path.is_symlink() else '' for path in cache.rglob('*')} == before


def test_diagnose_takes_the_teacher_of_a_set_on_the_hub(cache, tmp_path, dataset):
    put_repo(cache, 'datasets', NAME, write_taught_set(tmp_path / 'taught', dataset))
    args = diagnose_args(['--data-dir', 'x', '--ood', 'a=b', '--dad-dir', f'hf://{NAME}'])
    assert args.dad_teacher == 'demo'


@pytest.mark.parametrize('flags', [[], ['--repair']])
def test_a_set_is_not_made_on_the_hub(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        generate(['--data-dir', 'x', '--dad-vqgan', 'demo', '--output', f'hf://{NAME}', *flags])
    assert f'--output must be a folder to make or --repair a set in, got hf://{NAME}' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_variables_of_the_environment_name_cache_and_mode(tmp_path, dataset):
    make(Source(dataset), tmp_path / 'set')
    put_repo(tmp_path / 'hub', 'datasets', NAME, tmp_path / 'set')
    environment = {**os.environ, 'HF_HUB_CACHE': str(tmp_path / 'hub'), 'HF_HUB_OFFLINE': '1'}
    for name, code in {NAME: 0, 'ada/none': 2}.items():
        command = [sys.executable, '-m', 'timm_dad', 'verify', f'hf://{name}']
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1].startswith('timm-dad verify: error: hf://ada/none: HF_HUB_OFFLINE is set')
