"""Discretization: images to the nearest codes of a frozen VQGAN, and back (Esser et al. 2021, arXiv:2012.09841).

In DAD it is ``Q(x) = decode(nearest_code(encode(x)))`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3).
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from timm_dad.common.extras import require_extra
from timm_dad.common.hashing import content_hash
from timm_dad.common.text_files import read_yaml
from timm_dad.vqgan.nearest import likeliest_codes, nearest_codes
from timm_dad.vqgan.tiny import TinyDecoder, TinyEncoder

_TOLERANCE = 1e-3  # pixels may leave [0, 1] by this much: rounding

# Quantizer and networks of each class that a YAML's model.target may name: of taming, latent-diffusion, and our own.
_CLASSES: dict[str, Any] = {
    'VQModel': {'quantizer': 'nearest'},
    'VQModelInterface': {'quantizer': 'nearest'},
    'GumbelVQ': {'quantizer': 'gumbel'},
    'TinyVQModel': {'quantizer': 'nearest', 'networks': 'tiny'},
    'TinyGumbelVQ': {'quantizer': 'gumbel', 'networks': 'tiny'},
}

# Keys of latent-diffusion's ddconfig that taming's modules take without a word, and what they build.
_BUILT = {'double_z': False, 'attn_type': 'vanilla', 'use_linear_attn': False, 'tanh_out': False}


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Architecture of a VQGAN, in the words of taming-transformers' YAML (``model.params``).

    Raises:
        ValueError: If a size is not positive, or ``ddconfig`` lacks a key or asks for what the networks do not do.
    """

    ddconfig: Mapping[str, Any]  # arguments of taming's Encoder and Decoder: ch, ch_mult, z_channels, ...
    n_embed: int  # codes in the codebook
    embed_dim: int  # channels of one code
    quantizer: Literal['nearest', 'gumbel'] = 'nearest'  # of VQModel, or the likeliest by a projection (GumbelVQ)
    networks: Literal['taming', 'tiny'] = 'taming'

    def __post_init__(self) -> None:
        required = ('ch', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'in_channels', 'out_ch', 'z_channels')
        missing = [key for key in (*required, 'resolution') if key not in self.ddconfig]
        if missing:
            raise ValueError(f"ddconfig lacks {missing}; it takes the keys of model.params.ddconfig in taming's YAML")
        if self.n_embed < 1 or self.embed_dim < 1:
            raise ValueError(f'n_embed and embed_dim are at least 1, got {self.n_embed} and {self.embed_dim}')
        for key, built in _BUILT.items():
            if self.ddconfig.get(key, built) != built:
                raise ValueError(f"{key} of ddconfig must be {built} for taming's modules, got {self.ddconfig[key]}")
        channels, attention = self.ddconfig['z_channels'], self.ddconfig['attn_resolutions']
        if self.quantizer == 'gumbel' and self.embed_dim != channels:
            raise ValueError(f'embed_dim of a Gumbel quantizer must be z_channels, {channels}, got {self.embed_dim}')
        if self.networks == 'tiny' and attention:
            raise ValueError(f'attn_resolutions must be [], for tiny networks have no attention, got {attention}')

    @property
    def factor(self) -> int:
        """Pixels of one code along a side: image sizes are multiples of it."""
        return int(2 ** (len(self.ddconfig['ch_mult']) - 1))

    @classmethod
    def from_yaml(cls, path: str | Path) -> 'VQGANConfig':
        """Read the YAML beside a checkpoint of taming or latent-diffusion; ``ValueError`` if it is of no VQGAN."""
        try:
            model = read_yaml(path)['model']
            params, target = model['params'], str(model.get('target', 'VQModel'))
            kind = _CLASSES.get(target.rpartition('.')[2])
            if kind is None:
                raise ValueError(f'{path} describes a {target}, and a VQGAN is one of {", ".join(_CLASSES)}')
            if params.get('remap'):
                raise ValueError(f'{path}: remap leaves codes out, which is not supported, got {params["remap"]}')
            sizes = {key: params[key] for key in ('ddconfig', 'n_embed', 'embed_dim')}
            return cls(**sizes, **kind)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is no VQGAN config: model.params needs ddconfig, n_embed, embed_dim') from error

    def to_yaml(self) -> str:
        """The text of a YAML that ``from_yaml`` reads, with taming's names."""
        name = 'GumbelVQ' if self.quantizer == 'gumbel' else 'VQModel'
        target = f'timm_dad.tiny_vqgan.Tiny{name}' if self.networks == 'tiny' else f'taming.models.vqgan.{name}'
        params = {'embed_dim': self.embed_dim, 'n_embed': self.n_embed, 'ddconfig': dict(self.ddconfig)}
        return yaml.safe_dump({'model': {'target': target, 'params': params}}, sort_keys=False)


def _create_networks(config: VQGANConfig) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder: those of taming, or tiny ones, which need no extra."""
    if config.networks == 'tiny':
        return TinyEncoder(config.ddconfig), TinyDecoder(config.ddconfig)
    require_extra('taming.modules.diffusionmodules.model', 'vqgan')
    from timm_dad.vqgan.networks import Decoder, Encoder

    with contextlib.redirect_stdout(io.StringIO()):  # taming prints when it builds
        return Encoder(**{'double_z': False, **config.ddconfig}), Decoder(**config.ddconfig)


class VQGAN(nn.Module):
    """Frozen-ready VQGAN on taming-transformers' own ``Encoder`` and ``Decoder``, or tiny ones, in [0, 1] pixels.

    Parameter names are those of ``taming.models.vqgan.VQModel`` (or ``GumbelVQ``), so its checkpoints load without the
    keys of its loss. Images may have any size: sides that ``config.factor`` does not divide are extended to the right
    and below by reflection, and reconstructions are cropped back.

    Args:
        config: Architecture.
        strict_size: Refuse sizes that the factor does not divide, in place of padding them.

    Raises:
        ImportError: If the networks are taming's and the extra ``vqgan`` is not installed.
    """

    def __init__(self, config: VQGANConfig, *, strict_size: bool = False) -> None:
        super().__init__()
        self.config = config
        self.strict_size = strict_size
        self._range_seen = False
        self.encoder, self.decoder = _create_networks(config)
        self.quantize = nn.Module()
        codebook = nn.Embedding(config.n_embed, config.embed_dim)
        if config.quantizer == 'gumbel':
            self.quantize.proj = nn.Conv2d(config.embed_dim, config.n_embed, 1)
            self.quantize.embed = codebook
        else:
            self.quantize.embedding = codebook
        nn.init.uniform_(codebook.weight, -1.0 / config.n_embed, 1.0 / config.n_embed)
        self.quant_conv = nn.Conv2d(config.ddconfig['z_channels'], config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.ddconfig['z_channels'], 1)

    def __repr__(self) -> str:
        of = self.config
        what = f'{of.n_embed} codes of {of.embed_dim} channels, factor {of.factor}, {of.quantizer}, {of.networks}'
        return f'VQGAN({what}{", strict_size" if self.strict_size else ""})'

    @property
    def codebook(self) -> Tensor:
        """Codes ``[n_embed, embed_dim]``."""
        return self.quantize.get_parameter('embed.weight' if self.config.quantizer == 'gumbel' else 'embedding.weight')

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless images of this size can be encoded."""
        factor = self.config.factor
        if self.strict_size and (height % factor or width % factor):
            nearest = [max(factor, round(side / factor) * factor) for side in (height, width)]
            raise ValueError(
                f'image size must be a multiple of {factor}, the factor of the VQGAN, got {height}x{width} '
                f'(nearest: {nearest[0]}x{nearest[1]})'
            )
        if any(-side % factor >= side for side in (height, width)):
            raise ValueError(
                f'image sides must be more than half of {factor}, the factor of the VQGAN, to be padded by reflection, '
                f'got {height}x{width}'
            )

    def _check_range(self, x_pix: Tensor) -> None:
        # A look at the values waits for the device: on a CPU that is free, elsewhere the first batch must do.
        if torch.compiler.is_compiling() or (self._range_seen and not x_pix.is_cpu):
            return
        low, high = (value.item() for value in x_pix.detach().aminmax())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # false for NaN, too
            raise ValueError(f'x_pix is in [0, 1], got values from {low:.4g} to {high:.4g} (normalized, or 0 to 255?)')
        self._range_seen = True

    def encode(self, x_pix: Tensor) -> Tensor:
        """Latents ``[B, embed_dim, ceil(H / factor), ceil(W / factor)]`` of images ``[B, 3, H, W]`` in [0, 1].

        Raises:
            ValueError: If the images are too small or, with ``strict_size``, a side is not a multiple of the factor; or
                if values are outside [0, 1] or not finite (checked on a CPU, and on the first batch elsewhere).
        """
        height, width = x_pix.shape[-2:]
        self.check_size(height, width)
        self._check_range(x_pix)
        pad = (0, -width % self.config.factor, 0, -height % self.config.factor)
        if any(pad):
            x_pix = nn.functional.pad(x_pix, pad, mode='reflect')
        with torch.autocast(x_pix.device.type, enabled=False):  # the caller's precision is not ours
            z: Tensor = self.quant_conv(self.encoder(2 * x_pix - 1))
        return z

    def encode_to_codes(self, x_pix: Tensor) -> Tensor:
        """Indices of the codes ``[B, h, w]``, int64, of images: ``codes_of`` what ``encode`` gives, with its errors."""
        return self.codes_of(self.encode(x_pix))

    def codes_of(self, z: Tensor) -> Tensor:
        """Indices of the nearest (or, with a Gumbel quantizer, likeliest) codes ``[B, h, w]``, int64, of latents."""
        batch, dim, height, width = z.shape
        z_flat = z.float().permute(0, 2, 3, 1).reshape(-1, dim)
        with torch.autocast(z.device.type, enabled=False):
            if self.config.quantizer == 'gumbel':
                codes = likeliest_codes(z_flat, *self._projection())
            else:
                codes = nearest_codes(z_flat, self.codebook.float())
        return codes.view(batch, height, width)

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight ``[n_embed, embed_dim]`` and bias ``[n_embed]`` of a Gumbel quantizer."""
        weight, bias = (value.float() for value in self.quantize.get_submodule('proj').parameters())
        return weight.flatten(1), bias

    def embed(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B, embed_dim, h, w]`` of code indices ``[B, h, w]``."""
        return nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2).contiguous()

    def quantize_straight_through(self, z: Tensor) -> Tensor:
        """Quantized latents of latents ``[B, embed_dim, h, w]``, whose gradient passes as if nothing were rounded.

        The gradient of a Gumbel quantizer, whose latents are no neighbours of codes, is that of the mean code under the
        softmax of the logits (Jang et al. 2017, arXiv:1611.01144, section 2.2).
        """
        z_q = self.embed(self.codes_of(z.detach())).to(z.dtype)
        if self.config.quantizer == 'gumbel':
            weight, bias = (value.to(z.dtype) for value in self._projection())
            logits = nn.functional.conv2d(z, weight[:, :, None, None], bias)
            z = nn.functional.conv2d(logits.softmax(dim=1), self.codebook.to(z.dtype).t()[:, :, None, None])
        return z + (z_q - z).detach()

    def decode(self, z: Tensor) -> Tensor:
        """Images ``[B, 3, h * factor, w * factor]``, nominally [0, 1], of latents ``[B, embed_dim, h, w]``."""
        with torch.autocast(z.device.type, enabled=False):
            x_vq: Tensor = self.decoder(self.post_quant_conv(z))
        return (x_vq + 1) / 2

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images ``[B, 3, h * factor, w * factor]``, range [0, 1], of code indices ``[B, h, w]``."""
        return self.decode(self.embed(codes)).clamp(0, 1)

    @torch.no_grad()
    def forward(self, x_pix: Tensor) -> Tensor:
        """Reconstruct: ``Q(x)``, same shape, range [0, 1], of images ``[B, 3, H, W]`` in [0, 1].

        No gradient goes through (DAD takes ``Q`` as the identity, straight-through).

        Raises:
            ValueError: As ``encode``.
        """
        return self.reconstruct(x_pix)[0]

    @torch.no_grad()
    def reconstruct(self, x_pix: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct, as ``forward``, and give the codes ``[B, h, w]`` too."""
        height, width = x_pix.shape[-2:]
        codes = self.encode_to_codes(x_pix)
        return self.decode_codes(codes)[..., :height, :width], codes

    def fingerprint(self) -> str:
        """Hash of weights and architecture: equal for equal ``Q``."""
        facts = asdict(self.config)
        if self.config.networks == 'taming':  # the hashes of sets from before there were others stay what they were
            del facts['networks']
        return content_hash(self.state_dict(), facts)
