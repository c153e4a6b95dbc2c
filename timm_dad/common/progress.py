"""Progress bars for terminals, and their replacement in log files."""

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

_logger = logging.getLogger(__name__)


def progress(iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> Any:
    """Return a ``tqdm.tqdm`` that is off if nobody sees it: standard error is not a terminal.

    Args:
        iterable: The iterable to follow.
        show: Whether this process shows the bar.
        options: Further arguments of ``tqdm``.
    """
    return tqdm(iterable, disable=not (show and sys.stderr.isatty()), **options)


def tell(bar: Any, place: str, values: Mapping[str, float], decimals: int = 3) -> None:
    """Show values behind the bar or, if it is off, log them in a line that begins with the place."""
    shown = {name: f'{value:.{decimals}f}' for name, value in values.items()}
    if bar.disable:
        _logger.info('%s: %s', place, '  '.join(f'{name} {value}' for name, value in shown.items()))
    else:
        bar.set_postfix(shown)


def say(line: object) -> None:
    """Print a line on standard output, above any bars."""
    tqdm.write(str(line))
