"""Small real CLIPs for tests, in the layouts that open_clip reads."""

import json

import open_clip
import torch
from safetensors.torch import save_file

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.4, 0.6)
TEXT_CFG = {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1}
VISION_CFG = {'image_size': 32, 'layers': 1, 'width': 32, 'head_width': 16, 'patch_size': 16}


def clip_config(text=(), vision=(), **more):
    towers = {'vision_cfg': {**VISION_CFG, **dict(vision)}, 'text_cfg': {**TEXT_CFG, **dict(text)}}
    return {'embed_dim': 16, **towers, **more}


def write_clip_folder(folder, config=None, model=None, preprocess=()):
    """Write a CLIP as ``local-dir:`` takes it; returns the model."""
    config = config or clip_config()
    content = {'model_cfg': config, 'preprocess_cfg': {'mean': MEAN, 'std': STD, **dict(preprocess)}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(content))
    model = model or open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
    return model


def add_clip_name(tmp_path, name, config=None):
    """Put a CLIP under a name on open_clip's own list; returns a file with weights of it, and the model."""
    config = config or clip_config()
    (tmp_path / f'{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f'{name}.json')
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), tmp_path / f'{name}.safetensors')
    return tmp_path / f'{name}.safetensors', model


def normalize(x_pix, mean=MEAN, std=STD):
    return (x_pix - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
