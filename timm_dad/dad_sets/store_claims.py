"""Divide a set in an object store: by leases if an object can be created only once, or by a fixed split."""

import logging
import os

from timm_dad.dad_sets.claims import Claims
from timm_dad.dad_sets.leases import LeaseFile, Leases
from timm_dad.dad_sets.manifest import WORK
from timm_dad.dad_sets.parts import Part
from timm_dad.dad_sets.store import Store

_logger = logging.getLogger(__name__)


def store_claims(url: str, kind: str = 'auto') -> Claims:
    """Find out how processes can share a URL.

    Args:
        url: The URL of the set.
        kind: ``lease``, or ``auto``: leases if an object can be created only once, else the launcher's split.

    Raises:
        ValueError: If ``kind`` is another one, or leases do not work there.
    """
    if kind == 'lock':
        raise ValueError(f'--claim lock: {url} is in an object store, which has no locks: leave it out')
    store = Store(url)
    if store.has_exclusive_creation():
        return Leases(_LeaseObjects(store))
    if kind == 'lease':
        raise ValueError(
            f'--claim lease: {url} is in a store where two processes can create the same object: give --shards I/N'
        )
    if {'SLURM_ARRAY_TASK_ID', 'RANK'} & os.environ.keys():
        part = Part.parse('auto', os.environ)
        _logger.info('%s: two processes can create the same object there, so this one makes part %s', url, part)
        return part
    _logger.warning(
        '%s: two processes can create the same object there; if there are several, give each --shards I/N', url
    )
    return Part(0, 1)


class _LeaseObjects:
    """Leases as objects of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def exists(self, name: str) -> bool:
        return self._store.exists(_of_lease(name))

    def read(self, name: str) -> bytes:
        return self._store.read(_of_lease(name))

    def create(self, name: str, content: bytes) -> LeaseFile:
        if not self._store.create(_of_lease(name), content):
            raise FileExistsError
        return _LeaseObject(self._store, name)


class _LeaseObject:
    """An object that its holder rewrites."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def write(self, content: bytes) -> None:
        # NOTE: one that goes in between, with all of .work, comes back, and goes when the set is opened again.
        if self._store.exists(_of_lease(self._name)):
            self._store.write(_of_lease(self._name), content)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _of_lease(name: str) -> str:
    return f'{WORK}/leases/{name}'
