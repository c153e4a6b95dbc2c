"""The suites of ``timm-dad evaluate``: published ones by name and folder, and any other data set under its own name."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm_dad.data.datasets import check_names_are_text, open_dataset
from timm_dad.data.images import Source
from timm_dad.demo.data import PREFIX as DEMO
from timm_dad.evaluation.suites.class_folders import Place, folders, inner
from timm_dad.evaluation.suites.layouts import LAYOUTS, VAL_NAMES
from timm_dad.evaluation.suites.suite import Part, Suite, check_pictures

PUBLISHED = tuple(LAYOUTS)
# Custom suites that are no shift: by name, and the demo's style that there is training data of.
CLEAN_NAMES = ('clean', 'val', 'validation')
CLEAN_DEMO = 'demo/noto'

# What archives unpack to and others call their folders, without case, "-" and "_"; ReaL's images are ImageNet's.
_FOLDER_NAMES = {
    'imagenet1k': 'imagenet', 'imagenetval': 'imagenet', 'ilsvrc2012': 'imagenet',
    'sketch': 'imagenet-sketch',
    'imagenetstylized': 'stylized-imagenet', 'imagenetstyle': 'stylized-imagenet',
    'imagenetstyletransferv2': 'stylized-imagenet',
    'objectnet1.0': 'objectnet',
    **{name.replace('-', ''): name for name in PUBLISHED if name != 'imagenet-real'},
}  # fmt: skip
_READ_BY_INDEX = ('torch/', 'hfds/')
_STREAMS = ('tfds/', 'wds/', 'hfids/')


def parse_suite(text: str) -> tuple[str, str]:
    """Return name and path of ``NAME=PATH`` or ``demo/STYLE``; ``ValueError`` if NAME cannot name a folder."""
    if text.startswith(DEMO):
        return text.removeprefix(DEMO), text
    name, separator, path = text.partition('=')
    if not separator or not path:
        raise ValueError(f'must be NAME=PATH or demo/STYLE, got {text!r} (published NAMEs: {", ".join(PUBLISHED)})')
    if not re.fullmatch(r'[A-Za-z0-9][\w.-]*', name):
        raise ValueError(f'NAME must consist of letters, digits, ".", "-" and "_", got {name!r}')
    return name, path


def open_suite(name: str, path: str) -> Suite:
    """Open a suite; pictures are neither listed nor read before they are used.

    Args:
        name: A published one (``PUBLISHED``), whose layout is then expected, or any other.
        path: Its folder; for other names also a ``.tar``, ``demo/STYLE``, or timm's ``hfds/SET`` and ``torch/SET``
            followed by ``,root=DIR`` and ``,split=NAME``.

    Raises:
        ValueError: If there is nothing, or it does not have the layout.
    """
    if name in LAYOUTS:
        if not Path(path).is_dir():
            raise ValueError(f'{name}={path}: there is no such folder')
        return LAYOUTS[name](Place(name, Path(path)))
    dataset = _open_custom(path, f'{name}={path}')
    source = Source(dataset)
    class_names = source.class_names or getattr(dataset, 'classes', None)
    if not class_names or '' in class_names:  # '': timm's class of pictures that lie beside the class folders
        raise ValueError(f'{name}={path}: pictures must lie in one folder per class, or the data must name its classes')
    check_names_are_text(class_names, f'{name}={path}')
    kind = 'clean' if name in CLEAN_NAMES or path == CLEAN_DEMO else 'ood'
    parts = (Part(name='test', dataset=source),)
    return Suite(name=name, kind=kind, parts=parts, class_names=tuple(class_names), num_classes=len(class_names))


def open_suites(texts: Sequence[str]) -> tuple[list[Suite], list[str]]:
    """Open ``NAME=PATH`` or ``demo/STYLE`` and decode some pictures of each; return texts without a folder second.

    Raise ``ValueError`` if a name is repeated, or an existing folder has another layout or broken pictures.
    """
    named = [parse_suite(text) for text in texts]
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'takes every NAME once, got {", ".join(twice)} more than once')
    suites, missing = [], []
    for text, (name, path) in zip(texts, named, strict=True):
        if not Path(path).exists() and (name in LAYOUTS or not path.startswith((DEMO, *_READ_BY_INDEX, *_STREAMS))):
            missing.append(text)
            continue
        suites.append(open_suite(name, path))
        check_pictures(suites[-1])
    return suites, missing


def mark_clean(suites: Sequence[Suite], names: Sequence[str]) -> list[Suite]:
    """Return the suites with the user's own ones in ``names`` marked as ``clean``; ``ValueError`` for other names."""
    own = [suite.name for suite in suites if suite.name not in LAYOUTS]
    for name in names:
        if name not in own:
            raise ValueError(f'must name your own suites (here {", ".join(own) or "there are none"}), got {name}')
    return [replace(suite, kind='clean') if suite.name in names else suite for suite in suites]


def find_suites(root: str | Path, without: Collection[str] = ()) -> dict[str, Path]:
    """Find published suites in the folders of a data root, in the order of ``PUBLISHED``, by their unpacked names.

    Those named in ``without`` are left out, however many folders they have.
    Case, "-" and "_" do not matter; ReaL is found where ImageNet is, if its files have their original names. Raise
    ``ValueError`` if there is no such root, or two folders are the same suite.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f'there is no data root {root}')
    found: dict[str, Path] = {}
    for folder in folders(root):
        plain = re.sub('[-_]', '', folder.name.lower())
        name = _FOLDER_NAMES.get(plain)
        if name in found and name not in without:
            raise ValueError(f'{found[name]} and {folder} are both {name}: keep one, or give {name}=PATH')
        if name:
            found.setdefault(name, folder)
        if re.match(r'imagenetv2(matched|threshold|top)', plain):
            found.setdefault('imagenet-v2', root)
    if 'imagenet' in found and next(inner(found['imagenet'], VAL_NAMES).glob('*/ILSVRC2012_val_*'), None):
        found['imagenet-real'] = found['imagenet']
    return {name: found[name] for name in PUBLISHED if name in found and name not in without}


def _open_custom(path: str, place: str) -> Any:
    if path.startswith(_STREAMS):
        raise ValueError(f'{place}: images are read by index, which a stream lacks: unpack it, or use hfds/SET')
    if path.startswith(_READ_BY_INDEX):
        dataset, *options = path.split(',')
        given = dict(option.split('=', 1) for option in options if option.startswith(('root=', 'split=')))
        if len(given) < len(options):
            raise ValueError(f'{place}: the data set may be followed by ,root=DIR and ,split=NAME, each once')
        return open_dataset(dataset, given.get('root'), given.get('split', 'validation'), place, is_training=False)
    if path.startswith(DEMO):
        return open_dataset(path, None, 'validation', place)
    root = Path(path)
    if not root.exists():
        raise ValueError(f'{place}: there is no such folder')
    if root.is_dir():
        _check_split(root, place)
    dataset = open_dataset('', path, 'validation', place, is_training=False)
    if root.is_dir():
        _check_nesting(dataset.reader.samples, place)
    return dataset


def _check_split(root: Path, place: str) -> None:
    # NOTE: timm takes all of the root, training pictures too, where it has no folder of the validation split.
    names = {path.name for path in folders(root)}
    if names & {'train', 'training'} and not names & {'val', 'valid', 'validation', 'eval', 'evaluation'}:
        raise ValueError(
            f'{place}: it has a folder of training pictures but none named val or validation: give its path'
        )


def _check_nesting(samples: Sequence[tuple[str, int]], place: str) -> None:
    # NOTE: timm's class is the last folder alone; of 1/cat and 2/cat it makes one class.
    seen: dict[int, Path] = {}
    for file, label in samples:
        folder = Path(file).parent
        if seen.setdefault(label, folder) != folder:
            raise ValueError(f'{place}: a class must be one folder, got {seen[label]} and {folder}: give one of them')
