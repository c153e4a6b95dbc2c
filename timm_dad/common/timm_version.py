"""Checks for features that are newer than the oldest supported timm, 1.0.28."""

import timm
import timm.loss

# NOTE: by what it holds, not by its number: a checkout of timm between two releases has that of the one before.
NEW_TIMM = hasattr(timm.loss, 'create_classification_loss')


def needs_new_timm(what: str) -> str:
    """Return the error line for something that this timm lacks."""
    return f'{what} needs timm 1.0.31 or newer, but {timm.__version__} is installed: run pip install -U timm'
