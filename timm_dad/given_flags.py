"""Which flags a command line gives, whatever their defaults."""

import argparse
from collections.abc import Sequence
from typing import Any


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


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The flags of a command line alone.

    Args:
        parser: One of its own for this; changed.
        argv: The command line; ``sys.argv[1:]`` by default.

    Returns:
        Their values by name.
    """
    return vars(without_defaults(parser).parse_args(argv))
