"""Discretization: images to the nearest codes of a frozen VQGAN, and back (Esser et al. 2021, arXiv:2012.09841).

In DAD it is ``Q(x) = decode(nearest_code(encode(x)))`` (Zhou et al. 2023, arXiv:2311.01441, section 3.3).
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from timm_dad.extras import require_extra

# One block of the distance matrix holds at most this many floats (16 MiB in fp32).
_MAX_BLOCK = 2**22


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Architecture of a VQGAN, in the words of taming-transformers' YAML (``model.params``).

    Args:
        ddconfig: Arguments of taming's ``Encoder`` and ``Decoder`` (``ch``, ``ch_mult``, ``z_channels``, ...).
        n_embed: Number of codes in the codebook.
        embed_dim: Channels of one code.

    Raises:
        ValueError: If a size is not positive or ``ddconfig`` lacks a key.
    """

    ddconfig: Mapping[str, Any]
    n_embed: int
    embed_dim: int

    def __post_init__(self) -> None:
        required = ('ch', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'in_channels', 'out_ch', 'z_channels')
        missing = [key for key in (*required, 'resolution') if key not in self.ddconfig]
        if missing:
            raise ValueError(f"ddconfig lacks {missing}; it takes the keys of model.params.ddconfig in taming's YAML")
        if self.n_embed < 1 or self.embed_dim < 1:
            raise ValueError(f'n_embed and embed_dim are at least 1, got {self.n_embed} and {self.embed_dim}')

    @property
    def factor(self) -> int:
        """Pixels of one code along a side: image sizes are multiples of it."""
        return int(2 ** (len(self.ddconfig['ch_mult']) - 1))

    @classmethod
    def from_yaml(cls, path: str | Path) -> 'VQGANConfig':
        """Read the YAML that stands beside a taming-transformers checkpoint.

        Raises:
            ValueError: If the file has no ``model.params`` with ``ddconfig``, ``n_embed`` and ``embed_dim``.
        """
        try:
            content = yaml.safe_load(Path(path).read_text())
            params = content['model']['params']
            return cls(ddconfig=params['ddconfig'], n_embed=params['n_embed'], embed_dim=params['embed_dim'])
        except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f'{path} is no VQGAN config: model.params needs ddconfig, n_embed, embed_dim') from error


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the smallest squared distance to each vector.

    The arithmetic is that of taming's ``VectorQuantizer``, in blocks of rows of one size: no one-hot matrix is built,
    and of the ``[N, n_embed]`` distances never more than 16 MiB at once.

    Args:
        z: Vectors ``[N, embed_dim]``, fp32.
        codebook: Codes ``[n_embed, embed_dim]``, fp32.

    Returns:
        Code indices ``[N]``, int64, in ``0 .. n_embed - 1``.

    Raises:
        ValueError: If the last dimensions differ.

    Source: Esser et al. 2021, arXiv:2012.09841, equation 2.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f'z [N, D] and codebook [K, D] need one D, got {tuple(z.shape)} and {tuple(codebook.shape)}')
    codes = torch.empty(len(z), dtype=torch.long, device=z.device)
    codebook_sq = (codebook**2).sum(dim=1)
    blocks = max(1, math.ceil(len(z) * len(codebook) / _MAX_BLOCK))
    for block, out in zip(z.tensor_split(blocks), codes.tensor_split(blocks), strict=True):
        distance = (block**2).sum(dim=1, keepdim=True) + codebook_sq
        distance.sub_(block @ codebook.t(), alpha=2)
        torch.argmin(distance, dim=1, out=out)
    return codes


class VQGAN(nn.Module):
    """Frozen-ready VQGAN on taming-transformers' own ``Encoder`` and ``Decoder``, in [0, 1] pixels.

    Parameter names are those of ``taming.models.vqgan.VQModel``, so its checkpoints load without the keys of its loss.

    Args:
        config: Architecture.

    Raises:
        ImportError: If the extra ``vqgan`` is not installed.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        model = require_extra('taming.modules.diffusionmodules.model', 'vqgan')
        self.config = config
        with contextlib.redirect_stdout(io.StringIO()):  # taming prints when it builds
            self.encoder = model.Encoder(**{'double_z': False, **config.ddconfig})
            self.decoder = model.Decoder(**config.ddconfig)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config.n_embed, config.embed_dim)
        nn.init.uniform_(self.quantize.embedding.weight, -1.0 / config.n_embed, 1.0 / config.n_embed)
        self.quant_conv = nn.Conv2d(config.ddconfig['z_channels'], config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.ddconfig['z_channels'], 1)

    @property
    def codebook(self) -> Tensor:
        """Codes ``[n_embed, embed_dim]``."""
        weight: Tensor = self.quantize.embedding.weight  # type: ignore[union-attr, assignment]
        return weight

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless ``config.factor`` divides both sides."""
        factor = self.config.factor
        if height % factor or width % factor:
            nearest = [max(factor, round(side / factor) * factor) for side in (height, width)]
            raise ValueError(
                f'image size must be a multiple of {factor}, the factor of the VQGAN, got {height}x{width} '
                f'(nearest: {nearest[0]}x{nearest[1]})'
            )

    def encode(self, x_pix: Tensor) -> Tensor:
        """Latents before quantization.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of ``config.factor``.

        Returns:
            Latents ``[B, embed_dim, H / factor, W / factor]``.

        Raises:
            ValueError: If a side is not a multiple of the factor.
        """
        self.check_size(*x_pix.shape[-2:])
        with torch.autocast(x_pix.device.type, enabled=False):  # the caller's precision is not ours
            z: Tensor = self.quant_conv(self.encoder(2 * x_pix - 1))
        return z

    def encode_to_codes(self, x_pix: Tensor) -> Tensor:
        """Indices of the nearest codes.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of ``config.factor``.

        Returns:
            Code indices ``[B, H / factor, W / factor]``, int64.

        Raises:
            ValueError: If a side is not a multiple of the factor.
        """
        z = self.encode(x_pix).float()
        batch, dim, height, width = z.shape
        z_flat = z.permute(0, 2, 3, 1).reshape(-1, dim)
        with torch.autocast(z.device.type, enabled=False):
            return nearest_codes(z_flat, self.codebook.float()).view(batch, height, width)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents.

        Args:
            z: Latents ``[B, embed_dim, h, w]``, quantized or not.

        Returns:
            Images ``[B, 3, h * factor, w * factor]``, nominally [0, 1], not clamped.
        """
        with torch.autocast(z.device.type, enabled=False):
            x_vq: Tensor = self.decoder(self.post_quant_conv(z))
        return (x_vq + 1) / 2

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images of code indices.

        Args:
            codes: Code indices ``[B, h, w]``, integers in ``0 .. n_embed - 1``.

        Returns:
            Images ``[B, 3, h * factor, w * factor]``, range [0, 1].
        """
        z = nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2).contiguous()
        return self.decode(z).clamp(0, 1)

    @torch.no_grad()
    def forward(self, x_pix: Tensor) -> Tensor:
        """Reconstruct: ``Q(x)``. No gradient goes through (DAD takes ``Q`` as the identity, straight-through).

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of ``config.factor``.

        Returns:
            Reconstructions, same shape, range [0, 1].

        Raises:
            ValueError: If a side is not a multiple of the factor.
        """
        return self.decode_codes(self.encode_to_codes(x_pix))


def load_vqgan(path: str | Path) -> VQGAN:
    """Load a VQGAN from ``NAME.safetensors`` with ``NAME.yaml`` (taming's config) beside it.

    Args:
        path: The weights; parameter names as in ``taming.models.vqgan.VQModel``, any floating dtype.

    Returns:
        The VQGAN in fp32, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: If the weights or the YAML are missing.
        ValueError: If the file is no safetensors file, or names and shapes do not fit the YAML.
        ImportError: If the extra ``vqgan`` is not installed.
    """
    path = Path(path)
    config_path = path.with_suffix('.yaml')
    for file in (path, config_path):
        if not file.is_file():
            raise FileNotFoundError(
                f'no VQGAN at {path}: {file} is missing (NAME.safetensors and NAME.yaml belong together)'
            )
    vqgan = VQGAN(VQGANConfig.from_yaml(config_path))
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
        vqgan.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f'{path} does not hold the VQGAN that {config_path.name} describes: {error}') from error
    return vqgan.eval()
