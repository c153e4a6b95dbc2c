"""Commands that stand in pages of docs/."""

import re
import shlex
from pathlib import Path

from timm_dad.cli import main

DOCS = Path(__file__).parents[1] / 'docs'


def run_commands(page, **shorter):
    """Run the commands of the block ``<!-- command: PAGE -->`` of a page, in the working folder; returns how many.

    Args:
        page: Name of the page.
        **shorter: Other values for flags that say how long a command takes.
    """
    text = (DOCS / f'{page}.md').read_text()
    block = text.partition(f'<!-- command: {page} -->\n```bash\n')[2].partition('```')[0]
    for name, value in shorter.items():
        block, count = re.subn(f'--{name} \\S+', f'--{name} {value}', block)
        assert count, name
    lines = block.replace('\\\n', ' ').strip().splitlines()
    for line in lines:
        main(shlex.split(line)[1:])
    return len(lines)
