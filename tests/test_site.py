"""The site: all pages are in it, flags and API are those of the code, and what the pages say runs, or parses."""

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import DOCS

import timm_dad
from timm_dad.cli import COMMANDS, main
from timm_dad.flags.parser import Parser
from timm_dad.flags.train import create_parser as create_train_parser

ROOT = DOCS.parent
PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]


@pytest.fixture(scope='module')
def hooks():
    spec = importlib.util.spec_from_file_location('hooks', DOCS / 'hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def flag_pages(hooks):
    return dict(hooks.flag_pages())


def listed(nav):
    """Paths of a nav."""
    if isinstance(nav, str):
        return [nav]
    return [path for entry in (nav.values() if isinstance(nav, dict) else nav) for path in listed(entry)]


def test_every_page_is_listed_once(flag_pages):
    paths = listed(load_config(str(ROOT / 'mkdocs.yml')).nav)
    flags = {f'docs/flags/{name}.md' for name in flag_pages}
    assert {path for path in paths if path.startswith('docs/')} == {f'docs/{page.name}' for page in PAGES[1:]} | flags
    assert len(paths) == len(set(paths))
    assert all((ROOT / path).is_file() for path in set(paths) - flags)


def test_links_that_name_a_file_get_the_title_of_its_page(hooks):
    config = load_config(str(ROOT / 'mkdocs.yml'))
    file = File('docs/speed.md', str(ROOT), config.site_dir, config.use_directory_urls)
    page, text = Page('What costs what', file, config), '[speed.md](speed.md#knobs), [docs/speed.md](a), [x.md](x.md)'
    linked = hooks.on_page_markdown(text, page, config, Files([file]))
    assert linked == '[What costs what](speed.md#knobs), [What costs what](a), [x.md](x.md)'


def help_of(words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main([*words, '--help'])
    return said.getvalue()


def test_every_command_has_a_page_of_flags(flag_pages):
    assert {name.split('-')[0] for name in flag_pages} == set(COMMANDS)
    assert {'vqgan-train', 'vqgan-distill'} <= set(flag_pages)


@pytest.mark.parametrize('words', [[name] for name in COMMANDS if name != 'vqgan'] + [['vqgan', 'train']], ids=' '.join)
def test_a_page_has_the_flags_of_the_help(flag_pages, words):
    flags = set(re.findall(r'^  (?:-\w.*, )?(--[a-z][\w-]*)', help_of(words), re.MULTILINE))
    page = flag_pages['-'.join(words)]
    assert page.startswith(f'# timm-dad {" ".join(words)}\n')
    assert {'--help'} <= flags <= set(re.findall(r'--[a-z][\w-]*', page))


def test_a_flag_has_its_values_and_its_default(flag_pages):
    flag = re.search(r'<dl class="flag" id="dad-eps">.*?</dl>', flag_pages['train'], re.DOTALL)[0]
    assert '<dt><code>--dad-eps ' in flag
    assert re.search(r'radius of the attack, .* \(default: 0\.1', flag)


def test_a_help_text_becomes_html(hooks):
    parser = Parser(prog='timm-dad try')
    parser.add_argument('--left', metavar='<N>', help='of 0 < N & --right, or `all` (50 %%)')
    parser.add_argument('--hidden', help=argparse.SUPPRESS)
    page = hooks._page(parser)
    assert '<dt><code>--left &lt;N&gt;</code></dt>' in page
    assert '<dd>of 0 &lt; N &amp; <code>--right</code>, or <code>all</code> (50 %)</dd>' in page
    assert 'hidden' not in page


def test_the_api_is_all_public_names():
    names = re.findall(r'^::: timm_dad\.(\w+)$', (DOCS / 'api.md').read_text(), re.MULTILINE)
    assert sorted(names) == sorted(timm_dad.__all__)


def commands_of(page):
    """Arguments of timm-dad in the lines of a page's code that call it, by itself or through a launcher."""
    blocks = re.findall(r'```bash\n(.*?)```', page.read_text(), re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    for line in '\n'.join(re.sub(r'(^|\s)#.*', '', line) for line in lines).replace(' && ', '\n').splitlines():
        line = re.sub(r".* --wrap '([^']*)'.*", r'\1', line)
        call = re.search(r'(?:^|\s)(?:timm-dad|-m timm_dad|(?:torchrun|launch) .*train_dad\.py) (.*)', line)
        if call and call[1].strip() and not line.startswith('docker build'):
            words = shlex.split(call[1])
            yield ['train', *words] if 'train_dad.py' in call[0] else words


def parse(hooks, words):
    """Parse a command line, in which ``...`` stands for a value or for what is left out, which may be required."""
    count = 2 if words[0] == 'vqgan' else 1
    parser = hooks.find_parser(words[:count])
    rest = words[count : count + 1] if words[0] == 'run' else words[count:]
    for action in parser._actions:
        action.required = False
    if words[0] == 'demo':
        _, rest = parser.parse_known_args(rest)
        parser = create_train_parser('timm-dad demo')
    takes_value = {flag for flag, action in parser._option_string_actions.items() if action.nargs != 0}
    before = ['', *rest]
    parser.parse_args([
        word for word, last in zip(rest, before, strict=False)
        if not word.startswith('$') and (word != '...' or last in takes_value)
    ])  # fmt: skip


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_parse(hooks, page):
    for words in commands_of(page):
        parse(hooks, words)


def test_a_command_with_a_wrong_flag_does_not_parse(hooks, capsys):
    with pytest.raises(SystemExit):
        parse(hooks, ['train', '--dad-epss', '1', '...'])
    assert 'did you mean --dad-eps?' in capsys.readouterr().err
    assert len(list(commands_of(DOCS / 'start_imagenet.md'))) == 8


def test_the_python_of_the_first_page_runs(capsys):
    names = {}
    for code in re.findall(r'```python\n(.*?)```', (DOCS / 'start_python.md').read_text(), re.DOTALL):
        exec(code, names)
    assert "'dad_loss'" in capsys.readouterr().out
    assert names['views'].x_dad.shape == (4, 3, 32, 32)


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    source = '\n'.join(path.read_text() for path in sorted(Path(timm_dad.__file__).parent.rglob('*.py')))
    source = re.sub(r"""['"]\s*\n\s*f?['"]""", '', source)  # strings of several lines
    messages = re.findall(r'^> `(.*)`$', (DOCS / 'troubleshooting.md').read_text(), re.MULTILINE)
    assert len(messages) >= 15
    for message in messages:
        assert all(part.strip(' ;,:') in source for part in message.split('...')), message


def test_the_commands_for_own_data_are_those_of_readme_and_init():
    """Those of the page of init run in tests/test_init.py."""
    readme, own, init = (list(commands_of(page)) for page in (PAGES[0], DOCS / 'start_own_data.md', DOCS / 'init.md'))
    own = own[: own.index(['evaluate', '--config', 'dad.yaml']) + 1]
    assert len(own) == 6
    assert all(words in readme for words in own)
    assert all(any(words == run[: len(words)] for run in init) for words in own)
