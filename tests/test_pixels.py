import math

import pytest
import torch

from timm_dad.common.pixels import PixelNorm, psnr

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def test_pixels_and_normalized_are_each_others_inverse():
    norm = PixelNorm(MEAN, STD)
    x_pix = torch.rand(2, 3, 4, 5)
    by_hand = (x_pix - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(norm.normalize(x_pix), by_hand)
    torch.testing.assert_close(norm.to_pixels(norm.normalize(x_pix)), x_pix)
    assert norm.to_pixels(norm.normalize(x_pix).half()).dtype == torch.float32


def test_values_out_of_range_are_clipped():
    assert PixelNorm(MEAN, STD).to_pixels(torch.full((1, 3, 1, 1), 9.0)).tolist() == torch.ones(1, 3, 1, 1).tolist()


def test_two_are_equal_where_mean_and_std_are():
    norm = PixelNorm(MEAN, STD)
    assert norm.equals(PixelNorm(MEAN, STD))
    assert not norm.equals(PixelNorm(MEAN, MEAN))
    assert not norm.equals(PixelNorm(STD, STD))


def test_a_normalization_is_no_part_of_a_checkpoint():
    assert PixelNorm(MEAN, STD).state_dict() == {}


def test_it_works_where_its_input_is():
    norm = PixelNorm(MEAN, STD)
    assert norm.normalize(torch.rand(1, 3, 2, 2, device='meta')).device.type == 'meta'
    assert norm.mean.device.type == 'meta'  # moved once, not with every batch


@pytest.mark.parametrize('std', [(0.0, 0.1, 0.1), (0.1, 0.1, -0.1)])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match='std must be positive, up to 1'):
        PixelNorm(MEAN, std)


@pytest.mark.parametrize(
    ('mean', 'std', 'message'),
    [
        (0.5, STD, r'mean must be 3 numbers, one per channel, such as \(0\.5, 0\.5, 0\.5\), got 0\.5'),
        (MEAN, (0.2,), r'std must be 3 numbers, one per channel, .*, got \(0\.2,\)'),
        ((123.7, 116.3, 103.5), STD, r'mean must be from 0 to 1 .*\(of pixels from 0 to 255\? divide it by 255\)'),
        (MEAN, (58.4, 57.1, 57.4), 'std must be positive, up to 1'),
        ((math.nan,) * 3, STD, 'mean must be from 0 to 1'),
    ],
)
def test_a_normalization_out_of_range_is_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        PixelNorm(mean, std)


@pytest.mark.parametrize('mean_and_std', [(0.0, 1.0), (0.5, 0.5), (0.45, 0.225), (0.0, 1 / 255)])
def test_erased_images_are_normalized_ones(mean_and_std):
    norm = PixelNorm(*((value,) * 3 for value in mean_and_std))
    x_norm = norm.normalize(torch.rand(2, 3, 8, 8))
    x_norm[:, :, :4] = torch.randn(2, 3, 4, 8)
    norm.check(x_norm)
    with pytest.raises(ValueError, match='images must be normalized'):
        PixelNorm(*((value,) * 3 for value in mean_and_std)).check(x_norm * 600)


def test_what_is_no_tensor_is_no_batch():
    with pytest.raises(TypeError, match=r'normalized images must be a tensor \[B, 3, H, W\], got list'):
        PixelNorm(MEAN, STD).check([])


def test_psnr_by_hand():
    x_pix = torch.full((3, 2, 2), 0.5)
    assert psnr(x_pix, x_pix + 0.1).item() == pytest.approx(20, abs=1e-5)
    y_pix = x_pix.clone()
    y_pix[0, 0, 0] = 1.0  # one entry of 12 differs by a half
    assert psnr(x_pix, y_pix).item() == pytest.approx(10 * math.log10(48))
    assert psnr(x_pix, x_pix).item() == math.inf
    batch = psnr(torch.stack([x_pix, x_pix]), torch.stack([y_pix, x_pix]), most=100.0)
    assert batch.tolist() == [psnr(x_pix, y_pix).item(), 100.0]
    assert psnr(x_pix, x_pix + 1e-7, most=100.0).item() == 100.0
