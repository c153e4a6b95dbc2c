"""A picture of what DAD does: rows of ``x``, ``Q(x)``, the amplified perturbation and ``x_dad``."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from timm_dad.augment import DADAugment

_CELL = 128
_TEXT = 30
_MARGIN = 8


def _cell(x_pix: Tensor) -> Image.Image:
    """One image ``[3, H, W]`` in [0, 1] as a square picture, pixels visible."""
    array = x_pix.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array).resize((_CELL, _CELL), Image.Resampling.NEAREST)


def amplify(perturbation: Tensor) -> Tensor:
    """Perturbations ``[B, 3, H, W]`` around grey, each scaled so that its largest entry is black or white."""
    peak = perturbation.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return 0.5 + 0.5 * perturbation / peak


@torch.no_grad()
def save_preview(
    path: str | Path, augment: DADAugment, x_pix: Tensor, target: Tensor, class_names: Sequence[str] | None = None
) -> None:
    """Write the sheet: one row an image, with the teacher's label and confidence under each view.

    Args:
        path: The PNG to write (to a temporary name first).
        augment: Makes the views.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].
        target: Class indices ``[B]``.
        class_names: Names of the classes; their numbers by default.
    """
    views = augment.make_views(x_pix, target)
    perturbation = views.x_adv - views.x_vq
    columns = [
        ('x', x_pix, augment.teacher(x_pix)),
        ('Q(x)', views.x_vq, augment.teacher(views.x_vq)),
        ('perturbation, amplified', amplify(perturbation), None),
        ('x_dad', views.x_dad, views.dad_logits),
    ]
    names = class_names or [str(index) for index in range(augment.teacher.num_classes)]
    font = ImageFont.load_default(10)
    step_x, step_y = _CELL + _MARGIN, _CELL + _TEXT + _MARGIN
    sheet = Image.new('RGB', (_MARGIN + len(columns) * step_x, _TEXT + len(x_pix) * step_y), 'white')
    draw = ImageDraw.Draw(sheet)
    for column, (title, images, logits) in enumerate(columns):
        left = _MARGIN + column * step_x
        draw.text((left, _MARGIN), title, 'black', font)
        for row in range(len(x_pix)):
            top = _TEXT + row * step_y
            sheet.paste(_cell(images[row]), (left, top))
            caption, colour = f'L2 {perturbation[row].norm().item():.3f}', 'black'
            if logits is not None:
                confidence, label = logits[row].softmax(dim=-1).max(dim=-1)
                caption = f'{names[int(label)]}\n{confidence.item():.0%}'
                colour = 'darkgreen' if int(label) == int(target[row]) else 'firebrick'
            draw.text((left, top + _CELL + 2), caption, colour, font, spacing=1)
    temporary = Path(path).with_suffix('.tmp.png')
    sheet.save(temporary)
    os.replace(temporary, path)
