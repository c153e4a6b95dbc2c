import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_dad.common.extras import require_extra
from timm_dad.common.tf32 import without_tf32
from timm_dad.vqgan.load import load_vqgan
from timm_dad.vqgan.model import VQGAN, VQGANConfig
from timm_dad.vqgan.nearest import likeliest_codes, nearest_codes


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


class TamingVQModel(nn.Module):
    """``taming.models.vqgan.VQModel``, which does not import beside today's Lightning, from taming's own parts."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(**config.ddconfig)
        self.decoder = Decoder(**config.ddconfig)
        self.quantize = VectorQuantizer(config.n_embed, config.embed_dim, beta=0.25)
        self.quant_conv = nn.Conv2d(config.ddconfig['z_channels'], config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.ddconfig['z_channels'], 1)

    def codes(self, x_pix):
        return self.quantize(self.quant_conv(self.encoder(2 * x_pix - 1)))[2][2]

    def decode(self, quant):
        return (self.decoder(self.post_quant_conv(quant)).clamp(-1, 1) + 1) / 2

    def forward(self, x_pix):
        return self.decode(self.quantize(self.quant_conv(self.encoder(2 * x_pix - 1)))[0])


@pytest.fixture
def reference(vqgan):
    model = TamingVQModel(vqgan.config)
    model.load_state_dict(vqgan.state_dict())
    return model.eval().requires_grad_(False)


@pytest.fixture
def save_vqgan(vqgan, tmp_path):
    """Write a VQGAN as ``NAME.safetensors`` and ``NAME.yaml``, the latter as taming's own configs are."""

    def save(dtype=torch.float32, **params):
        path = tmp_path / 'vqgan.safetensors'
        save_file({name: value.to(dtype) for name, value in vqgan.state_dict().items()}, path)
        config = {'ddconfig': dict(vqgan.config.ddconfig), 'n_embed': 32, 'embed_dim': 4, **params}
        lossconfig = {'target': 'taming.modules.losses.DummyLoss'}
        model = {'target': 'taming.models.vqgan.VQModel', 'params': {**config, 'lossconfig': lossconfig}}
        path.with_suffix('.yaml').write_text(yaml.safe_dump({'model': {'base_learning_rate': 4.5e-6, **model}}))
        return path

    return save


def taming_codes(z, codebook):
    quantizer = VectorQuantizer(*codebook.shape, beta=0.25)
    quantizer.embedding.weight.data = codebook
    with torch.no_grad():
        return quantizer(z.t().reshape(1, z.shape[1], len(z), 1))[2][2].flatten()


@pytest.mark.parametrize(
    ('num_vectors', 'n_embed', 'dim'),
    [(1, 1, 1), (7, 5, 3), (100, 32, 4), (784, 1024, 256), (3 * 784, 2**12 + 1, 8), (2048, 16384, 4), (300, 2**14, 3)],
)
def test_codes_are_those_of_taming(num_vectors, n_embed, dim):
    z, codebook = torch.randn(num_vectors, dim), torch.randn(n_embed, dim)
    codes = nearest_codes(z, codebook)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, taming_codes(z, codebook))


@pytest.mark.parametrize('scale', [1e-4, 1e3])
def test_codes_are_those_of_taming_where_rounding_makes_ties(scale):
    # An untrained codebook is tiny beside the latents (and the other way round): distances round to equal numbers.
    z, codebook = torch.randn(2000, 4), torch.empty(4096, 4).uniform_(-scale, scale)
    assert torch.equal(nearest_codes(z, codebook), taming_codes(z, codebook))


def test_codes_are_those_of_taming_on_exact_ties():
    # On a grid of integers, midpoints are as near to several codes, and every code stands in the book three times.
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    codebook = grid.repeat(3, 1)[torch.randperm(3 * len(grid))]
    z = torch.cartesian_prod(*[torch.arange(7.0) / 2] * 3).repeat(60, 1)
    assert len(z) * len(codebook) > 2**22 - 2**19
    codes = nearest_codes(z, codebook)
    assert torch.equal(codes, taming_codes(z, codebook))
    assert ((z - codebook[codes]).abs().amax(dim=1) <= 0.5).all()


@pytest.mark.parametrize(('num_vectors', 'n_embed', 'dim'), [(1, 1, 1), (100, 32, 4), (3 * 784, 2**12 + 1, 8)])
def test_likeliest_codes_have_the_largest_logit(num_vectors, n_embed, dim):
    z, weight, bias = torch.randn(num_vectors, dim), torch.randn(n_embed, dim), torch.randn(n_embed)
    codes = likeliest_codes(z, weight, bias)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, (z @ weight.t() + bias).argmax(dim=1))


@pytest.mark.usefixtures('tf32')
@pytest.mark.parametrize(
    'search',
    [lambda z, codes: nearest_codes(z, codes), lambda z, codes: likeliest_codes(z, codes, torch.zeros(len(codes)))],
)
def test_codes_are_searched_without_tf32(search, monkeypatch):
    switches = []
    z, codes = torch.randn(5, 4), torch.randn(9, 4)
    expected, argmin, argmax = search(z, codes), torch.Tensor.argmin, torch.Tensor.argmax

    def watched(find):
        def found(*args, **kwargs):
            switches.append(torch.backends.cuda.matmul.allow_tf32)
            return find(*args, **kwargs)

        return found

    monkeypatch.setattr(torch.Tensor, 'argmin', watched(argmin))
    monkeypatch.setattr(torch.Tensor, 'argmax', watched(argmax))
    assert torch.equal(search(z, codes), expected)
    assert switches == [False]
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures('tf32')
def test_the_switch_of_tf32_is_put_back_after_an_error():
    def fail():
        with without_tf32():
            assert not torch.backends.cuda.matmul.allow_tf32
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.backends.cuda.matmul.allow_tf32


def switches():
    """What torch's switches say; it refuses to tell an older one where a newer one was used."""
    parts = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, 'matmul', None))
    found = [getattr(part, 'fp32_precision', None) for part in parts]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append('mixed')
    return found


@pytest.mark.parametrize(
    ('part', 'value'),
    [(None, 'high'), (None, 'medium'), ('cuda', 'tf32'), ('mkldnn', 'bf16'), ('mkldnn', 'tf32'), (None, 'highest')],
)
def test_any_switch_of_tf32_is_off_and_then_as_it_was(part, value):
    if part and not hasattr(torch.backends.cuda.matmul, 'fp32_precision'):
        pytest.skip('torch before 2.9 has one switch')
    switch, before = getattr(torch.backends, part or '', None), switches()
    try:
        if part:
            switch.matmul.fp32_precision = value
        else:
            torch.set_float32_matmul_precision(value)
        found = switches()
        with without_tf32():
            assert {'tf32', 'bf16'}.isdisjoint(switches()[:2])
            assert switches()[2:] == ['highest', False]
        assert switches() == found
    finally:
        if part:
            switch.matmul.fp32_precision = before[part == 'mkldnn']
        else:
            torch.set_float32_matmul_precision('highest')
    assert switches()[2:] == before[2:] == ['highest', False]


def test_a_vqgan_says_what_is_inside(vqgan):
    assert repr(vqgan) == 'VQGAN(32 codes of 4 channels, factor 2, nearest, taming)'


def test_logits_are_never_whole():
    with LargestTensor() as ours:
        likeliest_codes(torch.randn(2048, 4), torch.randn(16384, 4), torch.randn(16384))
    assert 2048 < ours.numel < 2048 * 16384 / 4


def test_a_code_is_its_own_nearest_code():
    codebook = torch.randn(64, 4)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(64))


def test_no_vectors_have_no_codes():
    assert nearest_codes(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


def test_neither_distances_nor_one_hot_are_ever_whole():
    z, codebook = torch.randn(2048, 4), torch.randn(16384, 4)
    with LargestTensor() as ours:
        nearest_codes(z, codebook)
    with LargestTensor() as theirs:
        taming_codes(z, codebook)
    assert theirs.numel >= len(z) * len(codebook)  # the meter works
    assert len(z) < ours.numel < len(z) * len(codebook) / 4


def test_a_reconstruction_never_holds_the_distances_whole(vqgan_config, x_pix):
    config = VQGANConfig(ddconfig=vqgan_config.ddconfig, n_embed=2**15, embed_dim=4)
    vqgan = VQGAN(config).eval()
    images = x_pix.repeat(2, 1, 1, 1)
    with LargestTensor() as meter:
        vqgan(images)
    assert meter.numel < len(images) * 8 * 8 * 2**15 / 2


@pytest.mark.parametrize(
    ('z', 'codebook'), [((5, 3), (8, 4)), ((5,), (8, 5)), ((2, 5, 4), (8, 4)), ((5, 4), (1, 8, 4))]
)
def test_vectors_and_codes_of_other_dimensions_are_refused(z, codebook):
    with pytest.raises(ValueError, match=r'z \[N, D\] and codebook \[K, D\] must share D, got'):
        nearest_codes(torch.randn(z), torch.randn(codebook))


def test_encode_and_decode_have_the_documented_shapes(vqgan, x_pix):
    images = torch.cat([x_pix, x_pix], dim=3)[:, :, :12]  # 12 x 32
    codes = vqgan.encode_to_codes(images)
    assert codes.shape == (4, 6, 16)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 32
    assert len(codes.unique()) > 4
    assert vqgan.encode(images).shape == (4, 4, 6, 16)
    assert vqgan.decode_codes(codes).shape == images.shape
    assert vqgan(images).shape == images.shape
    assert vqgan.codebook.shape == (32, 4)
    assert vqgan.config.factor == 2


def test_codes_lie_where_taming_has_them(vqgan, reference, x_pix):
    images = torch.cat([x_pix, x_pix], dim=3)[:, :, :12]  # not square: height and width do not mix up
    assert torch.equal(vqgan.encode_to_codes(images).flatten(), reference.codes(images).flatten())


# taming passes the codes on as z + (code - z): in fp32 that rounds, and the untrained decoder amplifies it.
@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_reconstruction_is_that_of_taming(vqgan, reference, x_pix, dtype, atol):
    vqgan, reference, x_pix = vqgan.to(dtype), reference.to(dtype), x_pix.to(dtype)
    x_vq = vqgan(x_pix)
    torch.testing.assert_close(x_vq, reference(x_pix), atol=atol, rtol=0)
    assert torch.equal(x_vq, vqgan.decode_codes(vqgan.encode_to_codes(x_pix)))
    assert x_vq.std() > 0.05  # not one grey


def test_decode_codes_is_the_decode_path_of_taming(vqgan, reference):
    codes = torch.randint(32, (2, 6, 8))
    quant = reference.quantize.get_codebook_entry(codes.flatten(), (2, 6, 8, 4))
    torch.testing.assert_close(vqgan.decode_codes(codes), reference.decode(quant), atol=1e-5, rtol=0)


def test_decode_of_code_vectors_is_decode_codes_before_clamping(vqgan):
    codes = torch.randint(32, (2, 8, 8))
    images = vqgan.decode(vqgan.codebook[codes].permute(0, 3, 1, 2))
    assert (images < 0).any()
    assert (images > 1).any()
    torch.testing.assert_close(vqgan.decode_codes(codes), images.clamp(0, 1), atol=1e-5, rtol=0)


def test_reconstruction_is_in_range_and_carries_no_gradient(vqgan, x_pix):
    x_vq = vqgan(x_pix.requires_grad_(True))
    assert x_vq.min() >= 0
    assert x_vq.max() <= 1
    assert not x_vq.requires_grad


def test_channels_last_images_reconstruct_the_same(vqgan, x_pix):
    x_vq = vqgan(x_pix.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(x_vq, vqgan(x_pix), atol=1e-5, rtol=0)


def test_parameter_names_are_those_of_taming(vqgan, vqgan_config):
    expected = {name: value.shape for name, value in TamingVQModel(vqgan_config).state_dict().items()}
    assert {name: value.shape for name, value in vqgan.state_dict().items()} == expected


def test_building_prints_nothing(vqgan_config, capsys):
    VQGAN(vqgan_config)
    assert capsys.readouterr().out == ''


@pytest.fixture
def vqgan_f8(vqgan_config):
    torch.manual_seed(1)
    vqgan = VQGAN(VQGANConfig(ddconfig={**vqgan_config.ddconfig, 'ch_mult': [1, 1, 1, 1]}, n_embed=64, embed_dim=4))
    nn.init.normal_(vqgan.codebook)
    return vqgan.eval()


@pytest.mark.parametrize('size', [(16, 20), (21, 16), (9, 23), (5, 5)])
def test_other_sizes_are_padded_by_reflection_and_cropped_back(vqgan_f8, size):
    x_pix = torch.rand(2, 3, *size)
    below, right = -size[0] % 8, -size[1] % 8
    # Mirrored at the last row and column, which are not repeated: written out, not with torch's own padding.
    rows = [*range(size[0]), *(size[0] - 2 - k for k in range(below))]
    columns = [*range(size[1]), *(size[1] - 2 - k for k in range(right))]
    padded = x_pix[:, :, rows][:, :, :, columns]
    x_vq = vqgan_f8(x_pix)
    assert x_vq.shape == x_pix.shape
    torch.testing.assert_close(x_vq, vqgan_f8(padded)[..., : size[0], : size[1]], atol=1e-6, rtol=0)
    assert torch.equal(vqgan_f8.encode_to_codes(x_pix), vqgan_f8.encode_to_codes(padded))
    assert vqgan_f8.encode(x_pix).shape[-2:] == (len(rows) // 8, len(columns) // 8)


@pytest.mark.parametrize('size', [(4, 16), (16, 1)])
def test_images_too_small_to_be_mirrored_are_refused(vqgan_f8, size):
    with pytest.raises(ValueError, match=rf'sides must exceed half of 8.*got {size[0]}x{size[1]}'):
        vqgan_f8(torch.rand(1, 3, *size))


@pytest.mark.parametrize('value', [1.01, -0.01, torch.nan, torch.inf, 255.0])
@pytest.mark.parametrize('method', ['forward', 'encode', 'encode_to_codes'])
def test_values_outside_the_range_are_refused_in_every_batch(vqgan, x_pix, method, value):
    for _ in range(2):
        getattr(vqgan, method)(x_pix)
        wrong = x_pix.clone()
        wrong[2, 1, 3, 4] = value
        with pytest.raises(ValueError, match=r'x_pix is in \[0, 1\], got values from .* to .*normalized'):
            getattr(vqgan, method)(wrong)


def test_rounding_errors_are_no_wrong_range(vqgan, x_pix):
    x_pix[0, 0, 0, 0], x_pix[0, 0, 0, 1] = 1 + 1e-6, -1e-6
    assert vqgan(x_pix).isfinite().all()


def test_off_the_cpu_only_the_first_batch_is_looked_at(vqgan, x_pix, monkeypatch):
    # A look waits for the device. There may be none here: pretend that these tensors are on one.
    class OnDevice(torch.Tensor):
        is_cpu = False

    looks = []
    aminmax = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, 'aminmax', lambda self: looks.append(1) or aminmax(self))
    vqgan(x_pix.as_subclass(OnDevice))
    at_first = len(looks)
    vqgan(x_pix.as_subclass(OnDevice))
    assert at_first > 0
    assert len(looks) == at_first


@pytest.mark.parametrize('method', ['forward', 'encode', 'encode_to_codes'])
@pytest.mark.parametrize('size', [(15, 16), (16, 17)])
def test_strict_size_refuses_what_the_factor_does_not_divide(vqgan, method, size):
    vqgan.strict_size = True
    match = rf'image size must be a multiple of 2, the factor of the VQGAN, got {size[0]}x{size[1]}'
    with pytest.raises(ValueError, match=match):
        getattr(vqgan, method)(torch.rand(1, 3, *size))


def test_the_factor_counts_the_downsamplings(vqgan_config):
    ddconfig = {**vqgan_config.ddconfig, 'ch_mult': [1, 1, 1, 1]}
    config = VQGANConfig(ddconfig=ddconfig, n_embed=8, embed_dim=4)
    assert config.factor == 8
    vqgan = VQGAN(config, strict_size=True).eval()
    assert vqgan.encode_to_codes(torch.rand(1, 3, 16, 24)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r'multiple of 8.*got 20x24.*nearest: (16|24)x24'):
        vqgan(torch.rand(1, 3, 20, 24))


@pytest.mark.parametrize('key', ['ch', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'z_channels', 'resolution'])
def test_a_ddconfig_without_a_key_is_refused(vqgan_config, key):
    ddconfig = {name: value for name, value in vqgan_config.ddconfig.items() if name != key}
    with pytest.raises(ValueError, match=rf"ddconfig lacks \['{key}'\]"):
        VQGANConfig(ddconfig=ddconfig, n_embed=32, embed_dim=4)


@pytest.mark.parametrize('sizes', [{'n_embed': 0, 'embed_dim': 4}, {'n_embed': 32, 'embed_dim': -1}])
def test_sizes_that_are_not_positive_are_refused(vqgan_config, sizes):
    match = f'n_embed and embed_dim are at least 1, got {sizes["n_embed"]} and {sizes["embed_dim"]}'
    with pytest.raises(ValueError, match=match):
        VQGANConfig(ddconfig=vqgan_config.ddconfig, **sizes)


def test_from_yaml_reads_the_config_of_taming(save_vqgan, vqgan_config):
    config = VQGANConfig.from_yaml(save_vqgan().with_suffix('.yaml'))
    assert config == vqgan_config


@pytest.mark.parametrize('quantizer', ['nearest', 'gumbel'])
def test_to_yaml_is_read_back(tmp_path, vqgan_config, quantizer):
    config = VQGANConfig(ddconfig=vqgan_config.ddconfig, n_embed=8, embed_dim=4, quantizer=quantizer)
    (tmp_path / 'a.yaml').write_text(config.to_yaml())
    assert VQGANConfig.from_yaml(tmp_path / 'a.yaml') == config


@pytest.mark.parametrize(
    ('target', 'quantizer'),
    [
        ('taming.models.vqgan.VQModel', 'nearest'),
        ('ldm.models.autoencoder.VQModelInterface', 'nearest'),
        ('taming.models.vqgan.GumbelVQ', 'gumbel'),
    ],
)
def test_the_target_says_the_quantizer(tmp_path, vqgan_config, target, quantizer):
    (tmp_path / 'a.yaml').write_text(vqgan_config.to_yaml().replace('taming.models.vqgan.VQModel', target))
    assert VQGANConfig.from_yaml(tmp_path / 'a.yaml').quantizer == quantizer


@pytest.mark.parametrize('target', ['ldm.models.autoencoder.AutoencoderKL', 'taming.models.vqgan.EMAVQ'])
def test_the_yaml_of_another_model_is_refused(tmp_path, vqgan_config, target):
    (tmp_path / 'a.yaml').write_text(vqgan_config.to_yaml().replace('taming.models.vqgan.VQModel', target))
    with pytest.raises(ValueError, match=rf'a\.yaml describes a {target}, but a VQGAN is one of VQModel'):
        VQGANConfig.from_yaml(tmp_path / 'a.yaml')


def test_a_remapped_codebook_is_refused(tmp_path, vqgan_config):
    (tmp_path / 'a.yaml').write_text(vqgan_config.to_yaml() + '    remap: used.npy\n')
    with pytest.raises(ValueError, match=r'a\.yaml: remap leaves codes out.*got used\.npy'):
        VQGANConfig.from_yaml(tmp_path / 'a.yaml')


@pytest.mark.parametrize(('key', 'value'), [('double_z', True), ('attn_type', 'linear'), ('tanh_out', True)])
def test_what_tamings_modules_do_not_build_is_refused(vqgan_config, key, value):
    with pytest.raises(ValueError, match=f'{key} of ddconfig must be .* got {value}'):
        VQGANConfig(ddconfig={**vqgan_config.ddconfig, key: value}, n_embed=8, embed_dim=4)


def test_a_gumbel_quantizer_of_another_width_is_refused(vqgan_config):
    with pytest.raises(ValueError, match='embed_dim of a Gumbel quantizer must be z_channels, 4, got 3'):
        VQGANConfig(ddconfig=vqgan_config.ddconfig, n_embed=8, embed_dim=3, quantizer='gumbel')


def test_a_vqgan_config_that_is_no_yaml_says_where(tmp_path):
    path = tmp_path / 'other.yaml'
    for content, error in (
        (b'{"model": ', 'line 1, column 11: not valid YAML'),
        (b'\xff', 'line 1, column 1: not UTF-8'),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'other\.yaml, {error}'):
            VQGANConfig.from_yaml(path)


@pytest.mark.parametrize(
    'content',
    [
        '',
        'model: []',
        '3',
        'model: null',
        'model: {params: {ddconfig: {}}}',
        'model: {params: {n_embed: 32, embed_dim: 4}}',
        'model: {params: {n_embed: 32, embed_dim: 4, ddconfig: null}}',
    ],
)
def test_a_yaml_that_is_no_vqgan_config_is_refused(tmp_path, content):
    path = tmp_path / 'other.yaml'
    path.write_text(content)
    with pytest.raises(ValueError, match=r'other\.yaml is no VQGAN config: model\.params needs ddconfig'):
        VQGANConfig.from_yaml(path)


class HiddenPackage:
    """Finder for which ``package`` is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == self.package:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


@pytest.fixture
def hide(monkeypatch):
    """Make ``import PACKAGE`` fail as if it were not installed."""

    def hide(package):
        for name in [name for name in sys.modules if name.split('.')[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, 'meta_path', [HiddenPackage(package), *sys.meta_path])

    return hide


def test_without_taming_the_pip_line_is_said(hide, vqgan_config, save_vqgan):
    path = save_vqgan()
    hide('taming')
    for build in (lambda: VQGAN(vqgan_config), lambda: load_vqgan(path)):
        with pytest.raises(ImportError, match=r'^taming is missing; run: pip install "timm-dad\[vqgan\]"$'):
            build()


def test_a_module_that_an_installed_extra_lacks_is_named_itself(monkeypatch, tmp_path):
    # The extra is there and broken: to install it again would not help.
    (tmp_path / 'half_installed.py').write_text('import surely_not_installed\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'surely_not_installed'"):
        require_extra('half_installed', 'vqgan')


def test_an_installed_extra_is_imported():
    assert require_extra('json', 'vqgan').dumps([1]) == '[1]'
