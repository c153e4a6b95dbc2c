"""Tiny folders in every published layout; a picture's colour says its class."""

import functools
import io
import json

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo

from timm_dad.evaluation.corruptions import CORRUPTIONS
from timm_dad.evaluation.suites.class_folders import imagenet_wnids, subset_wnids
from timm_dad.evaluation.suites.corruption_layouts import C_BAR_CORRUPTIONS, THREE_D_CORRUPTIONS

WNIDS = imagenet_wnids()
V2_FOLDERS = (
    'imagenetv2-matched-frequency-format-val',
    'imagenetv2-threshold0.7-format-val',
    'imagenetv2-top-images-format-val',
)
C_GROUP = {**dict.fromkeys(CORRUPTIONS[:3], 'noise'), **dict.fromkeys(CORRUPTIONS[3:7], 'blur')}
C_GROUP |= {**dict.fromkeys(CORRUPTIONS[7:11], 'weather'), **dict.fromkeys(CORRUPTIONS[11:], 'digital')}
# Classes of ObjectNet in its own words: two that ImageNet has (one of them twice), and one that it has not.
OBJECTS = {'air_freshener': 'Air freshener', 'bench': 'Bench', 'alarm_clock': 'Alarm clock'}
OBJECTS_IN_IMAGENET = {'Alarm clock': 'analog clock; digital clock', 'Bench': 'park bench'}


def colour(label):
    """A colour for each of 1000 labels, far enough from the others to survive JPEG."""
    return np.array([label % 10 * 25 + 8, label // 10 % 10 * 25 + 8, label // 100 * 25 + 8], dtype=np.uint8)


def plain(label, size=8):
    return np.broadcast_to(colour(label), (size, size, 3))


def label_of(image):
    """The label whose colour a picture has."""
    digits = (np.asarray(image).reshape(-1, 3).mean(0) / 25).astype(int)
    return int(digits[0] + 10 * digits[1] + 100 * digits[2])


def encoded(pixels, exact=False):
    """A file's bytes; ``exact``: a PNG, whatever the file is called."""
    file = io.BytesIO()
    options = {'format': 'PNG'} if exact else {'format': 'JPEG', 'quality': 95}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, **options)
    return file.getvalue()


@functools.cache
def plain_file(label):
    return encoded(plain(label))


def write_classes(root, labels, pattern='{number}.JPEG', per_class=1, file=plain_file):
    """Write ``root/FOLDER/FILE`` for each folder in ``labels``; returns the root. Files are numbered from 1.

    ``file``: makes the bytes of a picture of a label.
    """
    number = 0
    for folder, label in labels.items():
        (root / folder).mkdir(parents=True)
        for _ in range(per_class):
            number += 1
            (root / folder / pattern.format(number=number, folder=folder)).write_bytes(file(label))
    return root


def by_label(wnids=WNIDS):
    return {wnid: label for label, wnid in enumerate(wnids)}


def write_imagenet(root, **more):
    """ImageNet's validation set: ``val/WNID/ILSVRC2012_val_00000001.JPEG`` and so on."""
    write_classes(root / 'val', by_label(), 'ILSVRC2012_val_{number:08d}.JPEG', **more)
    return root


def write_v2(root, folders=V2_FOLDERS):
    for folder in folders:
        write_classes(root / folder, {str(label): label for label in range(1000)}, '{number:05d}.jpeg')
    return root


def write_subset(root, letter, **more):
    """ImageNet-A or -R; a README lies beside its class folders."""
    write_classes(root, by_label(subset_wnids(letter)), '0.00{number}_{folder}.jpg', **more)
    (root / 'README.txt').write_text('...')
    return root


def write_sketch(root):
    write_classes(root / 'sketch', by_label(), 'sketch_{number}.JPEG')
    return root


def write_corruptions(root, names, severities=('1', '2', '3', '4', '5'), labels=(3, 990), group=None, **more):
    """Two classes are enough: subsets of ImageNet-C are in use, and open with a warning."""
    classes = {WNIDS[label]: label for label in labels}
    for name in names:
        for severity in severities:
            folder = root / group[name] / name if group else root / name
            write_classes(folder / severity, classes, 'ILSVRC2012_val_{number:08d}.JPEG', **more)
    return root


def write_c(root, grouped=False, **more):
    return write_corruptions(root, CORRUPTIONS, group=C_GROUP if grouped else None, **more)


def write_stylized(root):
    write_classes(root / 'val', by_label(), 'ILSVRC2012_val_{number:08d}.JPEG')
    return root


def write_objectnet(root, objects=OBJECTS, in_imagenet=OBJECTS_IN_IMAGENET):
    """ObjectNet with a border of red; its mappings name ImageNet's classes by lines in an order of their own."""
    words = ImageNetInfo().label_descriptions()
    order = np.random.default_rng(0).permutation(1000)
    mappings = root / 'mappings'
    mappings.mkdir(parents=True)
    (mappings / 'imagenet_to_label_2012_v2').write_text('\n'.join(words[label] for label in order) + '\n')
    lines = {str(label): int(line) for label, line in enumerate(np.argsort(order))}
    (mappings / 'pytorch_to_imagenet_2012_id.json').write_text(json.dumps(lines))
    (mappings / 'folder_to_objectnet_label.json').write_text(json.dumps(objects))
    (mappings / 'objectnet_to_imagenet_1k.json').write_text(json.dumps(in_imagenet))
    for label, folder in enumerate(sorted(objects)):
        pixels = np.full((14, 20, 3), (255, 0, 0), np.uint8)
        pixels[2:-2, 2:-2] = colour(label)
        write_classes(root / 'images', {folder: label}, '{number}.png', file=lambda _, p=pixels: encoded(p, exact=True))
    return root


def write_all(root):
    """Every suite, in folders named as archives name them; returns the folder of each suite."""
    folders = {
        'imagenet': write_imagenet(root / 'imagenet'),
        'imagenet-v2': write_v2(root / 'imagenet-v2'),
        'imagenet-a': write_subset(root / 'imagenet-a', 'a'),
        'imagenet-r': write_subset(root / 'imagenet-r', 'r'),
        'imagenet-sketch': write_sketch(root / 'imagenet-sketch'),
        'imagenet-c': write_c(root / 'ImageNet-C', grouped=True),
        'imagenet-c-bar': write_corruptions(root / 'ImageNet-C-Bar', C_BAR_CORRUPTIONS),
        'imagenet-3dcc': write_corruptions(root / 'ImageNet-3DCC', THREE_D_CORRUPTIONS),
        'stylized-imagenet': write_stylized(root / 'stylized-imagenet'),
        'objectnet': write_objectnet(root / 'objectnet-1.0'),
    }
    return {**folders, 'imagenet-real': folders['imagenet']}
