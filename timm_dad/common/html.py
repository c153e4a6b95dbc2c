"""HTML in one file: embedded pictures, nothing loaded from elsewhere, no scripts."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5rem; background: Canvas; color: CanvasText; }
section { overflow-x: auto; margin-top: 2rem; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: bold; padding-bottom: .3rem; }
th, td { padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
thead th { border-bottom: 1px solid GrayText; }
"""


def html_page(title: str, body: str, style: str = '') -> str:
    """Return an HTML document with ``body`` and ``style`` inserted unchanged."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f'<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n'
    )


def report_page(title: str, text: str, pictures: Sequence[Path] = ()) -> str:
    """Convert a report to HTML: the Markdown subset that this package's reports use, with PNGs below it."""
    shown = ''.join(f'<p><img src="{png_url(path.read_bytes())}" alt="{escape(path.name)}"></p>\n' for path in pictures)
    body = ''.join(_block(block) for block in text.strip().split('\n\n'))
    return html_page(title, body + shown, 'img { max-width: 100%; }\n')


def png_url(content: bytes) -> str:
    """Return a PNG as the address of a picture."""
    return f'data:image/png;base64,{base64.b64encode(content).decode()}'


def _block(block: str) -> str:
    """Convert a paragraph, heading, list or table of Markdown."""
    if block.startswith('|'):
        head, _, *rows = (re.split(r'(?<!\\)\|', line)[1:-1] for line in block.splitlines())
        body = ''.join(f'<tr>{_cells(row, "td")}</tr>\n' for row in rows)
        head_row = f'<thead><tr>{_cells(head, "th")}</tr></thead>'
        return f'<section>\n<table>\n{head_row}\n<tbody>\n{body}</tbody>\n</table>\n</section>\n'
    heading = re.fullmatch(r'#+ (.*)|\*\*(.*)\*\*', block)
    if heading:
        return f'<h2>{escape(heading[1] or heading[2])}</h2>\n'
    if block.startswith('- '):
        return f'<ul>\n{"".join(f"<li>{_inline(line[2:])}</li>" for line in block.splitlines())}\n</ul>\n'
    return f'<p>{_inline(block)}</p>\n'


def _cells(cells: Sequence[str], tag: str) -> str:
    return ''.join(f'<{tag}>{_inline(cell.strip().replace(chr(92) + "|", "|"))}</{tag}>' for cell in cells)


def _inline(text: str) -> str:
    return re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', escape(text))
