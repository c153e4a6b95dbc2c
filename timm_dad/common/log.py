"""What the commands say on the terminal while they work."""

import logging

from timm.utils import setup_default_logging

from timm_dad.common.errors import is_main_process


def setup_logging(level: int = logging.INFO) -> None:
    """Log in timm's format: this project from ``level`` on in the main process, libraries from WARNING on.

    Args:
        level: Lowest level that the main process shows; other processes show warnings.
    """
    if not logging.getLogger().handlers:  # once, also where several commands share a process
        setup_default_logging(default_level=logging.WARNING)
    for name in ('train_dad', 'timm_dad'):
        logging.getLogger(name).setLevel(level if is_main_process() else max(level, logging.WARNING))
