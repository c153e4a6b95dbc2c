"""A report as one HTML file: its Markdown with sortable tables, plots, and pictures with captions."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from timm_dad.common.html import data_url, html_page

_SIDE = 128  # pixels: longer side of stored pictures; smaller ones are enlarged by whole numbers up to it
_QUALITY = 90  # of JPEG
_PLOT_DPI, _CSS_DPI = 150, 96
_STYLE = """
body { max-width: 80rem; margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: break-word; }
section { margin-top: 0; }
h2 { margin: 2.5rem 0 .5rem; }
h3, h4 { margin: 1.2rem 0 .4rem; }
th, td { padding-right: 1.1rem; }
table { font-variant-numeric: tabular-nums; }
thead th { white-space: nowrap; vertical-align: bottom; }
tbody tr:hover > * { background: color-mix(in srgb, Canvas 92%, CanvasText); }
th:first-child { position: sticky; left: 0; background: Canvas; }
.number { text-align: right; white-space: nowrap; }
.flags th { white-space: nowrap; }
.flags td { overflow-wrap: anywhere; min-width: 10rem; }
th button { all: unset; cursor: pointer; }
th button:hover { text-decoration: underline; }
th button:focus-visible { outline: 2px solid Highlight; }
th button::after { content: '\\2195'; padding-left: .3em; opacity: .4; }
th[aria-sort=ascending] button::after { content: '\\2191'; opacity: 1; }
th[aria-sort=descending] button::after { content: '\\2193'; opacity: 1; }
.plot img { max-width: 100%; min-width: 30rem; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; }
.pictures img { max-width: 100%; height: auto; margin-right: .3rem; }
.wide img { max-width: 31%; }
.png { image-rendering: pixelated; }
figcaption div:first-child { font-weight: bold; }
@media screen and (prefers-color-scheme: dark) {
  .plot img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: lighten; }
}
@media print {
  th button::after { content: none; }
  th:first-child { position: static; }
  section { overflow: visible; }
  table { font-size: 11px; }
  .number { white-space: normal; }
  .plot img { min-width: 0; }
  figure, tr { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
}
"""
# Cells without a number come last, in ascending and in descending order.
_SCRIPT = """
const order = new Intl.Collator('en', { numeric: true });
for (const table of document.querySelectorAll('.sortable')) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const text = row => row.cells[column].textContent.trim();
    const number = row => head.className === 'number' ? parseFloat(text(row).replaceAll(',', '')) : NaN;
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      body.append(...[...body.rows].sort((one, two) => {
        const x = number(one), y = number(two);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || sign * order.compare(text(one), text(two));
        return sign * (x - y);
      }));
    });
  });
}
"""


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """Views of one image by name, and caption lines; the first line is the main one."""

    views: Mapping[str, Image.Image]
    lines: Sequence[str]


def picture_name(file: str) -> str:
    """Name a picture for readers, by its file or, if the data has no files, by its number."""
    return f'image {file}' if file.isdecimal() else file


def report_page(title: str, text: str, more: str = '') -> str:
    """Build the page of a report.

    Args:
        title: Its heading.
        text: Markdown, as in the reports of this package; its tables become sortable.
        more: HTML to append: ``plots``, ``pictures``, ``settings``.
    """
    body = ''.join(_block(block) for block in text.strip().split('\n\n'))
    return html_page(title, body + more, _STYLE, _SCRIPT)


def plots(files: Sequence[Path]) -> str:
    """Show PNGs of ``evaluation.report.plot_style`` at their size, under a heading; no files give an empty text."""
    shown = ''.join(_plot(file) for file in files)
    return f'<h2>Plots</h2>\n{shown}' if shown else ''


def _plot(file: Path) -> str:
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        width, height = (round(side * _CSS_DPI / _PLOT_DPI) for side in picture.size)
    alt = escape(f'{file.stem}: a plot of numbers in the tables')
    return (
        f'<section class="plot" tabindex="0"><img src="{data_url(content)}" width="{width}" height="{height}" '
        f'alt="{alt}"></section>\n'
    )


def pictures(shown: Sequence[ShownPicture]) -> str:
    """Show pictures side by side as JPEG, shrunk to at most 128 pixels a side; small ones keep their pixels."""
    if not shown:
        return '<p>None.</p>\n'
    wide = ' wide' if any(len(one.views) > 1 for one in shown) else ''
    return f'<div class="pictures{wide}">\n{"".join(map(_figure, shown))}</div>\n'


def _figure(shown: ShownPicture) -> str:
    views = ''.join(_img(picture, name) for name, picture in shown.views.items())
    lines = ''.join(f'<div>{escape(line)}</div>' for line in shown.lines)
    return f'<figure>{views}<figcaption>{lines}</figcaption></figure>\n'


def _img(picture: Image.Image, name: str) -> str:
    small = picture.convert('RGB')
    small.thumbnail((_SIDE, _SIDE))
    scale = max(1, _SIDE // max(small.size))
    kind, options = ('png', {}) if scale > 1 else ('jpeg', {'quality': _QUALITY, 'subsampling': 0})
    small.save(file := io.BytesIO(), format=kind, **options)
    width, height = (scale * side for side in small.size)
    address = data_url(file.getvalue(), kind)
    alt = escape(name)
    return f'<img class="{kind}" src="{address}" width="{width}" height="{height}" alt="{alt}" title="{alt}">'


def settings(flags: Mapping[str, str]) -> str:
    """List flags and their values under a heading."""
    rows = ''.join(
        f'<tr><th scope="row">{escape(flag)}</th><td>{escape(text)}</td></tr>\n' for flag, text in flags.items()
    )
    table = f'<table class="flags">\n<tbody>\n{rows}</tbody>\n</table>\n'
    return f'<h2>Settings</h2>\n<section tabindex="0">\n{table}</section>\n'


def _block(block: str) -> str:
    """Convert a paragraph, heading, list or table of Markdown."""
    if block.startswith('|'):
        head, rule, *rows = (re.split(r'(?<!\\)\|', line)[1:-1] for line in block.splitlines())
        kinds = [' class="number"' if mark.strip().endswith(':') else '' for mark in rule]
        columns = [f' scope="col"{kind}' for kind in kinds]
        body = ''.join(f'<tr>{_cells(row, kinds)}</tr>\n' for row in rows)
        return (
            '<section tabindex="0">\n<table class="sortable">\n'
            f'<thead><tr>{"".join(_cell("th", *cell) for cell in zip(head, columns, strict=True))}</tr></thead>\n'
            f'<tbody>\n{body}</tbody>\n</table>\n</section>\n'
        )
    heading = re.fullmatch(r'#+ (.*)|\*\*(.*)\*\*', block)
    if heading:
        return f'<h2>{escape(heading[1] or heading[2])}</h2>\n'
    if block.startswith('- '):
        return f'<ul>\n{"".join(f"<li>{_inline(line[2:])}</li>" for line in block.splitlines())}\n</ul>\n'
    return f'<p>{_inline(block)}</p>\n'


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    """Build a table row, with its first cell as row header."""
    cells = ''.join(_cell('td', *cell) for cell in zip(row[1:], kinds[1:], strict=True))
    return _cell('th', row[0], ' scope="row"') + cells


def _cell(tag: str, text: str, attributes: str) -> str:
    return f'<{tag}{attributes}>{_inline(text.strip().replace(chr(92) + "|", "|"))}</{tag}>'


def _inline(text: str) -> str:
    return re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', escape(text))
