"""Rules between flags, errors that name the flag, and which flags a command line gives."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def check_rules(rules: Sequence[tuple[Any, str]]) -> None:
    """Check rules in their order.

    Args:
        rules: What must be true, and what is said if it is not.

    Raises:
        ValueError: At the first rule that does not hold.
    """
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


@contextmanager
def flag_errors(flags: str) -> Iterator[None]:
    """Name the flags that a failed factory of timm or torch got: factories raise what they like.

    Args:
        flags: The flags, as they are written on a command line.

    Raises:
        ValueError: In place of any other error but ``ImportError``.
    """
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f'{flags}: {type(error).__name__}: {error}') from error


@contextmanager
def naming_flag(flags: Mapping[str, str] | None = None, unknown: str | None = None) -> Iterator[None]:
    """Put the flag before the message of a config's ``ValueError``, which begins with the field.

    Args:
        flags: Names of the flags (as ``args`` has them) whose fields are called otherwise.
        unknown: The flag of fields that ``flags`` does not have; called like the field by default.

    Raises:
        ValueError: In place of the config's.
    """
    try:
        yield
    except ValueError as error:
        field = str(error).split()[0]
        name = (flags or {}).get(field, unknown or field)
        raise ValueError(f'--{name.replace("_", "-")}: {error}') from error


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
