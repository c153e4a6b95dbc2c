"""Errors of the user's end a command with one line, in any number of processes."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_logger = logging.getLogger(__name__)

# What torchrun and accelerate, and the MPIs that Accelerate's PartialState knows, number processes with; in its order.
_RANKS = ('RANK', 'PMI_RANK', 'OMPI_COMM_WORLD_RANK', 'MV2_COMM_WORLD_RANK')


def is_main_process() -> bool:
    """Whether this is the process that talks, before any process group is made: by what launchers set."""
    ranks = [int(os.environ[name]) for name in _RANKS if name in os.environ]
    return next((rank for rank in ranks if rank >= 0), 0) == 0


@contextmanager
def user_errors(program: str) -> Iterator[None]:
    """End the process on an error of the user's, with one line; its traceback is logged at DEBUG.

    Args:
        program: What the line begins with.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        _logger.debug('Where it was raised:', exc_info=True)
        if not is_main_process():
            # The main process says it, and it alone: launchers end all others when it exits. Those that wait for the
            # whole time met an error of their own.
            time.sleep(10)
        sys.stderr.write(f'{program}: error: {error}\n')
        sys.exit(2)
