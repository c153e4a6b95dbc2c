"""Kinds of VQGANs: each computes what its own library does, from its files, and takes every attack."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import reference_tokenizers as of
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dad_sets import write_greys
from hub_cache import COMMIT, put_repo, use_cache
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

from timm_dad.commands.generate import main as generate
from timm_dad.common.files import sha256_of_file
from timm_dad.common.macs import count_macs
from timm_dad.dad_sets.formats import unpack_codes
from timm_dad.dad_sets.match import check_decoder
from timm_dad.dad_sets.read import DADSet
from timm_dad.flags.header import log_models
from timm_dad.flags.moved import absolute, find_here, without_folder
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.convert import convert
from timm_dad.vqgan.diffusers import config_of_diffusers
from timm_dad.vqgan.llamagen import config_of_llamagen, read_llamagen
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.presets import PRESETS, VQGANPreset
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.distill import Distiller, create_tiny, default_ch, make_targets, pass_macs
from timm_dad.vqgan_training.optimize import OptimizerConfig

HALF = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
TARGET = torch.tensor([0, 1, 2, 3])
SIZES = {'in_channels': 3, 'out_ch': 3, 'resolution': 16, 'ch': 32, 'ch_mult': of.LEVELS, 'num_res_blocks': 1}
TAMING = {**SIZES, 'z_channels': 5, 'attn_resolutions': [4]}
CONFIGS = {
    'movq': VQGANConfig(ddconfig=TAMING, n_embed=32, embed_dim=4, networks='movq'),
    'amused': VQGANConfig(ddconfig={**TAMING, 'attn_type': 'none'}, n_embed=32, embed_dim=4),
    'llamagen': VQGANConfig(ddconfig=TAMING, n_embed=32, embed_dim=4, quantizer='cosine'),
    'ibq': VQGANConfig(ddconfig=TAMING, n_embed=32, embed_dim=4, quantizer='inner_product'),
    'magvit2': VQGANConfig(
        ddconfig={**SIZES, 'z_channels': 5}, n_embed=32, embed_dim=5, quantizer='sign', networks='magvit2'
    ),
}
KINDS = pytest.mark.parametrize('kind', CONFIGS)


def build(kind):
    vqgan = VQGAN(CONFIGS[kind])
    of.widen(vqgan, vqgan.quantize.embedding.weight if kind != 'magvit2' else None)
    with torch.no_grad():
        (vqgan.encoder if kind == 'magvit2' else vqgan.decoder).conv_out.weight.mul_(3)
    return vqgan


@pytest.fixture
def images():
    coarse = torch.nn.functional.interpolate(torch.rand(3, 3, 4, 5), (16, 24), mode='bilinear')
    return (0.7 * coarse + 0.3 * torch.rand(3, 3, 16, 24)).clamp(0, 1)


def assert_same(vqgan, expected, images):
    codes, x_vq = expected
    assert len(codes.unique()) > 4
    assert x_vq.std() > 0.02
    assert torch.equal(vqgan.encode_to_codes(images), codes)
    torch.testing.assert_close(vqgan(images), x_vq, atol=1e-5, rtol=0)
    assert not vqgan.training


# What each library computes, from its files.


@pytest.mark.parametrize('create', [of.movq, of.amused], ids=['movq', 'amused'])
def test_a_vqmodel_of_diffusers_gives_the_same_codes_and_pixels(tmp_path, images, create):
    pytest.importorskip('diffusers')
    model = create()
    model.save_pretrained(tmp_path)
    vqgan = load_vqgan(tmp_path)
    assert_same(vqgan, of.of_diffusers(model, images), images)
    with torch.enable_grad():  # nothing is done in place then
        z = vqgan.encode(images).requires_grad_(True)
        torch.testing.assert_close(vqgan.decode(vqgan.quantize_straight_through(z)).clamp(0, 1), vqgan(images))


def test_the_names_of_movqgan_are_read_without_its_averages(tmp_path, images):
    # movqgan.models.vqgan.MOVQ saves its weights alone, without state_dict, and averages as ema_encoder.* and so on.
    vqgan = build('movq')
    state = vqgan.state_dict()
    averages = {f'ema_{name}': torch.zeros_like(value) for name, value in state.items()}
    torch.save({**state, **averages, 'loss.logvar': torch.zeros(1)}, tmp_path / 'movqgan.ckpt')
    (tmp_path / 'movqgan.yaml').write_text(CONFIGS['movq'].to_yaml())
    assert 'target: movqgan.models.vqgan.MOVQ' in CONFIGS['movq'].to_yaml()
    loaded = load_vqgan(tmp_path / 'movqgan.ckpt')
    assert loaded.fingerprint() == vqgan.fingerprint()
    assert {'decoder.norm_out.conv_y.weight', 'decoder.mid.attn_1.norm.norm_layer.weight'} <= set(state)


LLAMAGEN = {
    'codebook_size': 32,
    'codebook_embed_dim': 4,
    'codebook_l2_norm': True,
    'encoder_ch_mult': of.LEVELS,
    'decoder_ch_mult': of.LEVELS,
    'z_channels': 8,
}
LLAMAGEN_CONFIG = VQGANConfig(ddconfig=of.IBQ_CONFIG, n_embed=32, embed_dim=4, quantizer='cosine')


@pytest.mark.parametrize('key', ['model', 'ema', 'state_dict', None])
def test_a_checkpoint_of_llamagen_gives_the_same_codes_and_pixels(tmp_path, images, key):
    model = of.LlamaGen()
    state = model.state_dict()
    torch.save({key: state, 'steps': 3} if key else state, tmp_path / 'vq.pt')
    (tmp_path / 'vq.yaml').write_text(LLAMAGEN_CONFIG.to_yaml())
    assert_same(load_vqgan(tmp_path / 'vq.pt'), model(images), images)
    assert_same(load_vqgan(convert(tmp_path / 'vq.pt')), model(images), images)


class HubLlamaGen(of.LlamaGen, PyTorchModelHubMixin):
    """``VQModelHF`` of FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model_hf.py``."""


def test_a_folder_of_llamagen_gives_the_same_codes_and_pixels(tmp_path, images):
    model = HubLlamaGen()
    model.save_pretrained(tmp_path, config=LLAMAGEN)
    if not (tmp_path / 'config.json').exists():
        (tmp_path / 'config.json').write_text(json.dumps(LLAMAGEN))
    content = json.loads((tmp_path / 'config.json').read_text())
    with pytest.raises(ValueError, match=r'lacks .*and .* more|has other shapes for'):
        load_vqgan(tmp_path)  # of the tests' width, which LlamaGen's config does not say: it is 128 there
    config, state, weights = read_llamagen(tmp_path)
    assert config.ddconfig['ch'] == 128
    assert (config.quantizer, config.n_embed, config.embed_dim) == ('cosine', 32, 4)
    vqgan = VQGAN(LLAMAGEN_CONFIG).eval()
    vqgan.load_state_dict(state)
    assert_same(vqgan, model(images), images)
    assert weights == tmp_path / 'model.safetensors'
    for changes, match in (
        ({'decoder_ch_mult': [1]}, 'decoder_ch_mult must be encoder'),
        ({'codebook_size': 0}, 'n_embed'),
    ):
        (tmp_path / 'config.json').write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=rf"config\.json is not a config of LlamaGen's VQModel: {match}"):
            read_llamagen(tmp_path)


def write_seed_voken(path, model, averaged):
    """A checkpoint of Lightning with a loss and, where ``averaged``, weights that only training goes on with."""
    state = dict(model.state_dict())
    if averaged:
        averages = {f'model_ema.{name.replace(".", "")}': value for name, value in state.items()}
        state = {name: torch.randn_like(value) for name, value in state.items()} | averages
        state |= {'model_ema.decay': torch.tensor(0.999), 'model_ema.num_updates': torch.tensor(-1)}
    torch.save({'state_dict': {**state, 'loss.discriminator.main.0.weight': torch.zeros(1)}, 'epoch': 329}, path)
    config = {'model': {'class_path': model.target, 'init_args': model.params}}
    path.with_suffix('.yaml').write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize('averaged', [True, False], ids=['averaged', 'plain'])
@pytest.mark.parametrize('create', [of.IBQ, lambda: of.OpenMAGVIT2(build_magvit2_state())], ids=['ibq', 'magvit2'])
def test_a_checkpoint_of_seed_voken_gives_the_same_codes_and_pixels(tmp_path, images, create, averaged):
    model = create()
    path = write_seed_voken(tmp_path / 'imagenet256.ckpt', model, averaged)
    assert_same(load_vqgan(path), model(images), images)


def build_magvit2_state():
    config = VQGANConfig(ddconfig=of.MAGVIT2_CONFIG, n_embed=32, embed_dim=5, quantizer='sign', networks='magvit2')
    vqgan = of.widen(VQGAN(config))
    state = vqgan.state_dict()
    state['encoder.conv_out.weight'].mul_(3)
    return state


def test_weights_of_open_magvit2_have_no_codebook_and_no_projections():
    names = {name.split('.')[0] for name in build('magvit2').state_dict()}
    assert names == {'encoder', 'decoder'}


def test_bits_of_a_code_are_signs_from_the_lowest_channel_on():
    quantizer = build('magvit2').quantize
    assert quantizer.search(torch.tensor([[0.3, -1.0, 2.0, 0.0, -0.1]])).tolist() == [0b00101]
    assert quantizer.codebook[0b00101].tolist() == [1, -1, 1, -1, -1]
    assert torch.equal(quantizer.search(quantizer.codebook), torch.arange(32))


# Files of each kind.


@KINDS
def test_each_kind_is_saved_and_loaded_again(tmp_path, kind, images):
    vqgan = build(kind)
    save_vqgan(vqgan, tmp_path / 'a.safetensors')
    loaded = load_vqgan(tmp_path / 'a.safetensors')
    assert loaded.config == vqgan.config
    assert loaded.fingerprint() == vqgan.fingerprint()
    assert_same(loaded, (vqgan.encode_to_codes(images), vqgan(images)), images)


# The hub: its cache is read by its own library, offline.


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """The snapshot of a pipeline of diffusers with a VQGAN in ``movq``, and of a file beside it."""
    pytest.importorskip('diffusers')
    of.movq().save_pretrained(tmp_path / 'repo' / 'movq')
    save_vqgan(build('ibq'), tmp_path / 'repo' / 'ibq.safetensors')
    (tmp_path / 'repo' / 'README.md').write_text('---\nlicense: openrail++\ntags:\n- art\n---\n# A pipeline\n')
    return put_repo(use_cache(monkeypatch, tmp_path / 'hub'), 'models', 'ada/pipeline', tmp_path / 'repo')


@pytest.mark.parametrize('revision', ['', '@main', f'@{COMMIT}'])
def test_an_address_of_the_hub_is_a_folder_or_a_file_with_licence_and_hash(pipeline, images, revision):
    for inside, weights in (('movq', 'movq/diffusion_pytorch_model.safetensors'), ('ibq.safetensors',) * 2):
        vqgan = load_vqgan(f'hf://ada/pipeline{revision}/{inside}')
        digest = sha256_of_file(pipeline / weights)
        assert vqgan.origin.describe() == f'licence openrail++, SHA-256 {digest}'
        assert vqgan.origin.describe(8) == f'licence openrail++, SHA-256 {digest[:8]}'
        local = load_vqgan(pipeline / inside)
        assert local.origin.describe() == f'SHA-256 {digest}'
        assert torch.equal(vqgan(images), local(images))


def test_a_repository_without_a_card_states_no_licence(pipeline):
    (pipeline / 'README.md').unlink()
    assert load_vqgan('hf://ada/pipeline/movq').origin.licence == 'not stated'
    (pipeline / 'README.md').write_text('no metadata')
    assert load_vqgan('hf://ada/pipeline/movq').origin.licence == 'not stated'


@pytest.mark.parametrize(
    ('address', 'error', 'match'),
    [
        ('hf://ada/pipeline', FileNotFoundError, r'has no config\.json; name the folder of its VQModel'),
        ('hf://ada/pipeline/vae', FileNotFoundError, r'hf://ada/pipeline/vae: the repository has no vae/config\.json'),
        ('hf://ada/pipeline/a.ckpt', FileNotFoundError, r'has no a\.ckpt'),
        ('hf://ada/pipeline@/movq', ValueError, 'has no revision after @'),
        ('hf://ada/pipeline/../movq', ValueError, r'a VQGAN on the hub is hf://USER/NAME\[@REVISION\]'),
        ('hf://ada', ValueError, 'a repository on the hub is hf://USER/NAME'),
        ('hf://ada/other/movq', ValueError, 'hf://ada/other/movq: HF_HUB_OFFLINE is set'),
    ],
)
@pytest.mark.usefixtures('pipeline')
def test_an_address_that_names_nothing_says_what_to_give(address, error, match):
    with pytest.raises(error, match=match):
        load_vqgan(address)


def test_a_preset_may_be_a_folder_of_the_hub(pipeline, monkeypatch):
    preset = VQGANPreset(name='a', config=CONFIGS['movq'], url='hf://ada/pipeline/movq', licence='apache-2.0')
    monkeypatch.setitem(PRESETS, 'a', preset)
    assert load_vqgan('a').origin.licence == 'apache-2.0'


def test_sets_keep_addresses_of_the_hub_as_they_are(tmp_path):
    address = 'hf://ada/pipeline/movq'
    assert absolute(address) == without_folder(address) == find_here(address, tmp_path, '--dad-vqgan') == address


def test_info_shows_licence_and_hash(pipeline, tmp_path, monkeypatch, capsys):
    from timm_dad.commands.info import main as info

    monkeypatch.chdir(tmp_path)
    info(['--dad-vqgan', 'hf://ada/pipeline/movq', '--batches', '1', '--batch-size', '8', '--dad-cache', '0'])
    AcceleratorState._reset_state(reset_partial_state=True)
    digest = sha256_of_file(pipeline / 'movq' / 'diffusion_pytorch_model.safetensors')
    assert f'VQGAN: licence openrail++, SHA-256 {digest}\n' in capsys.readouterr().out


def test_training_shows_licence_and_hash_of_what_is_public(pipeline, teacher, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    digest = sha256_of_file(pipeline / 'ibq.safetensors')
    for spec, shown in (('hf://ada/pipeline/ibq.safetensors', f'; licence openrail++, SHA-256 {digest[:12]}'),
                        (str(pipeline / 'ibq.safetensors'), '')):  # fmt: skip
        augment = DADAugment(teacher, load_vqgan(spec), **HALF)
        args = SimpleNamespace(dad_vqgan=spec, dad_cache=0)
        log_models(args, SimpleNamespace(teacher=None), augment, None)
        assert f'VQGAN: {spec}, 32 codes of 4x4 pixels{shown}' in caplog.messages


def test_presets_of_folders_are_as_diffusers_scripts_and_llamagens_code_describe_them():
    # scripts/convert_kandinsky_to_diffusers.py and scripts/convert_amused.py of huggingface/diffusers.
    movq = {'in_channels': 3, 'out_channels': 3, 'latent_channels': 4, 'num_vq_embeddings': 16384, 'vq_embed_dim': 4,
            'block_out_channels': (128, 256, 256, 512), 'layers_per_block': 2, 'norm_type': 'spatial',
            'down_block_types': ('DownEncoderBlock2D',) * 3 + ('AttnDownEncoderBlock2D',),
            'up_block_types': ('AttnUpDecoderBlock2D',) + ('UpDecoderBlock2D',) * 3}  # fmt: skip
    amused = {'in_channels': 3, 'out_channels': 3, 'latent_channels': 64, 'num_vq_embeddings': 8192,
              'block_out_channels': [128, 256, 256, 512, 768], 'layers_per_block': 2, 'sample_size': 32,
              'down_block_types': ['DownEncoderBlock2D'] * 5, 'up_block_types': ['UpDecoderBlock2D'] * 5,
              'mid_block_add_attention': False, 'lookup_from_codebook': True}  # fmt: skip
    for name, content in (('kandinsky-f8-16384', movq), ('amused-f16-8192', amused)):
        config, preset = config_of_diffusers({'_class_name': 'VQModel', **content}), PRESETS[name].config
        resolutions = {'resolution': 256, 'attn_resolutions': preset.ddconfig['attn_resolutions']}
        assert replace(config, ddconfig={**config.ddconfig, **resolutions}) == preset
        assert len(config.ddconfig['attn_resolutions']) == len(preset.ddconfig['attn_resolutions'])
    sizes = {'codebook_size': 16384, 'codebook_embed_dim': 8, 'codebook_l2_norm': True, 'z_channels': 256}
    for name, widths in (('llamagen-f8-16384', [1, 2, 2, 4]), ('llamagen-f16-16384', [1, 1, 2, 2, 4])):
        content = {**sizes, 'encoder_ch_mult': widths, 'decoder_ch_mult': widths}
        assert config_of_llamagen(content) == PRESETS[name].config


def test_fingerprints_of_kinds_differ():
    assert len({build(kind).fingerprint() for kind in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'n_embed': 31}, r'n_embed must be 2 \*\* embed_dim, 32, for signs, got 31'),
        ({'embed_dim': 4, 'n_embed': 16}, 'embed_dim of a Sign quantizer must be z_channels, 5, got 4'),
    ],
)
def test_a_codebook_of_signs_has_the_size_of_its_cube(changes, match):
    with pytest.raises(ValueError, match=match):
        VQGANConfig(**{**vars(CONFIGS['magvit2']), **changes})


def test_codes_by_angle_of_seed_vokens_vqmodel_are_refused(tmp_path):
    text = yaml.safe_dump({'model': {'class_path': 'src.IBQ.models.ibqgan.VQModel', 'init_args': {
        **of.IBQ.params, 'l2_normalize': True}}})  # fmt: skip
    (tmp_path / 'a.yaml').write_text(text)
    with pytest.raises(ValueError, match=r'a\.yaml: l2_normalize searches codes by angle.*got True'):
        VQGANConfig.from_yaml(tmp_path / 'a.yaml')


# What every kind can do.


@KINDS
@pytest.mark.parametrize(
    'attack',
    [AttackConfig(eps=2.0, step_size=2.0), LatentAttackConfig(), CodeAttackConfig(neighbours=6)],
    ids=['pixels', 'latent', 'codes'],
)
def test_every_attack_changes_codes_and_its_views_are_made_of_them(teacher, x_pix, kind, attack):
    vqgan = build(kind)
    augment = DADAugment(teacher, vqgan, **HALF, attack=attack)
    views = augment.make_views(x_pix, TARGET)
    before = vqgan.encode_to_codes(x_pix)
    assert ((views.dad_codes != before).flatten(1).float().mean(dim=1) > 0.01).all()
    torch.testing.assert_close(views.x_dad, vqgan.decode_codes(views.dad_codes))
    assert 0 <= views.dad_codes.min() <= views.dad_codes.max() < 32
    if attack.space == 'codes':
        near = vqgan.neighbours(before, 6)
        assert ((views.dad_codes == before) | (near == views.dad_codes[..., None]).any(dim=-1)).all()


@KINDS
def test_neighbours_are_the_nearest_other_codes(kind):
    vqgan = build(kind)
    distances = torch.cdist(vqgan.codebook.double(), vqgan.codebook.double()).fill_diagonal_(torch.inf)
    near = vqgan.neighbours(torch.arange(32).view(4, 8), 9).view(32, 9)
    assert not (near == torch.arange(32)[:, None]).any()
    assert all(len(row.unique()) == 9 for row in near)
    torch.testing.assert_close(distances.gather(1, near), distances.sort(dim=1).values[:, :9])


@KINDS
def test_the_latent_attack_ascends_what_it_says(teacher, x_pix, kind):
    """A first step along the gradient raises the teacher's loss more often than noise of its length does."""
    vqgan = build(kind)

    def loss(vqgan_attack):
        torch.manual_seed(1)
        augment = DADAugment(teacher, vqgan, **HALF, attack=vqgan_attack)
        logits = augment.make_views(x_pix, TARGET).dad_logits
        return torch.nn.functional.cross_entropy(logits, TARGET)

    attacked = loss(LatentAttackConfig(eps=0.5, step_size=0.25, num_steps=5))
    assert attacked > loss(LatentAttackConfig(eps=0.5, num_steps=0, start_size=1.0))


def test_latents_of_llamagen_have_length_1_and_their_length_changes_no_code(x_pix):
    vqgan = build('llamagen')
    z = vqgan.encode(x_pix)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4, 4, 4))
    torch.testing.assert_close(vqgan.codebook.norm(dim=1), torch.ones(32))
    assert torch.equal(vqgan.codes_of(7 * z), vqgan.codes_of(z))
    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(vqgan.decode(vqgan.quantize_straight_through(z)).sum(), z)
    assert (gradient * z).sum(dim=1).abs().max() < 1e-4 * gradient.norm(dim=1).max()


@KINDS
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_is_near_full_precision(teacher, x_pix, kind, precision):
    vqgan = build(kind)
    codes, x_vq = vqgan.encode_to_codes(x_pix), vqgan(x_pix)
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    assert vqgan.encode(x_pix).dtype == vqgan(x_pix).dtype == torch.float32
    assert (vqgan.encode_to_codes(x_pix) == codes).float().mean() > 0.7
    assert (vqgan.decode_codes(codes) - x_vq).abs().mean() < 0.02
    views = DADAugment(teacher, vqgan, **HALF, attack=LatentAttackConfig()).make_views(x_pix, TARGET)
    assert views.x_dad.isfinite().all()


@KINDS
def test_a_tiny_one_has_the_codes_of_the_original(tmp_path, kind, x_pix, teacher):
    original = build(kind)
    tiny = create_tiny(original, 16, ch=8).eval()
    assert torch.equal(tiny.codebook, original.codebook)
    assert tiny.encode(x_pix).shape == original.encode(x_pix).shape
    save_vqgan(tiny, tmp_path / 'tiny.safetensors')
    loaded = load_vqgan(tmp_path / 'tiny.safetensors')
    assert loaded.config == tiny.config
    targets = make_targets(original, x_pix)
    torch.testing.assert_close(targets.pictures.clamp(0, 1), original(x_pix))
    attack = LatentAttackConfig()
    views = DADAugment(teacher, original, **HALF, attack=attack, gradient_vqgan=loaded).make_views(x_pix, TARGET)
    assert torch.equal(views.x_dad, original.decode_codes(views.dad_codes))
    assert default_ch(original.config, 16) >= 4


@KINDS
def test_a_tiny_one_learns_to_imitate_it(kind, x_pix):
    original = build(kind)
    accelerator = Accelerator(cpu=True)
    trainer = Distiller(create_tiny(original, 16, ch=8), original, accelerator, OptimizerConfig(steps=6, lr=3e-3))
    losses = [trainer.step(x_pix)['loss'].item() for _ in range(6)]
    assert losses[-1] < 0.98 * losses[0]
    shared = original.codebook if kind == 'magvit2' else original.quantize.embedding.weight
    assert torch.equal(trainer.vqgan.codebook if kind == 'magvit2' else trainer.vqgan.quantize.embedding.weight, shared)


@pytest.mark.parametrize(
    ('kind', 'attack'),
    [('movq', ['pixels']), ('llamagen', ['latent']), ('magvit2', ['codes', '--dad-neighbours', '8'])],
    ids=['movq', 'llamagen', 'magvit2'],
)
def test_a_set_of_codes_is_made_and_decoded(tmp_path, kind, attack):
    vqgan = build(kind)
    save_vqgan(vqgan, tmp_path / 'vqgan.safetensors')
    data = write_greys(tmp_path / 'data', count=8)
    model = timm.create_model('test_resnet', num_classes=4)
    save_file(model.state_dict(), tmp_path / 'teacher.safetensors')
    flags = ['--dad-teacher', f'timm:test_resnet/{tmp_path / "teacher.safetensors"}', '--img-size', '16']
    flags += ['--dad-vqgan', str(tmp_path / 'vqgan.safetensors'), '--format', 'codes']
    flags += ['--dad-attack', *attack, '--batch-size', '4', '--workers', '0']
    generate(['--data-dir', str(data), '--output', str(tmp_path / 'set'), *flags])
    dad_set = DADSet(tmp_path / 'set')
    dad_set.decoder = load_vqgan(tmp_path / 'vqgan.safetensors')
    check_decoder(dad_set, dad_set.decoder)
    item = next(dad_set.manifests()).items[3]
    image = pil_to_tensor(dad_set.image(3, 0, item['name'])).float() / 255
    codes = unpack_codes(dad_set._read(3, 0, item['name']), (4, 4), 32)
    assert (vqgan.decode_codes(codes[None])[0] - image).abs().max() <= 0.5001 / 255
    with pytest.raises(ValueError, match='its codes come from another VQGAN'):
        check_decoder(dad_set, build('ibq'))


@KINDS
def test_multiply_adds_are_those_of_networks_and_search(kind, x_pix):
    vqgan = build(kind)
    counted = count_macs(lambda: vqgan.reconstruct(x_pix[:1]))
    search = 0 if kind == 'magvit2' else 16 * 32 * 4
    assert vqgan.config.search_macs * 16 == search
    assert pass_macs(vqgan.config, 16) == counted


def test_one_code_is_too_little_for_the_norms_of_open_magvit2():
    vqgan = build('magvit2')
    vqgan.check_size(4, 8)
    with pytest.raises(ValueError, match=r'at least one image side must exceed 4, .* two codes, got 4x4'):
        vqgan.check_size(4, 4)
