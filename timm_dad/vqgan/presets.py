"""Public VQGANs by name: their architectures, their addresses, and a cache that detects changed files."""

import http.client
import logging
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from timm_dad.common.cache import cache_dir
from timm_dad.common.files import sha256_of_file, write_file
from timm_dad.vqgan.config import VQGANConfig

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VQGANPreset:
    """A public VQGAN, with the architecture of its authors' YAML or code."""

    name: str  # what --dad-vqgan takes
    config: VQGANConfig
    url: str  # of the checkpoint, of a .zip with one .ckpt in it, or hf:// of a folder on the hub, which has a cache
    licence: str = 'not stated'  # of the weights, where their repository or card says one
    sha256: str | None = None  # of the download if its authors publish it; else the first download's is kept


def _config(
    n_embed: int,
    channels: int,
    ch_mult: list[int],
    attention: list[int],
    *,
    embed_dim: int | None = None,
    ch: int = 128,
    blocks: int = 2,
    attn_type: str = 'vanilla',
    **kind: Any,
) -> VQGANConfig:
    ddconfig = {
        'double_z': False,
        'z_channels': channels,
        'resolution': 256,
        'in_channels': 3,
        'out_ch': 3,
        'ch': ch,
        'ch_mult': ch_mult,
        'num_res_blocks': blocks,
        'attn_resolutions': attention,
        'dropout': 0.0,
    }
    if attn_type != 'vanilla':
        ddconfig['attn_type'] = attn_type
    return VQGANConfig(ddconfig=ddconfig, n_embed=n_embed, embed_dim=embed_dim or channels, **kind)


_LATENT_DIFFUSION = 'https://ommer-lab.com/files/latent-diffusion'
_TAMING = 'https://heibox.uni-heidelberg.de/f'
_HUB = 'https://huggingface.co'
_MOVQGAN = f'{_HUB}/ai-forever/MoVQGAN/resolve/main'
_LLAMAGEN = f'{_HUB}/FoundationVision/LlamaGen/resolve/main'
_F8, _F16 = [1, 2, 2, 4], [1, 1, 2, 2, 4]
_LFQ: dict[str, Any] = {'blocks': 4, 'quantizer': 'sign', 'networks': 'magvit2'}

# Where each address, architecture and licence was read: docs/vqgan.md.
PRESETS = {
    name: VQGANPreset(name=name, config=config, url=url, **licence)
    for name, config, url, licence in (
        ('openimages-f8-16384', _config(16384, 4, _F8, [32]), f'{_LATENT_DIFFUSION}/vq-f8.zip', {}),
        ('openimages-f8-256', _config(256, 4, _F8, [32]), f'{_LATENT_DIFFUSION}/vq-f8-n256.zip', {}),
        (
            'openimages-f8-gumbel-8192',
            _config(8192, 256, [1, 1, 2, 4], [32], quantizer='gumbel'),
            f'{_TAMING}/34a747d5765840b5a99d/?dl=1',
            {},
        ),
        ('openimages-f4-8192', _config(8192, 3, [1, 2, 4], []), f'{_LATENT_DIFFUSION}/vq-f4.zip', {}),
        ('imagenet-f16-1024', _config(1024, 256, _F16, [16]), f'{_TAMING}/140747ba53464f49b476/?dl=1', {}),
        ('imagenet-f16-16384', _config(16384, 256, _F16, [16]), f'{_TAMING}/867b05fc8c4841768640/?dl=1', {}),
        (
            'kandinsky-f8-16384',
            _config(16384, 4, _F8, [32], networks='movq'),
            'hf://kandinsky-community/kandinsky-2-2-decoder/movq',
            {'licence': 'apache-2.0'},
        ),
        (
            'movqgan67m-f8-16384',
            _config(16384, 4, _F8, [32], networks='movq'),
            f'{_MOVQGAN}/movqgan_67M.ckpt',
            {},
        ),
        (
            'movqgan102m-f8-16384',
            _config(16384, 4, _F8, [32], blocks=4, networks='movq'),
            f'{_MOVQGAN}/movqgan_102M.ckpt',
            {},
        ),
        (
            'movqgan270m-f8-16384',
            _config(16384, 4, _F8, [32], ch=256, networks='movq'),
            f'{_MOVQGAN}/movqgan_270M.ckpt',
            {},
        ),
        (
            'llamagen-f8-16384',
            _config(16384, 256, _F8, [32], embed_dim=8, quantizer='cosine'),
            f'{_LLAMAGEN}/vq_ds8_c2i.pt',
            {'licence': 'mit'},
        ),
        (
            'llamagen-f16-16384',
            _config(16384, 256, _F16, [16], embed_dim=8, quantizer='cosine'),
            f'{_LLAMAGEN}/vq_ds16_c2i.pt',
            {'licence': 'mit'},
        ),
        (
            'ibq-f16-16384',
            _config(16384, 256, _F16, [16], blocks=4, quantizer='inner_product'),
            f'{_HUB}/TencentARC/IBQ-Tokenizer-16384/resolve/main/imagenet256_16384.ckpt',
            {'licence': 'apache-2.0'},
        ),
        (
            'magvit2-f16-262144',
            _config(262144, 18, _F16, [], **_LFQ),
            f'{_HUB}/TencentARC/Open-MAGVIT2-Tokenizer-256-resolution/resolve/main/imagenet_256_L.ckpt',
            {'licence': 'apache-2.0'},
        ),
        (
            'magvit2-f8-262144',
            _config(262144, 18, _F8, [], **_LFQ),
            f'{_HUB}/TencentARC/Open-MAGVIT2-Tokenizer-128-resolution/resolve/main/imagenet_128_L.ckpt',
            {'licence': 'apache-2.0'},
        ),
        (
            'amused-f16-8192',
            _config(8192, 64, [1, 2, 2, 4, 6], [], attn_type='none'),
            'hf://amused/amused-256/vqvae',
            {'licence': 'openrail++'},
        ),
    )
}


def fetch(preset: VQGANPreset) -> Path:
    """Return the path of a preset's weights in the cache of torch hub; download them the first time.

    The SHA-256 of the download is stored beside the checkpoint, which is checked against it from then on. If
    ``timm-dad convert`` wrote a file beside the checkpoint, that file is used instead.

    Raises:
        ValueError: If the download fails or is not a checkpoint, or the checkpoint has changed.
    """
    path = _cached(preset)
    converted, recorded = path.with_suffix('.safetensors'), path.with_suffix('.sha256')
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix('.lock')):  # the processes of a run start at once
        if converted.is_file():
            return converted
        if not path.is_file() or not recorded.is_file():
            _download(preset, path, recorded)
    if sha256_of_file(path) != recorded.read_text().strip():
        raise ValueError(
            f'{path} is not the file that was first downloaded ({recorded.name}): delete both to start over'
        )
    return path


def preset_of_cached(checkpoint: Path) -> VQGANPreset | None:
    """Return the preset whose cached checkpoint this is, if any."""
    return next((preset for preset in PRESETS.values() if _cached(preset) == checkpoint.absolute()), None)


def _cached(preset: VQGANPreset) -> Path:
    return cache_dir() / f'{preset.name}.ckpt'


def _download(preset: VQGANPreset, path: Path, recorded: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _logger.info('fetching %s from %s', preset.name, preset.url)
        download, checkpoint = Path(folder) / 'download', Path(folder) / 'checkpoint'
        try:
            torch.hub.download_url_to_file(preset.url, str(download), progress=False)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f'preset {preset.name} could not be fetched from {preset.url} ({error}); fetch it elsewhere, run '
                f'timm-dad convert FILE.ckpt --config {preset.name}, and give FILE.safetensors'
            ) from error
        if preset.sha256 and sha256_of_file(download) != preset.sha256:
            raise ValueError(f'{preset.url} returned a file whose SHA-256 is not the published {preset.sha256}')
        if preset.url.endswith('.zip'):
            _extract(download, checkpoint, preset.url)
        else:
            checkpoint = download
        with checkpoint.open('rb') as file:
            start = file.read(1)
        if start != b'\x80' and not zipfile.is_zipfile(checkpoint):  # a pickle, or torch's zip of one
            raise ValueError(
                f'{preset.url} did not return a complete PyTorch checkpoint (but an error page?): open it in a browser'
            )
        digest = sha256_of_file(checkpoint)
        if recorded.is_file() and recorded.read_text().strip() != digest:
            raise ValueError(f'{preset.url} returns another file than at first: delete {recorded} to accept it')
        write_file(recorded, f'{digest}\n')
        os.replace(checkpoint, path)


def _extract(archive: Path, checkpoint: Path, url: str) -> None:
    """Copy the only ``.ckpt`` out of a zip; the names in it are not used."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if member.filename.endswith('.ckpt')]
            if len(members) != 1:
                raise ValueError(f'{url} must hold one .ckpt, got {[member.filename for member in members]}')
            with content.open(members[0]) as source, checkpoint.open('wb') as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise ValueError(f'{url} did not return a zip ({error}; but an error page?): open it in a browser') from error
