"""Predictions on disk, with the facts they depend on: a rerun reuses those that it would make the same way."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from timm_dad.common.files import check_no_folder, write_file
from timm_dad.common.hashing import content_hash
from timm_dad.common.spread import spread
from timm_dad.evaluation.predict import EvalConfig, Predictions
from timm_dad.evaluation.suites.changed import AttackedPart, CorruptedPart
from timm_dad.evaluation.suites.suite import Part, Suite

_logger = logging.getLogger(__name__)

# Raise it with every change of what predictions of the same facts are.
# 2: networks that take any size get images of ImageNet-C and its like as they are.
SCHEMA = 2
_SAMPLE = 32  # images of a part whose pixels are facts
_SIZES = 1000  # files whose sizes are: of ImageNet-C's 3.75 million that takes minutes on a network's disk
_HASH = 'predictions'  # of the .npz, among the facts of the .json


class PredictionStore:
    """``FOLDER/MODEL/SUITE/PART.npz``, and beside it ``PART.json``: the facts that they depend on, and their hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data: dict[int, str] = {}

    def facts(self, fingerprint: str, suite: Suite, part: Part, config: EvalConfig, precision: str) -> dict[str, Any]:
        """Return all facts that a part's predictions depend on, except number of processes, device and batch size."""
        facts: dict[str, Any] = {
            'schema': SCHEMA,
            'model': fingerprint,
            'precision': precision,
            'images': len(part.dataset),
            'data': self._describe_data(part),
            'classes': content_hash({}, {'names': suite.class_names, 'num': suite.num_classes, 'groups': suite.groups}),
            'resize': suite.resize,
        }
        if isinstance(part, CorruptedPart):
            facts['corruption'] = {'name': part.corruption, 'severity': part.severity, 'seed': config.seed}
            facts['library'] = _version('imagecorruptions')
        if isinstance(part, AttackedPart):
            facts['attack'] = {'name': part.attack, 'seed': config.seed, **asdict(config.attack)}
            if part.attack == 'autoattack':  # draws for a batch, not for an image
                facts['attack']['batch_size'] = config.batch_size
                facts['library'] = _version('pyautoattack')
        return facts

    def _describe_data(self, part: Part) -> str:
        key = id(part.dataset)  # a suite's parts live as long as the store
        if key not in self._data:
            listing = list(_listing(part.dataset))
            sample = [_image(*part.dataset[index][:2]) for index in spread(len(part.dataset), _SAMPLE)]
            self._data[key] = content_hash({}, {'listing': listing, 'sample': sample})
        return content_hash({}, {'data': self._data[key], 'labels': part.multi_labels})

    def _path(self, model: str, suite: str, part: str) -> Path:
        return self.folder / model / suite / f'{part.replace("/", "-")}.npz'

    def load(self, model: str, suite: str, part: str, facts: dict[str, Any]) -> Predictions | None:
        """Load saved predictions if intact and with the same facts; raise ``ValueError`` if folders block the path."""
        path = self._path(model, suite, part)
        for place in (path, path.with_suffix('.json')):
            check_no_folder(place)
        try:
            known = json.loads(path.with_suffix('.json').read_text())
            found = _file_hash(path)
        except (OSError, ValueError):  # a process was killed between the two files
            return None
        if not isinstance(known, dict) or {**known, _HASH: None} != {**facts, _HASH: None}:
            return None
        if known.get(_HASH) != found:
            _logger.warning('%s does not match its .json (changed, damaged or older): it is computed again', path)
            return None
        return Predictions.load(path)

    def save(self, model: str, suite: str, part: str, predictions: Predictions, facts: dict[str, Any]) -> None:
        """Write predictions, then their facts: whoever finds the second finds the first."""
        path = self._path(model, suite, part)
        known = path.with_suffix('.json')
        known.unlink(missing_ok=True)
        predictions.save(path)
        write_file(known, json.dumps({**facts, _HASH: _file_hash(path)}, indent=1, sort_keys=True) + '\n')


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _version(module: str) -> str | None:
    """Return name and version of a module's package, whichever of its forks is installed."""
    names = packages_distributions().get(module)
    return f'{names[0]} {version(names[0])}' if names else None


def _listing(dataset: Any) -> Iterator[tuple[str, int | None]]:
    """Yield names (class folder and file) of the files, if any, and sizes of some; the root may have moved."""
    count = len(dataset) if hasattr(dataset, 'filename') else 0
    sized = set(spread(count, _SIZES))
    for index in range(count):
        path = Path(dataset.filename(index, absolute=True))
        size = (path.stat().st_size if path.is_file() else -1) if index in sized else None
        yield '/'.join(path.parts[-2:]), size


def _image(image: Any, label: Any) -> str:
    pixels = np.asarray(image.convert('RGB'))
    return content_hash({}, {'size': pixels.shape, 'label': int(label), 'pixels': pixels.tobytes().hex()})
