"""Rules between flags, errors that name the flag, and the flags given on a command line."""

import argparse
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def written(name: str) -> str:
    """Return a flag as written on the command line, by its name in ``args``."""
    return f'--{name.replace("_", "-")}'


def describe_flags(values: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, str]:
    """Write flags and their values for readers, but for those that are off, empty or in ``without``."""

    def text(value: Any) -> str:
        if value is True:
            return 'on'
        if isinstance(value, Mapping):
            value = [f'{key}={entry}' for key, entry in value.items()]
        return shlex.join(map(str, value if isinstance(value, (list, tuple)) else [value]))

    shown = {name: value for name, value in values.items() if name not in without and value is not False}
    return {written(name): text(value) for name, value in shown.items() if value not in (None, '', [], {}, ())}


def check_rules(rules: Sequence[tuple[Any, str]]) -> None:
    """Raise ``ValueError`` with the message of the first rule that does not hold."""
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def check_values(args: argparse.Namespace, rules: Sequence[tuple[Sequence[str], str, Callable[[Any], bool]]]) -> None:
    """Check flags that have a value one by one; ``ValueError`` names flag, rule and value.

    Args:
        args: Flags.
        rules: Names of flags, what they must be, and a function that checks a value.
    """
    for names, rule, holds in rules:
        for name in names:
            value = getattr(args, name)
            if value not in (None, '') and not holds(value):
                raise ValueError(f'{written(name)} must be {rule}, got {value}')


def check_seed(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for a ``--seed`` that numpy does not accept."""
    if getattr(args, 'seed', 0) < 0:
        raise ValueError(f'--seed must be 0 or more, got {args.seed}')


def check_file_args(args: argparse.Namespace, *names: str, what: str = 'a file') -> None:
    """Raise ``ValueError`` if a given flag names no file."""
    for name in names:
        path = getattr(args, name)
        if path and not os.path.isfile(path):  # which takes any text
            raise ValueError(f'{written(name)} must be {what}, got {path!r}, which does not exist')


def check_output(folder: Path) -> None:
    """Raise ``ValueError`` unless a folder is writable or can be created; nothing is created."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f'--output: {folder} cannot be written: {nearest} is not a folder; choose another one')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f'--output: {folder} cannot be written: you may not write to {nearest}; choose another one')


def check_new_output(folder: Path) -> None:
    """Raise ``ValueError`` unless a folder that is written as a whole is new or empty."""
    check_output(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'--output: {folder} contains other files: choose a new or empty folder')


@contextmanager
def flag_errors(flags: str) -> Iterator[None]:
    """Convert whatever a factory of timm or torch raises to a ``ValueError`` that names the flags it got.

    An ``ImportError`` passes through, as does a ``ValueError`` that already names a flag, like our own.
    """
    try:
        yield
    except ImportError:
        raise
    except ValueError as error:
        if '--' in str(error):
            raise
        raise ValueError(f'{flags}: {error}') from error
    except Exception as error:
        raise ValueError(f'{flags}: {type(error).__name__}: {error}') from error


@contextmanager
def naming_flag(flags: Mapping[str, str] | None = None, other: str = '') -> Iterator[None]:
    """Prefix a config's ``ValueError`` (it starts with the field name) with the flag that sets the field.

    Args:
        flags: Field to flag, by its name in ``args``; a missing field is called like its flag, or is part of
            ``other``.
        other: The flag of all other fields.
    """
    try:
        yield
    except ValueError as error:
        field = str(error).split()[0]
        raise ValueError(f'{written((flags or {}).get(field, other or field))}: {error}') from error


@contextmanager
def under_flag(flag: str, *errors: type[Exception]) -> Iterator[None]:
    """Prefix a ``ValueError`` (or one of ``errors``) of code that knows no flags with a flag, such as ``--model:``."""
    kinds: tuple[type[Exception], ...] = (ValueError, *errors)
    try:
        yield
    except kinds as error:
        raise ValueError(f'{flag} {error}') from error


def without_defaults(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Make a parser, which is changed, return only the flags of the command line."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return parser


def without_required(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a parser, which is changed, take a command line that lacks flags: ``--config`` may give them."""
    for action in parser._actions:
        action.required = False
    for group in parser._mutually_exclusive_groups:
        group.required = False
    return parser


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return only the flags of a command line, by name, from a parser that is changed for it."""
    return vars(without_defaults(without_required(parser)).parse_args(argv))
