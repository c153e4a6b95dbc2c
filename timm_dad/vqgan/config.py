"""Architectures of VQGANs, and the YAML files beside their checkpoints (``model.target``, ``model.params``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from timm_dad.common.text_files import read_yaml

# Quantizer and networks of each class that a YAML may name. The class counts, where two are alike its module too.
_TARGETS = {
    'taming.models.vqgan.VQModel': ('nearest', 'taming'),
    'ldm.models.autoencoder.VQModelInterface': ('nearest', 'taming'),
    'taming.models.vqgan.GumbelVQ': ('gumbel', 'taming'),
    'movqgan.models.vqgan.MOVQ': ('nearest', 'movq'),
    'src.IBQ.models.ibqgan.IBQ': ('inner_product', 'taming'),
    'src.Open_MAGVIT2.models.lfqgan.VQModel': ('sign', 'magvit2'),
    'src.Open_MAGVIT2.models.lfqgan_pretrain.VQModel': ('sign', 'magvit2'),
    'timm_dad.tiny_vqgan.TinyVQModel': ('nearest', 'tiny'),
    'timm_dad.tiny_vqgan.TinyGumbelVQ': ('gumbel', 'tiny'),
}
_OWN = 'timm_dad.VQGAN'  # all others: params name quantizer and networks
_SHORT = ('lfqgan', 'lfqgan_pretrain')  # modules whose VQModel is another one

# Keys of latent-diffusion's ddconfig that taming's modules take without a word, and what they build.
_BUILT = {
    'double_z': (False,),
    'attn_type': ('vanilla', 'none'),
    'use_linear_attn': (False,),
    'tanh_out': (False,),
}


QuantizerName = Literal['nearest', 'gumbel', 'cosine', 'inner_product', 'sign']
NetworksName = Literal['taming', 'tiny', 'movq', 'magvit2']


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Architecture of a VQGAN, in the terms of taming-transformers' YAML (``model.params``).

    Raises:
        ValueError: If a size is not positive, or ``ddconfig`` lacks a key or requests what the networks do not support.
    """

    ddconfig: Mapping[str, Any]  # arguments of taming's Encoder and Decoder: ch, ch_mult, z_channels, ...
    n_embed: int  # codes in the codebook
    embed_dim: int  # channels of one code
    quantizer: QuantizerName = 'nearest'  # how a code is chosen
    networks: NetworksName = 'taming'

    def __post_init__(self) -> None:
        required = ['ch', 'ch_mult', 'num_res_blocks', 'in_channels', 'out_ch', 'z_channels', 'resolution']
        if self.networks != 'magvit2':  # which has no attention
            required.append('attn_resolutions')
        missing = [key for key in required if key not in self.ddconfig]
        if missing:
            raise ValueError(f"ddconfig lacks {missing}; it takes the keys of model.params.ddconfig in taming's YAML")
        if self.n_embed < 1 or self.embed_dim < 1:
            raise ValueError(f'n_embed and embed_dim are at least 1, got {self.n_embed} and {self.embed_dim}')
        for key, built in _BUILT.items():
            if self.ddconfig.get(key, built[0]) not in built:
                raise ValueError(
                    f"{key} of ddconfig must be {' or '.join(map(str, built))} for taming's modules, got "
                    f'{self.ddconfig[key]}'
                )
        attention = self.ddconfig.get('attn_resolutions')
        if self.networks == 'tiny' and attention:
            raise ValueError(f'attn_resolutions must be [] because tiny networks have no attention, got {attention}')
        self._check_codes()

    def _check_codes(self) -> None:
        for name, known in (('quantizer', get_args(QuantizerName)), ('networks', get_args(NetworksName))):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, got {getattr(self, name)!r}')
        channels = self.ddconfig['z_channels']
        if self.quantizer in ('gumbel', 'sign') and self.embed_dim != channels:
            kind = self.quantizer.capitalize()
            raise ValueError(f'embed_dim of a {kind} quantizer must be z_channels, {channels}, got {self.embed_dim}')
        if self.quantizer == 'sign' and self.n_embed != 2**self.embed_dim:
            raise ValueError(f'n_embed must be 2 ** embed_dim, {2**self.embed_dim}, for signs, got {self.n_embed}')

    @property
    def projects(self) -> bool:
        """Whether 1 x 1 convolutions connect the encoder to the codes and the codes to the decoder."""
        return self.quantizer != 'sign'

    @property
    def factor(self) -> int:
        """Pixels per code along a side: image sizes are multiples of it."""
        return int(2 ** (len(self.ddconfig['ch_mult']) - 1))

    @property
    def search_macs(self) -> int:
        """Multiply-adds of the search for one latent."""
        return 0 if self.quantizer == 'sign' else self.n_embed * self.embed_dim

    @classmethod
    def from_yaml(cls, path: str | Path) -> 'VQGANConfig':
        """Read the YAML beside a checkpoint of a library in ``_TARGETS``; ``ValueError`` if it describes no VQGAN."""
        try:
            model = read_yaml(path)['model']
            lightning = 'class_path' in model  # Lightning's command line has other words for the same
            target = str(model['class_path'] if lightning else model.get('target', 'VQModel'))
            params = model['init_args' if lightning else 'params']
            sizes = {key: params[key] for key in ('ddconfig', 'n_embed', 'embed_dim')}
            for key, why in (('remap', 'leaves codes out'), ('l2_normalize', 'searches codes by angle')):
                if params.get(key):
                    raise ValueError(f'{path}: {key} {why}, which is not supported, got {params[key]}')
            if target == _OWN:
                return cls(**sizes, quantizer=params['quantizer'], networks=params['networks'])
            kinds = {_short(name): kind for name, kind in _TARGETS.items()}
            kind = kinds.get(_short(target))
            if kind is None:
                raise ValueError(f'{path} describes a {target}, but a VQGAN is one of {", ".join(kinds)}')
            return cls(**sizes, quantizer=kind[0], networks=kind[1])  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is no VQGAN config: model.params needs ddconfig, n_embed, embed_dim') from error

    def to_yaml(self) -> str:
        """Return the text of a YAML that ``from_yaml`` reads, for the class's own library if it has this kind."""
        kind = (self.quantizer, self.networks)
        target = next((name for name, known in _TARGETS.items() if known == kind), _OWN)
        params = {'embed_dim': self.embed_dim, 'n_embed': self.n_embed, 'ddconfig': dict(self.ddconfig)}
        if target == _OWN:
            params |= {'quantizer': self.quantizer, 'networks': self.networks}
        return yaml.safe_dump({'model': {'target': target, 'params': params}}, sort_keys=False)


def _short(target: str) -> str:
    *modules, name = target.split('.')
    return f'{modules[-1]}.{name}' if modules and modules[-1] in _SHORT else name
