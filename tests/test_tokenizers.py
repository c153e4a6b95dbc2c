"""Kinds of VQGANs: each computes what its own library does, from its files, and takes every attack."""

import pytest
import reference_tokenizers as of
import torch
import yaml

from timm_dad.common.macs import count_macs
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.convert import convert
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.distill import create_tiny, default_ch, make_targets, pass_macs

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
def test_multiply_adds_are_those_of_networks_and_search(kind, x_pix):
    vqgan = build(kind)
    counted = count_macs(lambda: vqgan.reconstruct(x_pix[:1]))
    search = 0 if kind == 'magvit2' else 16 * 32 * 4
    assert vqgan.config.search_macs * 16 == search
    assert pass_macs(vqgan.config, 16) == counted


def test_one_code_is_too_little_for_the_norms_of_open_magvit2():
    vqgan = build('magvit2')
    vqgan.check_size(4, 8)
    with pytest.raises(ValueError, match=r'one image side at least must be more than 4, .* two codes, got 4x4'):
        vqgan.check_size(4, 4)
