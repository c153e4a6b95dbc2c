"""Load VQGANs from files: checkpoints of the libraries that train them, safetensors, folders, the hub."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from timm_dad.common.files import sha256_of_file
from timm_dad.common.hub import SCHEME
from timm_dad.common.listing import some
from timm_dad.common.torch_files import MoreThanWeightsError, read_checkpoint, read_safetensors
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.diffusers import read_diffusers
from timm_dad.vqgan.hub import fetch_from_hub
from timm_dad.vqgan.llamagen import is_llamagen, names_of_taming, read_llamagen
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.origin import Origin
from timm_dad.vqgan.presets import PRESETS, VQGANPreset, fetch

CHECKPOINTS = ('.ckpt', '.pth', '.pt')

# What public files hold beside the model: taming's loss (LPIPS and discriminator), and averaged copies of the weights,
# latent-diffusion's and MoVQ's, which their encode and decode leave out as well (they are for its validation).
_BESIDE = ('loss.', 'model_ema.', 'ema_')
# SEED-Voken measures its published figures with the averaged copy.
_AVERAGED = ('inner_product', 'sign')

_logger = logging.getLogger(__name__)


def load_vqgan(path: str | Path, *, strict_size: bool = False) -> VQGAN:
    """Load a VQGAN; no code in a file is ever run.

    Args:
        path: The name of a preset (``timm_dad.vqgan.presets.PRESETS``), which is fetched once; a checkpoint ``.ckpt``,
            ``.pth``, ``.pt`` or ``.safetensors`` of taming-transformers, latent-diffusion, MoVQGAN, LlamaGen,
            SEED-Voken or ``timm-dad vqgan`` with ``NAME.yaml`` or ``config.yaml`` beside it; a folder of a diffusers
            ``VQModel`` or, in the hub's layout, of LlamaGen; or such a file or folder on the hub,
            ``hf://USER/NAME[@REVISION][/PATH]``.
        strict_size: Reject image sizes that the factor does not divide, instead of padding them.

    Returns:
        The VQGAN in fp32, on the CPU, in evaluation mode, with its ``origin``.

    Raises:
        FileNotFoundError: If the weights or the YAML are missing.
        ValueError: If a file is of another kind, needs more than its weights to load, or does not fit its config.
        ImportError: If the extra ``vqgan`` is not installed.
    """
    preset = PRESETS.get(str(path))
    address, licence = (preset.url, preset.licence) if preset else (str(path), '')
    if address.startswith(SCHEME):
        path, stated = fetch_from_hub(address)
        licence = licence or stated
    elif preset:
        path = fetch(preset)
    path = Path(path)
    if path.is_dir():
        config, state, weights = read_llamagen(path) or read_diffusers(path)
        described_by = 'config.json'
    else:
        config, described_by = _config_of(path, preset)
        state, weights = model_weights(read_weights(path), path, config), path
    vqgan = VQGAN(config, strict_size=strict_size)
    try:
        load_weights(vqgan, state)
    except ValueError as error:
        raise ValueError(f'{path} does not contain the VQGAN that {described_by} describes: {error}') from error
    vqgan.origin = Origin(sha256=sha256_of_file(weights), licence=licence)
    return vqgan.eval()


def _config_of(path: Path, preset: VQGANPreset | None) -> tuple[VQGANConfig, str]:
    if preset:
        return preset.config, f'preset {preset.name}'
    config_path = find_yaml(path)
    return VQGANConfig.from_yaml(config_path), config_path.name


def find_yaml(path: Path) -> Path:
    """Find the YAML of a checkpoint, ``NAME.yaml`` or ``config.yaml``; ``FileNotFoundError`` if either is missing."""
    if not path.is_file():
        raise FileNotFoundError(f'no VQGAN at {path}: it is not a file, a folder, or one of {", ".join(PRESETS)}')
    candidates = (path.with_suffix('.yaml'), path.with_name('config.yaml'))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f'no VQGAN at {path}: {candidates[0]}, which describes its architecture, is missing; copy it from where the '
        f'weights come from or, if they belong to a preset, run: timm-dad convert {path} --config PRESET'
    )


def read_weights(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read all weights of a file, by name; with ``trust``, run whatever a pickle contains.

    Raises:
        ValueError: If the file is of another kind, broken, or needs ``trust``.
    """
    if path.suffix == '.safetensors':
        return read_safetensors(path)
    if path.suffix not in CHECKPOINTS:
        raise ValueError(
            f'VQGANs are files {", ".join((*CHECKPOINTS, ".safetensors"))}, or diffusers folders, got {path.name} '
            '(an archive? unpack it)'
        )
    try:
        content = read_checkpoint(path, trust=trust)
    except MoreThanWeightsError as error:
        raise MoreThanWeightsError(path, error.found, f'run: timm-dad convert {path} --trust') from error
    state = content
    if isinstance(content, Mapping):
        state = next((content[key] for key in ('state_dict', 'ema', 'model') if key in content), content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f'{path} must contain weights by name, directly or under state_dict, got {found}')
    return dict(state)


def model_weights(state: Mapping[str, Tensor], path: Path, config: VQGANConfig) -> dict[str, Tensor]:
    """Return the model's own weights under our names, without the extra tensors known from public files."""
    own = {name: value for name, value in state.items() if not name.startswith(_BESIDE)}
    if config.quantizer in _AVERAGED:
        own = {name: state.get(f'model_ema.{name.replace(".", "")}', value) for name, value in own.items()}
    if len(own) < len(state):
        _logger.info('%s: left out %d tensors of %s', path.name, len(state) - len(own), ' and '.join(_BESIDE))
    return names_of_taming(own, len(config.ddconfig['ch_mult'])) if is_llamagen(own) else own


def load_weights(vqgan: VQGAN, state: Mapping[str, Tensor]) -> None:
    """Load weights of any floating dtype as fp32; raise ``ValueError`` that lists misfits and non-finite weights."""
    expected = {name: tuple(value.shape) for name, value in vqgan.state_dict().items()}
    wrong = {
        'lacks': [name for name in expected if name not in state],
        'has unexpected': [name for name in state if name not in expected],
        'has other shapes for': [
            f'{name} {tuple(state[name].shape)}, not {shape}'
            for name, shape in expected.items()
            if name in state and tuple(state[name].shape) != shape
        ],
        'has non-finite': [name for name, value in state.items() if not value.isfinite().all()],
    }
    problems = [f'it {what} {some(names)}' for what, names in wrong.items() if names]
    if problems:
        raise ValueError('; '.join(problems))
    vqgan.load_state_dict({name: value.float() for name, value in state.items()})
