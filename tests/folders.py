"""Folders of pictures for tests."""

import numpy as np
from PIL import Image

CLASSES = ('cat', 'dog', 'fish', 'tree')


def write_pictures(root, **counts):
    """Write an image folder ``root/SPLIT/CLASS/N.png``, 40 x 36 px, colours by class; returns the root.

    ``counts``: pictures of each class, by split; one number, or one a class.
    """
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        by_class = (count,) * len(CLASSES) if isinstance(count, int) else count
        for label, (name, number) in enumerate(zip(CLASSES, by_class, strict=True)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 120, (36, 40, 3)) + np.eye(4, 3)[label] * 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.png')
    return root
