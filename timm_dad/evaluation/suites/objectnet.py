"""ObjectNet: the classes shared with ImageNet, by the mappings that come with it, with the red border cut off.

Source: Barbu et al. 2019, objectnet.dev; abarbu/objectnet-template-pytorch ``README.md`` and
``objectnet_pytorch_dataloader.py`` (border of 2 pixels); mlfoundations/model-soups ``datasets/objectnet.py`` (how the
four files of ``mappings`` go together).
"""

import json
from pathlib import Path
from typing import Any

from timm_dad.common.text_files import read_text
from timm_dad.evaluation.suites.class_folders import Place, first, folders, imagenet_wnids, inner, some
from timm_dad.evaluation.suites.suite import FolderImages, Part, Suite

BORDER = 2
_FOLDERS, _IMAGENET = 'folder_to_objectnet_label.json', 'objectnet_to_imagenet_1k.json'
_LINES, _NUMBERS = 'imagenet_to_label_2012_v2', 'pytorch_to_imagenet_2012_id.json'
_FIX = 'unpack objectnet-1.0.zip of objectnet.dev again'


def read_objectnet(place: Place) -> Suite:
    """Read ObjectNet, ``images/CLASS/*.png`` and ``mappings/``, maybe in ``objectnet-1.0``; 113 of its 313 classes.

    The suite's ``groups`` are the ImageNet classes for each of its classes.
    """
    root = inner(place.root, ('objectnet-1.0',))
    if not (root / 'images').is_dir() or not (root / 'mappings').is_dir():
        raise place.error('it must have folders images and mappings', f'{root} contains {some(root)}', _FIX)
    groups = _imagenet_classes(place, root / 'mappings')
    labels = _read_json(place, root / 'mappings' / _FOLDERS)
    by_folder = {folder: name for folder, name in sorted(labels.items()) if name in groups}
    lacking = sorted(set(by_folder) - {path.name for path in folders(root / 'images')})
    if lacking or len(by_folder) < len(groups):
        raise place.error(
            f'images must have the {len(groups)} class folders that ImageNet has, too',
            f'{len(by_folder) - len(lacking)} exist, {first(lacking)} are missing',
            _FIX,
        )
    dataset = FolderImages(root / 'images', {folder: label for label, folder in enumerate(by_folder)}, border=BORDER)
    return Suite(
        name=place.name, kind='ood', parts=(Part(name='test', dataset=dataset),),
        class_names=tuple(by_folder.values()), num_classes=len(by_folder),
        groups=tuple(groups[name] for name in by_folder.values()),
    )  # fmt: skip


def _imagenet_classes(place: Place, mappings: Path) -> dict[str, tuple[str, ...]]:
    """Return the WordNet ids of each ObjectNet class that ImageNet has.

    ``objectnet_to_imagenet_1k.json`` describes ImageNet's classes in words, ``imagenet_to_label_2012_v2`` has these
    words, one class per line, and ``pytorch_to_imagenet_2012_id.json`` has the line, from 0, of each ImageNet label.
    """
    wnids = imagenet_wnids()
    by_line = {line: wnids[int(label)] for label, line in _read_json(place, mappings / _NUMBERS).items()}
    by_words: dict[str, list[str]] = {}
    for line, words in enumerate(_read(place, mappings / _LINES).splitlines()):
        by_words.setdefault(words.strip(), []).append(by_line.get(line, ''))
    groups = {}
    for name, words in _read_json(place, mappings / _IMAGENET).items():
        found = [by_words.get(one.strip(), []) for one in words.split(';')]
        if not all(len(ids) == 1 and ids[0] for ids in found):
            raise place.error('mappings must give one ImageNet class for each name', f'not for {words!r}', _FIX)
        groups[name] = tuple(ids[0] for ids in found)
    return groups


def _read(place: Place, path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise place.error(f'mappings must have {path.name}', str(error), _FIX) from error


def _read_json(place: Place, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(place, path))
    except json.JSONDecodeError as error:
        raise place.error(f'{path.name} must be JSON', str(error), _FIX) from error
    if not isinstance(content, dict):
        raise place.error(f'{path.name} must map names', f'got a {type(content).__name__}', _FIX)
    return content
