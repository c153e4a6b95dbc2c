"""Pictures of a preview, and the PNG sheet of them: a row an image, a column a view, what they show below."""

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
    """An image ``[3, H, W]`` in [0, 1], to 8 bits."""
    return Image.fromarray(x_pix.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def amplification(perturbation: Tensor) -> float:
    """The factor by which a perturbation ``[3, H, W]`` is shown; 1 where there is none."""
    peak = perturbation.abs().max().item()
    return 0.5 / peak if peak else 1.0


def amplify(perturbation: Tensor) -> Tensor:
    """A perturbation ``[3, H, W]`` around grey, scaled so that its largest entry is black or white."""
    return 0.5 + amplification(perturbation) * perturbation


def code_colours(codes: Tensor) -> Tensor:
    """A fixed colour ``[..., 3]`` for every code, uint8, from 64 (lines on it are black) to 253; 2**18 differ."""
    # Multiplying by an odd number permutes the numbers of 18 bits, and puts neighbours far apart.
    mixed = codes * 0x2D8F5 % 2**18
    channels = torch.stack([mixed >> 12, mixed >> 6 & 63, mixed & 63], dim=-1)
    return (64 + 3 * channels).byte()


def code_map(image: PreviewImage, scale: int) -> Image.Image:
    """Codes of ``x_dad`` as colours: pale where they are those of ``Q(x)``, framed where the attack changed them."""
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
    """``(width, height)`` of its pictures on the sheet."""
    height, width = image.x_pix.shape[-2:]
    longer = max(height, width)
    scale = max(1, math.ceil(_MIN_SIDE / longer)) if longer <= _MAX_SIDE else _MAX_SIDE / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def pictures(image: PreviewImage) -> list[Image.Image]:
    """The pictures of ``COLUMNS``: the code map as large as it must be for frames, the others pixel by pixel."""
    tensors = (image.x_pix, image.x_vq, amplify(image.perturbation), image.x_dad)
    scale = max(math.ceil(8 / image.factor), shown_size(image)[0] // image.x_pix.shape[-1], 1)
    return [*map(to_picture, tensors), code_map(image, scale)]


def percent(value: float) -> str:
    """A share with one decimal."""
    return f'{100 * value:.1f} %'


def decibel(value: float) -> str:
    """A PSNR; without a number where the images are equal."""
    return f'{value:.1f} dB' if math.isfinite(value) else 'no difference'


def counted(mask: Tensor) -> tuple[str, str]:
    """How many entries of a mask are set, of how many, and their share."""
    return f'{int(mask.sum())} of {mask.numel()}', percent(share(mask))


def make_sheet(images: Sequence[PreviewImage], class_names: Sequence[str], heading: str = '') -> Image.Image:
    """Draw images of one size; the teacher's answer is green where it is a label, and red where it is not."""
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
    """Lines below each picture: text on the left, on the right, colour."""

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
    """A text in one line, its end left out where there is no room for it."""
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
    """A picture as a PNG file."""
    picture.save(file := io.BytesIO(), format='PNG')
    return file.getvalue()
