"""Errors that name the flag: rules between flags, and values that a config refuses."""

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
