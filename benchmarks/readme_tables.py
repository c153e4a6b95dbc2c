"""Tables in Markdown files, between marks, so that a program can make them again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from timm_dad.common.files import write_file


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, ['---'] * len(header), *rows))


def fill(path: Path, named: Mapping[str, str]) -> None:
    """Put tables between their marks in a file.

    Args:
        path: The file.
        named: Tables by the name in their marks.

    Raises:
        ValueError: If the file has no marks of that name; it is left as it is.
    """
    text = path.read_text()
    for name, table in named.items():
        begin, end = f'<!-- table: {name} -->\n', f'<!-- end: {name} -->'
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise ValueError(f'{path.name} has no place for the table {name}: {begin.strip()} ... {end}')
        text = f'{before}{begin}{table}\n{end}{rest.partition(end)[2]}'
    write_file(path, text)
