"""What of timm this package uses is younger than the oldest timm that it takes, 1.0.28."""

import timm
import timm.loss

# NOTE: by what it holds, not by its number: a checkout of timm between two releases has that of the one before.
NEW_TIMM = hasattr(timm.loss, 'create_classification_loss')


def needs_new_timm(what: str) -> str:
    """The line for something that this timm has not."""
    return f'{what} needs timm 1.0.31 or newer, {timm.__version__} is installed: run pip install -U timm'
