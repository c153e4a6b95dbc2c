"""The HTML page: one file, whole, escaped."""

import base64
import dataclasses
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_preview_sheet import image  # noqa: F401

from timm_dad.preview.page import make_page
from timm_dad.preview.sheet import COLUMNS

NASTY = ['<script>alert(1)</script>', 'a "b" & \'c\'', 'café 猫']
VOID = {'meta', 'img'}


class Page(HTMLParser):
    """Tags with attributes, the text of every table cell by row, and whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.rows, self.text = [], [], [], ''
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if 'td' in self.open or 'th' in self.open:
            self.rows[-1][-1] += data


def test_the_page_is_one_file_that_asks_for_nothing(image):  # noqa: F811
    text = make_page([image, image], NASTY, ['settings'])
    page = Page(text)
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith('on') for name in attributes)
        assert attributes.get('src', 'data:image/png;base64,').startswith('data:image/png;base64,')
        assert 'href' not in attributes
    assert 'http:' not in text
    assert 'https:' not in text
    assert 'url(' not in text
    assert '@import' not in text
    assert 'color-scheme: light dark' in text
    assert [tag for tag, _ in page.tags].count('table') == 2


def test_class_names_are_text(image):  # noqa: F811
    for label, name in enumerate(NASTY):
        text = make_page([dataclasses.replace(image, labels=[label], title='<i>t</i>')], NASTY, ['<b>line</b>'])
        page = Page(text)
        assert f'<i>t</i>, label: {name}' in page.text
        assert '<b>line</b>' in page.text
        assert '<script>' not in text
        assert not {'i', 'script'} & {tag for tag, _ in page.tags}


def test_pictures_come_out_of_the_page_as_they_are(image):  # noqa: F811
    found = [attributes for tag, attributes in Page(make_page([image], NASTY)).tags if tag == 'img']
    shown = [Image.open(io.BytesIO(base64.b64decode(own['src'].partition(',')[2]))) for own in found]
    assert len(shown) == len(COLUMNS)
    for picture, x_pix in ((shown[0], image.x_pix), (shown[1], image.x_vq), (shown[3], image.x_dad)):
        assert (np.asarray(picture) == (x_pix * 255).round().byte().permute(1, 2, 0).numpy()).all()
    assert {(own['width'], own['height']) for own in found} == {('144', '96')}
    assert all(own['alt'] for own in found)


def test_the_table_holds_the_numbers(image):  # noqa: F811
    rows = {row[0]: row[1:] for row in Page(make_page([image], ['cat', 'dog', 'fish'])).rows}
    assert rows["teacher's 1."] == ['cat 70.0 %', 'dog 60.0 %', '', 'fish 90.0 %', '']
    assert rows["teacher's 3."][0] == 'fish 10.0 %'
    assert rows['probability of the label'] == ['70.0 %', '10.0 %', '', '5.0 %', '']
    # A third of the entries is off by 0.5 and 0.75.
    assert rows['PSNR to x'] == ['', '10.8 dB', '', '7.3 dB', '']
    assert rows['L2'][2] == f'{image.distance:.4f}'
    assert rows['shown amplified by'][2] == '25'
    assert rows['codes changed'][4] == '2 of 6 (33.3 %)'
    assert rows['by the attack'][4] == '1 of 6 (16.7 %)'


def test_the_label_is_marked(image):  # noqa: F811
    marked = make_page([image], ['cat', 'dog', 'fish']).count('<span class="label">cat</span>')
    assert marked == 3  # among the three likeliest of three classes on each view


def test_large_pictures_are_shown_smaller(image):  # noqa: F811
    large = {name: torch.rand(3, 640, 480) for name in ('x_pix', 'x_vq', 'x0', 'x_adv', 'x_dad')}
    codes = {name: torch.zeros(40, 30, dtype=torch.long) for name in ('vq_codes', 'dad_codes', 'calm_codes')}
    page = Page(make_page([dataclasses.replace(image, factor=16, **large, **codes)], ['cat', 'dog', 'fish']))
    for own in (attributes for tag, attributes in page.tags if tag == 'img'):
        assert (own['width'], own['height'], own['class']) == ('240', '320', 'shrunk')


@pytest.mark.parametrize('count', [1, 3])
def test_equal_images_give_equal_pages(image, count):  # noqa: F811
    pages = [make_page([image] * count, NASTY, ['line']) for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0] != make_page([image] * count, NASTY, ['other'])
