"""Folders of a diffusers ``VQModel``: those of taming, MoVQ or aMUSEd under other names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from timm_dad.common.text_files import read_json
from timm_dad.common.torch_files import read_safetensors
from timm_dad.vqgan.config import VQGANConfig

_WEIGHTS = 'diffusion_pytorch_model.safetensors'

# What taming's modules are; diffusers' VQModel can be more. A key that a config lacks has this value in diffusers, too.
_BUILT = {
    'act_fn': 'silu',
    'norm_num_groups': 32,
}
# What else it can be: networks by the norm of its decoder. (lookup_from_codebook is for callers that decode codes.)
_NETWORKS = {'group': 'taming', 'spatial': 'movq'}

# Names of diffusers, in order, to names of taming; up_blocks are numbered from the other end. query, key, value and
# proj_attn are the names that attention had before diffusers 0.15.
_NAMES = (
    (r'\b(down|up)_blocks\.(\d+)\.resnets\.', r'\1.\2.block.'),
    (r'\b(down|up)_blocks\.(\d+)\.attentions\.', r'\1.\2.attn.'),
    (r'\b(down|up)_blocks\.(\d+)\.\1samplers\.0\.', r'\1.\2.\1sample.'),
    (r'\bmid_block\.resnets\.0\.', 'mid.block_1.'),
    (r'\bmid_block\.resnets\.1\.', 'mid.block_2.'),
    (r'\bmid_block\.attentions\.0\.', 'mid.attn_1.'),
    (r'\b(?:group|spatial)_norm\.', 'norm.'),
    (r'\b(?:to_q|query)\.', 'q.'),
    (r'\b(?:to_k|key)\.', 'k.'),
    (r'\b(?:to_v|value)\.', 'v.'),
    (r'\b(?:to_out\.0|proj_attn)\.', 'proj_out.'),
    (r'\bconv_shortcut\.', 'nin_shortcut.'),
    (r'\bconv_norm_out\.', 'norm_out.'),
)


def read_diffusers(folder: Path) -> tuple[VQGANConfig, dict[str, Tensor], Path]:
    """Read what ``VQModel.save_pretrained`` wrote: architecture, weights under taming's names, and their file.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder contains another model, or a ``VQModel`` that taming's modules cannot express.
    """
    for name in ('config.json', _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'no VQGAN at {folder}: {name} is missing{_hint(folder)}')
    try:
        config = config_of_diffusers(read_json(folder / 'config.json'))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{folder / "config.json"} is not a config of a VQGAN: {error!s}') from error
    levels = len(config.ddconfig['ch_mult'])
    state = read_safetensors(folder / _WEIGHTS)
    return config, dict(_to_taming(name, value, levels) for name, value in state.items()), folder / _WEIGHTS


def _hint(folder: Path) -> str:
    inside = sorted(path.parent.name for path in folder.glob(f'*/{_WEIGHTS}'))
    if inside:
        return f' (this is a pipeline: give its folder with the VQModel, one of {", ".join(inside)})'
    if list(folder.glob('*.bin')):
        return ' (a folder of pickles: VQModel.from_pretrained(FOLDER).save_pretrained(FOLDER) of diffusers writes it)'
    return ' (a folder must be that of a diffusers VQModel; for taming and latent-diffusion, give the checkpoint in it)'


def config_of_diffusers(content: Mapping[str, Any]) -> VQGANConfig:
    """Convert a diffusers ``VQModel`` config to taming's terms; ``ValueError`` if taming's modules differ."""
    if content.get('_class_name') != 'VQModel':
        raise ValueError(f'_class_name must be VQModel, got {content.get("_class_name")}')
    for key, built in _BUILT.items():
        if content.get(key, built) != built:
            raise ValueError(f"{key} must be {built} for taming's modules, got {content[key]}")
    if content.get('norm_type', 'group') not in _NETWORKS:
        raise ValueError(f'norm_type must be one of {", ".join(_NETWORKS)}, got {content["norm_type"]}')
    channels = content['block_out_channels']
    attention = [name == 'AttnDownEncoderBlock2D' for name in content['down_block_types']]
    if [name == 'AttnUpDecoderBlock2D' for name in reversed(content['up_block_types'])] != attention:
        raise ValueError("up_block_types must mirror down_block_types for taming's modules")
    middle = content.get('mid_block_add_attention', True)
    if not middle and any(attention):
        raise ValueError('mid_block_add_attention must be True if other blocks have attention')
    if any(channel % channels[0] for channel in channels):
        raise ValueError(f'block_out_channels must be multiples of the first, got {channels}')
    factor = 2 ** (len(channels) - 1)
    resolution = factor * max(1, content.get('sample_size', 32) // factor)
    z_channels = content['latent_channels']
    ddconfig = {
        'double_z': False,
        'z_channels': z_channels,
        'resolution': resolution,
        'in_channels': content['in_channels'],
        'out_ch': content['out_channels'],
        'ch': channels[0],
        'ch_mult': [channel // channels[0] for channel in channels],
        'num_res_blocks': content['layers_per_block'],
        'attn_resolutions': [resolution // 2**level for level, attends in enumerate(attention) if attends],
        'dropout': 0.0,
        **({} if middle else {'attn_type': 'none'}),
    }
    return VQGANConfig(
        ddconfig=ddconfig,
        n_embed=content['num_vq_embeddings'],
        embed_dim=content.get('vq_embed_dim') or z_channels,
        networks=_NETWORKS[content.get('norm_type', 'group')],  # type: ignore[arg-type]
    )


def _to_taming(name: str, value: Tensor, levels: int) -> tuple[str, Tensor]:
    is_attention = '.attentions.' in name
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r'\bup\.(\d+)\.', lambda match: f'up.{levels - 1 - int(match[1])}.', name)
    if is_attention and value.ndim == 2:  # linear layers there, 1x1 convolutions here
        value = value[:, :, None, None]
    return name, value
