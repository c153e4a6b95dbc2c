"""The PNG sheet: its pictures, and where they are."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from timm_dad.common.files import write_file
from timm_dad.preview.image import PreviewImage
from timm_dad.preview.sheet import (
    _cut,
    _wrap,
    amplification,
    amplify,
    code_colours,
    code_map,
    counted,
    decibel,
    make_sheet,
    pictures,
    png_bytes,
    shown_size,
    to_picture,
)

NAMES = ['cat', 'dog', 'fish']


@pytest.fixture
def image():
    """An image of 4 x 6 pixels, red, with 2 x 3 codes; the attack changed one, encoding again another one."""
    x_pix = torch.zeros(3, 4, 6)
    x_pix[0] = 1
    x_vq, x_dad = x_pix * 0.5, x_pix * 0.25
    probs = {
        'x': torch.tensor([0.7, 0.2, 0.1]),
        'Q(x)': torch.tensor([0.1, 0.6, 0.3]),
        'x_dad': torch.tensor([0.05, 0.05, 0.9]),
    }
    return PreviewImage(
        title='image 3',
        labels=[0],
        x_pix=x_pix,
        x_vq=x_vq,
        x0=x_vq,
        x_adv=x_vq + torch.linspace(-0.01, 0.02, 72).view(3, 4, 6),
        distance=0.1,
        space='pixels',
        x_dad=x_dad,
        vq_codes=torch.tensor([[1, 2, 3], [4, 5, 6]]),
        dad_codes=torch.tensor([[1, 9, 3], [4, 5, 7]]),
        calm_codes=torch.tensor([[1, 2, 3], [4, 5, 7]]),
        factor=2,
        probs=probs,
    )


def test_perturbation_is_amplified_around_grey():
    perturbation = torch.tensor([0.01, -0.02, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(amplify(perturbation).flatten(), torch.tensor([0.75, 0.0, 0.5]))
    assert amplification(perturbation) == pytest.approx(25)
    assert (amplify(torch.zeros(3, 2, 2)) == 0.5).all()
    assert amplification(torch.zeros(3, 2, 2)) == 1


def test_every_code_has_a_colour_of_its_own():
    colours = code_colours(torch.arange(2**18))
    assert len(colours.int().mul(torch.tensor([65536, 256, 1])).sum(dim=1).unique()) == 2**18
    assert colours.min() >= 64
    assert torch.equal(code_colours(torch.tensor([[5]]))[0, 0], colours[5])


def test_code_map(image):
    pixels = np.asarray(code_map(image, 10))
    assert pixels.shape == (40, 60, 3)
    colours = code_colours(image.dad_codes).numpy().astype(int)
    pale = 255 - (255 - colours) // 3
    middles = pixels[10::20, 10::20]
    for row in range(2):
        for column in range(3):
            full = image.changed[row, column]
            assert (middles[row, column] == (colours if full else pale)[row, column]).all()
    black = (pixels == 0).all(axis=2)
    assert black[0:2, 20:40].all()  # the changed code's frame
    assert black[18:20, 20:40].all()
    assert black[0:20, 20:22].all()
    assert black[0:20, 38:40].all()
    black[0:20, 20:40] = False
    assert not black.any()  # the code that changes without an attack has none


def test_a_line_runs_around_codes_that_changed_together(image):
    both = dataclasses.replace(image, dad_codes=torch.tensor([[8, 9, 3], [4, 5, 6]]), calm_codes=image.vq_codes)
    black = (np.asarray(code_map(both, 10)) == 0).all(axis=2)
    assert black[0:2, 0:40].all()
    assert black[18:20, 0:40].all()
    assert not black[4:16, 10:30].any()


def test_codes_of_the_padding_are_not_shown(image):
    odd = dataclasses.replace(image, **{name: getattr(image, name)[:, :3, :5] for name in ('x_pix', 'x_vq', 'x_adv')})
    assert code_map(odd, 10).size == (50, 30)


def test_small_pictures_grow_by_whole_numbers_and_large_ones_shrink(image):
    def size(height, width):
        return shown_size(dataclasses.replace(image, x_pix=torch.zeros(3, height, width)))

    assert size(32, 32) == (160, 160)
    assert size(4, 6) == (144, 96)
    assert size(224, 224) == (224, 224)
    assert size(320, 160) == (160, 320)
    assert size(512, 256) == (160, 320)


def test_pictures_are_exact(image):
    shown = pictures(image)
    assert [picture.size for picture in shown] == [(6, 4)] * 4 + [(144, 96)]
    for picture, x_pix in zip(shown, (image.x_pix, image.x_vq, amplify(image.perturbation), image.x_dad), strict=False):
        expected = (x_pix * 255).round().byte().permute(1, 2, 0).numpy()
        assert (np.asarray(picture) == expected).all()
    assert np.asarray(to_picture(torch.full((3, 1, 1), 2.0))).max() == 255


def test_sheet_has_a_row_an_image_and_a_column_a_view(image):
    blue = dataclasses.replace(image, x_pix=image.x_pix.flip(0), title='image 4')
    sheet = make_sheet([image, blue], NAMES, 'a heading')
    pixels = np.asarray(sheet)
    # Rows and columns of the sheet that hold nothing but pure red or blue, of the x of each image.
    red, blue_ = ((pixels == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    places = [np.argwhere(mask) for mask in (red, blue_)]
    boxes = [(*place.min(axis=0), *(place.max(axis=0) - place.min(axis=0) + 1)) for place in places]
    assert [box[2:] for box in boxes] == [(96, 144), (96, 144)]
    assert boxes[0][1] == boxes[1][1] == 8
    assert boxes[1][0] - boxes[0][0] >= 96 + 5 * 14
    half = (pixels == (128, 0, 0)).all(axis=2)  # Q(x) of the red one, a column further
    assert np.argwhere(half).min(axis=0).tolist() == [boxes[0][0], boxes[0][1] + 152]
    assert sheet.width == 8 + 5 * 152
    assert make_sheet([image], NAMES, 'a heading').height < sheet.height


def test_the_sheet_changes_with_all_that_it_says(image):
    def sheet(names=NAMES, heading='', **changes):
        return png_bytes(make_sheet([dataclasses.replace(image, **changes)], names, heading))

    base = sheet()
    assert base == sheet()
    probs = {**image.probs, 'x_dad': torch.tensor([0.9, 0.05, 0.05])}
    changed = [sheet(title='image 4'), sheet(labels=[1]), sheet(heading='h'), sheet(names=['a', 'b', 'c'])]
    changed += [sheet(probs=probs), sheet(calm_codes=image.vq_codes), sheet(x_dad=image.x_vq)]
    assert len({base, *changed}) == 8


def test_colours_say_whether_the_teacher_is_right(image):
    def colours(**changes):
        pixels = np.asarray(make_sheet([dataclasses.replace(image, **changes)], NAMES))
        return {name: bool((pixels == value).all(axis=2).any()) for name, value in COLOURS.items()}

    COLOURS = {'darkgreen': (0, 100, 0), 'firebrick': (178, 34, 34)}  # noqa: N806
    one = {'probs': dict.fromkeys(image.probs, torch.tensor([1.0, 0, 0]))}
    assert colours(**one, labels=[0]) == {'darkgreen': True, 'firebrick': False}
    wrong = {'probs': dict.fromkeys(image.probs, torch.tensor([0.0, 0.5, 0.3, 0.2]))}
    pixels = np.asarray(make_sheet([dataclasses.replace(image, **wrong)], [*NAMES, 'tree']))
    assert (pixels == COLOURS['firebrick']).all(axis=2).any()
    assert not (pixels == COLOURS['darkgreen']).all(axis=2).any()


def test_text_fits_its_room():
    font = ImageFont.load_default(12)
    long = 'a class with a very long name\nand a second line'
    for room in (20, 60, 200):
        assert font.getlength(_cut(long, room, font)) <= room
    assert _cut('short\n name', 200, font) == 'short name'
    lines = _wrap('many words ' * 20, 100, font)
    assert len(lines) > 5
    assert all(font.getlength(line) <= 100 for line in lines)
    assert ' '.join(lines).split() == ('many words ' * 20).split()


def test_numbers_in_words():
    assert counted(torch.tensor([True, False, True, True])) == ('3 of 4', '75.0 %')
    assert decibel(21.26) == '21.3 dB'
    assert decibel(float('inf')) == 'no difference'


def test_files_get_their_names_when_they_are_whole(image, tmp_path):
    (tmp_path / 'sheet.png').write_bytes(b'old')
    write_file(tmp_path / 'sheet.png', png_bytes(make_sheet([image], NAMES)))
    assert [path.name for path in tmp_path.iterdir()] == ['sheet.png']
    assert Image.open(tmp_path / 'sheet.png').mode == 'RGB'
