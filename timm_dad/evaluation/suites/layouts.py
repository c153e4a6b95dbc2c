"""The published layouts of ImageNet's variants, each read into a suite whose labels are WordNet ids.

Each layout states its source, as repository and file.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

from timm_dad.evaluation.corruptions import CORRUPTIONS
from timm_dad.evaluation.suites.class_folders import (
    Place,
    class_folders,
    folders,
    imagenet_wnids,
    inner,
    some,
    subset_wnids,
)
from timm_dad.evaluation.suites.corruption_layouts import C_BAR_CORRUPTIONS, THREE_D_CORRUPTIONS, read_corruptions
from timm_dad.evaluation.suites.objectnet import read_objectnet
from timm_dad.evaluation.suites.suite import Chosen, FolderImages, Part, Suite

_logger = logging.getLogger(__name__)

V2_VARIANTS = ('matched-frequency', 'threshold0.7', 'top-images')
VAL_NAMES = ('val', 'validation', 'valid')
_VAL_FILE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG', re.IGNORECASE)


def read_real(place: Place) -> Suite:
    """Read ReaL: ImageNet's validation set with all right labels; images without one are left out.

    Source: Beyer et al. 2020, arXiv:2006.07159; google-research/reassessed-imagenet ``README.md``. The labels are
    timm's copy of its ``real.json``: a list for each file of the validation set, in the order of their names.
    """
    dataset = FolderImages(root := inner(place.root, VAL_NAMES), class_folders(place, root, imagenet_wnids()))
    real = json.loads((files('timm.data') / '_info' / 'imagenet_real_labels.json').read_text())
    kept, labels = [], []
    for index in range(len(dataset)):
        match = _VAL_FILE.fullmatch(Path(dataset.filename(index)).name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(real):
            raise place.error(
                'files must have their original names (ILSVRC2012_val_00000001.JPEG to 00050000), which ReaL refers to',
                f'got {dataset.filename(index)}',
                'sort the original files into class folders, keeping their names',
            )
        if real[number - 1]:
            kept.append(index)
            labels.append(tuple(real[number - 1]))
    if not kept:
        raise place.error('it must have images that ReaL labels', f'none of {len(dataset)} is one', 'give all of them')
    part = Part(name='val', dataset=Chosen(dataset, kept), multi_labels=labels)
    return Suite(name=place.name, kind='clean', parts=(part,), class_names=imagenet_wnids(), num_classes=1000)


def read_v2(place: Place) -> Suite:
    """Read ImageNet-V2: three variants with class folders ``0`` to ``999``, sorted as numbers, never as text.

    Source: modestyachts/ImageNetV2 ``README.md``, ``code/make_imagenet_folders.py``; names of the folders in
    modestyachts/ImageNetV2_pytorch ``imagenetv2_pytorch/ImageNetV2_dataset.py``.
    """
    by_variant = {_v2_variant(folder.name): folder for folder in folders(place.root)}
    found = {name: by_variant[name] for name in V2_VARIANTS if name in by_variant}
    if not found:
        found = {_v2_variant(place.root.name) or place.root.name: place.root}
    absent = [name for name in V2_VARIANTS if name not in found]
    parts = [Part(name=name, dataset=FolderImages(folder, _numbered(place, folder))) for name, folder in found.items()]
    if absent:
        _logger.warning('%s: %s exists; missing: %s', place.name, ', '.join(found), ', '.join(absent))
    return Suite(name=place.name, kind='ood', parts=tuple(parts), class_names=imagenet_wnids(), num_classes=1000)


def _numbered(place: Place, folder: Path) -> dict[str, int]:
    numbers = {int(path.name): path.name for path in folders(folder) if path.name.isdecimal()}
    if sorted(numbers) != list(range(1000)):
        raise place.error(
            'it must contain imagenetv2-matched-frequency-format-val, imagenetv2-threshold0.7-format-val or '
            'imagenetv2-top-images-format-val, or be one of them, each with folders 0 to 999',
            f'{folder} has {len(set(numbers) & set(range(1000)))} of these and contains {some(folder)}',
            'unpack the archives of huggingface.co/datasets/vaishaal/ImageNetV2 here',
        )
    return {numbers[label]: label for label in range(1000)}


def _v2_variant(folder: str) -> str:
    """Return ``top-images`` for ``imagenetv2-top-images-format-val`` and other spellings; empty for other folders."""
    plain = re.sub(r'[-_.]', '', folder.lower()).removesuffix('formatval').removeprefix('imagenetv2')
    return next((name for name in V2_VARIANTS if re.sub(r'[-.]', '', name) == plain), '')


def _read_class_folders(
    place: Place, part: str, letter: str = '', inside: Sequence[str] = (), *, kind: str = 'ood', resize: bool = True
) -> Suite:
    """Read one part, ``WNID/*``, maybe in a folder; with all classes or only the subset ``letter``."""
    wnids = subset_wnids(letter) if letter else imagenet_wnids()
    root = inner(place.root, inside)
    parts = (Part(name=part, dataset=FolderImages(root, class_folders(place, root, wnids))),)
    return Suite(name=place.name, kind=kind, parts=parts, class_names=wnids, num_classes=len(wnids), resize=resize)


LAYOUTS: dict[str, Callable[[Place], Suite]] = {
    'imagenet': partial(_read_class_folders, part='val', inside=VAL_NAMES, kind='clean'),
    'imagenet-real': read_real,
    'imagenet-v2': read_v2,
    # hendrycks/natural-adv-examples README.md, eval.py
    'imagenet-a': partial(_read_class_folders, part='test', letter='a'),
    # hendrycks/imagenet-r README.md, eval.py
    'imagenet-r': partial(_read_class_folders, part='test', letter='r'),
    # HaohanWang/ImageNet-Sketch README.md; zipped in a folder
    'imagenet-sketch': partial(_read_class_folders, part='test', inside=('sketch',)),
    # hendrycks/robustness README.md, ImageNet-C/test.py (its 224 pixel images are not resized)
    'imagenet-c': partial(read_corruptions, names=CORRUPTIONS, normalizer='alexnet'),
    # facebookresearch/augmentation-corruption README.md, imagenet_c_bar/make_imagenet_c_bar.py
    'imagenet-c-bar': partial(read_corruptions, names=C_BAR_CORRUPTIONS),
    # EPFL-VILAB/3DCommonCorruptions tools/download_imagenet_3dcc.sh; severities as in
    # shift-happens-benchmark/icml-2022 shifthappens/tasks/imagenet_3dcc/imagenet_3dcc.py
    'imagenet-3dcc': partial(read_corruptions, names=THREE_D_CORRUPTIONS),
    # Cropped to 224 before the style was changed, and therefore not again: rgeirhos/Stylized-ImageNet
    # code/preprocess_imagenet.py, code/general.py; alibaba/easyrobust easyrobust/benchmarks/ood/stylized_imagenet.py
    'stylized-imagenet': partial(_read_class_folders, part='test', inside=VAL_NAMES, resize=False),
    'objectnet': read_objectnet,
}
