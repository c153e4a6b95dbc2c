from html.parser import HTMLParser

from timm_dad.common.html import report_page
from timm_dad.common.markdown import format_table


class Parsed(HTMLParser):
    """Texts by tag, and addresses."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.addresses, self.tags = {}, [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href')]

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.tags[-1], []).append(data)


def test_a_report_is_a_page_and_nothing_in_it_is_obeyed(tmp_path):
    (tmp_path / 'a"b.png').write_bytes(b'picture')
    evil = '<script>alert(1)</script>'
    table = format_table([['name', 'top-1'], [f'a|{evil}', '1.0'], ['b & c', '2.0']])
    text = f'# Title\n\n**Figures**\n\n{table}\n\n- one {evil}\n- two\n\nThe term is **{evil}**: <b>.\n'
    page = report_page(f'of {evil}', text, [tmp_path / 'a"b.png'])
    parsed = Parsed(page)
    assert evil not in page
    assert 'script' not in parsed.tags
    assert parsed.texts['td'] == [f'a|{evil}', '1.0', 'b & c', '2.0']
    assert parsed.texts['th'] == ['name', 'top-1']
    assert parsed.texts['h2'] == ['Title', 'Figures']
    assert parsed.texts['li'] == [f'one {evil}', 'two']
    assert parsed.texts['h1'] == parsed.texts['title'] == [f'of {evil}']
    assert parsed.addresses == ['data:image/png;base64,cGljdHVyZQ==']
    assert 'alt="a&quot;b.png"' in page
