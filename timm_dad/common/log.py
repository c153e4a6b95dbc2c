"""Logging for the commands."""

import logging
import os

from timm.utils import setup_default_logging

from timm_dad.common.errors import is_main_process


def setup_logging(level: int = logging.INFO) -> None:
    """Log in timm's format: this project from ``level`` up in the main process, libraries from WARNING up.

    With ``TIMM_DAD_DEBUG=1`` in the environment all processes show everything, including where an error was raised.

    Args:
        level: Lowest level shown by the main process; other processes show warnings.
    """
    debug = os.environ.get('TIMM_DAD_DEBUG', '') not in ('', '0')
    if not logging.getLogger().handlers:  # once, also where several commands share a process
        setup_default_logging(default_level=logging.WARNING)
    for name in ('train_dad', 'timm_dad'):
        own = level if is_main_process() else max(level, logging.WARNING)
        logging.getLogger(name).setLevel(logging.DEBUG if debug else own)
