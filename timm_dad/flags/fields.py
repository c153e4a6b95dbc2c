"""Flags that are fields of a config: they take default, type and help from it, and its errors name them."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from timm_dad.flags.rules import naming_flag, written

T = TypeVar('T')


def dad_flags(*fields: str) -> dict[str, str]:
    """Return fields that are flags with ``--dad-`` before their name."""
    return {name: f'dad_{name}' for name in fields}


def field_kwargs(config: Any, name: str) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a dataclass field made by ``common.options.option``."""
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    return {'type': field.type, 'default': field.default, **field.metadata}


def add_fields(group: Any, config: Any, flags: Mapping[str, str]) -> None:
    """Add fields of a dataclass to a group of a parser.

    Args:
        group: The group.
        config: The dataclass.
        flags: Field to flag, by its name in ``args``.
    """
    for name, flag in flags.items():
        group.add_argument(written(flag), **field_kwargs(config, name))


def from_flags(config: type[T], args: argparse.Namespace, flags: Mapping[str, str], **fields: Any) -> T:
    """Build a config from flags.

    Args:
        config: The dataclass.
        args: Flags.
        flags: Field to flag, as in ``add_fields``.
        fields: Fields that are not flags.

    Raises:
        ValueError: If a value is out of range; the message names the flag.
    """
    with naming_flag(flags):
        return config(**{name: getattr(args, flag) for name, flag in flags.items()}, **fields)
