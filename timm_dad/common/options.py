"""Fields of a config that carry their help, so that default and help of a flag are written once, beside their owner."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any, TypeVar

T = TypeVar('T')


def option(default: T, help: str, *, choices: Iterable[Any] | None = None, metavar: str | None = None) -> T:
    """Give a field of a dataclass its default, and what ``flags.fields.add_fields`` tells argparse about it.

    Args:
        default: The default.
        help: What the field is, with its unit or range.
        choices: All values, if they are few.
        metavar: What stands for the value in a usage line.
    """
    told = {'help': help, 'choices': choices and tuple(choices), 'metavar': metavar}
    return field(default=default, metadata={name: value for name, value in told.items() if value is not None})
