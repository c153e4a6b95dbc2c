#!/usr/bin/env python3
"""One table of all that ``on_gpu.sh`` has measured so far: ``table.md`` in its folder, of the files beside it."""

import argparse
from pathlib import Path
from typing import Any

import results
from readme_tables import markdown

from timm_dad.common.files import write_file


def generation_table(found: dict[str, Any]) -> str:
    """Images per second by batch, what that is of ``released.py``'s, and peak memory at the largest batch."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for key, entry in found.items():
        if key.startswith('generation, ') and ', batch ' in key:
            way, _, batch = key.removeprefix('generation, ').rpartition(', batch ')
            rows.setdefault(way, {})[int(batch)] = entry
    batches = sorted({batch for row in rows.values() for batch in row})
    lines = []
    for way, row in sorted(rows.items()):
        rates = [format_rate(row[batch]) if batch in row else '' for batch in batches]
        lines.append([way, *rates, format_peak(row[max(row)])])
    header = ['images per second (x released.py)', *(f'batch {batch}' for batch in batches), 'MiB at the peak']
    return markdown(header, lines)


def format_rate(entry: dict[str, Any]) -> str:
    """Ours, and how many times the released one's."""
    return f'{entry["numbers"]["images_per_second"]:.3g} ({entry["value"]:.3g} x)'


def format_peak(entry: dict[str, Any]) -> str:
    """Ours against the released one's, above weights."""
    numbers = entry['numbers']
    return f'{numbers["peak"] / 2**20:.0f} against {numbers["released_peak"] / 2**20:.0f}' if 'peak' in numbers else ''


def precision_table(found: dict[str, dict[str, float]]) -> str:
    """Ways to compute in rows."""
    header = ['against fp32', *next(iter(found.values()))]
    return markdown(header, [[way, *(f'{value:.4g}' for value in row.values())] for way, row in found.items()])


def page(folder: Path, commit: str) -> str:
    """All that is there."""
    figures, precisions = (results.read(folder / f'{name}.json') for name in ('results', 'precisions'))
    others = {key: entry for key, entry in figures.items() if ', batch ' not in key}
    parts = [f'Commit {commit}.', (folder / 'parts.txt').read_text().strip().replace('\n', '  \n')]
    if any(', batch ' in key for key in figures):
        parts.append(generation_table(figures))
    if precisions:
        parts.append(precision_table(precisions))
    if others:
        parts.append(results.figure_table(others))
    if figures:
        parts.append(results.run_table(figures))
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
