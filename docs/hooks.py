"""MkDocs hook: lay out the site like the repository, and add a page with the flags of each command.

Links between pages then work on the site as they do between files in the repository.
"""

import argparse
import html
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from timm_dad.cli import COMMANDS, main
from timm_dad.flags.parser import Parser
from timm_dad.vqgan_training.args import COMMANDS as VQGAN_COMMANDS

ROOT = Path(__file__).parents[1]
PATTERNS = (
    '*.md', 'CITATION.cff', 'LICENSE', 'docs/*.md', 'docs/*.png', 'docs/*.css', 'benchmarks/**/*.md',
    'benchmarks/**/*.png', 'notebooks/*.ipynb', 'patches/*.patch', 'timm_dad/demo/assets/*.md',
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of ``docs/`` with the repository files that pages link to, and the pages of flags."""
    kept = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    paths = [path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
    read = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    made = [File.generated(config, f'docs/flags/{name}.md', content=text) for name, text in flag_pages()]
    return Files([*kept, *read, *made])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the text of links with the title of the page if the text is its file name."""

    def with_title(link: re.Match[str]) -> str:
        file = files.get_file_from_path(f'docs/{link[1]}')
        return f'[{file.page.title}](' if file and file.page else link[0]

    return re.sub(r'\[(?:docs/)?(\w+\.md)\]\(', with_title, markdown)


def flag_pages() -> Iterator[tuple[str, str]]:
    """Yield name and Markdown of the flag page of every command."""
    subcommands = {'vqgan': VQGAN_COMMANDS}
    for command in COMMANDS:
        for words in [[command, sub] for sub in subcommands.get(command, ())] or [[command]]:
            yield '-'.join(words), _page(find_parser(words))


def find_parser(words: list[str]) -> Parser:
    """Return the parser that handles ``timm-dad WORDS --help``."""
    found: list[Parser] = []

    def keep(parser: Parser) -> str:
        found.append(parser)
        return ''

    with mock.patch.object(Parser, 'format_help', keep), suppress(SystemExit):
        main([*words, '--help'])
    return found[0]


def _page(parser: Parser) -> str:
    usage = ' '.join(parser.format_usage().removeprefix('usage: ').split())
    groups = [_group(parser, group) for group in parser._action_groups]
    title, line = f'# {parser.prog}', f'<p><code>{html.escape(usage)}</code></p>'
    return '\n\n'.join(filter(None, (title, _text(parser.description), line, *groups, _text(parser.epilog))))


def _group(parser: Parser, group: argparse._ArgumentGroup) -> str:
    """Format the heading of a group and its flags; an empty group gives nothing."""
    flags = [_flag(parser, action) for action in group._group_actions if action.help != argparse.SUPPRESS]
    if not flags:
        return ''
    title = group.title or ''
    return '\n\n'.join((f'## {title[:1].upper()}{title[1:]}', _text(group.description), *flags))


def _flag(parser: Parser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    name = action.option_strings[-1] if action.option_strings else str(action.dest)
    values = formatter._format_args(action, str(action.metavar or action.dest).upper())
    flags = ', '.join(action.option_strings)
    shown = html.escape(f'{flags} {values}'.strip())
    return (
        f'<dl class="flag" id="{name.lstrip("-")}">\n<dt><code>{shown}</code></dt>\n'
        f'<dd>{_text(formatter._expand_help(action))}</dd>\n</dl>'
    )


def _text(help_text: str | None) -> str:
    """Format a text of argparse as HTML, with flags as code."""
    escaped = html.escape(' '.join((help_text or '').split()), quote=False)
    return re.sub(r'`([^`]+)`|(?<![\w-])(--[a-z][\w-]*)', lambda m: f'<code>{m[1] or m[2]}</code>', escaped)
