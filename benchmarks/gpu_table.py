#!/usr/bin/env python3
"""One table of all that ``on_gpu.sh`` has measured so far: ``table.md`` in its folder, of the files beside it."""

import argparse
from pathlib import Path

import results
from readme_tables import markdown

from timm_dad.common.files import write_file


def precision_table(found: dict[str, dict[str, float]]) -> str:
    """Ways to compute in rows."""
    header = ['against fp32', *next(iter(found.values()))]
    return markdown(header, [[way, *(f'{value:.4g}' for value in row.values())] for way, row in found.items()])


def page(folder: Path, commit: str) -> str:
    """All that is there."""
    figures, precisions = (results.read(folder / f'{name}.json') for name in ('results', 'precisions'))
    parts = [f'Commit {commit}.', (folder / 'parts.txt').read_text().strip().replace('\n', '  \n')]
    if any(', batch ' in key for key in figures):
        parts.append(results.generation_table(figures))
    if precisions:
        parts.append(precision_table(precisions))
    if figures:
        parts += [results.figure_table(figures), results.run_table(figures)]
    return '\n\n'.join(parts) + '\n'


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='of on_gpu.sh')
    parser.add_argument('--commit', default='unknown', help='what was measured')
    args = parser.parse_args()
    write_file(args.folder / 'table.md', page(args.folder, args.commit))


if __name__ == '__main__':
    main()
