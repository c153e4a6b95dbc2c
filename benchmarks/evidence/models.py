"""Students, teachers of three strengths and VQGANs of two factors."""

import hashlib
import json
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pacs
import pacs_models
import torch
import yaml
from timm.models import build_model_with_cfg, register_model
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from timm_dad import (
    VQGAN,
    Teacher,
    VQGANConfig,
    create_open_clip_teacher,
    create_timm_teacher,
    load_vqgan,
    prepare_frozen,
)
from timm_dad.common.files import write_file
from timm_dad.demo.data import DEMO_TEACHER, DEMO_VQGAN, SEEN_STYLES, TEMPLATES
from timm_dad.vqgan.save import write_weights

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_vqgan
from demo_build import CLASS_NAMES, CLIP_CONFIG, VQGAN_CONFIG, Style, to_tensor, train_clip, train_vqgan

PRECISION = 'bf16'


@register_model
def emoji_mixer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MLP-Mixer of timm for 32 px: 64 tokens of width 96, 4 blocks."""
    cfg = {'num_classes': 16, 'input_size': (3, 32, 32), 'first_conv': 'stem.proj', 'classifier': 'head'}
    size = {'img_size': 32, 'patch_size': 4, 'num_blocks': 4, 'embed_dim': 96}
    kwargs['pretrained_cfg'] = cfg
    return build_model_with_cfg(MlpMixer, 'emoji_mixer', pretrained, **size, **kwargs)


# Flags of each kind of student. Learning rates: of runs on fxemoji (study `rates`).
STUDENTS = {
    'cnn': ('--model', 'test_resnet', '--lr', '0.008'),
    'vit': ('--model', 'test_vit', '--model-kwargs', 'img_size=32', 'patch_size=8', '--lr', '0.001'),
    'mlp': ('--model', 'emoji_mixer', '--lr', '0.002'),
}


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained: on which styles, on the training split of them or all, for how many steps."""

    styles: tuple[str, ...]
    all_pictures: bool
    steps: int


# `strong` is the demo's own. `weak` knows what the student knows: the training pictures of noto.
TEACHERS: dict[str, TeacherRecipe | None] = {
    'weak': TeacherRecipe(('noto',), all_pictures=False, steps=400),
    'medium': TeacherRecipe(SEEN_STYLES, all_pictures=True, steps=2000),
    'strong': None,
}
# `f4` is the demo's own: 8 x 8 codes of a picture. `f2`: 16 x 16. `tiny`: f4, distilled (benchmarks/tiny_vqgan.py).
VQGANS: dict[str, dict[str, Any] | None] = {'f4': None, 'f2': {'ch_mult': [1, 2]}, 'tiny': {}}
VQGAN_STEPS = 1500


def teacher_facts(name: str) -> list[Any]:
    """What a teacher is made from."""
    if name == pacs_models.TEACHER:
        return pacs_models.teacher_facts()
    recipe = TEACHERS[name]
    return ['demo'] if recipe is None else [asdict(recipe), CLIP_CONFIG, PRECISION]


def vqgan_facts(name: str) -> list[Any]:
    """What a VQGAN is made from."""
    if name == pacs_models.VQGAN_NAME:
        return pacs_models.vqgan_facts()
    changes = VQGANS[name]
    if name == 'tiny':
        return ['demo', 'tiny', tiny_vqgan.STEPS, tiny_vqgan.BATCH_SIZE, tiny_vqgan.COPIES, tiny_vqgan.LR, PRECISION]
    return ['demo'] if changes is None else [VQGAN_CONFIG, changes, VQGAN_STEPS, PRECISION]


def _hash(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def build_teacher(name: str, styles: dict[str, Style], source: Path, work: Path) -> Path:
    """Folder of a teacher in open_clip's layout; trained if it is not there."""
    recipe = TEACHERS[name]
    if recipe is None:
        return DEMO_TEACHER
    folder = work / f'teacher-{name}-{_hash(teacher_facts(name))}'
    if (folder / 'open_clip_model.safetensors').is_file():
        return folder
    captions = json.loads((source / 'captions.json').read_text())
    keep = {style: recipe.all_pictures | (styles[style].split == 'train') for style in recipe.styles}
    keys = np.concatenate([styles[style].key[keep[style]] for style in recipe.styles]).tolist()
    x = np.concatenate([styles[style].x[keep[style]] for style in recipe.styles])
    y = np.concatenate([styles[style].y[keep[style]] for style in recipe.styles])
    texts = [(captions[key]['name'], ', '.join(captions[key]['keywords'])) for key in keys]
    torch.manual_seed(0)
    model = train_clip(
        to_tensor(x), torch.from_numpy(y), texts, list(CLASS_NAMES.values()), recipe.steps, PRECISION
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(CLIP_CONFIG, indent=2) + '\n')
    write_weights(model, folder / 'open_clip_model.safetensors', torch.float16)
    return folder


def build_vqgan(name: str, styles: dict[str, Style], work: Path) -> Path:
    """Weights of a VQGAN; trained if they are not there."""
    changes = VQGANS[name]
    if changes is None:
        return DEMO_VQGAN
    path = work / f'vqgan-{name}-{_hash(vqgan_facts(name))}.safetensors'
    if path.is_file():
        return path
    if name == 'tiny':
        return tiny_vqgan.build_tiny(DEMO_VQGAN, styles, path, precision=PRECISION)
    config = deepcopy(VQGAN_CONFIG)
    config['ddconfig'].update(changes)
    x = to_tensor(np.concatenate([styles[style].x for style in SEEN_STYLES]))
    torch.manual_seed(0)
    vqgan = train_own_vqgan(x, config)
    params = {'model': {'target': 'taming.models.vqgan.VQModel', 'params': config}}
    path.with_suffix('.yaml').write_text(yaml.safe_dump(params, sort_keys=False))
    write_weights(vqgan, path, torch.float16)
    return path


def train_own_vqgan(x: torch.Tensor, config: dict[str, Any]) -> VQGAN:
    """The demo's training with another architecture."""
    return train_vqgan(x, VQGAN_STEPS, PRECISION, VQGANConfig(**config))


def is_zero_shot(teacher: Path) -> bool:
    """Whether a teacher's folder is in the layout of open_clip; else it is in timm's."""
    return (teacher / 'open_clip_config.json').is_file()


def precision_of(teacher: Path) -> str:
    """What a teacher, and the VQGAN beside it, run in; EfficientNets of 64 px are no faster in bf16 on a CPU."""
    return PRECISION if is_zero_shot(teacher) else 'fp32'


def teacher_flags(teacher: Path, templates: Path) -> list[str]:
    """Flags of ``train_dad.py`` that name a teacher."""
    precision = ['--dad-precision', precision_of(teacher)]
    if is_zero_shot(teacher):
        return ['--dad-teacher', f'open_clip:local-dir:{teacher}', '--dad-templates', str(templates), *precision]
    return ['--dad-teacher', f'timm:local-dir:{teacher}', *precision]


def load_teacher(folder: Path) -> Teacher:
    """A teacher, ready."""
    if is_zero_shot(folder):
        teacher = create_open_clip_teacher(f'local-dir:{folder}', list(CLASS_NAMES.values()), TEMPLATES)
    else:
        teacher = create_timm_teacher(f'local-dir:{folder}', len(pacs.CLASSES), class_names=pacs.CLASSES)
    prepare_frozen(teacher, precision=precision_of(folder), device=torch.device('cpu'))
    return teacher


def load_frozen(teacher: Path, vqgan: Path) -> tuple[Teacher, VQGAN]:
    """Teacher and VQGAN, ready."""
    pair = load_teacher(teacher), load_vqgan(vqgan)
    prepare_frozen(*pair, precision=precision_of(teacher), device=torch.device('cpu'))
    return pair


def templates_file(work: Path) -> Path:
    """The demo's prompts as a file, for the flags."""
    path = work / 'templates.txt'
    write_file(path, '\n'.join(TEMPLATES) + '\n')
    return path
