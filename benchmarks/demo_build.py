"""Make the demo's pictures and weights again: ``python benchmarks/demo_build.py --source ../shared/emoji64``.

Which style plays which part is decided here, once. Students see ``noto`` alone. Teacher and VQGAN learn
``SEEN_STYLES``, every emoji of them, as CLIP has seen pictures of everything. ``UNSEEN_STYLES`` are reported and
neither has seen them; ``TUNING_STYLE`` is unseen too, chooses the demo's settings, and is reported nowhere.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from timm.utils import setup_default_logging
from torch import Tensor, nn
from tqdm import tqdm

from timm_dad.common.extras import require_extra
from timm_dad.common.files import replacing
from timm_dad.demo.data import ASSETS, SEEN_STYLES, SIZE, STYLES, TEMPLATES, TUNING_STYLE
from timm_dad.vqgan.model import VQGAN, VQGANConfig
from timm_dad.vqgan.save import write_weights
from timm_dad.vqgan_training.optimize import one_cycle
from timm_dad.vqgan_training.reconstruction import VQGANTrainConfig, VQGANTrainer

_logger = logging.getLogger('demo_build')

CLASS_NAMES = {
    'animal_other': 'bird, fish or insect',
    'body': 'part of the body',
    'building': 'building',
    'clothing': 'piece of clothing',
    'device': 'electronic device',
    'face': 'smiling face',
    'food': 'food or drink',
    'mammal': 'mammal',
    'person': 'person',
    'plant': 'plant or fruit',
    'sign': 'sign or symbol',
    'sport_game': 'sport or game',
    'stationery': 'piece of stationery',
    'tool': 'tool',
    'vehicle': 'vehicle',
    'weather': 'weather or sky',
}

VQGAN_CONFIG: dict[str, Any] = {
    'n_embed': 1024,
    'embed_dim': 8,
    'ddconfig': {
        'double_z': False,
        'z_channels': 8,
        'resolution': SIZE,
        'in_channels': 3,
        'out_ch': 3,
        'ch': 32,
        'ch_mult': [1, 2, 2],
        'num_res_blocks': 1,
        'attn_resolutions': [],
        'dropout': 0.0,
    },
}

CLIP_CONFIG: dict[str, Any] = {
    'model_cfg': {
        'embed_dim': 128,
        'vision_cfg': {'image_size': 64, 'layers': [2, 2, 2, 2], 'width': 16, 'head_width': 32, 'patch_size': None},
        'text_cfg': {'context_length': 20, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 2},
    },
    'preprocess_cfg': {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5], 'interpolation': 'bicubic'},
}


@dataclass
class Style:
    """One style of emoji64 at the demo's size: ``x`` uint8 ``[N, S, S, 3]``, ``y`` ``[N]``, ``split``, ``key``."""

    x: np.ndarray
    y: np.ndarray
    split: np.ndarray
    key: np.ndarray


def read_style(path: Path) -> Style:
    """Read ``<style>.npz`` of emoji64 and halve its side by the mean of 2 x 2 pixels."""
    with np.load(path, allow_pickle=False) as file:
        x = file['x'].astype(np.float32)
        count, side = x.shape[:2]
        x = x.reshape(count, SIZE, side // SIZE, SIZE, side // SIZE, 3).mean(axis=(2, 4))
        return Style(x.round().astype(np.uint8), file['y'].astype(np.int64), file['split'], file['key'])


def write_pictures(style: Style, splits: tuple[str, ...], path: Path) -> None:
    """Write the pictures of ``splits`` as one ``.npz``."""
    keep = np.isin(style.split, splits)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, x=style.x[keep], y=style.y[keep].astype(np.uint8), split=style.split[keep])


def to_tensor(x: np.ndarray) -> Tensor:
    """uint8 ``[N, S, S, 3]`` to float ``[N, 3, S, S]`` in [0, 1]."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255)


def random_affine(x: Tensor, scale: float, rotate: float, shift: float) -> Tensor:
    """Rotate (radians), zoom, shift and mirror each picture by its own random amount, on a white ground."""
    count = len(x)
    zoom = torch.exp((torch.rand(count) * 2 - 1) * scale)
    angle = (torch.rand(count) * 2 - 1) * rotate
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    move = (torch.rand(count, 2) * 2 - 1) * shift
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    row_x = torch.stack([cos * mirror, -sin, move[:, 0]], dim=1)
    row_y = torch.stack([sin * mirror, cos, move[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(x.shape), align_corners=False)
    return 1 - F.grid_sample(1 - x, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


def random_colour(x: Tensor, strength: float) -> Tensor:
    """Mix channels, change contrast and brightness, drop colour, invert: each picture its own way."""
    count = len(x)
    mix = torch.eye(3) + strength * torch.randn(count, 3, 3) * 0.5
    grey = (torch.rand(count) < 0.25 * strength).view(-1, 1, 1)
    mix = torch.where(grey, torch.tensor([0.3, 0.6, 0.1]).expand(3, 3), mix)
    mix = mix / mix.sum(dim=2, keepdim=True).clamp_min(0.3)
    mixed = torch.einsum('bij,bjhw->bihw', mix, x)
    contrast = 1 + strength * (torch.rand(count, 1, 1, 1) * 2 - 1)
    mixed = (mixed - 0.7) * contrast + 0.7 + strength * 0.4 * (torch.rand(count, 1, 1, 1) - 0.5)
    inverted = (torch.rand(count) < 0.1 * strength).view(-1, 1, 1, 1)
    return torch.where(inverted, 1 - mixed, mixed).clamp(0, 1)


def random_damage(x: Tensor) -> Tensor:
    """Blur some pictures, add noise to some, erase a rectangle of some."""
    count, _, side, _ = x.shape
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), 3, stride=1)
    x = torch.where((torch.rand(count) < 0.3).view(-1, 1, 1, 1), blurred, x)
    x = x + torch.randn_like(x) * (torch.rand(count, 1, 1, 1) * 0.1) * (torch.rand(count, 1, 1, 1) < 0.4)
    position = torch.arange(side)
    start, length = torch.randint(0, side, (count, 2)), torch.randint(side // 8, side // 2, (count, 2))
    rows = (position >= start[:, :1]) & (position < start[:, :1] + length[:, :1])
    columns = (position >= start[:, 1:]) & (position < start[:, 1:] + length[:, 1:])
    hole = (rows[:, :, None] & columns[:, None, :]) & (torch.rand(count) < 0.3).view(-1, 1, 1)
    return torch.where(hole[:, None], torch.rand(count, 3, 1, 1), x).clamp(0, 1)


def batches(count: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """``steps`` batches of indices, each pass over the data in a new order."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:batch_size]
        order = order[batch_size:]


def train_vqgan(x: Tensor, steps: int, precision: str, config: VQGANConfig | None = None) -> VQGAN:
    """Train taming's modules on pictures ``[N, 3, S, S]``: L1 and L2, commitment, restart of unused codes."""
    config = config or VQGANConfig(**VQGAN_CONFIG)
    accelerator = Accelerator(mixed_precision={'fp32': 'no', 'bf16': 'bf16'}[precision])
    trainer = VQGANTrainer(VQGAN(config), accelerator, VQGANTrainConfig(steps=steps, lr=2e-3))
    progress = tqdm(batches(len(x), 64, steps), total=steps, desc='VQGAN', mininterval=10)
    for step, index in enumerate(progress):
        parts = trainer.step(random_colour(random_affine(x[index], 0.2, 0.3, 0.1), 0.3))
        if step % 50 == 49:
            progress.set_postfix(l1=f'{parts["l1"].item():.4f}')
    return trainer.vqgan.eval()


def train_clip(
    x: Tensor, y: Tensor, captions: list[tuple[str, str]], class_names: list[str], steps: int, precision: str
) -> nn.Module:
    """Train a small open_clip CLIP: pictures against their captions, and against the prompts of their class.

    Args:
        x: Pictures ``[N, 3, S, S]``, range [0, 1].
        y: Labels ``[N]``.
        captions: ``(name, keywords)`` of each picture.
        class_names: One name a class.
        steps: Optimizer steps of 128 pictures.
        precision: ``fp32`` or ``bf16``.

    Source: Radford et al. 2021, arXiv:2103.00020; class prompts as in Yang et al. 2022 (UniCL), arXiv:2204.03610.
    """
    open_clip = require_extra('open_clip', 'clip')
    config = CLIP_CONFIG['model_cfg']
    model = open_clip.CLIP(**config)
    tokenizer = open_clip.SimpleTokenizer(context_length=config['text_cfg']['context_length'])
    caption_tokens = torch.stack([tokenizer([name, keywords]) for name, keywords in captions])
    prompts = tokenizer([template.format(name) for name in class_names for template in TEMPLATES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = one_cycle(optimizer, steps)
    size = config['vision_cfg']['image_size']
    progress = tqdm(batches(len(x), 128, steps), total=steps, desc='CLIP', mininterval=10)
    for step, index in enumerate(progress):
        batch = random_damage(random_colour(random_affine(x[index], 0.3, 0.4, 0.15), 0.7))
        batch = F.interpolate(batch, (size, size), mode='bicubic', antialias=True).clamp(0, 1)
        tokens = caption_tokens[index, torch.randint(2, (len(index),))]
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'):
            image = model.encode_image((batch - 0.5) / 0.5).float()
            text = model.encode_text(torch.cat([tokens, prompts])).float()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        scale = model.logit_scale.exp().clamp(max=50)
        pairs = scale * image @ text[: len(index)].t()
        same = torch.arange(len(index))
        head = F.normalize(text[len(index) :].view(len(class_names), len(TEMPLATES), -1).mean(dim=1), dim=-1)
        classes = scale * image @ head.t()
        loss = F.cross_entropy(classes, y[index], label_smoothing=0.1)
        loss = loss + 0.25 * (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.t(), same))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            top1 = (classes.argmax(dim=1) == y[index]).float().mean()
            progress.set_postfix(loss=f'{loss.item():.3f}', top1=f'{top1.item():.2f}')
    trained: nn.Module = model.eval()
    return trained


def build_vqgan(styles: dict[str, Style], output: Path, steps: int, precision: str) -> None:
    """Train and write ``vqgan.safetensors`` and its YAML in taming's layout."""
    x = to_tensor(np.concatenate([styles[name].x for name in SEEN_STYLES]))
    vqgan = train_vqgan(x, steps, precision)
    write_weights(vqgan, output / 'vqgan.safetensors', torch.float16)
    config = {'model': {'target': 'taming.models.vqgan.VQModel', 'params': VQGAN_CONFIG}}
    (output / 'vqgan.yaml').write_text(yaml.safe_dump(config, sort_keys=False))
    with torch.no_grad():
        errors = {
            n: (vqgan(to_tensor(s.x[:200])) - to_tensor(s.x[:200])).abs().mean().item() for n, s in styles.items()
        }
    _logger.info('VQGAN: mean absolute error %s', {name: f'{error:.4f}' for name, error in errors.items()})


def build_teacher(styles: dict[str, Style], source: Path, output: Path, steps: int, precision: str) -> None:
    """Train and write ``teacher/`` in open_clip's own folder layout."""
    names = json.loads((source / 'captions.json').read_text())
    keys = np.concatenate([styles[name].key for name in SEEN_STYLES]).tolist()
    captions = [(names[key]['name'], ', '.join(names[key]['keywords'])) for key in keys]
    x = to_tensor(np.concatenate([styles[name].x for name in SEEN_STYLES]))
    y = torch.from_numpy(np.concatenate([styles[name].y for name in SEEN_STYLES]))
    model = train_clip(x, y, captions, list(CLASS_NAMES.values()), steps, precision)
    folder = output / 'teacher'
    folder.mkdir(exist_ok=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(CLIP_CONFIG, indent=2) + '\n')
    write_weights(model, folder / 'open_clip_model.safetensors', torch.float16)


def main(argv: list[str] | None = None) -> None:
    """Build pictures, VQGAN and teacher, or some of them."""
    parser = argparse.ArgumentParser(prog='python benchmarks/demo_build.py', description=__doc__)
    parser.add_argument('--source', type=Path, required=True, help='folder of emoji64: <style>.npz and captions.json')
    parser.add_argument('--output', type=Path, default=ASSETS, help='folder to write')
    parser.add_argument(
        '--only', nargs='+', choices=('pictures', 'vqgan', 'teacher'), help='parts to build (default: all)'
    )
    parser.add_argument('--vqgan-steps', type=int, default=4000, help='optimizer steps of the VQGAN')
    parser.add_argument('--teacher-steps', type=int, default=5000, help='optimizer steps of the teacher')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='bf16', help='precision of the training here')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    args = parser.parse_args(argv)
    setup_default_logging()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    styles = {name: read_style(args.source / f'{name}.npz') for name in (*STYLES, TUNING_STYLE)}
    for part in args.only or ('pictures', 'vqgan', 'teacher'):
        torch.manual_seed(args.seed)
        if part == 'pictures':
            for name in STYLES:
                write_pictures(
                    styles[name], ('train', 'val') if name == 'noto' else ('val',), args.output / f'{name}.npz'
                )
            (args.output / 'classnames.txt').write_text('\n'.join(CLASS_NAMES.values()) + '\n')
        elif part == 'vqgan':
            build_vqgan(styles, args.output, args.vqgan_steps, args.precision)
        else:
            build_teacher(styles, args.source, args.output, args.teacher_steps, args.precision)


if __name__ == '__main__':
    main()
