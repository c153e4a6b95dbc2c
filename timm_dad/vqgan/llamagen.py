"""LlamaGen's tokenizers (Sun et al. 2024, arXiv:2406.06525): taming's networks, and codes of length 1.

Their attention is that of taming with ``attn_resolutions`` at the smallest size, so that only names differ.
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
    """The code with the smallest angle to a latent: both have length 1, where they are searched and decoded.

    An attack moves latents of length 1, so that its length is one of angles.
    """

    @property
    def codebook(self) -> Tensor:
        """The codes, of length 1."""
        return F.normalize(self.embedding.weight, dim=-1)

    def prepare(self, z: Tensor) -> Tensor:
        """Latents of length 1."""
        return F.normalize(z, dim=1)

    def search(self, rows: Tensor) -> Tensor:
        """The nearest once it has length 1."""
        return super().search(F.normalize(rows, dim=-1))

    def soft(self, z: Tensor) -> Tensor:
        """Latents of length 1: along it a code does not change."""
        return F.normalize(z, dim=1)


def is_llamagen(names: Mapping[str, Any]) -> bool:
    """Whether weights have LlamaGen's names."""
    return 'encoder.conv_blocks.0.res.0.conv1.weight' in names


def read_llamagen(folder: Path) -> tuple[VQGANConfig, dict[str, Tensor], Path] | None:
    """Read what ``VQModelHF.save_pretrained`` wrote: architecture, weights under taming's names, and their file.

    ``None`` if the folder is of another library.

    Raises:
        ValueError: If its config is of no VQGAN, or its weights cannot be read.
    """
    weights, described = folder / 'model.safetensors', folder / 'config.json'
    if not weights.is_file() or not described.is_file():
        return None
    try:
        config = config_of_llamagen(read_json(described))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{described} is no config of LlamaGen's VQModel: {error!s}") from error
    return config, names_of_taming(read_safetensors(weights), len(config.ddconfig['ch_mult'])), weights


def config_of_llamagen(content: Mapping[str, Any]) -> VQGANConfig:
    """Config of LlamaGen's ``ModelArgs`` in taming's words; ``ValueError`` for what its quantizer does not do here."""
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
    """Weights of LlamaGen under taming's names, for as many sizes of feature maps."""
    renamed = {}
    for name, value in state.items():
        if name == _BESIDE:
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[re.sub(r'\.up\.(\d+)\.', lambda match: f'.up.{levels - 1 - int(match[1])}.', name)] = value
    return renamed
