"""Checkpoint files: whole ones are read, others are refused in one line that names them."""

import argparse
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from timm_dad.common.torch_files import MoreThanWeightsError, read_checkpoint


@pytest.fixture
def path(tmp_path):
    torch.save({'state_dict': {'weight': torch.arange(500.0)}, 'args': argparse.Namespace(lr=0.1)}, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def flip(path, tensor):
    """Flip one bit of a tensor in a file."""
    raw = bytearray(path.read_bytes())
    raw[raw.find(tensor.numpy().tobytes()) + 43] ^= 0x40
    path.write_bytes(raw)


@pytest.mark.parametrize('mmap', [False, True])
def test_plain_data_and_namespaces_are_read(path, mmap):
    content = read_checkpoint(str(path), mmap=mmap)
    assert content['args'].lr == 0.1
    assert torch.equal(content['state_dict']['weight'], torch.arange(500.0))


@pytest.mark.parametrize('mmap', [False, True])
def test_files_from_before_torch_1_6_are_read(tmp_path, mmap):
    torch.save({'a': torch.ones(3)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / 'old.pth', mmap=mmap)['a'].sum() == 3


def test_files_without_checksums_are_read(path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert zipfile.ZipFile(path).testzip()
    assert read_checkpoint(path)['a'].sum() == 3


@pytest.mark.parametrize('mmap', [False, True])
def test_a_flipped_bit_is_found(path, mmap):
    flip(path, torch.arange(500.0))
    assert not torch.equal(torch.load(path, weights_only=False)['state_dict']['weight'], torch.arange(500.0))
    with pytest.raises(ValueError, match=r'a\.pth is damaged: a/data/0 does not match its checksum'):
        read_checkpoint(path, mmap=mmap)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda raw: raw[:-100], r'a\.pth is truncated or damaged'),
        (lambda raw: raw[:40], r'a\.pth is truncated or damaged'),
        (lambda raw: b'', r'a\.pth is empty'),
        (lambda raw: b'<html>not found</html>', r"a\.pth is not a PyTorch checkpoint: it begins with b'<h'"),
        (lambda raw: b'\x80\x02', r'a\.pth is broken: '),
        (lambda raw: pickle.dumps(3), r'a\.pth is broken: '),
    ],
)
def test_files_that_are_not_whole_are_refused_in_one_line(path, change, match):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=match) as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)


def test_errors_of_the_file_system_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r'there is no checkpoint .*nowhere\.pth$'):
        read_checkpoint(tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match=r'cannot be read: Is a directory$'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('whole', [False, True])
def test_more_than_weights_is_refused_with_a_command_that_keeps_them(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 3)
    torch.save(model if whole else {'state_dict': model.state_dict(), 'metric': np.float64(71.2)}, 'a.pth.tar')
    with pytest.raises(MoreThanWeightsError, match=r'a\.pth\.tar contains more than weights \(') as caught:
        read_checkpoint('a.pth.tar')
    assert '\n' not in str(caught.value)
    code = str(caught.value).partition('python -c "')[2].removesuffix('"')
    exec(code, {})
    assert torch.equal(read_checkpoint('a-weights.pth')['weight'], model.weight)
