"""Folders of pictures for tests."""

import io
import json
import tarfile
import zlib

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


def picture(seed, size=(12, 10), mode='RGB'):
    """A picture of smooth colours of its own."""
    rng = np.random.default_rng(zlib.crc32(str(seed).encode()))
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def write_wds(root, names, labels, shard_size=4):
    """Write timm's ``wds/`` layout, a picture of its own a name; returns the root."""
    filenames, lengths = [], []
    for first in range(0, len(names), shard_size):
        filenames.append(f'{first // shard_size:03d}.tar')
        with tarfile.open(root / filenames[-1], 'w') as tar:
            part = list(zip(names, labels, strict=True))[first : first + shard_size]
            for index, (name, label) in enumerate(part, first):
                with io.BytesIO() as file:
                    picture(name).save(file, 'png')
                    data = file.getvalue()
                for suffix, content in (('png', data), ('cls', str(label).encode())):
                    info = tarfile.TarInfo(f'{index:05d}.{suffix}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        lengths.append(min(shard_size, len(names) - first))
    split = {'name': 'train', 'num_samples': len(names), 'filenames': filenames, 'shard_lengths': lengths}
    (root / '_info.json').write_text(json.dumps({'splits': {'train': split}}))
    return root


def write_hfds(root):
    """Write eight pictures as a Hugging Face data set, with two columns of images and labels."""
    import datasets

    image, classes = datasets.Image(), datasets.ClassLabel(names=['a', 'b', 'c', 'd'])
    features = datasets.Features({'image': image, 'label': classes, 'image2': image, 'label2': classes})
    content = {
        'image': [picture(index) for index in range(8)],
        'label': [0, 1, 2, 3] * 2,
        'image2': [picture(-index) for index in range(8)],
        'label2': [3, 2, 1, 0] * 2,
    }
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(root / 'train-0.parquet'))
