"""Discretization: images to the nearest codes of a frozen VQGAN and back (Esser et al. 2021, arXiv:2012.09841).

In DAD, it is ``Q(x) = decode(nearest_code(encode(x)))`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3).
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from timm_dad.common.extras import require_extra
from timm_dad.common.hashing import content_hash
from timm_dad.vqgan import magvit2
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.ibq import InnerProductQuantizer
from timm_dad.vqgan.llamagen import CosineQuantizer
from timm_dad.vqgan.magvit2 import SignQuantizer
from timm_dad.vqgan.origin import Origin
from timm_dad.vqgan.quantizers import GumbelQuantizer, NearestQuantizer, Quantizer
from timm_dad.vqgan.tiny import TinyDecoder, TinyEncoder

_TOLERANCE = 1e-3  # pixels may leave [0, 1] by this much: rounding

_QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    'nearest': NearestQuantizer,
    'gumbel': GumbelQuantizer,
    'cosine': CosineQuantizer,
    'inner_product': InnerProductQuantizer,
    'sign': SignQuantizer,
}


def _create_networks(config: VQGANConfig) -> tuple[nn.Module, nn.Module]:
    """Create encoder and decoder of a kind; those of taming and MoVQ need an extra."""
    if config.networks == 'tiny':
        return TinyEncoder(config.ddconfig), TinyDecoder(config.ddconfig)
    if config.networks == 'magvit2':
        return magvit2.Encoder(config.ddconfig), magvit2.Decoder(config.ddconfig)
    require_extra('taming.modules.diffusionmodules.model', 'vqgan')
    from timm_dad.vqgan import movq, networks

    with contextlib.redirect_stdout(io.StringIO()):  # taming prints when it builds
        encoder = networks.Encoder(**{'double_z': False, **config.ddconfig})
        if config.networks == 'movq':
            return encoder, movq.Decoder(config.embed_dim, **config.ddconfig)
        return encoder, networks.Decoder(**config.ddconfig)


class VQGAN(nn.Module):
    """Frozen-ready VQGAN of any kind in [0, 1] pixels: an encoder, a codebook with its search, a decoder.

    Parameter names are those of ``taming.models.vqgan.VQModel``, or of the kind's own library, so checkpoints load
    without the keys of the loss. Images may have any size: sides that ``config.factor`` does not divide are extended to
    the right and bottom by reflection, and reconstructions are cropped back.

    Args:
        config: Architecture.
        strict_size: Reject sizes that the factor does not divide, instead of padding them.

    Raises:
        ImportError: If the networks use taming's parts and the extra ``vqgan`` is not installed.
    """

    def __init__(self, config: VQGANConfig, *, strict_size: bool = False) -> None:
        super().__init__()
        self.config = config
        self.strict_size = strict_size
        self.origin: Origin | None = None  # of weights that load_vqgan read
        self._range_seen = False
        self.encoder, self.decoder = _create_networks(config)
        self.quantize = _QUANTIZERS[config.quantizer](config.n_embed, config.embed_dim)
        channels, dim = config.ddconfig['z_channels'], config.embed_dim
        self.quant_conv = nn.Conv2d(channels, dim, 1) if config.projects else nn.Identity()
        self.post_quant_conv = nn.Conv2d(dim, channels, 1) if config.projects else nn.Identity()

    def __repr__(self) -> str:
        of = self.config
        what = f'{of.n_embed} codes of {of.embed_dim} channels, factor {of.factor}, {of.quantizer}, {of.networks}'
        return f'VQGAN({what}{", strict_size" if self.strict_size else ""})'

    @property
    def codebook(self) -> Tensor:
        """Codes ``[n_embed, embed_dim]``, as the decoder gets them."""
        return self.quantize.codebook

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless images of this size can be encoded."""
        factor = self.config.factor
        if self.strict_size and (height % factor or width % factor):
            nearest = [max(factor, round(side / factor) * factor) for side in (height, width)]
            raise ValueError(
                f'image size must be a multiple of {factor}, the factor of the VQGAN, got {height}x{width} '
                f'(nearest: {nearest[0]}x{nearest[1]})'
            )
        if self.config.networks == 'magvit2' and height <= factor and width <= factor:
            raise ValueError(
                f'at least one image side must exceed {factor}, the factor of the VQGAN, whose norms need two '
                f'codes, got {height}x{width}'
            )
        if any(-side % factor >= side for side in (height, width)):
            raise ValueError(
                f'image sides must exceed half of {factor}, the factor of the VQGAN, to be padded by reflection, '
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
        """Encode images ``[B, 3, H, W]`` in [0, 1] to latents ``[B, embed_dim, ceil(H / factor), ceil(W / factor)]``.

        Raises:
            ValueError: If the images are too small or, with ``strict_size``, a side is not a multiple of the factor; or
                if values are outside [0, 1] or not finite (checked on a CPU, and for the first batch elsewhere).
        """
        height, width = x_pix.shape[-2:]
        self.check_size(height, width)
        self._check_range(x_pix)
        pad = (0, -width % self.config.factor, 0, -height % self.config.factor)
        if any(pad):
            x_pix = nn.functional.pad(x_pix, pad, mode='reflect')
        with torch.autocast(x_pix.device.type, enabled=False):  # the caller's precision is not ours
            z: Tensor = self.quant_conv(self.encoder(2 * x_pix - 1))
            return self.quantize.prepare(z)

    def encode_to_codes(self, x_pix: Tensor) -> Tensor:
        """Return the code indices ``[B, h, w]``, int64, of images: ``codes_of`` the result of ``encode``."""
        return self.codes_of(self.encode(x_pix))

    def codes_of(self, z: Tensor) -> Tensor:
        """Return the code indices ``[B, h, w]``, int64, of latents ``[B, embed_dim, h, w]``."""
        batch, dim, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            codes = self.quantize.search(z.float().permute(0, 2, 3, 1).reshape(-1, dim))
        return codes.view(batch, height, width)

    def neighbours(self, codes: Tensor, count: int) -> Tensor:
        """Return the nearest other codes ``[..., count]``, nearest first, of code indices ``[...]``."""
        return self.quantize.neighbours(codes, count)

    def embed(self, codes: Tensor) -> Tensor:
        """Return the quantized latents ``[B, embed_dim, h, w]`` of code indices ``[B, h, w]``."""
        return nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2).contiguous()

    def quantize_straight_through(self, z: Tensor) -> Tensor:
        """Quantize latents ``[B, embed_dim, h, w]`` with the gradient of ``Quantizer.soft``."""
        z_q = self.embed(self.codes_of(z.detach())).to(z.dtype)
        z = self.quantize.soft(z)
        return z + (z_q - z).detach()

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents ``[B, embed_dim, h, w]`` to images ``[B, 3, h * factor, w * factor]``, nominally in [0, 1]."""
        with torch.autocast(z.device.type, enabled=False):
            return (self.run_decoder(z) + 1) / 2

    def run_decoder(self, z: Tensor) -> Tensor:
        """Run the decoder on latents: images nominally in [-1, 1], in the caller's precision."""
        condition = (z,) if self.config.networks == 'movq' else ()
        x_vq: Tensor = self.decoder(self.post_quant_conv(z), *condition)
        return x_vq

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode code indices ``[B, h, w]`` to images ``[B, 3, h * factor, w * factor]``, range [0, 1]."""
        return self.decode(self.embed(codes)).clamp(0, 1)

    @torch.no_grad()
    def forward(self, x_pix: Tensor) -> Tensor:
        """Reconstruct: ``Q(x)``, same shape, range [0, 1], of images ``[B, 3, H, W]`` in [0, 1].

        No gradient flows through (DAD treats ``Q`` as the identity, straight-through).

        Raises:
            ValueError: As in ``encode``.
        """
        return self.reconstruct(x_pix)[0]

    @torch.no_grad()
    def reconstruct(self, x_pix: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct as in ``forward``, and return the codes ``[B, h, w]`` too."""
        height, width = x_pix.shape[-2:]
        codes = self.encode_to_codes(x_pix)
        return self.decode_codes(codes)[..., :height, :width], codes

    def fingerprint(self) -> str:
        """Return a hash of weights and architecture: equal for equal ``Q``."""
        facts = asdict(self.config)
        if self.config.networks == 'taming':  # the hashes of sets from before there were others stay what they were
            del facts['networks']
        return content_hash(self.state_dict(), facts)
