"""One-line errors for weights that fail to load, with advice for those of the hub."""

from timm_dad.common.hub import NETWORK


def load_error(error: Exception) -> str:
    """Format an error of timm, open_clip or torch in one line; keep the first three lines of a long one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    more = f'; and {len(lines) - 3} more' if len(lines) > 3 else ''
    text = '; '.join(line if len(line) < 200 else f'{line[:200]} ...' for line in lines[:3]) + more
    if type(error).__module__.split('.')[0] in NETWORK:
        text += (
            ' (no network? give a file fetched elsewhere, as MODEL/FILE, or set HF_HUB_OFFLINE=1 to use what '
            "is in the hub's cache without asking)"
        )
    return text
