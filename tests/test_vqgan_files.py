"""Files of VQGANs, made here by the libraries whose formats they are."""

import argparse
import collections
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae import quantize as taming_quantize
from torch import nn

from timm_dad.cli import main
from timm_dad.vqgan import presets as vqgan_presets
from timm_dad.vqgan.convert import convert
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGANConfig
from timm_dad.vqgan.presets import PRESETS, VQGANPreset

DDCONFIG = {
    'double_z': False,
    'z_channels': 4,
    'resolution': 16,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': [1, 1, 2],
    'num_res_blocks': 1,
    'attn_resolutions': [8],
    'dropout': 0.0,
}
DOCS = Path(__file__).parents[1] / 'docs' / 'vqgan.md'
NOT_ITS_LOSS = ('encoder', 'decoder', 'quant_conv', 'post_quant_conv', 'quantize')


class VQModel(nn.Module):
    """taming's and latent-diffusion's ``VQModel``, which do not import beside today's Lightning, of taming's parts."""

    target = 'taming.models.vqgan.VQModel'

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(**DDCONFIG), Decoder(**DDCONFIG)
        self.loss = nn.ModuleDict({'discriminator': nn.Conv2d(3, 8, 4), 'perceptual_loss': nn.Conv2d(3, 8, 3)})
        self.quantize = self.create_quantizer()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def create_quantizer(self):
        return taming_quantize.VectorQuantizer(32, 4, beta=0.25)

    def forward(self, x_pix):
        h = self.quant_conv(self.encoder(2 * x_pix - 1))
        quant, _, (_, _, codes) = self.quantize(h)
        return (self.decoder(self.post_quant_conv(quant)).clamp(-1, 1) + 1) / 2, codes.view(len(x_pix), *h.shape[2:])

    @property
    def codebook(self):
        return self.quantize.embedding.weight


class VQModelInterface(VQModel):
    """latent-diffusion's: ``encode`` ends before the quantizer, ``decode`` begins with it."""

    target = 'ldm.models.autoencoder.VQModelInterface'

    def forward(self, x_pix):
        h = self.quant_conv(self.encoder(2 * x_pix - 1))  # encode
        quant, _, (_, _, codes) = self.quantize(h)  # decode
        output = self.decoder(self.post_quant_conv(quant))
        return (output.clamp(-1, 1) + 1) / 2, codes.view(len(x_pix), *h.shape[2:])


class GumbelQuantize(nn.Module):
    """taming's of newer versions than the one on PyPI: one-hot matrices of the largest logit, times the codebook."""

    def __init__(self):
        super().__init__()
        self.proj, self.embed = nn.Conv2d(4, 32, 1), nn.Embedding(32, 4)

    def forward(self, z):
        one_hot = F.gumbel_softmax(self.proj(z), tau=1.0, dim=1, hard=True)
        return torch.einsum('bnhw,nd->bdhw', one_hot, self.embed.weight), None, (None, None, one_hot.argmax(dim=1))


class GumbelVQ(VQModel):
    target = 'taming.models.vqgan.GumbelVQ'

    def create_quantizer(self):
        if hasattr(taming_quantize, 'GumbelQuantize'):
            return taming_quantize.GumbelQuantize(4, 4, n_embed=32)
        return GumbelQuantize()

    @property
    def codebook(self):
        return self.quantize.embed.weight


def spread(model):
    # At initialization all latents fall on one or two codes and all codes decode to the same grey.
    with torch.no_grad():
        model.quant_conv.weight.mul_(3)
        model.codebook.normal_()
        model.decoder.conv_out.weight.mul_(1.5)
        if isinstance(model, GumbelVQ):
            model.quantize.proj.weight.normal_()
    return model.eval().requires_grad_(False)


@pytest.fixture(params=[VQModel, VQModelInterface, GumbelVQ])
def original(request):
    return spread(request.param())


@pytest.fixture
def vq_model():
    return spread(VQModel())


@pytest.fixture
def no_gumbel_noise(monkeypatch):
    """taming's Gumbel quantizer draws its codes, in evaluation too; its mode is what can be compared."""
    monkeypatch.setattr(
        F, 'gumbel_softmax', lambda logits, tau, dim, hard: F.one_hot(logits.argmax(dim), 32).movedim(-1, dim).float()
    )


@pytest.fixture
def images():
    coarse = F.interpolate(torch.rand(3, 3, 4, 5), (16, 24), mode='bilinear')
    return (0.7 * coarse + 0.3 * torch.rand(3, 3, 16, 24)).clamp(0, 1)


def write_yaml(path, target=VQModel.target, **params):
    params = {'embed_dim': 4, 'n_embed': 32, 'ddconfig': DDCONFIG, 'lossconfig': {'target': 'x.Loss'}, **params}
    path.write_text(yaml.safe_dump({'model': {'base_learning_rate': 4.5e-6, 'target': target, 'params': params}}))


def write(path, model, wrap=lambda state: {'state_dict': state, 'epoch': 3, 'global_step': 7}):
    """A checkpoint as Lightning writes it, loss and all; or safetensors of the model alone."""
    write_yaml(path.with_suffix('.yaml'), model.target)
    state = model.state_dict()
    if path.suffix == '.safetensors':
        save_file({name: value for name, value in state.items() if name.startswith(NOT_ITS_LOSS)}, path)
    else:
        torch.save(wrap(state), path)
    return path


def assert_same(path, original, images):
    vqgan = load_vqgan(path)
    x_vq, codes = original(images)
    assert len(codes.unique()) > 4
    assert torch.equal(vqgan.encode_to_codes(images), codes)
    torch.testing.assert_close(vqgan(images), x_vq, atol=1e-5, rtol=0)
    assert not vqgan.training
    assert all(value.dtype == torch.float32 for value in vqgan.state_dict().values())


@pytest.mark.usefixtures('no_gumbel_noise')
@pytest.mark.parametrize('suffix', ['.ckpt', '.pth', '.pt', '.safetensors'])
def test_reconstructions_are_those_of_the_original(tmp_path, original, images, suffix):
    assert_same(write(tmp_path / f'vqgan{suffix}', original), original, images)


def test_easyrobust_and_others_save_the_weights_alone(tmp_path, vq_model, images):
    assert_same(write(tmp_path / 'vqgan_openimages_f8_16384.ckpt', vq_model, dict), vq_model, images)


def test_old_checkpoints_of_torch_are_read(tmp_path, vq_model, images):
    path = write(tmp_path / 'vqgan.ckpt', vq_model)
    torch.save({'state_dict': vq_model.state_dict()}, path, _use_new_zipfile_serialization=False)
    assert_same(path, vq_model, images)


def test_the_yaml_may_be_config_yaml_as_in_latent_diffusion(tmp_path, vq_model, images):
    path = write(tmp_path / 'model.ckpt', vq_model)
    path.with_suffix('.yaml').rename(tmp_path / 'config.yaml')
    assert_same(path, vq_model, images)


def test_an_averaged_copy_of_the_weights_is_left_out(tmp_path, vq_model, images, caplog):
    # latent-diffusion's LitEma: the names without their dots. Its encode and decode take the weights themselves.
    averaged = {
        f'model_ema.{name.replace(".", "")}': torch.zeros_like(value) for name, value in vq_model.state_dict().items()
    }
    averaged |= {'model_ema.decay': torch.tensor(0.9999), 'model_ema.num_updates': torch.tensor(9)}
    path = write(tmp_path / 'vqgan.ckpt', vq_model, lambda state: {'state_dict': {**state, **averaged}})
    caplog.set_level('INFO', logger='timm_dad')
    assert_same(path, vq_model, images)
    assert f'left out {len(averaged) + 4} tensors' in caplog.text


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_fp32(tmp_path, vq_model, dtype):
    path = write(tmp_path / 'vqgan.safetensors', vq_model.to(dtype))
    loaded = load_vqgan(str(path)).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    for name, value in loaded.items():
        assert torch.equal(value, vq_model.state_dict()[name].float())


# Files that are not what they should be.


@pytest.mark.parametrize('suffix', ['.ckpt', '.safetensors'])
def test_a_missing_file_is_named(tmp_path, vq_model, suffix):
    path = write(tmp_path / f'vqgan{suffix}', vq_model)
    path.with_suffix('.yaml').unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf'no VQGAN at .*vqgan\{suffix}: .*vqgan\.yaml, which describes its architecture, is missing.*convert',
    ):
        load_vqgan(path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf'no VQGAN at .*vqgan\{suffix}: it is not a file.*openimages-f8-16384'
    ):
        load_vqgan(path)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'quant_conv.bias': None}, 'it lacks quant_conv.bias'),
        ({'encoder.extra': torch.zeros(1)}, 'it has unexpected encoder.extra'),
        ({f'a.{k}': torch.zeros(1) for k in range(5)}, 'it has unexpected a.0, a.1, a.2 and 2 more'),
        ({'quant_conv.bias': torch.zeros(3)}, r'it has other shapes for quant_conv.bias \(3,\), not \(4,\)'),
        ({'quant_conv.bias': torch.full((4,), torch.nan)}, 'it has non-finite quant_conv.bias'),
        ({'quant_conv.bias': None, 'x': torch.zeros(1)}, 'it lacks quant_conv.bias; it has unexpected x'),
    ],
)
@pytest.mark.parametrize('suffix', ['.ckpt', '.safetensors'])
def test_weights_that_do_not_fit_the_yaml_are_named(tmp_path, vq_model, change, match, suffix):
    path = write(tmp_path / f'vqgan{suffix}', vq_model)
    state = {name: value for name, value in vq_model.state_dict().items() if name.startswith(NOT_ITS_LOSS)} | change
    state = {name: value for name, value in state.items() if value is not None}
    save_file(state, path) if suffix == '.safetensors' else torch.save({'state_dict': state}, path)
    with pytest.raises(ValueError, match=rf'does not contain the VQGAN that vqgan\.yaml describes: {match}$'):
        load_vqgan(path)


def test_a_gumbel_vqgan_is_no_vqmodel(tmp_path):
    path = write(tmp_path / 'vqgan.ckpt', GumbelVQ())
    write_yaml(tmp_path / 'vqgan.yaml')
    with pytest.raises(
        ValueError, match=r'lacks quantize\.embedding\.weight; it has unexpected quantize\.proj\.weight'
    ):
        load_vqgan(path)


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('a.ckpt', b'<html>not found</html>', r"a\.ckpt is not a PyTorch checkpoint: it begins with b'<h'"),
        ('a.ckpt', b'', r'a\.ckpt is empty'),
        ('a.pth', b'PK\x03\x04 and no more', r'a\.pth is truncated or damaged'),
        ('a.pt', b'\x80\x02', r'a\.pt is broken'),
        ('a.safetensors', b'<html>not found</html>', r'a\.safetensors is not a safetensors file'),
        (
            'a.zip',
            b'PK\x03\x04',
            r'VQGANs are files \.ckpt, \.pth, \.pt, \.safetensors, or diffusers folders.*got a\.zip.*unpack',
        ),
        ('a.bin', b'\x80\x02', r'VQGANs are files .*got a\.bin'),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    write_yaml(tmp_path / 'a.yaml')
    with pytest.raises(ValueError, match=match):
        load_vqgan(tmp_path / name)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ({'model': 3, 'epoch': 1}, r"\['epoch', 'model'\]"),
        ({'state_dict': {}}, r"\['state_dict'\]"),
        ({}, r'\[\]'),
        ([torch.zeros(2)], 'list'),
        (torch.zeros(2), 'Tensor'),
    ],
)
def test_a_checkpoint_without_weights_by_name_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / 'a.ckpt')
    write_yaml(tmp_path / 'a.yaml')
    with pytest.raises(ValueError, match=rf'a\.ckpt must contain weights by name.*got {found}'):
        load_vqgan(tmp_path / 'a.ckpt')


# Safety, and timm-dad convert.


class Payload:
    """Writes ``path`` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def with_payload(path, model, marker):
    return write(path, model, lambda state: {'state_dict': state, 'callbacks': Payload(marker)})


@pytest.mark.parametrize('zipped', [True, False])
def test_a_payload_is_never_run_without_trust(tmp_path, vq_model, images, zipped, capsys):
    marker, path = tmp_path / 'it ran', tmp_path / 'vqgan.ckpt'
    write_yaml(tmp_path / 'vqgan.yaml')
    content = {'state_dict': vq_model.state_dict(), 'callbacks': Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    match = rf'contains more than weights \(\w+\.open\) and may run code.*run: timm-dad convert {path} --trust$'
    for refuses in (load_vqgan, convert):
        with pytest.raises(ValueError, match=match):
            refuses(path)
    with pytest.raises(SystemExit, match='2'):
        main(['convert', str(path)])
    assert re.search(match, capsys.readouterr().err.strip())
    assert not marker.exists()
    assert not path.with_suffix('.safetensors').exists()
    # The payload is a real one, and --trust means what it says.
    main(['convert', str(path), '--trust'])
    assert marker.exists()
    assert_same(path.with_suffix('.safetensors'), vq_model, images)


@pytest.mark.slow
def test_callbacks_of_lightning_are_refused_and_converted(tmp_path, vq_model, images, capsys):
    callbacks = pytest.importorskip('pytorch_lightning.callbacks')
    path = write(
        tmp_path / 'last.ckpt',
        vq_model,
        lambda state: {'state_dict': state, 'callbacks': {callbacks.ModelCheckpoint: {}}},
    )
    with pytest.raises(ValueError, match=r'\(pytorch_lightning\..*ModelCheckpoint\).*timm-dad convert'):
        load_vqgan(path)
    main(['convert', str(path), '--trust'])
    assert f'--dad-vqgan {tmp_path / "last.safetensors"}' in capsys.readouterr().out
    assert_same(tmp_path / 'last.safetensors', vq_model, images)


@pytest.mark.usefixtures('no_gumbel_noise')
def test_convert_writes_the_model_alone(tmp_path, original, images):
    path = write(tmp_path / 'vqgan.ckpt', original)
    assert convert(path) == tmp_path / 'vqgan.safetensors'
    names = set(load_file(tmp_path / 'vqgan.safetensors'))
    assert names == {name for name in original.state_dict() if name.startswith(NOT_ITS_LOSS)}
    assert_same(tmp_path / 'vqgan.safetensors', original, images)
    assert sorted(os.listdir(tmp_path)) == ['vqgan.ckpt', 'vqgan.safetensors', 'vqgan.yaml']


@pytest.mark.usefixtures('no_gumbel_noise')
@pytest.mark.parametrize('given', [True, False])
def test_convert_writes_a_yaml_where_there_is_none(tmp_path, original, images, given):
    path = write(tmp_path / 'model.ckpt', original)
    config = path.with_suffix('.yaml').rename(tmp_path / ('other.yaml' if given else 'config.yaml'))
    convert(path, str(config) if given else None)
    assert VQGANConfig.from_yaml(tmp_path / 'model.yaml') == VQGANConfig.from_yaml(config)
    assert_same(tmp_path / 'model.safetensors', original, images)


def test_convert_takes_the_architecture_of_a_preset(tmp_path, vq_model, images, preset):
    path = write(tmp_path / 'model.ckpt', vq_model)
    path.with_suffix('.yaml').unlink()
    convert(path, preset.name)
    assert_same(tmp_path / 'model.safetensors', vq_model, images)


def test_a_conversion_that_breaks_off_leaves_nothing(tmp_path, vq_model, monkeypatch):
    path = write(tmp_path / 'vqgan.ckpt', vq_model)

    def full_disk(state, filename):
        Path(filename).write_bytes(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr('timm_dad.vqgan.save.save_file', full_disk)
    with pytest.raises(OSError, match='No space'):
        convert(path)
    assert sorted(os.listdir(tmp_path)) == ['vqgan.ckpt', 'vqgan.yaml']


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (['nowhere.ckpt'], 'there is no checkpoint .*nowhere.ckpt'),
        (['vqgan.yaml'], r'a checkpoint is one of \.ckpt, \.pth, \.pt, got vqgan\.yaml'),
        (['there.ckpt'], r'there\.safetensors already exists'),
        (['vqgan.ckpt', '--config', 'other.yaml'], r'vqgan\.yaml already exists and would be used'),
        (['bare.pt'], r'bare\.yaml, which describes its architecture, is missing'),
        (['bare.pt', '--config', 'imagenet'], '--config must be a YAML or one of openimages-f8-16384, .*got imagenet'),
        (
            ['bare.pt', '--config', 'other.yaml'],
            'does not contain the VQGAN that its config describes: it has other shapes',
        ),
        (['gone.ckpt', '--trust'], "cannot be unpickled here: .*'Gone'"),
    ],
)
def test_convert_says_what_is_wrong(tmp_path, vq_model, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    for name in ('vqgan.ckpt', 'there.ckpt', 'bare.pt'):
        write(tmp_path / name, vq_model)
    (tmp_path / 'there.safetensors').touch()
    (tmp_path / 'bare.yaml').unlink()
    write_yaml(tmp_path / 'other.yaml', n_embed=64)
    monkeypatch.setattr(collections, 'Gone', type('Gone', (), {'__module__': 'collections'}), raising=False)
    write(tmp_path / 'gone.ckpt', vq_model, lambda state: {'state_dict': state, 'x': collections.Gone()})
    monkeypatch.delattr(collections, 'Gone')
    with pytest.raises(SystemExit) as stop:
        main(['convert', *arguments])
    assert stop.value.code == 2
    assert re.match(f'timm-dad convert: error: .*{match}', capsys.readouterr().err)


# Folders of diffusers.


@pytest.fixture
def diffusers_model():
    diffusers = pytest.importorskip('diffusers')
    model = diffusers.VQModel(
        block_out_channels=(32, 32, 64),
        down_block_types=('DownEncoderBlock2D', 'AttnDownEncoderBlock2D', 'DownEncoderBlock2D'),
        up_block_types=('UpDecoderBlock2D', 'AttnUpDecoderBlock2D', 'UpDecoderBlock2D'),
        layers_per_block=2,
        latent_channels=4,
        sample_size=16,
        num_vq_embeddings=32,
        vq_embed_dim=5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # norms and biases, too
        model.quantize.embedding.weight.normal_()
        model.quant_conv.weight.mul_(3)
        model.decoder.conv_out.weight.mul_(1.5)
    return model.eval().requires_grad_(False)


def test_a_folder_of_diffusers_reconstructs_the_same(tmp_path, diffusers_model, images):
    diffusers_model.save_pretrained(tmp_path)
    vqgan = load_vqgan(tmp_path)
    x_vq = (diffusers_model(2 * images - 1).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(vqgan(images), x_vq, atol=1e-5, rtol=0)
    assert x_vq.std() > 0.05
    assert len(vqgan.encode_to_codes(images).unique()) > 4


def write_diffusers(folder, model, **changes):
    """A folder of diffusers without diffusers: taming's weights under its names, as far as the tests below look."""
    content = {
        '_class_name': 'VQModel',
        'block_out_channels': [32, 32, 64],
        'down_block_types': ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D', 'DownEncoderBlock2D'],
        'up_block_types': ['UpDecoderBlock2D', 'AttnUpDecoderBlock2D', 'UpDecoderBlock2D'],
        'in_channels': 3,
        'out_channels': 3,
        'latent_channels': 4,
        'layers_per_block': 1,
        'num_vq_embeddings': 32,
        'sample_size': 16,
        **changes,
    }
    (folder / 'config.json').write_text(json.dumps(content))
    save_file({'quantize.embedding.weight': model.codebook}, folder / 'diffusion_pytorch_model.safetensors')


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'_class_name': 'AutoencoderKL'}, '_class_name must be VQModel, got AutoencoderKL'),
        ({'norm_num_groups': 16}, "norm_num_groups must be 32 for taming's modules, got 16"),
        ({'act_fn': 'gelu'}, 'act_fn must be silu'),
        ({'norm_type': 'layer'}, 'norm_type must be one of group, spatial, got layer'),
        ({'mid_block_add_attention': False}, 'mid_block_add_attention must be True if other blocks have attention'),
        ({'up_block_types': ['UpDecoderBlock2D'] * 3}, 'up_block_types must mirror down_block_types'),
        (
            {'block_out_channels': [64, 96, 96]},
            r'block_out_channels must be multiples of the first, got \[64, 96, 96\]',
        ),
        ({'latent_channels': None}, 'config.json'),
    ],
)
def test_a_vqmodel_of_diffusers_that_taming_cannot_build_is_refused(tmp_path, vq_model, changes, match):
    write_diffusers(tmp_path, vq_model, **changes)
    with pytest.raises(ValueError, match=match):
        load_vqgan(tmp_path)


def test_a_folder_of_diffusers_without_a_weight_is_refused(tmp_path, vq_model):
    write_diffusers(tmp_path, vq_model)
    with pytest.raises(ValueError, match=r'does not contain the VQGAN that config\.json describes: it lacks encoder'):
        load_vqgan(tmp_path)
    (tmp_path / 'diffusion_pytorch_model.safetensors').write_bytes(b'no')
    with pytest.raises(ValueError, match=r'diffusion_pytorch_model\.safetensors is not a safetensors file'):
        load_vqgan(tmp_path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(ValueError, match=r'config\.json is not a config of a VQGAN'):
        load_vqgan(tmp_path)


def test_a_folder_that_is_none_of_diffusers_says_what_to_give(tmp_path, vq_model):
    with pytest.raises(FileNotFoundError, match=r'config\.json is missing \(.*give the checkpoint in it\)'):
        load_vqgan(tmp_path)
    (tmp_path / 'vqvae').mkdir()
    write_diffusers(tmp_path / 'vqvae', vq_model)
    with pytest.raises(FileNotFoundError, match=r'a pipeline: give its folder with the VQModel, one of vqvae'):
        load_vqgan(tmp_path)
    (tmp_path / 'vqvae' / 'diffusion_pytorch_model.safetensors').rename(tmp_path / 'vqvae' / 'a.bin')
    with pytest.raises(FileNotFoundError, match=r'diffusion_pytorch_model\.safetensors is missing.*save_pretrained'):
        load_vqgan(tmp_path / 'vqvae')


# Presets: the address is one of this machine's files.


@pytest.fixture
def public(tmp_path):
    return tmp_path / 'public'


@pytest.fixture
def preset(tmp_path, public, vq_model, monkeypatch):
    public.mkdir()
    write(public / 'model.ckpt', vq_model)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    config = VQGANConfig(ddconfig=DDCONFIG, n_embed=32, embed_dim=4)
    preset = VQGANPreset(name='small', config=config, url=(public / 'model.ckpt').as_uri())
    monkeypatch.setitem(PRESETS, 'small', preset)
    return preset


def change(preset, monkeypatch, **fields):
    monkeypatch.setitem(PRESETS, preset.name, VQGANPreset(**{**vars(preset), **fields}))


def test_a_preset_is_fetched_once_and_its_hash_is_kept(tmp_path, preset, public, vq_model, images):
    assert_same('small', vq_model, images)
    cached = tmp_path / 'hub' / 'timm_dad' / 'small.ckpt'
    expected = hashlib.sha256((public / 'model.ckpt').read_bytes()).hexdigest()
    assert cached.with_suffix('.sha256').read_text() == f'{expected}\n'
    (public / 'model.ckpt').unlink()
    assert_same('small', vq_model, images)
    cached.write_bytes(cached.read_bytes() + b' ')
    with pytest.raises(ValueError, match=r'small\.ckpt is not .*small\.sha256.*delete both'):
        load_vqgan('small')
    # Nor is another file taken when the first one is lost.
    cached.unlink()
    write(public / 'model.ckpt', spread(VQModel()))
    with pytest.raises(ValueError, match=r'returns another file than at first: delete .*small\.sha256'):
        load_vqgan('small')
    assert not cached.exists()
    cached.with_suffix('.sha256').unlink()
    load_vqgan('small')


@pytest.mark.parametrize('folder', ['', 'vq-f8/', '../../'])
def test_a_preset_in_a_zip_is_taken_out_of_it(tmp_path, preset, public, vq_model, images, monkeypatch, folder):
    with zipfile.ZipFile(public / 'a.zip', 'w') as archive:
        archive.write(public / 'model.ckpt', f'{folder}model.ckpt')
        archive.writestr('../../readme.txt', 'names in a zip are not to be followed')
    change(preset, monkeypatch, url=(public / 'a.zip').as_uri())
    before = set(tmp_path.rglob('*'))
    assert_same('small', vq_model, images)
    new = {str(path.relative_to(tmp_path / 'hub')) for path in set(tmp_path.rglob('*')) - before if path.is_file()}
    assert new == {'timm_dad/small.ckpt', 'timm_dad/small.sha256', 'timm_dad/small.lock'}


def test_a_published_hash_is_checked(preset, monkeypatch, public, vq_model, images):
    change(preset, monkeypatch, sha256='0' * 64)
    with pytest.raises(ValueError, match=r'SHA-256 is not the published 0000'):
        load_vqgan('small')
    change(preset, monkeypatch, sha256=hashlib.sha256((public / 'model.ckpt').read_bytes()).hexdigest())
    assert_same('small', vq_model, images)


@pytest.mark.parametrize('name', ['page.html', 'half.ckpt', 'page.zip', 'two.zip', 'nowhere.ckpt'])
def test_an_address_that_gives_something_else_leaves_nothing(tmp_path, preset, public, monkeypatch, name):
    (public / 'page.html').write_text('<html>moved</html>')
    (public / 'half.ckpt').write_bytes((public / 'model.ckpt').read_bytes()[:9999])
    (public / 'page.zip').write_text('<html>moved</html>')
    with zipfile.ZipFile(public / 'two.zip', 'w') as archive:
        archive.writestr('a.ckpt', b'')
        archive.writestr('b.ckpt', b'')
    change(preset, monkeypatch, url=(public / name).as_uri())
    match = {
        'page.html': 'did not return a complete PyTorch checkpoint',
        'half.ckpt': 'did not return a complete PyTorch checkpoint',
        'page.zip': 'did not return a zip',
        'two.zip': r"must hold one \.ckpt, got \['a\.ckpt', 'b\.ckpt'\]",
        'nowhere.ckpt': r'preset small could not be fetched from file:.*timm-dad convert FILE\.ckpt --config small',
    }
    with pytest.raises(ValueError, match=match[name]):
        load_vqgan('small')
    assert os.listdir(tmp_path / 'hub' / 'timm_dad') == ['small.lock']


def test_a_preset_that_needs_trust_is_converted_once(tmp_path, preset, public, vq_model, images, capsys):
    with_payload(public / 'model.ckpt', vq_model, tmp_path / 'it ran')
    cached = tmp_path / 'hub' / 'timm_dad' / 'small.ckpt'
    with pytest.raises(ValueError, match=f'timm-dad convert {cached} --trust'):
        load_vqgan('small')
    content = cached.read_bytes()
    cached.write_bytes(content + b' ')
    with pytest.raises(SystemExit, match='2'):
        main(['convert', str(cached), '--trust'])
    assert re.search(r'is not .*delete both', capsys.readouterr().err)
    assert not (tmp_path / 'it ran').exists()
    cached.write_bytes(content)
    main(['convert', str(cached), '--trust'])
    assert (tmp_path / 'it ran').exists()
    assert_same('small', vq_model, images)
    assert_same(cached.with_suffix('.safetensors'), vq_model, images)


@pytest.mark.slow
def test_processes_that_start_at_once_fetch_once(tmp_path, preset):
    script = (
        'import sys, torch; from timm_dad.vqgan import presets as p; torch.hub.get_dir = lambda: sys.argv[1]\n'
        'config = p.PRESETS["imagenet-f16-1024"].config\n'
        'print(p.fetch(p.VQGANPreset(name="small", config=config, url=sys.argv[2])))\n'
    )
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(vqgan_presets.__file__).parents[2])}
    command = [sys.executable, '-c', script, str(tmp_path / 'hub'), preset.url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = {process.communicate()[0].strip() for process in processes}
    assert outputs == {str(tmp_path / 'hub' / 'timm_dad' / 'small.ckpt')}


def test_addresses_are_encrypted_and_architectures_are_those_of_the_papers():
    factors = {name: preset.config.factor for name, preset in PRESETS.items()}
    assert factors == {name: int(name.split('-')[1][1:]) for name in PRESETS}
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.url.startswith(('https://', 'hf://'))  # the hub's library encrypts, too
        assert name.endswith(f'-{preset.config.n_embed}')
    kinds = {(preset.config.quantizer, preset.config.networks): name for name, preset in PRESETS.items()}
    assert kinds == {
        ('nearest', 'taming'): 'amused-f16-8192',
        ('gumbel', 'taming'): 'openimages-f8-gumbel-8192',
        ('nearest', 'movq'): 'movqgan270m-f8-16384',
        ('cosine', 'taming'): 'llamagen-f16-16384',
        ('inner_product', 'taming'): 'ibq-f16-16384',
        ('sign', 'magvit2'): 'magvit2-f8-262144',
    }


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_its_code_computes(capsys):
    text = DOCS.read_text()
    exec(text.split('```python\n')[1].split('```')[0], {})
    rows = {row.split('`')[1]: row for row in text.splitlines() if row.startswith('| `') and row.count('|') == 7}
    assert set(rows) == set(PRESETS)
    computed = capsys.readouterr().out.splitlines()
    assert len(computed) == len(PRESETS)
    for line in computed:
        name, parameters, gmacs = line.split(' | ')
        config = PRESETS[name].config
        assert f'| {parameters} | {gmacs} |' in rows[name]
        assert f'| {config.n_embed} x {config.embed_dim}' in rows[name]
        assert f'| {config.factor} |' in rows[name]


def test_the_table_of_what_presets_are_worth_is_theirs():
    rows = {
        row.split('`')[1]: row for row in DOCS.read_text().splitlines() if row.startswith('| `') and row.count('|') == 8
    }
    assert set(rows) == set(PRESETS)
    for name, preset in PRESETS.items():
        side, bits = 224 // preset.config.factor, (preset.config.n_embed - 1).bit_length()
        assert f'| {side} x {side} x {bits} = {side * side * bits:,} |' in rows[name]
        assert rows[name].endswith(f'| {preset.licence} |')


def test_the_flag_names_the_presets(capsys):
    from timm_dad.flags.dad import add_dad_args

    parser = argparse.ArgumentParser()
    add_dad_args(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--help'])
    help_text = ' '.join(capsys.readouterr().out.split())
    assert all(name in help_text.replace('- ', '-') for name in PRESETS)
