"""The demo's pictures: emojis at 32 px, one style to train on, others to test on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

SIZE = 32
SEEN_STYLES = ('noto', 'noto-v1', 'emojione-mono', 'fluent-flat', 'fluent-3d')
UNSEEN_STYLES = ('twemoji', 'emojione', 'noto-mono')
STYLES = SEEN_STYLES + UNSEEN_STYLES
TUNING_STYLE = 'fxemoji'
TEMPLATES = ('an emoji of a {}.', 'a drawing of a {}.')

ASSETS = Path(__file__).parent / 'assets'
DEMO_CONFIG = Path(__file__).parent / 'demo.yaml'
DEMO_TEACHER = ASSETS / 'teacher'
DEMO_VQGAN = ASSETS / 'vqgan.safetensors'
PREFIX = 'demo/'


def class_names() -> list[str]:
    """Return the names of the 16 classes, in the order of the labels."""
    return (ASSETS / 'classnames.txt').read_text().splitlines()


class DemoDataset(Dataset[tuple[Any, int]]):
    """Pictures of one style, in the interface of ``timm.data.ImageDataset``.

    Args:
        style: One of ``STYLES``.
        split: ``train`` (only for ``noto``) or ``validation``.

    Raises:
        ValueError: If the style is unknown or has no such split.
    """

    def __init__(self, style: str, split: str) -> None:
        if style not in STYLES:
            raise ValueError(f'the demo has the styles {STYLES}, got {style!r}')
        with np.load(ASSETS / f'{style}.npz', allow_pickle=False) as file:
            keep = file['split'] == ('train' if split.startswith('train') else 'val')
            self.images, self.labels = file['x'][keep], file['y'][keep]
        if not len(self.images):
            raise ValueError(f'the demo has no {split} pictures of {style} (only noto is for training)')
        self.class_names: list[str] | None = class_names()
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return a transformed picture and its label."""
        image: Any = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform else image, int(self.labels[index])
