"""Optional dependencies: one clear line if an extra is missing."""

import importlib
from typing import Any


def require_extra(module: str, extra: str) -> Any:
    """Import ``module``, which the extra ``extra`` of timm-dad installs.

    Raises:
        ImportError: If it is not installed; the message is the ``pip install`` line to run.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split('.')[0] != error.name.split('.')[0]:
            raise
        raise ImportError(f'{error.name} is missing; run: pip install "timm-dad[{extra}]"', name=error.name) from None
