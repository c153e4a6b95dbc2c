"""Pictures of a preview, and their PNG sheet: one row per image, one column per view, text below each picture."""

import io
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from timm_dad.preview.image import PreviewImage, share

COLUMNS = ('x', 'Q(x)', 'perturbation', 'x_dad', 'codes of x_dad')

# Longer side of a picture on the sheet: small ones are enlarged by whole numbers, large ones shrunk.
_MIN_SIDE, _MAX_SIDE = 144, 320
_MARGIN, _LINE, _FONT_SIZE = 8, 15, 12
_LINES, _GAP = 4, 10  # lines of text below a picture, and pixels between two rows


def to_picture(x_pix: Tensor) -> Image.Image:
    """Convert an image ``[3, H, W]`` in [0, 1] to 8 bits."""
    return Image.fromarray(x_pix.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def amplification(perturbation: Tensor) -> float:
    """Return the factor that a perturbation ``[3, H, W]`` is amplified by for display; 1 if it is zero."""
    peak = perturbation.abs().max().item()
    return 0.5 / peak if peak else 1.0


def amplify(perturbation: Tensor) -> Tensor:
    """Show a perturbation ``[3, H, W]`` around grey, scaled so that its largest entry is black or white."""
    return 0.5 + amplification(perturbation) * perturbation


def code_colours(codes: Tensor) -> Tensor:
    """Return a fixed colour ``[..., 3]`` for every code, uint8, from 64 (so that black lines show) to 253.

    Up to 2**18 codes have different colours.
    """
    # Multiplying by an odd number permutes the 18-bit numbers and moves neighbours far apart.
    mixed = codes * 0x2D8F5 % 2**18
    channels = torch.stack([mixed >> 12, mixed >> 6 & 63, mixed & 63], dim=-1)
    return (64 + 3 * channels).byte()


def code_map(image: PreviewImage, scale: int) -> Image.Image:
    """Draw the codes of ``x_dad`` as colours: pale if ``Q(x)`` has the same, framed if the attack changed them."""
    cell, (height, width) = image.factor * scale, image.x_pix.shape[-2:]
    colours = code_colours(image.dad_codes)
    colours = torch.where(image.changed[..., None], colours, 255 - (255 - colours) // 3)
    colours, calm = (
        of.repeat_interleave(cell, 0).repeat_interleave(cell, 1) for of in (colours, ~image.changed_by_attack)
    )
    line = max(1, cell // 10)
    calm = F.pad(calm[None].float(), (line,) * 4, value=1)
    above_or_below = F.max_pool2d(calm, (2 * line + 1, 1), stride=1)[0, :, line:-line]
    beside = F.max_pool2d(calm, (1, 2 * line + 1), stride=1)[0, line:-line]
    inside = calm[0, line:-line, line:-line] == 0
    colours[inside & (above_or_below + beside > 0)] = 0
    return Image.fromarray(colours[: height * scale, : width * scale].numpy())  # the VQGAN's padding has codes too


def shown_size(image: PreviewImage) -> tuple[int, int]:
    """Return ``(width, height)`` of an image's pictures on the sheet."""
    height, width = image.x_pix.shape[-2:]
    longer = max(height, width)
    scale = max(1, math.ceil(_MIN_SIDE / longer)) if longer <= _MAX_SIDE else _MAX_SIDE / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def pictures(image: PreviewImage) -> list[Image.Image]:
    """Draw the pictures of ``COLUMNS``: the code map large enough for frames, the others pixel by pixel."""
    tensors = (image.x_pix, image.x_vq, amplify(image.perturbation), image.x_dad)
    scale = max(math.ceil(8 / image.factor), shown_size(image)[0] // image.x_pix.shape[-1], 1)
    return [*map(to_picture, tensors), code_map(image, scale)]


def percent(value: float) -> str:
    """Format a fraction as percent with one decimal."""
    return f'{100 * value:.1f} %'


def decibel(value: float) -> str:
    """Format a PSNR, without a number if the images are equal."""
    return f'{value:.1f} dB' if math.isfinite(value) else 'no difference'


def counted(mask: Tensor) -> tuple[str, str]:
    """Return how many entries of a mask are set, out of how many, and as a percentage."""
    return f'{int(mask.sum())} of {mask.numel()}', percent(share(mask))


def make_sheet(images: Sequence[PreviewImage], class_names: Sequence[str], heading: str = '') -> Image.Image:
    """Draw images of equal size; the teacher's answer is green if it is a label and red if not."""
    width, height = shown_size(images[0])
    step_x, step_y = max(width, _MIN_SIDE) + _MARGIN, height + (_LINES + 1) * _LINE + _GAP
    sheet_width = _MARGIN + len(COLUMNS) * step_x
    font = ImageFont.load_default(_FONT_SIZE)
    heading_lines = _wrap(heading, sheet_width - 2 * _MARGIN, font)
    top = _MARGIN + len(heading_lines) * _LINE + (_GAP if heading_lines else 0)
    sheet = Image.new('RGB', (sheet_width, top + _LINE + _GAP + len(images) * step_y), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading_lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, 'black', font)
    for column, title in enumerate(COLUMNS):
        draw.text((_MARGIN + column * step_x, top), title, 'black', font)
    for row, image in enumerate(images):
        y = top + _LINE + _GAP + row * step_y
        draw.text((_MARGIN, y), _cut(image.named(class_names), sheet_width - 2 * _MARGIN, font), 'black', font)
        texts = _texts(image, class_names)
        for column, picture in enumerate(pictures(image)):
            x, below = _MARGIN + column * step_x, y + _LINE + height + 4
            filter = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((width, height), filter), (x, y + _LINE + 2))
            for left, right, colour in texts[column]:
                room = step_x - _MARGIN - (font.getlength(right) + 4 if right else 0)
                draw.text((x, below), _cut(left, room, font), colour, font)
                draw.text((x + step_x - _MARGIN, below), right, colour, font, anchor='ra')
                below += _LINE
    return sheet


def _texts(image: PreviewImage, class_names: Sequence[str]) -> list[list[tuple[str, str, str]]]:
    """Return the lines below each picture: text on the left, text on the right, colour."""

    def answers(view: str) -> list[tuple[str, str, str]]:
        lines = []
        for place, (label, prob) in enumerate(image.top(view)):
            colour = 'darkgreen' if label in image.labels else 'black' if place else 'firebrick'
            lines.append((class_names[label], percent(prob), colour))
        return lines

    (changed, of_all), (by_attack, _) = counted(image.changed), counted(image.changed_by_attack)
    factor = amplification(image.perturbation)
    return [
        answers('x'),
        [*answers('Q(x)'), ('PSNR to x', decibel(image.psnr_vq), 'black')],
        [(image.measure, f'{image.distance:.3f}', 'black'), ('shown amplified by', f'{factor:.3g}', 'black')],
        [*answers('x_dad'), ('PSNR to x', decibel(image.psnr_dad), 'black')],
        [('codes changed', changed, 'black'), ('', of_all, 'black'), ('by the attack', by_attack, 'black')],
    ]


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Put a text on one line, shortened if it does not fit."""
    text = shown = ' '.join(text.split())
    while text and font.getlength(shown) > room:
        text = text[:-1]
        shown = f'{text}...'
    return shown


def _wrap(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f'{lines[-1]} {word}') <= room:
            lines[-1] += f' {word}'
        else:
            lines.append(word)
    return lines


def png_bytes(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    picture.save(file := io.BytesIO(), format='PNG')
    return file.getvalue()
