import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_dad.common.text_files import read_json, read_text, read_yaml


def test_content_is_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / 'x'
    for mark in (b'', b'\xef\xbb\xbf'):
        path.write_bytes(mark + '{"a": [1, "ä"]}'.encode())
        assert read_text(path) == '{"a": [1, "ä"]}'
        assert read_yaml(path) == read_json(path) == {'a': [1, 'ä']}
    path.write_bytes(b'')
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ('content', 'error'),
    [
        (b'epochs: 1\nlr: [3', 'line 2, column 7: not valid YAML: expected'),
        (b'a: b: c', 'line 1, column 5: not valid YAML: mapping values are not allowed here'),
        (b'a: !!python/object/apply:os.getcwd []', 'line 1, column 4: not valid YAML: could not determine'),
        (b'a: 1\nb: \x00', 'line 2, column 4: not valid YAML: special characters'),
        (b'model: x\nlr: \xff\xfe', 'line 2, column 5: not UTF-8; save the file as UTF-8'),
        (b'a: 2020-99-99', 'not valid YAML: month must be in 1..12'),
        (b'a: 1\nb: {c: 1, c: 2}', "line 2, column 11: not valid YAML: 'c' comes twice"),
        (b'[' * 5000, 'not valid YAML: nested too deeply'),
    ],
)
def test_a_bad_yaml_is_one_line_that_says_where(tmp_path, content, error):
    path = tmp_path / 'x.yaml'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'x\.yaml') as raised:
        read_yaml(path)
    assert error in str(raised.value)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('content', 'error'),
    [
        (b'{\n"a": ]', 'line 2, column 6: not valid JSON: Expecting value'),
        (b'"\xe4"', 'line 1, column 2: not UTF-8'),
        (b'[' * 100_000, 'not valid JSON: nested too deeply'),
        (b'9' * 5000, 'not valid JSON: Exceeds the limit'),
    ],
)
def test_a_bad_json_is_one_line_that_says_where(tmp_path, content, error):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'x\.json') as raised:
        read_json(path)
    assert error in str(raised.value)
    assert '\n' not in str(raised.value)


def test_what_is_no_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r'nowhere cannot be read: No such file or directory$'):
        read_text(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=r'is not a file$'):
        read_text(tmp_path)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}:,-&*!|>%@`#?\'"\n\t 09aé', max_size=40).map(str.encode))
def test_whatever_a_file_holds_it_is_read_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('fuzz') / 'x'
    path.write_bytes(content)
    for read in (read_yaml, read_json):
        message = f'{path}'
        with contextlib.suppress(ValueError):
            try:
                read(path)
            except ValueError as error:
                message = str(error)
                raise
        assert message.startswith(str(path))
        assert '\n' not in message


def test_json_is_read_as_python_does(tmp_path):
    (tmp_path / 'x').write_text(json.dumps({'a': [1, 2.5, None, True]}))
    assert read_json(tmp_path / 'x') == {'a': [1, 2.5, None, True]}
