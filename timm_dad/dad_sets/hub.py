"""DAD sets on the Hugging Face Hub, ``hf://USER/NAME[@REVISION]``, and its errors in one line with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from timm_dad.dad_sets.store import is_url
from timm_dad.dad_sets.store_cache import cached_set, fetch_set
from timm_dad.teachers.hub import NETWORK, quiet_hub

SCHEME = 'hf://'


@lru_cache
def set_folder(address: str | Path) -> Path:
    """The folder of a set: itself, or that of a cache (the hub's, a store's), fetched where it is not there yet.

    Raises:
        ValueError: If the address is none, or the set is neither in the cache nor to be had; it says what to do.
    """
    if in_store(address):
        return fetch_set(str(address))
    if not str(address).startswith(SCHEME):
        return Path(address)
    name, at, revision = str(address).removeprefix(SCHEME).removeprefix('datasets/').partition('@')
    check_repo(name, f'{SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION', str(address))
    if at and not revision:
        raise ValueError(f'{address} names no revision after @: a branch, a tag or a commit')
    with hub_errors(str(address)):
        return Path(snapshot_download(name, repo_type='dataset', revision=revision or None))


def in_store(address: str | Path) -> bool:
    """Whether this is a URL of an object store, and not of the hub."""
    return is_url(address) and not str(address).startswith(SCHEME)


def check_repo(name: str, form: str, given: str) -> None:
    """Raise ``ValueError`` unless a repository has a name that the hub can have."""
    try:
        validate_repo_id(name)
        if '/' not in name:
            raise HFValidationError('There is no USER')
    except HFValidationError as error:
        raise ValueError(f'a repository on the hub is {form}, got {given!r} ({str(error).split(": ")[0]})') from error


def cached_repo(root: Path) -> Path | None:
    """The folder of a cache that a set lies in, in the hub's that above ``snapshots``; ``None`` if it is elsewhere."""
    for folder in root.absolute().parents:
        if folder.name == 'snapshots' and folder.parent.name.startswith('datasets--'):
            return folder.parent
    return cached_set(root.absolute())


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn an error of the hub, or of the way to it, into a ``ValueError`` of one line that begins with ``what``."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # httpx's are of no common kind with the hub's
        if type(error).__module__.split('.')[0] not in NETWORK:
            raise
        raise ValueError(f'{what}: {_advice(error)}') from error


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if constants.HF_HUB_OFFLINE:
        return (
            f'HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} does not hold it whole: unset it where '
            'there is a network, or bring the cache from a machine that has it (HF_HUB_CACHE names the folder)'
        )
    if isinstance(error, RevisionNotFoundError):
        return 'the repository has no such revision: name a branch, a tag or a commit of it'
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            'there is no such repository, or not for this token: look at the name, and log in with a token that may '
            'do this (hf auth login, or HF_TOKEN)'
        )
    cached = ', and the cache does not hold it' if isinstance(error, LocalEntryNotFoundError) else ''
    cause = error.__cause__ if cached and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = f'{type(cause).__name__}: {"; ".join(lines[:2])[:300]}'
    if status is not None and status < 500 and status != 429:  # Too Many Requests
        return f'the hub refuses it ({said})'
    what = 'cannot be reached' if status is None else 'does not do it now'
    return f'the hub {what}{cached} ({said}): start again when it does, what has arrived stays'
