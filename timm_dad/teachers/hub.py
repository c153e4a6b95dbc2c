"""Errors of loading weights, in one line, those of the hub with what to do about them."""

from timm_dad.common.hub import NETWORK


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
