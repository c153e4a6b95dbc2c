"""The Hugging Face Hub: addresses ``hf://USER/NAME[@REVISION]``, and one-line errors that say what to do."""

import contextlib
import logging
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

SCHEME = 'hf://'

# Packages whose errors are those of the network.
NETWORK = ('huggingface_hub', 'httpx', 'httpx2', 'httpcore', 'httpcore2', 'requests', 'urllib')


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep huggingface_hub from printing every retried request: the error tells why the last one failed."""
    logger = logging.getLogger('huggingface_hub')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_repo(name: str, form: str, given: str) -> None:
    """Raise ``ValueError`` unless a repository's name is valid on the hub."""
    try:
        validate_repo_id(name)
        if '/' not in name:
            raise HFValidationError('There is no USER')
    except HFValidationError as error:
        raise ValueError(f'a repository on the hub is {form}, got {given!r} ({str(error).split(": ")[0]})') from error


def split_revision(repo: str, form: str, given: str) -> tuple[str, str | None]:
    """Split ``USER/NAME[@REVISION]`` into repository and revision; ``ValueError`` names the expected form."""
    name, at, revision = repo.partition('@')
    check_repo(name, form, given)
    if at and not revision:
        raise ValueError(f'{given} has no revision after @: give a branch, a tag or a commit')
    return name, revision or None


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Convert an error of the hub, or of the way to it, to a one-line ``ValueError`` that begins with ``what``."""
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
            f'HF_HUB_OFFLINE is set, but the cache {constants.HF_HUB_CACHE} does not contain all of it: unset it if '
            'there is a network, or copy the cache from a machine that has it (HF_HUB_CACHE names the folder)'
        )
    if isinstance(error, RevisionNotFoundError):
        return 'the repository has no such revision: give a branch, a tag or a commit of it'
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            'there is no such repository, or not for this token: check the name, and log in with a token that may '
            'do this (hf auth login, or HF_TOKEN)'
        )
    cached = ', and the cache does not contain it' if isinstance(error, LocalEntryNotFoundError) else ''
    cause = error.__cause__ if cached and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = f'{type(cause).__name__}: {"; ".join(lines[:2])[:300]}'
    if status is not None and status < 500 and status != 429:  # Too Many Requests
        return f'the hub refuses it ({said})'
    what = 'cannot be reached' if status is None else 'cannot do it now'
    return f'the hub {what}{cached} ({said}): start again once it can; files already fetched are kept'
