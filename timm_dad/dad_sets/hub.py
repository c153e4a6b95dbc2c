"""DAD sets on the Hugging Face Hub, ``hf://USER/NAME[@REVISION]``."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download

from timm_dad.common.hub import SCHEME, hub_errors, split_revision
from timm_dad.dad_sets.store import is_url
from timm_dad.dad_sets.store_cache import cached_set, fetch_set


@lru_cache
def set_folder(address: str | Path) -> Path:
    """Return the folder of a set: itself, or one in a cache (the hub's, a store's), fetched if it is missing.

    Raises:
        ValueError: If the address is malformed, or the set is neither cached nor available; the message says what to
            do.
    """
    if in_store(address):
        return fetch_set(str(address))
    if not str(address).startswith(SCHEME):
        return Path(address)
    repo = str(address).removeprefix(SCHEME).removeprefix('datasets/')
    name, revision = split_revision(repo, f'{SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION', str(address))
    with hub_errors(str(address)):
        return Path(snapshot_download(name, repo_type='dataset', revision=revision))


def in_store(address: str | Path) -> bool:
    """Return whether this is a URL of an object store other than the hub."""
    return is_url(address) and not str(address).startswith(SCHEME)


def hub_repo(root: Path) -> Path | None:
    """Return the folder of a set in the hub's cache, the one above ``snapshots``; ``None`` if it is not there."""
    for folder in root.absolute().parents:
        if folder.name == 'snapshots' and folder.parent.name.startswith('datasets--'):
            return folder.parent
    return None


def cached_repo(root: Path) -> Path | None:
    """Return the cache folder of a set, of the hub or of an object store; ``None`` if it has none."""
    return hub_repo(root) or cached_set(root.absolute())
