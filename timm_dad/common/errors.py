"""End a command with one line on a user's error or Ctrl-C, with any number of processes."""

import itertools
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_logger = logging.getLogger(__name__)

# What torchrun and accelerate, and the MPIs that Accelerate's PartialState knows, number processes with; in its order.
_RANKS = ('RANK', 'PMI_RANK', 'OMPI_COMM_WORLD_RANK', 'MV2_COMM_WORLD_RANK')


def is_main_process() -> bool:
    """Return whether this process reports, by the launchers' variables, before any process group exists."""
    ranks = [int(os.environ[name]) for name in _RANKS if name in os.environ]
    return next((rank for rank in ranks if rank >= 0), 0) == 0


class OwnError(ValueError):
    """An error that only this process met and reports at once: the others end silently."""


@contextmanager
def user_errors(program: str) -> Iterator[None]:
    """End the process on a user's error or a disk error, with one line; its traceback is logged at DEBUG.

    Args:
        program: Start of the line.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        _logger.debug('Where it was raised:', exc_info=True)
        if not is_main_process() and not isinstance(error, OwnError):
            # The main process says it, and it alone: launchers end all others when it exits. Those that wait for the
            # whole time met an error of their own.
            time.sleep(10)
        sys.stderr.write(f'{program}: error: {_message(error)}\n')
        sys.exit(2)


def _message(error: Exception) -> str:
    """Format an error in one line: a disk's with the file last, a loader process's without its traceback."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror[0].lower() + error.strerror[1:]
        message += f': {error.filename}' if error.filename is not None else ''
    elif message.startswith('Caught ') and 'Original Traceback' in message:
        message = message.rsplit(f'\n{type(error).__name__}: ', 1)[-1].strip()
    message = re.sub(r'^\[Errno -?\d+\] ', '', ' '.join(message.split('\n')))
    return re.sub(r'\S{500,}', lambda word: f'{word[0][:100]}...{word[0][-20:]}', message)


def run_command(main: Callable[[], object], command: Sequence[str], *, resumes: bool = True) -> None:
    """Run a command; Ctrl-C ends it with one line that says how to resume, and exit code 130.

    Args:
        main: The command. The arguments of its ``KeyboardInterrupt`` are additional flags for resuming, each with a
            value.
        command: Its command line.
        resumes: Whether the command accepts those flags.
    """
    try:
        main()
    except KeyboardInterrupt as error:
        words, flags = list(command), list(map(str, error.args if resumes else ()))
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            if (flag, value) not in itertools.pairwise(words):
                words += [flag, value]
        if is_main_process():
            sys.stderr.write(f'\nInterrupted. Resume with: {shlex.join(words)}\n')
        sys.exit(130)
