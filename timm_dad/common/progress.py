"""Progress bars of terminals, and what a log file gets in their place."""

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

_logger = logging.getLogger(__name__)


def progress(iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> Any:
    """``tqdm.tqdm`` that is off where nobody sees it move: standard error is no terminal.

    Args:
        iterable: What to go through.
        show: Whether this process shows it.
        options: More arguments of ``tqdm``.
    """
    return tqdm(iterable, disable=not (show and sys.stderr.isatty()), **options)


def tell(bar: Any, place: str, values: Mapping[str, float], decimals: int = 3) -> None:
    """Show values behind the bar, or log them in a line that begins with the place, where it is off."""
    shown = {name: f'{value:.{decimals}f}' for name, value in values.items()}
    if bar.disable:
        _logger.info('%s: %s', place, '  '.join(f'{name} {value}' for name, value in shown.items()))
    else:
        bar.set_postfix(shown)


def say(line: object) -> None:
    """Print a line on standard output, above the bars that are there."""
    tqdm.write(str(line))
