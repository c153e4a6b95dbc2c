"""Weights of a timm model from a file, and what their training tells about the network and its images.

A training of timm or ``timm-dad train`` stores its flags in the checkpoint (``args``) and in ``args.yaml`` beside it; a
folder in the hub's layout has ``config.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from torch import Tensor

from timm_dad.common.text_files import read_json, read_yaml
from timm_dad.common.torch_files import read_checkpoint

BEST = 'model_best.pth.tar'
AVERAGED = ('state_dict_ema', 'model_ema')  # the moving average, as timm names it in checkpoints
_IMAGE_FLAGS = ('img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'in_chans')
# timm's train.py evaluates at the size and crop that it trains at, and cuts from the centre.
_AS_TRAINED = {'crop_mode': 'center', 'test_input_size': None, 'test_crop_pct': None}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is known about a file of weights.

    Args:
        state: The weights, by name.
        source: Where the rest was read; empty if it is unknown.
        model: timm's name of the model; empty if it is unknown.
        model_kwargs: Arguments of ``timm.create_model``.
        flags: Flags of the training.
        cfg: Entries of the model's ``pretrained_cfg``, from ``config.json``.
    """

    state: Mapping[str, Tensor]
    source: str = ''
    model: str = ''
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    cfg: Mapping[str, Any] = field(default_factory=dict)

    def images(self, pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's ``pretrained_cfg`` with size, normalization, interpolation and crop of the training.

        Raises:
            ValueError: If timm does not accept the training's flags.
        """
        cfg = {**pretrained_cfg, **self.cfg}
        flags = {name: self.flags[name] for name in _IMAGE_FLAGS if name in self.flags}
        if not flags:
            return cfg
        try:
            found = resolve_data_config(flags, pretrained_cfg=cfg)
            numbers = {name: tuple(map(float, found[name])) for name in ('mean', 'std')}
            return {**cfg, **found, **numbers, **_AS_TRAINED}
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f'{self.source} does not describe the image format, got {flags}') from error


def read_trained(path: str | Path, architecture: str = '', use_ema: bool = True) -> Trained:
    """Read a file of weights and the files beside it.

    Args:
        path: The file, written by ``torch.save`` or ``.safetensors``.
        architecture: timm's name of the model, without tag, which files beside the weights must match. By default they
            are not compared.
        use_ema: Use the moving average of the weights, if there is one.

    Raises:
        ValueError: If the file cannot be read, or contains no weights by name.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == '.safetensors' else read_checkpoint(path)
    state = _weights(content, use_ema)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{path} contains no weights by name')
    # Those of split batch norm's other branches are for training alone.
    state = {name: value for name, value in clean_state_dict(state).items() if '.aux_bn.' not in name}
    flags = content.get('args')
    flags = flags if isinstance(flags, dict) else getattr(flags, '__dict__', {})
    if flags.get('model'):
        return Trained(state=state, **_by_flags(flags, f'args in {path}'))
    beside = path.with_name('args.yaml')
    if beside.is_file():
        flags = read_flags(beside)
        if not architecture or _architecture(flags['model']) == architecture:
            return Trained(state=state, **_by_flags(flags, str(beside)))
    return Trained(state=state, **_by_config(path.with_name('config.json'), architecture))


def read_flags(path: Path) -> dict[str, Any]:
    """Read the ``args.yaml`` of a training; raise ``ValueError`` if it is malformed."""
    try:
        flags = read_yaml(path)
    except ValueError as error:
        raise ValueError(f'run:FOLDER is a folder of `timm-dad train`, with args.yaml; {error}') from error
    if not isinstance(flags, dict) or not flags.get('model') or not all(isinstance(name, str) for name in flags):
        raise ValueError(f'{path} contains no flags of a training')
    if not isinstance(flags['model'], str):
        raise ValueError(f'{path}: model must be a name of timm, got {flags["model"]!r}')
    return flags


def run_folder(path: str) -> Path:
    """Return the folder of a run, given the folder or a file in it."""
    return Path(path).parent if Path(path).is_file() else Path(path)


def find_run(path: str) -> tuple[str, str]:
    """Find the model and checkpoint of a training.

    Args:
        path: Its folder, whose best checkpoint is taken, or a checkpoint in it.

    Returns:
        timm's name of the model, and the path of the checkpoint.

    Raises:
        ValueError: If there is none, or its images do not have 3 channels.
    """
    flags = read_flags(run_folder(path) / 'args.yaml')
    checkpoint = Path(path) if Path(path).is_file() else Path(path) / BEST
    if not checkpoint.is_file():
        raise ValueError(f'{path} has no {BEST} (yet); to use another checkpoint, give run:{path}/FILE')
    channels = flags.get('in_chans') or (flags['input_size'][0] if flags.get('input_size') else 3)
    if channels != 3:
        raise ValueError(f'{path}: images must have 3 channels, but the run has {channels}')
    return flags['model'], str(checkpoint)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError(f'there is no checkpoint {path}')
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises what it likes on a broken file
        raise ValueError(f'{path} is not a safetensors file: {error}') from error


def _weights(content: Any, use_ema: bool) -> Any:
    """Return the weights in a checkpoint, under the names that timm looks for."""
    if not isinstance(content, dict):
        return None
    averaged = AVERAGED if use_ema else ()
    names = [name for name in (*averaged, 'state_dict', 'model') if isinstance(content.get(name), dict)]
    return content[names[0]] if names else content


def _architecture(name: str) -> str:
    return name.split('.')[0]


def model_kwargs(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that a training's flags set, except name and classes."""
    kwargs = {'global_pool': flags.get('gp'), 'bn_eps': flags.get('bn_eps'), **(flags.get('model_kwargs') or {})}
    return {name: value for name, value in kwargs.items() if value is not None}


def _by_flags(flags: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {'source': source, 'model': str(flags['model']), 'model_kwargs': model_kwargs(flags), 'flags': flags}


def _by_config(path: Path, architecture: str) -> dict[str, Any]:
    """Return the content of a ``config.json`` in the hub's layout, if it exists and is for this architecture."""
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict) or config.get('architecture') != architecture:
        return {}
    cfg, kwargs = config.get('pretrained_cfg') or {}, config.get('model_args') or {}
    if not isinstance(cfg, dict) or not isinstance(kwargs, dict):
        raise ValueError(f'{path}: pretrained_cfg and model_args must be maps')
    labels = {name: config[name] for name in ('label_names',) if config.get(name)}
    return {'source': str(path), 'model': architecture, 'model_kwargs': kwargs, 'cfg': {**cfg, **labels}}
