"""Errors of the user's end a command with one line, in any number of processes."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def is_main_process() -> bool:
    """Whether this is the process that talks, before any process group is made; launchers set ``RANK``."""
    return int(os.environ.get('RANK', 0)) == 0


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """End the process on an error of the user's, with one line instead of a traceback.

    Args:
        program: What the line begins with.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        if not is_main_process():
            time.sleep(10)  # launchers end all processes at the first exit: let the main one say it, and it alone
        sys.stderr.write(f'{program}: error: {error}\n')
        sys.exit(2)
