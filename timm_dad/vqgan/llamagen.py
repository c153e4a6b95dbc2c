"""LlamaGen's tokenizers (Sun et al. 2024, arXiv:2406.06525): taming's networks with codes of length 1.

Their attention equals taming's with ``attn_resolutions`` at the smallest size, so only the names differ.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from timm_dad.common.text_files import read_json
from timm_dad.common.torch_files import read_safetensors
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.quantizers import NearestQuantizer

# Names of FoundationVision/LlamaGen, in order, to taming's; the decoder's blocks are numbered from the other end.
_NAMES = (
    (r'^encoder\.conv_blocks\.', 'encoder.down.'),
    (r'^decoder\.conv_blocks\.', 'decoder.up.'),
    (r'(\.(?:down|up)\.\d+)\.res\.', r'\1.block.'),
    (r'\.mid\.0\.', '.mid.block_1.'),
    (r'\.mid\.1\.', '.mid.attn_1.'),
    (r'\.mid\.2\.', '.mid.block_2.'),
)
_BESIDE = 'quantize.codebook_used'  # which codes training saw last


class CosineQuantizer(NearestQuantizer):
    """The code with the smallest angle to a latent: both are normalized to length 1 for search and decoding.

    An attack moves latents of length 1, so its radius corresponds to an angle.
    """

    @property
    def codebook(self) -> Tensor:
        """The codes, normalized to length 1."""
        return F.normalize(self.embedding.weight, dim=-1)

    def prepare(self, z: Tensor) -> Tensor:
        """Normalize latents to length 1."""
        return F.normalize(z, dim=1)

    def search(self, rows: Tensor) -> Tensor:
        """Find the nearest code after normalizing to length 1."""
        return super().search(F.normalize(rows, dim=-1))

    def soft(self, z: Tensor) -> Tensor:
        """Normalize latents to length 1: scaling a latent does not change its code."""
        return F.normalize(z, dim=1)


def is_llamagen(names: Mapping[str, Any]) -> bool:
    """Return whether weights have LlamaGen's names."""
    return 'encoder.conv_blocks.0.res.0.conv1.weight' in names


def read_llamagen(folder: Path) -> tuple[VQGANConfig, dict[str, Tensor], Path] | None:
    """Read what ``VQModelHF.save_pretrained`` wrote: architecture, weights under taming's names, and their file.

    Return ``None`` if the folder is of another library.

    Raises:
        ValueError: If its config describes no VQGAN, or its weights cannot be read.
    """
    weights, described = folder / 'model.safetensors', folder / 'config.json'
    if not weights.is_file() or not described.is_file():
        return None
    try:
        config = config_of_llamagen(read_json(described))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{described} is not a config of LlamaGen's VQModel: {error!s}") from error
    return config, names_of_taming(read_safetensors(weights), len(config.ddconfig['ch_mult'])), weights


def config_of_llamagen(content: Mapping[str, Any]) -> VQGANConfig:
    """Convert LlamaGen's ``ModelArgs`` to taming's terms; ``ValueError`` for what is not supported here."""
    if content['encoder_ch_mult'] != content['decoder_ch_mult']:
        raise ValueError(f'decoder_ch_mult must be encoder_ch_mult, got {content["decoder_ch_mult"]}')
    levels = len(content['encoder_ch_mult'])
    ddconfig = {
        'double_z': False,
        'z_channels': content['z_channels'],
        'resolution': 256,
        'in_channels': 3,
        'out_ch': 3,
        'ch': 128,
        'ch_mult': list(content['encoder_ch_mult']),
        'num_res_blocks': 2,
        'attn_resolutions': [256 // 2 ** (levels - 1)],
        'dropout': 0.0,
    }
    return VQGANConfig(
        ddconfig=ddconfig,
        n_embed=content['codebook_size'],
        embed_dim=content['codebook_embed_dim'],
        quantizer='cosine' if content.get('codebook_l2_norm', True) else 'nearest',
    )


def names_of_taming(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename LlamaGen's weights to taming's names, given the number of feature-map sizes."""
    renamed = {}
    for name, value in state.items():
        if name == _BESIDE:
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[re.sub(r'\.up\.(\d+)\.', lambda match: f'.up.{levels - 1 - int(match[1])}.', name)] = value
    return renamed
