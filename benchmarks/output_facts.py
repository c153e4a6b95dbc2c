"""What is in the files that a command leaves, and how two of them differ.

A file is a dictionary of values by name: the tensors of a checkpoint, the pixels of a picture, the text of a report.
With digests in place of tensors it is what JSON can keep. Versions and times, which may differ, are left out.
"""

import argparse
import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

Values = dict[str, Any]

# A hash stands for numbers.
_NUMBER = re.compile(r'(?<![\w.])(?:[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[0-9a-f]{32,})(?!\w)')
_PICTURE = re.compile(r'data:image/\w+;base64,([A-Za-z0-9+/=]+)')
_IGNORED = ('.lock',)
# Of the JSON that a command prints, all that is counted and not timed.
_COUNTED = ('parameters', 'bytes', 'forward', 'backward', 'encode', 'decode', 'macs', 'passes')


def facts_of_folder(folder: Path) -> dict[str, Values]:
    """Facts of every file in a folder, by its path in it.

    Args:
        folder: The folder.

    Returns:
        For each file what ``read`` gives, tensors and pixels as digests.
    """
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name not in _IGNORED)
    return {
        path.relative_to(folder).as_posix(): {name: _digest(value) for name, value in read(path).items()}
        for path in files
    }


def read(path: Path) -> Values:
    """Read what counts in a file.

    Args:
        path: The file.

    Returns:
        Arrays and tensors by name; all else that is readable as one ``text``; the hash of other files as ``bytes``.
    """
    if path.name.endswith(('.pth.tar', '.pt')):
        with torch.serialization.safe_globals([argparse.Namespace]):
            values = dict(_flat(torch.load(path, map_location='cpu', weights_only=True)))
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        return {**tensors, 'text': _lines({name: values[name] for name in values if name not in tensors})}
    if path.suffix == '.safetensors':
        return dict(load_file(path))
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix in ('.png', '.jpg', '.webp'):
        return {'pixels': _pixels(path.read_bytes()), **_bytes_of_view(path)}
    if path.suffix in ('.txt', '.csv', '.json', '.jsonl', '.md', '.html', '.yaml'):
        return {'text': _text(path)}
    return {'bytes': hashlib.sha256(path.read_bytes()).hexdigest()}


def _bytes_of_view(path: Path) -> Values:
    """The bytes of a picture in a set, whose manifests hold their hash; other pictures hold versions of libraries."""
    in_set = any((parent / 'dad_set.json').is_file() for parent in path.parents)
    return {'bytes': hashlib.sha256(path.read_bytes()).hexdigest()} if in_set else {}


def _flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Tensors and plain values in nested dictionaries and lists, by their path."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(inner, f'{name}.{key}' if name else str(key))
    else:
        yield name, value


def _lines(values: Values) -> str:
    return '\n'.join(f'{name}: {value!r}' for name, value in values.items())


def _pixels(data: bytes) -> Any:
    return np.array(Image.open(io.BytesIO(data)).convert('RGBA'))


def _text(path: Path) -> str:
    """Text of a file, without versions and what follows from them, pictures in it as digests of their pixels."""
    text = path.read_bytes().decode()
    if path.name == 'printed.txt' and text.startswith('{'):
        counted = {name: value for name, value in _flat(json.loads(text)) if name.split('.')[-1] in _COUNTED}
        return _lines(counted)
    if path.suffix == '.jsonl':
        text = re.sub(r'"made_with":\{[^}]*\},?', '', text)
        text = re.sub(r'\{"sha256":"\w+"\}\n$', '', text)  # of the lines before it
    if path.name == 'index.json':
        text = re.sub(r'("path":"manifest/\w+\.jsonl","sha256":|"settings":"\w+","sha256":)"\w+"', r'\1', text)
    return _PICTURE.sub(lambda found: _digest(_pixels(base64.b64decode(found[1]))), text)


def _digest(value: Any) -> str:
    """A tensor or an array as its type, shape and hash; a text as it is."""
    if isinstance(value, str):
        return value
    array = torch.as_tensor(value).contiguous()
    data = array.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f'{array.dtype} {list(array.shape)} {hashlib.sha256(data).hexdigest()}'


def differences(base: Values, head: Values, files: tuple[Path, Path] | None) -> list[str]:
    """Say how the facts of two files differ.

    Args:
        base: Facts of a file.
        head: Facts of the other one.
        files: The files themselves, where both are there: how far tensors are apart is read from them.

    Returns:
        A line for tensors, one for numbers in text and one for its words; those alone that differ.
    """
    lines = []
    names = [name for name in (*base, *(name for name in head if name not in base)) if name != 'text']
    changed = [name for name in names if base.get(name) != head.get(name)]
    if changed:
        lines.append(f'{len(changed)} of {len(names)} differ: {_how_far(changed, files) or ", ".join(changed[:3])}')
    return lines + _text_differences(base.get('text', ''), head.get('text', ''))


def _how_far(names: list[str], files: tuple[Path, Path] | None) -> str:
    """The largest difference of the tensors of these names; ``''`` where none can be compared."""
    found = []
    if files:
        one, other = (read(path) for path in files)
        for name in names:
            here, there = one.get(name, ''), other.get(name, '')
            if not isinstance(here, str) and np.shape(here) == np.shape(there):
                distance = (torch.as_tensor(here).double() - torch.as_tensor(there).double()).abs().max().item()
                found.append((distance, name))
    return 'by {:.3g} at most, {}'.format(*max(found)) if found else ''


def is_wording(line: str) -> bool:
    """Whether a line of ``differences`` is about words alone."""
    return line.startswith('wording: ')


def _text_differences(base: str, head: str) -> list[str]:
    """A line for the places where numbers differ, and one for those where words do."""
    one, other = base.splitlines(), head.splitlines()
    found: dict[str, list[str]] = {'numbers': [], 'wording': []}
    for tag, *(i, j, k, m) in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        here, there = '\n'.join(one[i:j]), '\n'.join(other[k:m])
        if tag != 'equal' and _NUMBER.findall(here) != _NUMBER.findall(there):
            found['numbers'].append(_change(here, there))
        if tag != 'equal' and _words(here) != _words(there):
            found['wording'].append(_change(here, there))
    return [f'{kind}: {len(places)} x, first {places[0]}' for kind, places in found.items() if places]


def _words(text: str) -> list[str]:
    return _NUMBER.sub('#', text).split()


def _change(base: str, head: str) -> str:
    """What became what, from shortly before the first letter that differs."""
    same = next((place for place, (a, b) in enumerate(zip(base, head, strict=False)) if a != b), len(base))
    start = max(0, min(same, len(head)) - 20)
    return ' -> '.join(repr(text[start : start + 60]) for text in (base, head))
