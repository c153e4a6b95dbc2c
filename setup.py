"""The long description: README.md, with relative links that work outside the repository, too."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
RELATIVE_LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)')


def describe(readme: str, project: Mapping[str, Any]) -> str:
    """Make relative links lead to the tag of this version in the repository.

    Args:
        readme: Markdown.
        project: The table ``project`` of pyproject.toml. Where its ``urls`` name no ``Repository``, links become their
            text and pictures are left out: on an index they would lead nowhere.
    """
    repository = project.get('urls', {}).get('Repository', '').rstrip('/')

    def lead(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if not repository:
            return '' if picture else text
        return f'{picture}[{text}]({repository}/{"raw" if picture else "blob"}/v{project["version"]}/{target})'

    return RELATIVE_LINK.sub(lead, readme)


if __name__ == '__main__':
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    table = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['project']
    text = describe((ROOT / 'README.md').read_text('utf-8'), table)
    setup(long_description=text, long_description_content_type='text/markdown')
