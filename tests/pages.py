"""Commands that stand in pages of docs/."""

import shlex
from pathlib import Path

from timm_dad.cli import main

DOCS = Path(__file__).parents[1] / 'docs'


def run_commands(page):
    """Run the commands of the block ``<!-- command: PAGE -->`` of a page, in the working folder; returns how many."""
    text = (DOCS / f'{page}.md').read_text()
    block = text.partition(f'<!-- command: {page} -->\n```bash\n')[2].partition('```')[0]
    lines = block.replace('\\\n', ' ').strip().splitlines()
    for line in lines:
        main(shlex.split(line)[1:])
    return len(lines)
