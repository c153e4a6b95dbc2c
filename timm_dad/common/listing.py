"""Long lists in messages of one line."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 3) -> str:
    """List the first ``most`` names, and say how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
