"""Tiny VQGANs: networks, files, arithmetic."""

import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from timm_dad import VQGAN, VQGANConfig, load_vqgan
from timm_dad.common.hashing import content_hash
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.vqgan.presets import PRESETS
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan.tiny import Block, TinyDecoder, TinyEncoder
from timm_dad.vqgan_training.distill import create_tiny, default_ch, pass_macs, tiny_config

PAPER = PRESETS['openimages-f8-16384'].config


@pytest.fixture
def tiny(vqgan):
    return create_tiny(vqgan, 16, ch=8).eval()


@pytest.mark.parametrize(('ch_mult', 'factor'), [([1], 1), ([1, 1], 2), ([1, 2, 3], 4), ([1, 1, 1, 1], 8)])
def test_networks_have_the_shapes_of_the_originals(ch_mult, factor, vqgan_config):
    ddconfig = {**vqgan_config.ddconfig, 'ch': 4, 'ch_mult': ch_mult}
    encoder, decoder = TinyEncoder(ddconfig), TinyDecoder(ddconfig)
    z = encoder(torch.rand(2, 3, 16, 24))
    assert z.shape == (2, 4, 16 // factor, 24 // factor)
    assert decoder(z).shape == (2, 3, 16, 24)


def test_blocks_are_those_of_taesd():
    """One block at the picture's size, three at each other."""
    encoder, decoder = (network(tiny_config(PAPER, 8).ddconfig) for network in (TinyEncoder, TinyDecoder))
    for layers in (list(encoder), list(reversed(decoder))):
        kinds = ''.join('b' if isinstance(layer, Block) else 'c' for layer in layers if not isinstance(layer, nn.ReLU))
        assert kinds == 'cb' + 3 * 'cbbb' + 'c'


def test_a_transposed_convolution_can_be_nearest_upsampling_and_a_convolution():
    """What TAESD has is a special case: each weight of 4 x 4 is a sum of those of 3 x 3 that meet the same place."""
    conv, up = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, bias=False)
    kernel = nn.functional.avg_pool2d(conv.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    up.weight.data = kernel.transpose(0, 1)
    x = torch.rand(2, 3, 6, 8)
    torch.testing.assert_close(up(x), conv(nn.functional.interpolate(x, scale_factor=2.0)), atol=1e-5, rtol=1e-5)


def test_a_block_learns_a_difference():
    block = Block(4)
    with torch.no_grad():
        block.conv3.weight.zero_()
        block.conv3.bias.zero_()
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_it_is_a_vqgan_like_any_other(tiny, x_pix):
    codes = tiny.encode_to_codes(x_pix)
    assert codes.shape == (4, 8, 8)
    x_vq, again = tiny.reconstruct(x_pix)
    assert torch.equal(codes, again)
    torch.testing.assert_close(x_vq, tiny.decode_codes(codes))
    assert 0 <= x_vq.min() <= x_vq.max() <= 1
    torch.testing.assert_close(x_vq, tiny(x_pix))


def test_sizes_are_padded_and_cropped_or_refused(tiny, vqgan):
    x = torch.rand(2, 3, 15, 9)
    x_vq, codes = tiny.reconstruct(x)
    assert (x_vq.shape, codes.shape) == (x.shape, (2, 8, 5))
    with pytest.raises(ValueError, match='image size must be a multiple of 2'):
        VQGAN(tiny.config, strict_size=True).encode(x)


def test_values_out_of_range_are_refused(tiny, x_pix):
    with pytest.raises(ValueError, match=r'x_pix is in \[0, 1\]'):
        tiny.encode(2 * x_pix)


def test_codebook_and_convolutions_around_it_are_the_originals(tiny, vqgan):
    mine, original = tiny.state_dict(), vqgan.state_dict()
    shared = [name for name in original if not name.startswith(('encoder.', 'decoder.'))]
    assert len(shared) == 5
    for name in shared:
        torch.testing.assert_close(mine[name], original[name], atol=0, rtol=0)
    assert {name.split('.')[0] for name, value in tiny.named_parameters() if value.requires_grad} == {
        'encoder',
        'decoder',
    }


def test_equal_codes_mean_the_same_vectors(tiny, vqgan):
    codes = torch.randint(32, (2, 4, 4))
    assert torch.equal(tiny.codebook[codes], vqgan.codebook[codes])


@pytest.mark.parametrize('quantizer', ['nearest', 'gumbel'])
def test_yaml_round_trip(quantizer, vqgan_config, tmp_path):
    config = tiny_config(replace(vqgan_config, quantizer=quantizer), 8)
    (tmp_path / 'a.yaml').write_text(config.to_yaml())
    assert VQGANConfig.from_yaml(tmp_path / 'a.yaml') == config
    assert f'timm_dad.tiny_vqgan.Tiny{"GumbelVQ" if quantizer == "gumbel" else "VQModel"}' in config.to_yaml()


@pytest.mark.parametrize('quantizer', ['nearest', 'gumbel'])
def test_a_saved_one_is_loaded_as_any_other_without_taming(quantizer, vqgan_config, x_pix, tmp_path, monkeypatch):
    original = VQGAN(replace(vqgan_config, quantizer=quantizer))
    tiny = create_tiny(original, 16, ch=8).eval()
    save_vqgan(tiny, tmp_path / 'tiny.safetensors')
    for name in [name for name in sys.modules if name.split('.')[0] == 'taming']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'taming', None)
    with pytest.raises(ImportError, match='taming'):
        VQGAN(vqgan_config)
    loaded = load_vqgan(tmp_path / 'tiny.safetensors')
    assert torch.equal(loaded(x_pix), tiny(x_pix))
    assert loaded.fingerprint() == tiny.fingerprint()


def test_fingerprints_tell_networks_apart(vqgan_config, tiny, vqgan):
    assert tiny.fingerprint() != vqgan.fingerprint()
    wider = VQGAN(tiny_config(vqgan_config, 12))
    assert wider.fingerprint() != tiny.fingerprint()


def test_the_papers_becomes_ten_times_cheaper():
    ch = default_ch(PAPER, 224)
    tiny = tiny_config(PAPER, ch)
    assert ch == 64
    assert pass_macs(PAPER, 224) >= 10 * pass_macs(tiny, 224)
    assert pass_macs(tiny, 224) < 81e9 / 3  # a forward of ViT-L/14
    with torch.device('meta'):
        networks = VQGAN(tiny)
    parameters = sum(value.numel() for name in ('encoder', 'decoder') for value in getattr(networks, name).parameters())
    assert parameters == pytest.approx(2.5e6, rel=0.02)
    assert tiny.factor == PAPER.factor


def test_the_default_width_is_the_widest_with_a_tenth(vqgan_config):
    config = replace(vqgan_config, ddconfig={**vqgan_config.ddconfig, 'ch': 64, 'num_res_blocks': 2})
    ch = default_ch(config, 16)
    tenth = pass_macs(config, 16) / 10
    assert pass_macs(tiny_config(config, ch), 16) <= tenth < pass_macs(tiny_config(config, ch + 4), 16)


def test_multiply_adds_by_hand(vqgan_config):
    """Factor 2 at 16 px, width 4: convolutions at 256 and 64 places, the search, and the 1 x 1 convolutions."""
    at_16 = 256 * (9 * 3 * 4 + 27 * 16)
    at_8 = 64 * (9 * 16 + 3 * 27 * 16 + 9 * 16)
    back_at_8, back_at_16 = 64 * (9 * 16 + 3 * 27 * 16), 256 * (4 * 16 + 27 * 16 + 9 * 4 * 3)
    search = 64 * (32 * 4 + 2 * 16)
    assert pass_macs(tiny_config(vqgan_config, 4), 16) == at_16 + at_8 + back_at_8 + back_at_16 + search


def test_attention_is_refused(vqgan_config):
    ddconfig = {**vqgan_config.ddconfig, 'attn_resolutions': [8]}
    with pytest.raises(
        ValueError, match=r'attn_resolutions must be \[\] because tiny networks have no attention, got \[8'
    ):
        VQGANConfig(ddconfig=ddconfig, n_embed=8, embed_dim=4, networks='tiny')


def test_the_fingerprint_of_others_is_what_it_was(vqgan):
    """Sets that were made before there were tiny VQGANs name it."""
    facts = {name: value for name, value in asdict(vqgan.config).items() if name != 'networks'}
    assert vqgan.fingerprint() == content_hash(vqgan.state_dict(), facts)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_it_is_prepared_for_dad_as_any_other(precision, tiny, teacher, x_pix):
    x_vq = tiny(x_pix)
    prepare_frozen(teacher, tiny, precision, torch.device('cpu'))
    x_prepared = tiny(x_pix)
    assert x_prepared.dtype == torch.float32
    torch.testing.assert_close(x_prepared, x_vq, atol=1e-5 if precision == 'fp32' else 0.1, rtol=0)
