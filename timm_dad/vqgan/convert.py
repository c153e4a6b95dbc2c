"""Convert checkpoints of the libraries that train VQGANs to safetensors: the command ``timm-dad convert``."""

import pickle
from pathlib import Path

from timm_dad.common.files import write_file
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.load import CHECKPOINTS, find_yaml, load_weights, model_weights, read_weights
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.presets import PRESETS, fetch, preset_of_cached
from timm_dad.vqgan.save import write_weights


def convert(checkpoint: Path, config: str | None = None, *, trust: bool = False) -> Path:
    """Write ``NAME.safetensors`` with only the model's weights, and ``NAME.yaml`` if there is none.

    Args:
        checkpoint: ``NAME.ckpt``, ``.pth`` or ``.pt``.
        config: A YAML or the name of a preset; by default the YAML beside the checkpoint.
        trust: Unpickle whatever the checkpoint contains, which may run any code.

    Raises:
        FileNotFoundError: If the checkpoint or its YAML is missing.
        FileExistsError: If ``NAME.safetensors`` exists, or ``NAME.yaml`` exists beside ``config``.
        ValueError: If the checkpoint is of another kind, does not fit its config, or needs ``trust``.
        ImportError: If it needs a package that is not installed (with ``trust``).
    """
    target, yaml_path = checkpoint.with_suffix('.safetensors'), checkpoint.with_suffix('.yaml')
    if not checkpoint.is_file():
        raise FileNotFoundError(f'there is no checkpoint {checkpoint}')
    if checkpoint.suffix not in CHECKPOINTS:
        raise ValueError(f'a checkpoint is one of {", ".join(CHECKPOINTS)}, got {checkpoint.name}')
    if target.exists():
        raise FileExistsError(f'{target} already exists: use it, or move it away')
    if config is not None and yaml_path.exists():
        raise FileExistsError(f'{yaml_path} already exists and would be used: leave --config out, or move it away')
    vqgan_config = _config_of(checkpoint, config)
    vqgan = VQGAN(vqgan_config)
    try:
        state = model_weights(read_weights(checkpoint, trust=trust), checkpoint, vqgan_config)
    except (AttributeError, pickle.PickleError) as error:  # of the code that it runs
        raise ValueError(f'{checkpoint} cannot be unpickled here: {error}') from error
    try:
        load_weights(vqgan, state)
    except ValueError as error:
        raise ValueError(f'{checkpoint} does not contain the VQGAN that its config describes: {error}') from error
    if not yaml_path.exists():
        write_file(yaml_path, vqgan_config.to_yaml())
    write_weights(vqgan, target)
    return target


def _config_of(checkpoint: Path, config: str | None) -> VQGANConfig:
    if config is None:
        preset = preset_of_cached(checkpoint)
        if preset is None:
            return VQGANConfig.from_yaml(find_yaml(checkpoint))
        fetch(preset)  # compares it with what was downloaded
        return preset.config
    if config in PRESETS:
        return PRESETS[config].config
    if not Path(config).is_file():
        raise FileNotFoundError(f'--config must be a YAML or one of {", ".join(PRESETS)}, got {config}')
    return VQGANConfig.from_yaml(config)
