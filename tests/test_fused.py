"""The steps that are one on a GPU: here by Triton's interpreter on a CPU, in a process of its own."""

import copy
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from timm_dad.vqgan import fused, movq, networks

INTERPRETED = {'TRITON_INTERPRET': '1'}.items() <= os.environ.items()
interpreted = pytest.mark.skipif(not INTERPRETED, reason='test_by_the_interpreter runs it')


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason='it is this process')
def test_by_the_interpreter():
    pytest.importorskip('triton', reason='triton is not installed (pip install triton)')
    argv = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', 'not by_the_interpreter', __file__]
    done = subprocess.run(argv, env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ' skipped' not in done.stdout


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Kernels for CPU tensors."""
    monkeypatch.setattr(fused, '_fits', lambda channels, x: True)


def feature_maps(shape, mean=0.0):
    torch.manual_seed(0)
    return (torch.randn(shape) + mean).requires_grad_(), torch.randn(shape)


def random_norm(groups, channels):
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def check(found, expected, x, dy, tolerance=1e-5):
    """Compare values, and gradients at ``x``."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-5)
    found, expected = (torch.autograd.grad(y, x, dy)[0] for y in (found, expected))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)


@interpreted
@pytest.mark.parametrize('silu', [True, False])
@pytest.mark.parametrize(
    ('shape', 'groups'),
    [((2, 128, 9, 7), 32), ((3, 32, 70, 50), 32), ((2, 256, 33, 20), 4), ((1, 64, 1, 2), 1), ((2, 512, 5, 5), 32)],
)
def test_norms(on_a_cpu, shape, groups, silu):
    x, dy = feature_maps(shape)
    norm = random_norm(groups, shape[1])
    found = (fused.norm_silu if silu else fused.group_norm)(norm, x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    check(found, F.silu(norm(x)) if silu else norm(x), x, dy)


@interpreted
def test_a_mean_far_from_zero_costs_few_digits(on_a_cpu):
    x, dy = feature_maps((2, 64, 40, 40), mean=100.0)
    norm = random_norm(32, 64)
    expected = F.silu(copy.deepcopy(norm).double()(x.double())).float()
    check(fused.norm_silu(norm, x), expected, x, dy, tolerance=2e-4)


@interpreted
def test_biases_are_part_of_the_next_step(on_a_cpu):
    x, dy = feature_maps((2, 64, 9, 5))
    conv, norm = nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False), random_norm(32, 64)
    nn.init.normal_(conv.bias)
    check(fused.conv_norm_silu(conv, norm, x), F.silu(norm(conv(x))), x, dy)
    other = torch.randn_like(x)
    check(fused.conv_add(conv, x, other), conv(x) + other, x, dy)
    check(fused.conv_add(conv, other, x), conv(other) + x, x, dy)
    with pytest.raises(ValueError, match=r'the same shape, got \(2, 64, 9, 5\) and \(2, 64, 9, 4\)'):
        fused.conv_add(conv, x, other[..., 1:])


@interpreted
def test_autocast_decides_what_is_returned(on_a_cpu):
    x, _ = feature_maps((2, 64, 9, 5))
    norm, conv = random_norm(32, 64), nn.Conv2d(64, 64, 1).requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16):
        found, rounded = fused.norm_silu(norm, x), fused.norm_silu(norm, x.bfloat16())
        added = fused.conv_add(conv, x.bfloat16(), x.bfloat16())
    assert [y.dtype for y in (found, rounded, added)] == [torch.bfloat16] * 3
    torch.testing.assert_close(found, F.silu(norm(x)).bfloat16(), atol=0.01, rtol=0.01)
    torch.testing.assert_close(added.float(), conv(x) + x, atol=0.03, rtol=0.03)


@interpreted
@pytest.mark.parametrize('create', [networks.Decoder, partial(movq.Decoder, 4)], ids=['taming', 'movq'])
def test_whole_networks(on_a_cpu, monkeypatch, create):
    ddconfig = {
        'ch': 32, 'out_ch': 3, 'ch_mult': (1, 2), 'num_res_blocks': 1, 'attn_resolutions': [8], 'resolution': 16,
        'in_channels': 3, 'z_channels': 4, 'double_z': False,
    }  # fmt: skip
    torch.manual_seed(0)
    encoder, decoder = networks.Encoder(**ddconfig).requires_grad_(False), create(**ddconfig).requires_grad_(False)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)

    def autoencode():
        z = encoder(x)
        return decoder(z) if create is networks.Decoder else decoder(z, z)

    found = autoencode()
    monkeypatch.undo()
    check(found, autoencode(), x, torch.randn_like(x), tolerance=5e-4)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize('spread', [1, 4])
def test_attention_by_matrix_products_is_as_exact(dtype, tolerance, spread):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 20, 300)
    q, k, v = (q * spread).to(dtype).requires_grad_(), k.to(dtype), v.to(dtype)
    on_a_gpu = q.as_subclass(type('OnGPU', (torch.Tensor,), {'is_cuda': True}))
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = fused.attention(on_a_gpu, k, v).as_subclass(torch.Tensor)
    assert found.dtype == dtype
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (found - expected).norm() < tolerance * expected.norm()


def test_without_triton_there_is_a_warning(caplog, monkeypatch):
    def missing(*_, **__):
        raise ImportError('No module named triton')

    monkeypatch.setattr(fused, '_normalize', missing)
    norm = random_norm(2, 8)
    monkeypatch.setattr(nn, 'GroupNorm', lambda *_, **__: norm)
    assert not fused.kernels_work.__wrapped__(0)
    assert caplog.messages == [
        "Triton does not work here (No module named triton): PyTorch's own group norm is used, which is slower"
    ]


def test_no_memory_is_not_taken_for_no_triton(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(nn, 'GroupNorm', full)
    with pytest.raises(torch.OutOfMemoryError):
        fused.kernels_work.__wrapped__(0)


@pytest.mark.parametrize(
    ('norm', 'fits'),
    [(nn.GroupNorm(32, 64).requires_grad_(False), True), (nn.GroupNorm(32, 64), False),
     (nn.GroupNorm(3, 6).requires_grad_(False), False), (nn.GroupNorm(2, 64, affine=False), False),
     (nn.BatchNorm2d(64).requires_grad_(False), False)],
)  # fmt: skip
def test_only_frozen_norms_of_powers_of_two_are_fused(monkeypatch, norm, fits):
    monkeypatch.setattr(fused, '_fits', lambda channels, x: not channels & (channels - 1))
    assert fused._fuses(norm, torch.zeros(1)) is fits


def test_nothing_is_fused_on_a_cpu():
    assert not fused._fuses(nn.GroupNorm(32, 64).requires_grad_(False), torch.zeros(1, 64, 2, 2))
