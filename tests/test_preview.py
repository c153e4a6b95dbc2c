"""The preview sheet."""

import numpy as np
import torch
from PIL import Image

from timm_dad.augment import DADAugment
from timm_dad.preview import amplify, save_preview


def test_perturbation_is_amplified_around_grey():
    amplified = amplify(torch.tensor([0.01, -0.02, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(amplified.flatten(), torch.tensor([0.75, 0.0, 0.5]))
    assert (amplify(torch.zeros(1, 3, 2, 2)) == 0.5).all()


def test_sheet_shows_the_image_in_its_first_column(teacher, vqgan, tmp_path):
    augment = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    x_pix = torch.zeros(2, 3, 16, 16)
    x_pix[0, 0], x_pix[1, 2] = 1, 1
    save_preview(tmp_path / 'sheet.png', augment, x_pix, torch.tensor([0, 1]), ['a', 'b', 'c', 'd', 'e'])
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    assert (sheet[40:150, 20:130] == (255, 0, 0)).all()
    assert (sheet[210:310, 20:130] == (0, 0, 255)).all()
    assert [path.name for path in tmp_path.iterdir()] == ['sheet.png']
