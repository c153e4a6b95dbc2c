"""Pages as text: what a report's Markdown becomes, and that nothing in it is obeyed; a browser is in test_pages.py."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from timm_dad.common.html import html_page
from timm_dad.common.html_report import ShownPicture, picture_name, pictures, plots, report_page, settings
from timm_dad.common.markdown import format_table

EVIL = '<script>alert(1)</script>'


class Parsed(HTMLParser):
    """Texts by tag, and attributes of all tags."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.attributes, self.tags = {}, [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.tags[-1], []).append(data)

    def of(self, name):
        return [attributes[name] for attributes in self.attributes if name in attributes]


def noise(*size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))


def test_a_report_is_a_page_and_nothing_in_it_is_obeyed():
    table = format_table([['name', 'top-1'], [f'a|{EVIL}', '1.0'], ['b & c', '2.0']])
    text = f'# Title\n\n**Figures**\n\n{table}\n\n- one {EVIL}\n- two\n\nThe term is **{EVIL}**: <b>.\n'
    page = report_page(f'of {EVIL}', text)
    parsed = Parsed(page)
    assert EVIL not in page
    assert parsed.tags.count('script') == 1  # that which sorts
    assert parsed.texts['td'] == ['1.0', '2.0']
    assert parsed.texts['th'] == ['name', 'top-1', f'a|{EVIL}', 'b & c']
    assert parsed.texts['h2'] == ['Title', 'Figures']
    assert parsed.texts['li'] == [f'one {EVIL}', 'two']
    assert parsed.texts['h1'] == parsed.texts['title'] == [f'of {EVIL}']


def test_columns_know_whether_they_are_numbers_and_rows_their_names():
    parsed = Parsed(report_page('x', format_table([['name', 'kind', 'top-1'], ['a', 'b', '1.0']], 2)))
    assert parsed.of('scope') == ['col', 'col', 'col', 'row']
    cells = [(tag, of.get('class')) for tag, of in zip(parsed.tags, parsed.attributes, strict=True) if tag[0] == 't']
    assert [kind for tag, kind in cells if tag in ('th', 'td')] == [None, None, 'number', None, None, 'number']


@pytest.mark.parametrize('script', ['', 'let a = "<";'])
def test_a_page_may_load_nothing_and_run_its_script_alone(script):
    page = html_page('x', '', script=script)
    (policy,) = Parsed(page).of('content')[:1]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    found = re.findall('<script>(.*?)</script>', page, re.DOTALL)
    assert found == ([script] if script else [])
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (f"script-src 'sha256-{sha}'" in policy) == bool(script)


@pytest.mark.parametrize(
    ('size', 'kind', 'shown'),
    [((32, 32), 'png', (128, 128)), ((20, 64), 'png', (40, 128)), ((100, 50), 'jpeg', (100, 50)),
     ((1024, 768), 'jpeg', (128, 96)), ((3000, 2), 'jpeg', (128, 1))],
)  # fmt: skip
def test_pictures_are_small_files(size, kind, shown):
    parsed = Parsed(pictures([ShownPicture(views={'x': noise(*size)}, lines=())]))
    assert tuple(int(*parsed.of(name)) for name in ('width', 'height')) == shown
    (address,) = parsed.of('src')
    assert address.startswith(f'data:image/{kind};base64,')
    assert len(address) < 45_000  # the bound of docs/evaluate.md, reached by noise
    with Image.open(io.BytesIO(base64.b64decode(address.partition(',')[2]))) as picture:
        assert max(picture.size) <= 128
        if kind == 'png':
            assert np.array_equal(np.asarray(picture), np.asarray(noise(*size)))


def test_names_of_pictures_plots_and_flags_are_text(tmp_path):
    evil = '"><script>'
    views = {f'x{evil}': noise(8, 8), 'Q(x)': noise(8, 8)}
    (tmp_path / 'a"b.png').write_bytes(_png(noise(1500, 750)))
    body = pictures([ShownPicture(views=views, lines=(evil, 'a & b'))]) + plots([tmp_path / 'a"b.png'])
    parsed = Parsed(body + settings({'--suite': f'a={evil}'}))
    assert 'script' not in parsed.tags
    assert parsed.of('alt') == [f'x{evil}', 'Q(x)', 'a"b: a plot of numbers in the tables']
    assert parsed.of('width')[-1] == '960'  # of 150 dots an inch
    assert parsed.texts['div'] == [evil, 'a & b']
    assert parsed.texts['td'] == [f'a={evil}']
    assert 'Plots' not in plots([])


def _png(picture):
    picture.save(file := io.BytesIO(), 'png')
    return file.getvalue()


def test_pictures_without_a_file_have_a_number():
    assert picture_name('12') == 'image 12'
    assert picture_name('cat/12.png') == 'cat/12.png'
