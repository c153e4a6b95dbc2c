"""DAD sets on the Hugging Face Hub, ``hf://USER/NAME[@REVISION]``."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download

from timm_dad.common.hub import SCHEME, hub_errors, split_revision
from timm_dad.dad_sets.store import is_url
from timm_dad.dad_sets.store_cache import cached_set, fetch_set


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
    repo = str(address).removeprefix(SCHEME).removeprefix('datasets/')
    name, revision = split_revision(repo, f'{SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION', str(address))
    with hub_errors(str(address)):
        return Path(snapshot_download(name, repo_type='dataset', revision=revision))


def in_store(address: str | Path) -> bool:
    """Whether this is a URL of an object store, and not of the hub."""
    return is_url(address) and not str(address).startswith(SCHEME)


def cached_repo(root: Path) -> Path | None:
    """The folder of a cache that a set lies in, in the hub's that above ``snapshots``; ``None`` if it is elsewhere."""
    for folder in root.absolute().parents:
        if folder.name == 'snapshots' and folder.parent.name.startswith('datasets--'):
            return folder.parent
    return cached_set(root.absolute())
