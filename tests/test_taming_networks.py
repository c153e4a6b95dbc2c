"""taming_networks.py: the same function of the same weights as taming's own modules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from taming.modules.diffusionmodules import model as taming
from torch import nn

from timm_dad.common.macs import count_macs
from timm_dad.vqgan.networks import Decoder, Encoder, attention_block, residual_block, upsample

DDCONFIG = {
    'ch': 32, 'out_ch': 3, 'ch_mult': (1, 2, 2), 'num_res_blocks': 2, 'attn_resolutions': [8], 'in_channels': 3,
    'resolution': 32, 'z_channels': 4, 'dropout': 0.0,
}  # fmt: skip


def lively(module):
    """Weights of their usual sizes and group norms that do something; a new one scales by 1 and shifts by 0."""
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module.double()


@pytest.mark.slow
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(32, 32), (24, 40)])
def test_networks_compute_what_tamings_own_do(memory_format, size):
    torch.manual_seed(0)
    encoder = lively(Encoder(double_z=False, **DDCONFIG)).to(memory_format=memory_format)
    decoder = lively(Decoder(**DDCONFIG)).to(memory_format=memory_format)
    x = torch.rand(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    z = torch.randn(2, 4, size[0] // 4, size[1] // 4, dtype=torch.float64)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(encoder(x), taming.Encoder.forward(encoder, x))
            torch.testing.assert_close(decoder(z), taming.Decoder.forward(decoder, z))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.sampled_from([32, 64]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_upsampling_is_one_convolution(batch, channels, height, width, seed):
    torch.manual_seed(seed)
    block = taming.Upsample(channels, with_conv=True).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(upsample(block, x), block(x))


def test_upsampling_without_a_convolution_is_tamings():
    x = torch.randn(1, 32, 3, 4)
    block = taming.Upsample(32, with_conv=False)
    torch.testing.assert_close(upsample(block, x), block(x))


def test_upsampling_takes_4_multiplications_where_taming_takes_9():
    block, x = taming.Upsample(32, with_conv=True), torch.randn(1, 32, 8, 8)
    assert count_macs(lambda: block(x)) == 9 * 32 * 32 * 16 * 16
    assert count_macs(lambda: upsample(block, x)) == 4 * 32 * 32 * 16 * 16


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([32, 64, 128]), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_attention_is_tamings_to_1e_5_in_fp32(channels, height, width, seed):
    torch.manual_seed(seed)
    block = taming.AttnBlock(channels)
    x = torch.randn(2, channels, height, width)
    torch.testing.assert_close(attention_block(block, x), block(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize('conv_shortcut', [False, True])
def test_residual_blocks_take_both_shortcuts(conv_shortcut):
    block = lively(taming.ResnetBlock(in_channels=32, out_channels=64, conv_shortcut=conv_shortcut, dropout=0.0,
                                      temb_channels=0))  # fmt: skip
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(residual_block(block, x), block(x, None))


def test_residual_blocks_drop_out_while_training():
    block = taming.ResnetBlock(in_channels=32, out_channels=32, dropout=0.5, temb_channels=0)
    x = torch.randn(2, 32, 5, 7)
    torch.manual_seed(3)
    expected = block(x, None)
    torch.manual_seed(3)
    torch.testing.assert_close(residual_block(block, x), expected)
    assert not torch.equal(residual_block(block, x), expected)


def test_the_input_stays_as_it_was_without_gradients():
    encoder, decoder = Encoder(double_z=False, **DDCONFIG), Decoder(**DDCONFIG)
    x, z = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 8, 8)
    x_before, z_before = x.clone(), z.clone()
    with torch.no_grad():
        encoder(x), decoder(z)
        block_input = torch.randn(1, 32, 4, 4)
        before = block_input.clone()
        residual_block(taming.ResnetBlock(in_channels=32, out_channels=32, dropout=0.0, temb_channels=0), block_input)
    assert torch.equal(x, x_before)
    assert torch.equal(z, z_before)
    assert torch.equal(block_input, before)


def test_gradients_are_those_of_taming():
    torch.manual_seed(0)
    decoder = lively(Decoder(**DDCONFIG))
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = [z, *decoder.parameters()]
    ours = torch.autograd.grad(decoder(z).square().sum(), weights)
    theirs = torch.autograd.grad(taming.Decoder.forward(decoder, z).square().sum(), weights)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_give_pre_end_gives_the_features():
    decoder = Decoder(**DDCONFIG, give_pre_end=True)
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), taming.Decoder.forward(decoder, z), atol=1e-5, rtol=1e-4)
