"""The 15 corruptions of ImageNet-C on any image, seeded (Hendrycks & Dietterich 2019, arXiv:1903.12261, section 3.2).

Thirteen are from the library ``imagecorruptions``, in the release that runs on numpy 2. Two, for which it departs from
ImageNet-C, are ours: ``elastic_transform`` (the library's has no random affine map, and other fields) and ``frost``
(the library's enlarges the pictures of frost by 1.1, and has one more of them).

Source of the definitions: hendrycks/robustness, ``ImageNet-C/create_c/make_imagenet_c.py``.
"""

import zlib
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from timm_dad.common.extras import require_extra

CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIZE = 32
# The library draws from numpy's global state, but for these two, which take a seed.
_SEEDED = ('impulse_noise', 'glass_blur')

Pixels = NDArray[np.uint8]


def corrupt(image: Pixels, name: str, severity: int, seed: int) -> Pixels:
    """Corrupt an image.

    Args:
        image: Pixels ``[H, W, 3]``, uint8, at least 32 on each side.
        name: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: Source of all randomness, 0 to 2^32 - 1; equal seeds give equal bits.

    Returns:
        Pixels of the same shape, uint8. Lengths are ImageNet-C's, in pixels and designed for images of 224 px; only
        those of ``elastic_transform`` scale with the image.

    Raises:
        ValueError: If name, severity, shape or size is out of range.
        ImportError: If the extra ``eval`` is not installed.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f'corruption must be one of {", ".join(CORRUPTIONS)}, got {name!r}')
    if severity not in SEVERITIES:
        raise ValueError(f'severity is from 1 to 5, got {severity}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'corruptions take uint8 pixels [H, W, 3], got {image.dtype} {list(image.shape)}')
    if min(image.shape[:2]) < MIN_SIZE:
        raise ValueError(f'corruptions need at least {MIN_SIZE} pixels per side, got {image.shape[1::-1]}')
    library = require_extra('imagecorruptions', 'eval')
    if name in _OWN:
        return _OWN[name](image, severity, np.random.RandomState(seed))
    own = np.random.get_state()
    try:
        np.random.seed(seed)
        more = {'seed': seed} if name in _SEEDED else {}
        corrupted: Pixels = library.corrupt(image, severity, name, **more)
    finally:
        np.random.set_state(own)
    return corrupted


class SeededCorruption:
    """A corruption whose randomness depends only on ``seed`` and the image's number."""

    def __init__(self, name: str, severity: int, seed: int = 0) -> None:
        self.name, self.severity = name, severity
        self.seed = zlib.crc32(f'{seed} {name} {severity}'.encode())

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        """Corrupt the image with this number."""
        seed = np.random.SeedSequence([self.seed, index]).generate_state(1)[0]
        return Image.fromarray(corrupt(np.asarray(image.convert('RGB')), self.name, self.severity, int(seed)))


# Per severity: displacement, smoothness of its field and jitter of the affine map, as parts of 244 px. ImageNet-C says
# 244 for its images of 224 px, and other numbers of the image's size in its other editions, so they scale along here.
_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))


def _elastic_transform(image: Pixels, severity: int, random: np.random.RandomState) -> Pixels:
    """Move three points at random, the image with them affinely, then each pixel along a smooth random field."""
    cv2 = require_extra('cv2', 'eval')
    ndimage = require_extra('scipy.ndimage', 'eval')
    height, width = image.shape[:2]
    scale = min(height, width) * 244 / 224
    displacement, smoothness, jitter = (scale * part for part in _ELASTIC[severity - 1])
    x = image.astype(np.float32) / 255
    centre, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    points = (centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = points + random.uniform(-jitter, jitter, points.shape).astype(np.float32)
    affine = cv2.getAffineTransform(points, moved)
    x = cv2.warpAffine(x, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    fields = [
        (ndimage.gaussian_filter(random.uniform(-1, 1, (height, width)), smoothness, truncate=3) * displacement)
        for _ in ('columns', 'rows')
    ]
    dx, dy = (field.astype(np.float32) for field in fields)
    rows, columns = np.mgrid[:height, :width]
    places = [rows + dy, columns + dx]
    channels = [ndimage.map_coordinates(x[..., channel], places, order=1, mode='reflect') for channel in range(3)]
    corrupted: Pixels = (np.stack(channels, axis=-1).clip(0, 1) * 255).astype(np.uint8)
    return corrupted


# The library ships six textures; ImageNet-C draws among the first five.
_FROST = ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')
_FROST_WEIGHTS = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))


def _frost(image: Pixels, severity: int, random: np.random.RandomState) -> Pixels:
    """Add a random crop of a random picture of frost, enlarged only if it would not cover the image."""
    cv2 = require_extra('cv2', 'eval')
    height, width = image.shape[:2]
    with resources.as_file(resources.files('imagecorruptions') / 'frost' / _FROST[random.randint(len(_FROST))]) as file:
        frost = cv2.imread(str(file))[..., ::-1]
    factor = max((height + 1) / frost.shape[0], (width + 1) / frost.shape[1])
    if factor > 1:
        size = (int(np.ceil(frost.shape[1] * factor)), int(np.ceil(frost.shape[0] * factor)))
        frost = cv2.resize(frost, size, interpolation=cv2.INTER_CUBIC)
    top, left = random.randint(frost.shape[0] - height), random.randint(frost.shape[1] - width)
    of_image, of_frost = _FROST_WEIGHTS[severity - 1]
    mixed = of_image * image + of_frost * frost[top : top + height, left : left + width]
    corrupted: Pixels = mixed.clip(0, 255).astype(np.uint8)
    return corrupted


_OWN = {'elastic_transform': _elastic_transform, 'frost': _frost}
