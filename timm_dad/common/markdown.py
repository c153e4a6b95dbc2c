"""Markdown that also reads well as plain text."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Format a table with padded columns.

    Args:
        rows: Cells, header first.
        text_columns: Number of text columns from the left; the others are numbers, aligned right.
    """
    rows = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    number_columns = len(widths) - text_columns
    rule = ['---'] * text_columns + ['--:'] * number_columns
    pads = [str.ljust] * text_columns + [str.rjust] * number_columns
    rules = [pad(mark, width, '-') for pad, mark, width in zip(pads, rule, widths, strict=True)]
    lines = [[pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)] for row in rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (lines[0], rules, *lines[1:]))
