"""Architectures of VQGANs, and the YAMLs beside their checkpoints (``model.target``, ``model.params``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from timm_dad.common.text_files import read_yaml

# Quantizer and networks of each class that a YAML's model.target may name: of taming, latent-diffusion, and our own.
_TARGETS = {
    'taming.models.vqgan.VQModel': ('nearest', 'taming'),
    'ldm.models.autoencoder.VQModelInterface': ('nearest', 'taming'),
    'taming.models.vqgan.GumbelVQ': ('gumbel', 'taming'),
    'timm_dad.tiny_vqgan.TinyVQModel': ('nearest', 'tiny'),
    'timm_dad.tiny_vqgan.TinyGumbelVQ': ('gumbel', 'tiny'),
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

    @property
    def search_macs(self) -> int:
        """Multiply-adds that the search takes for one latent."""
        return self.n_embed * self.embed_dim

    @classmethod
    def from_yaml(cls, path: str | Path) -> 'VQGANConfig':
        """Read the YAML beside a checkpoint of taming or latent-diffusion; ``ValueError`` if it is of no VQGAN."""
        try:
            model = read_yaml(path)['model']
            params, target = model['params'], str(model.get('target', 'VQModel'))
            kinds = {name.rpartition('.')[2]: kind for name, kind in _TARGETS.items()}
            kind = kinds.get(target.rpartition('.')[2])
            if kind is None:
                raise ValueError(f'{path} describes a {target}, and a VQGAN is one of {", ".join(kinds)}')
            if params.get('remap'):
                raise ValueError(f'{path}: remap leaves codes out, which is not supported, got {params["remap"]}')
            sizes = {key: params[key] for key in ('ddconfig', 'n_embed', 'embed_dim')}
            return cls(**sizes, quantizer=kind[0], networks=kind[1])  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is no VQGAN config: model.params needs ddconfig, n_embed, embed_dim') from error

    def to_yaml(self) -> str:
        """The text of a YAML that ``from_yaml`` reads, with the names of the class's own library."""
        target = next(name for name, kind in _TARGETS.items() if kind == (self.quantizer, self.networks))
        params = {'embed_dim': self.embed_dim, 'n_embed': self.n_embed, 'ddconfig': dict(self.ddconfig)}
        return yaml.safe_dump({'model': {'target': target, 'params': params}}, sort_keys=False)
