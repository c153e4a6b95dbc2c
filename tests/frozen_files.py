"""Files of frozen models for tests: what the flags of generate and preview name."""

import json

import timm
import torch
import yaml
from conftest import DDCONFIG
from safetensors.torch import save_file
from tiny import save_tiny
from torch import nn

from timm_dad.vqgan.model import VQGAN, VQGANConfig


def write_frozen(root):
    """Write two untrained teachers and VQGANs, a tiny VQGAN of the first, and files of classes and prompts."""
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            teacher = timm.create_model('test_resnet', num_classes=4)
            nn.init.normal_(teacher.get_classifier().weight, std=5.0)
            save_file(teacher.state_dict(), root / f'teacher{seed}.safetensors')
            vqgan = VQGAN(VQGANConfig(ddconfig=DDCONFIG, n_embed=32, embed_dim=4))
            with torch.no_grad():
                vqgan.quant_conv.weight.mul_(3)
                vqgan.quantize.embedding.weight.normal_()
                vqgan.decoder.conv_out.weight.mul_(1.5)
            save_file(vqgan.state_dict(), root / f'vqgan{seed}.safetensors')
            params = {'ddconfig': DDCONFIG, 'n_embed': 32, 'embed_dim': 4}
            content = {'model': {'target': 'taming.models.vqgan.VQModel', 'params': params}}
            (root / f'vqgan{seed}.yaml').write_text(yaml.safe_dump(content))
            if seed == 1:
                save_tiny(vqgan, root / 'tiny.safetensors')
    (root / 'map.txt').write_text('tree\nfish\ndog\ncat\n')
    (root / 'teacher.json').write_text(json.dumps({'cat': 3, 'dog': 2, 'fish': 1, 'tree': 0}))
    (root / 'names.txt').write_text('tool\nvehicle\nanimal\nplant\n')
    (root / 'templates.txt').write_text('an abstract painting of a {}.\n')


def attack_flags(files, more, changes):
    """Flags of the first models and of an attack on them, by name; ``changes`` win, and ``more`` may ask for codes."""
    values = {
        'dad_teacher': f'timm:test_resnet/{files / "teacher1.safetensors"}',
        'dad_vqgan': files / 'vqgan1.safetensors', 'dad_eps': 2, 'dad_step_size': 2, 'device': 'cpu',
    }  # fmt: skip
    if 'codes' in more and '--dad-attack' in more:  # whose radius is another, and which has no step size
        values.update(dad_eps=None, dad_step_size=None)
    return {**values, **changes}
