"""Pictures: every style of emoji64 at the demo's size, and noto's validation pictures corrupted."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from timm_dad.common.files import replacing
from timm_dad.demo.data import STYLES, TUNING_STYLE
from timm_dad.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

sys.path.append(str(Path(__file__).resolve().parents[1]))
from demo_build import Style, read_style, to_tensor

TRAIN_STYLE = 'noto'


def read_styles(source: Path) -> dict[str, Style]:
    """All styles by name."""
    return {name: read_style(source / f'{name}.npz') for name in (*STYLES, TUNING_STYLE)}


def test_sets(styles: dict[str, Style]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pictures and labels by style: validation emojis, but of the tuning style all, for it chooses and is not shown."""
    keep = {name: (style.split == 'val') | (name == TUNING_STYLE) for name, style in styles.items()}
    return {name: (style.x[keep[name]], style.y[keep[name]]) for name, style in styles.items()}


def corrupted(x: np.ndarray, work: Path) -> np.ndarray:
    """Pictures ``[N, S, S, 3]`` under all corruptions and severities ``[15, 5, N, S, S, 3]``, made once."""
    path = work / 'corrupted.npy'
    if not path.is_file():
        seeds = np.random.SeedSequence(0).generate_state(len(CORRUPTIONS) * len(SEVERITIES) * len(x))
        seeds = seeds.reshape(len(CORRUPTIONS), len(SEVERITIES), len(x))
        made = [
            [
                [corrupt(image, name, severity, int(seeds[i, j, n])) for n, image in enumerate(x)]
                for j, severity in enumerate(SEVERITIES)
            ]
            for i, name in enumerate(CORRUPTIONS)
        ]
        with replacing(path) as temporary:
            np.save(temporary, np.asarray(made))
    result: np.ndarray = np.load(path)
    return result


@torch.inference_mode()
def top1(model: nn.Module, x: np.ndarray, y: np.ndarray, *, normalize: bool = True, batch_size: int = 275) -> float:
    """Top-1 in percent of pictures ``[N, S, S, 3]`` uint8; ``normalize`` as the recipe does, or [0, 1] pixels."""
    right = 0
    for start in range(0, len(x), batch_size):
        batch: Tensor = to_tensor(x[start : start + batch_size]).contiguous(memory_format=torch.channels_last)
        predicted = model((batch - 0.5) / 0.5 if normalize else batch).argmax(dim=1).numpy()
        right += int((predicted == y[start : start + batch_size]).sum())
    return 100 * right / len(x)
