"""Errors of loading weights, in one line, those of the hub with what to do about them."""

import contextlib
import logging
from collections.abc import Iterator

# Packages whose errors are those of the network.
NETWORK = ('huggingface_hub', 'httpx', 'httpx2', 'httpcore', 'httpcore2', 'requests', 'urllib')


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep huggingface_hub from printing every request that it tries again: the error says why the last one failed."""
    logger = logging.getLogger('huggingface_hub')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_error(error: Exception) -> str:
    """An error of timm, open_clip or torch in one line; of many lines (weights that do not fit) the first three."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    more = f'; and {len(lines) - 3} more' if len(lines) > 3 else ''
    text = '; '.join(line if len(line) < 200 else f'{line[:200]} ...' for line in lines[:3]) + more
    if type(error).__module__.split('.')[0] in NETWORK:
        text += (
            ' (no network? give a file that was fetched elsewhere, as MODEL/FILE, or set HF_HUB_OFFLINE=1 to take what '
            "the hub's cache holds without asking)"
        )
    return text
