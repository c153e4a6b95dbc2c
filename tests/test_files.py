import pytest

from timm_dad.common.files import write_file


@pytest.mark.parametrize('content', ['é\r\n', 'é\r\n'.encode()])
def test_a_file_is_replaced_whole(tmp_path, content):
    (tmp_path / 'a.csv').write_text('old')
    write_file(tmp_path / 'a.csv', content)
    assert (tmp_path / 'a.csv').read_bytes() == 'é\r\n'.encode()
    assert [path.name for path in tmp_path.iterdir()] == ['a.csv']
