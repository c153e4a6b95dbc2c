"""A preview as one self-contained HTML file: embedded pictures, no script, one table per image."""

from collections.abc import Sequence
from html import escape

from PIL import Image

from timm_dad.common.html import data_url, html_page
from timm_dad.preview.image import PreviewImage
from timm_dad.preview.sheet import (
    COLUMNS,
    amplification,
    counted,
    decibel,
    percent,
    pictures,
    png_bytes,
    shown_size,
)

_VIEWS = ('x', 'Q(x)', 'x_dad')  # columns shown to the teacher
_STYLE = """img { display: block; image-rendering: pixelated; }
img.shrunk { image-rendering: auto; }
.label { font-weight: bold; }
.label::before { content: '\\2713\\00a0'; }
"""
_LEGEND = (
    ('x', 'the image'),
    ('Q(x)', 'its reconstruction by the VQGAN, where the attack starts (with --dad-attack-from input: at x)'),
    (
        'perturbation',
        'what the attack added, around grey, amplified until its largest entry is black or white; for an attack on '
        'latents or codes: x_dad - Q(x)',
    ),
    ('x_dad', 'the DAD view: the perturbed reconstruction after the VQGAN'),
    (
        'codes of x_dad',
        'a fixed colour for every code, pale where Q(x) has the same code; black lines frame what the attack changed',
    ),
    (
        'by the attack',
        'codes of x_dad that differ from those without an attack: from the codes of Q(x) or, for an attack on pixels '
        'that starts at Q(x), of Q(x) encoded again',
    ),
    ('PSNR', 'peak signal-to-noise ratio to x, in dB'),
    ('L2', 'norm of the perturbation over the whole image, in [0, 1] pixel units'),
    ('L2 / ||z||', 'norm of what an attack added to the latents, as a fraction of their own norm'),
    ('codes replaced', 'fraction of the codes that an attack on codes replaced'),
    ('✓', "the label (without labels: the teacher's answer on x) among the teacher's top classes"),
)


def make_page(images: Sequence[PreviewImage], class_names: Sequence[str], lines: Sequence[str] = ()) -> str:
    """Build an HTML document with one paragraph for each of ``lines``; equal images give equal text."""
    paragraphs = ''.join(f'<p>{escape(line)}</p>\n' for line in lines)
    legend = ''.join(f'<li><b>{escape(name)}</b>: {escape(meaning)}</li>\n' for name, meaning in _LEGEND)
    body = (
        f'{paragraphs}<details><summary>What the columns and numbers mean</summary>\n<ul>\n{legend}</ul>\n</details>\n'
        f'{"".join(_section(image, class_names) for image in images)}'
    )
    return html_page('DAD preview', body, _STYLE)


def _section(image: PreviewImage, class_names: Sequence[str]) -> str:
    """Build the table of one image."""
    head = ''.join(f'<th scope="col">{escape(column)}</th>' for column in COLUMNS)
    shown = [_img(picture, column, image) for column, picture in zip(COLUMNS, pictures(image), strict=True)]
    rows = [_row('', shown)]
    for place in range(len(image.top('x'))):
        answers = {view: _answer(*image.top(view)[place], image.labels, class_names) for view in _VIEWS}
        rows.append(_row(f"teacher's {place + 1}.", [answers.get(column, '') for column in COLUMNS]))
    share = [
        ', '.join(percent(image.probs[view][label].item()) for label in image.labels) if view in image.probs else ''
        for view in COLUMNS
    ]
    rows += [
        _row(f'probability of the {image.label_is}', share),
        _row('PSNR to x', ['', decibel(image.psnr_vq), '', decibel(image.psnr_dad), '']),
        _row(image.measure, ['', '', f'{image.distance:.4f}', '', '']),
        _row('shown amplified by', ['', '', f'{amplification(image.perturbation):.3g}', '', '']),
        _row('codes changed', ['', '', '', '', '{} ({})'.format(*counted(image.changed))]),
        _row('by the attack', ['', '', '', '', '{} ({})'.format(*counted(image.changed_by_attack))]),
    ]
    return (
        f'<section>\n<table>\n<caption>{escape(image.named(class_names))}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n'
        f'<tbody>\n{"".join(rows)}</tbody>\n</table>\n</section>\n'
    )


def _row(name: str, cells: Sequence[str]) -> str:
    """Build a table row from cells of HTML."""
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'


def _img(picture: Image.Image, column: str, image: PreviewImage) -> str:
    width, height = shown_size(image)
    kind = ' class="shrunk"' if width < picture.width else ''
    alt = escape(f'{column} of {image.title}' if column in _VIEWS else column)
    return f'<img{kind} src="{data_url(png_bytes(picture))}" width="{width}" height="{height}" alt="{alt}">'


def _answer(label: int, prob: float, right: Sequence[int], class_names: Sequence[str]) -> str:
    kind = ' class="label"' if label in right else ''
    return f'<span{kind}>{escape(class_names[label])}</span> {percent(prob)}'
