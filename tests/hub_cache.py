"""The cache of the Hugging Face Hub for tests, laid out as the hub lays it out, and read by its own code, offline.

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import hashlib
import os

from huggingface_hub import constants

COMMIT = '0123456789abcdef' * 2 + '01234567'


def use_cache(monkeypatch, cache):
    """Let the hub have this cache, and no network; returns it."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return cache


def put_repo(cache, kind, name, folder, revision='main', commit=COMMIT):
    """Put a folder into the cache as a repository of ``datasets`` or ``models``; returns its snapshot.

    Files are read-only blobs under their hash, and links to them have their names.
    """
    repo = cache / f'{kind}--{name.replace("/", "--")}'
    snapshot = repo / 'snapshots' / commit
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            data = path.read_bytes()
            blob, link = repo / 'blobs' / hashlib.sha256(data).hexdigest(), snapshot / path.relative_to(folder)
            for place in (blob, link):
                place.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                blob.write_bytes(data)
                blob.chmod(0o444)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / 'refs').mkdir()
    (repo / 'refs' / revision).write_text(commit)
    return snapshot
