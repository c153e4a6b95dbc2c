"""The corruptions against ImageNet-C's definitions, written here a second time and in another way where there is one.

Constants: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py.
"""

import colorsys
import io
import math
from importlib import resources

import numba
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.util import random_noise
from torch.utils.data import DataLoader

from timm_dad.data.images import FramedImages, collate_images
from timm_dad.evaluation.corruptions import CORRUPTIONS, MIN_SIZE, SEVERITIES, SeededCorruption, corrupt

# One entry a severity, 1 to 5.
GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation
SHOT = (60, 25, 12, 5, 3)  # photons of white
IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)  # part of the values
DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, sigma of the smoothing of the disk
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, largest shift, rounds
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # end, step
SNOW = (  # mean, deviation, zoom, threshold, radius and sigma of the motion, part of the image that is kept
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # weights of image and frost
FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))  # thickness, decay of the roughness
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to V of HSV
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of it
ELASTIC = (  # displacement, sigma, jitter, in pixels of a 224 px image
    (244 * 2, 244 * 0.7, 244 * 0.1),
    (244 * 2, 244 * 0.08, 244 * 0.2),
    (244 * 0.05, 244 * 0.01, 244 * 0.02),
    (244 * 0.07, 244 * 0.01, 244 * 0.02),
    (244 * 0.12, 244 * 0.01, 244 * 0.02),
)
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # size of the small image
JPEG = (25, 18, 15, 10, 7)  # quality

RANDOM = set(CORRUPTIONS) - {'defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression'}
severities = pytest.mark.parametrize('severity', SEVERITIES)


def picture(height=64, width=64, seed=0):
    """Pixels with structure at several scales."""
    random = np.random.RandomState(seed)
    coarse = Image.fromarray(random.randint(0, 256, (5, 5, 3)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
    return (0.8 * np.asarray(coarse) + random.randint(0, 52, (height, width, 3))).clip(0, 255).astype(np.uint8)


def smooth_picture(size):
    """Pixels that change slowly: interpolations of different precision agree on them."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * x - y), np.sin(2 * x * y + 1)]
    return (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def to_pixels(x):
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


# The definitions


@severities
def test_gaussian_noise(severity):
    x = picture(48, 64)
    noise = np.random.RandomState(7).normal(scale=GAUSSIAN[severity - 1], size=x.shape)
    assert np.array_equal(corrupt(x, 'gaussian_noise', severity, 7), to_pixels(x / 255 + noise))


@severities
def test_shot_noise(severity):
    x = picture(48, 64)
    photons = SHOT[severity - 1]
    expected = np.random.RandomState(7).poisson(x / 255 * photons) / photons
    assert np.array_equal(corrupt(x, 'shot_noise', severity, 7), to_pixels(expected))


@severities
def test_impulse_noise(severity):
    x = np.full((128, 128, 3), 77, np.uint8)
    corrupted = corrupt(x, 'impulse_noise', severity, 7)
    assert set(np.unique(corrupted)) == {0, 77, 255}
    amount, total = IMPULSE[severity - 1], x.size
    changed, white = (corrupted != 77).sum(), (corrupted == 255).sum()
    assert abs(changed - amount * total) < 4 * math.sqrt(total * amount * (1 - amount))
    assert abs(white - changed / 2) < 4 * math.sqrt(changed / 4)
    # Channels are hit one by one, not whole pixels.
    assert abs((corrupted != 77).all(axis=2).mean() - amount**3) < 0.01
    assert np.array_equal(corrupted, to_pixels(random_noise(x / 255, 's&p', rng=7, amount=amount)))


@severities
def test_defocus_blur(severity):
    radius, sigma = DEFOCUS[severity - 1]
    half = max(8, radius)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2) / (x**2 + y**2 <= radius**2).sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    smoothing = np.exp(-(taps**2) / (2 * sigma**2))
    smoothing /= smoothing.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, smoothing, axis, mode='mirror')
    image = picture(48, 64)
    expected = np.stack([ndimage.correlate(image[..., c] / 255, disk, mode='mirror') for c in range(3)], axis=-1)
    assert difference(corrupt(image, 'defocus_blur', severity, 0), to_pixels(expected)).max() <= 1


@numba.njit
def _seed_numba(seed):
    np.random.seed(seed)


@numba.njit
def _draw_shift(largest):
    return np.random.randint(-largest, largest, size=(2,))


@pytest.mark.slow
@severities
def test_glass_blur(severity):
    sigma, largest, rounds = GLASS[severity - 1]
    image = picture(33, 40)
    blurred = to_pixels(ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode='nearest'))
    _seed_numba(7)
    for _ in range(rounds):
        for row in range(33 - largest, largest, -1):
            for column in range(40 - largest, largest, -1):
                dx, dy = _draw_shift(largest)
                # ImageNet-C means to swap, but its arrays are views: the other pixel keeps its value.
                blurred[row, column] = blurred[row + dy, column + dx]
    expected = to_pixels(ndimage.gaussian_filter(blurred / 255, (sigma, sigma, 0), mode='nearest'))
    assert np.array_equal(corrupt(image, 'glass_blur', severity, 7), expected)


def magick_motion_blur(image, radius, sigma, angle):
    """What ImageMagick's MotionBlurImage does (MagickCore/effect.c): a one-sided Gaussian along a line of whole pixels.

    ImageNet-C calls ImageMagick here, the library its own copy of it.
    """
    steps = np.arange(2 * radius + 1)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    total = np.zeros(image.shape)
    for step, weight in zip(steps, kernel / kernel.sum(), strict=True):
        row = rows + math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        column = columns + math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        total += weight * image[row.clip(0, image.shape[0] - 1), column.clip(0, image.shape[1] - 1)]
    return total


@severities
@pytest.mark.parametrize('seed', [1, 7])
def test_motion_blur(severity, seed):
    radius, sigma = MOTION[severity - 1]
    image = picture(56, 64)
    angle = np.random.RandomState(seed).uniform(-45, 45)
    expected = magick_motion_blur(image, radius, sigma, angle)
    # ImageMagick rounds, the library cuts off.
    assert difference(corrupt(image, 'motion_blur', severity, seed), np.round(expected)).max() <= 1


@severities
def test_zoom_blur(severity):
    image = picture(64, 64)
    factors = np.arange(1, *ZOOM[severity - 1])
    total = image / 255
    for factor in factors:
        crop = math.ceil(64 / factor)
        size = round(crop * factor)  # a pixel more than needed, at times; it is cut off below and on the right
        grid = (64 - crop) // 2 + np.arange(64) * (crop - 1) / (size - 1)
        at = np.meshgrid(grid, grid, indexing='ij')
        total = total + np.stack([ndimage.map_coordinates(image[..., c] / 255, at, order=1) for c in range(3)], axis=-1)
    expected = to_pixels(total / (len(factors) + 1))
    assert difference(corrupt(image, 'zoom_blur', severity, 0), expected).max() <= 1


@severities
def test_snow(severity):
    mean, deviation, zoom, threshold, radius, sigma, kept = SNOW[severity - 1]
    image = picture(64, 64)
    random = np.random.RandomState(7)
    layer = random.normal(mean, deviation, (64, 64))
    crop = math.ceil(64 / zoom)
    top = (64 - crop) // 2
    layer = ndimage.zoom(layer[top : top + crop, top : top + crop], zoom, order=1)[:64, :64]
    layer = np.where(layer < threshold, 0, layer).clip(0, 1)
    layer = magick_motion_blur(to_pixels(layer), radius, sigma, random.uniform(-135, -45)) / 255
    x = image / 255
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    x = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    expected = to_pixels(x + layer[..., None] + layer[::-1, ::-1, None])
    # The library blurs the layer before it cuts it to size, which shows at the border where 64 / zoom is not whole,
    # and it rounds the layer where ImageNet-C cuts off, twice.
    inner = slice(5, -5)
    assert difference(corrupt(image, 'snow', severity, 7), expected)[inner, inner].max() <= 3


@severities
@pytest.mark.parametrize('seed', [2, 10, 3, 1, 0])  # they draw the five pictures in turn
def test_frost(severity, seed):
    of_image, of_frost = FROST[severity - 1]
    image = picture(40, 64)
    random = np.random.RandomState(seed)
    name = f'frost{random.randint(5) + 1}'
    file = next(path for path in (resources.files('imagecorruptions') / 'frost').iterdir() if path.stem == name)
    frost = np.asarray(Image.open(file).convert('RGB'))
    top, left = random.randint(frost.shape[0] - 40), random.randint(frost.shape[1] - 64)
    expected = of_image * image + of_frost * frost[top : top + 40, left : left + 64]
    # Decoders of JPEG may differ a little.
    tolerance = 0 if file.suffix == '.png' else 4
    assert difference(corrupt(image, 'frost', severity, seed), expected.clip(0, 255)).max() <= tolerance


def test_frost_covers_large_images():
    # Seed 3 draws a picture of 560 x 315.
    large = corrupt(np.zeros((400, 700, 3), np.uint8), 'frost', 3, 3)
    assert large.shape == (400, 700, 3)
    assert (large.reshape(4, 100, 7, 100, 3).std(axis=(1, 3, 4)) > 2).all()  # frost everywhere


@severities
def test_fog_thickness(severity):
    thickness = FOG[severity - 1][0]
    # On white, a fog of height h from 0 to 1 gives (1 + thickness h) / (1 + thickness).
    corrupted = corrupt(np.full((64, 64, 3), 255, np.uint8), 'fog', severity, 7)
    assert corrupted.min() == int(255 / (1 + thickness))
    assert corrupted.max() == 255
    assert (corrupted == corrupted[..., :1]).all()  # grey
    # On black there is nothing: the image's largest value is a factor.
    assert corrupt(np.zeros((64, 64, 3), np.uint8), 'fog', severity, 7).max() == 0


def test_fog_roughness():
    def slope(severity):
        white = np.full((128, 128, 3), 255, np.uint8)
        heights = [corrupt(white, 'fog', severity, seed)[..., 0].astype(float) for seed in range(4)]
        return np.mean([np.abs(np.diff(height)).mean() / height.std() for height in heights])

    slopes = [slope(severity) for severity in SEVERITIES]
    # Details of half the size have 1 / decay of the height: the smaller the decay, the rougher.
    assert slopes[0] == pytest.approx(slopes[1], rel=0.05)  # both 2
    assert slopes[1] < slopes[2] < slopes[3] < slopes[4]


@severities
def test_brightness(severity):
    image = picture(32, 33)
    expected = np.empty(image.shape)
    for at in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[at] / 255))
        expected[at] = colorsys.hsv_to_rgb(hue, saturation, min(value + BRIGHTNESS[severity - 1], 1))
    assert difference(corrupt(image, 'brightness', severity, 0), to_pixels(expected)).max() <= 1


@severities
def test_contrast(severity):
    image = picture(48, 64)
    mean = image.mean(axis=(0, 1))
    expected = mean + CONTRAST[severity - 1] * (image - mean)
    assert difference(corrupt(image, 'contrast', severity, 0), expected.astype(np.uint8)).max() <= 1


@severities
def test_elastic_transform(severity):
    """The definition by linear algebra: solve for the map of the three points, look up where each pixel comes from."""
    image = smooth_picture(224)
    displacement, sigma, jitter = ELASTIC[severity - 1]
    random = np.random.RandomState(7)
    points = 112 + 74 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + random.uniform(-jitter, jitter, (3, 2))
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # from the new place to the old one, (x, y, 1) -> (x, y)
    y, x = np.mgrid[:224, :224]
    old = np.stack([x, y, np.ones_like(x)], axis=-1) @ affine
    warped = [
        ndimage.map_coordinates(image[..., c] / 255, [old[..., 1], old[..., 0]], order=1, mode='mirror')
        for c in range(3)
    ]
    dx, dy = (
        displacement * ndimage.gaussian_filter(random.uniform(-1, 1, (224, 224)), sigma, mode='reflect', truncate=3)
        for _ in range(2)
    )
    expected = [ndimage.map_coordinates(channel, [y + dy, x + dx], order=1, mode='reflect') for channel in warped]
    corrupted = corrupt(image, 'elastic_transform', severity, 7)
    # OpenCV interpolates in steps of 1/32 px.
    assert difference(corrupted, to_pixels(np.stack(expected, axis=-1))).max() <= 2


@pytest.mark.parametrize('size', [(112, 112), (112, 224)])
def test_elastic_transform_scales_with_the_image(size):
    """Corners move by the jitter of the affine map, which is a part of the smaller side."""

    def moved(height, width, seed):
        marks = np.zeros((height, width, 3), np.uint8)
        middle = slice(height // 2 - height // 8, height // 2 + height // 8), slice(width // 2 - 8, width // 2 + 8)
        marks[middle] = 255
        corrupted = corrupt(marks, 'elastic_transform', 2, seed)[..., 0] / 255
        before, after = (ndimage.center_of_mass(x) for x in (marks[..., 0] / 255, corrupted))
        return math.dist(before, after)

    small = np.mean([moved(*size, seed) for seed in range(30)])
    large = np.mean([moved(224, 224, seed) for seed in range(30)])
    assert 0.35 < small / large < 0.7


@severities
def test_pixelate(severity):
    image = Image.fromarray(picture(48, 64))
    part = PIXELATE[severity - 1]
    small = image.resize((int(64 * part), int(48 * part)), Image.BOX)
    expected = np.asarray(small.resize((64, 48), Image.BOX))
    assert np.array_equal(corrupt(np.asarray(image), 'pixelate', severity, 0), expected)


@severities
def test_jpeg_compression(severity):
    image = picture(48, 64)
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=JPEG[severity - 1])
    assert np.array_equal(corrupt(image, 'jpeg_compression', severity, 0), np.asarray(Image.open(file)))


# Seeds


@severities
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_equal_seeds_give_equal_bits(name, severity):
    image = picture(32, 33)
    first = corrupt(image, name, severity, 5)
    np.random.rand(3)
    assert np.array_equal(corrupt(image, name, severity, 5), first)
    assert np.array_equal(corrupt(image, name, severity, 2**32 - 1), first) == (name not in RANDOM)
    assert np.array_equal(image, picture(32, 33))  # the image given is left as it was


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_the_global_states_are_left_as_they_were(name):
    before, of_torch = np.random.get_state(), torch.get_rng_state()
    corrupt(picture(32, 32), name, 3, 5)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    assert torch.equal(of_torch, torch.get_rng_state())


def test_the_global_state_is_left_as_it_was_after_an_error(monkeypatch):
    import imagecorruptions

    def fail(*args):
        np.random.rand()
        raise RuntimeError('broken')

    monkeypatch.setattr(imagecorruptions, 'corrupt', fail)
    before = np.random.get_state()
    with pytest.raises(RuntimeError, match='broken'):
        corrupt(picture(32, 32), 'fog', 1, 0)
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2:] == np.random.get_state()[2:]


def pictures(name, severity=3, seed=0):
    """Twelve times the same picture, in another mode each second time, each corrupted by its number."""
    image, corruption = Image.fromarray(picture(32, 40)), SeededCorruption(name, severity, seed)
    return [np.asarray(corruption(image.convert('RGBA') if index % 2 else image, index)) for index in range(12)]


@pytest.mark.parametrize('name', ['gaussian_noise', 'impulse_noise', 'glass_blur', 'frost', 'elastic_transform'])
def test_images_of_a_data_set_have_seeds_of_their_own(name):
    first = pictures(name)
    assert len({image.tobytes() for image in first}) == 12
    assert all(np.array_equal(a, b) for a, b in zip(first, pictures(name), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, pictures(name, seed=1), strict=True))


def test_severities_and_corruptions_have_seeds_of_their_own():
    seeds = {
        SeededCorruption(name, severity, seed).seed
        for name in CORRUPTIONS
        for severity in SEVERITIES
        for seed in (0, 1)
    }
    assert len(seeds) == 2 * 75


def test_a_seeded_corruption_is_the_corruption():
    assert np.array_equal(pictures('contrast', 2)[3], corrupt(picture(32, 40), 'contrast', 2, 0))


@pytest.mark.parametrize('name', ['gaussian_noise', 'glass_blur', 'frost'])
def test_workers_change_nothing(name):
    dataset = FramedImages([(Image.fromarray(picture(32, 40)), 0)] * 12, None, SeededCorruption(name, 3))
    one, two = (
        list(DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=collate_images)) for workers in (0, 2)
    )
    for (images, *_), (same_images, *_) in zip(one, two, strict=True):
        assert torch.equal(images, same_images)


# Sizes and bad input


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (47, 33), (64, 64), (224, 224)])
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_sizes(name, size, capfd):
    image = picture(*size)
    for severity in (1, 5):
        corrupted = corrupt(image, name, severity, 5)
        assert corrupted.shape == image.shape
        assert corrupted.dtype == np.uint8
        assert not np.array_equal(corrupted, image)
    assert capfd.readouterr().out == ''  # the library prints where its sizes do not fit


@pytest.mark.parametrize('name', CORRUPTIONS)
@pytest.mark.parametrize('size', [(MIN_SIZE - 1, 64), (64, MIN_SIZE - 1)])
def test_small_images_are_refused(name, size):
    found = rf'\({size[1]}, {size[0]}\)'
    with pytest.raises(ValueError, match=f'corruptions need at least 32 pixels per side, got {found}'):
        corrupt(picture(*size), name, 1, 0)


@pytest.mark.parametrize(
    ('name', 'severity', 'match'),
    [
        ('speckle_noise', 1, "corruption must be one of gaussian_noise, .*, jpeg_compression, got 'speckle_noise'"),
        ('fog', 0, 'severity is from 1 to 5, got 0'),
        ('fog', 6, 'severity is from 1 to 5, got 6'),
    ],
)
def test_unknown_corruptions_are_refused(name, severity, match):
    with pytest.raises(ValueError, match=match):
        corrupt(picture(), name, severity, 0)


@pytest.mark.parametrize('image', [picture() / 255, picture()[..., 0], picture()[..., :1]])
@pytest.mark.parametrize('name', ['fog', 'frost'])
def test_other_pixels_are_refused(image, name):
    with pytest.raises(ValueError, match=r'corruptions take uint8 pixels \[H, W, 3\], got'):
        corrupt(image, name, 1, 0)


def test_there_are_15_in_the_order_of_the_paper():
    assert len(CORRUPTIONS) == 15
    assert (CORRUPTIONS[0], CORRUPTIONS[7], CORRUPTIONS[14]) == ('gaussian_noise', 'snow', 'jpeg_compression')
