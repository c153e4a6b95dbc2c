"""Which flags a command line gives, whatever their defaults."""

import argparse


def without_defaults(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a parser give the flags of the command line alone.

    Args:
        parser: One of its own for this; changed.

    Returns:
        The parser.
    """
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return parser
