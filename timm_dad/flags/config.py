"""``--config FILE``: defaults of a command's flags, from YAML; and parsing of command lines with it."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm_dad.common.errors import user_errors
from timm_dad.common.text_files import read_yaml
from timm_dad.flags.attack import of_another_attack
from timm_dad.flags.parser import Parser, did_you_mean
from timm_dad.flags.rules import check_seed, given_flags, under_flag, without_required, written

# The commands that take --config; the name of a section in a file lists the commands that read it.
COMMANDS = (
    'train', 'info', 'demo', 'generate', 'preview', 'evaluate', 'diagnose', 'probe', 'vqgan train', 'vqgan distill',
)  # fmt: skip
_KINDS = {int: 'a whole number', float: 'a number'}


def add_config_arg(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` to a parser."""
    parser.add_argument(
        '-c', '--config', default='', metavar='FILE',
        help='YAML file with defaults for these flags, one per line, such as dad_eps: 0.1',
    )  # fmt: skip


def read_config(parser: Parser, path: str) -> dict[str, Any]:
    """Read defaults of a command's flags, by their names in ``args``.

    A file maps flags, or sections of them, to values; the name of a section lists its commands: ``train, generate``.

    Raises:
        ValueError: If the file is not YAML with flags, or a value does not fit its flag; the message says which and
            where.
    """
    if not os.path.isfile(path):
        raise ValueError(f'--config must be a YAML file, got {path!r}, which does not exist')
    with under_flag('--config'):
        content = read_yaml(path)
    content = {} if content is None else content
    flags = _by_name(parser)
    if isinstance(content, dict):
        with under_flag(f'--config {path}:'):
            content = _of_command(parser.prog.removeprefix('timm-dad '), content)
    unknown = sorted(str(name) for name in content if name not in flags) if isinstance(content, dict) else [content]
    if unknown:
        near = did_you_mean(unknown[0], [name for name in (*flags, *COMMANDS) if name != unknown[0]])
        raise ValueError(f'--config {path} must map flags to values; these are not flags: {unknown}{near}')
    with under_flag(f'--config {path}:'):
        return checked_flags(parser, content)


def _of_command(command: str, content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the flags of a file that a command reads: those in no section, and those in sections that name it.

    NOTE: ignoring flags that a command does not have would hide misspelt ones. Therefore each section names its
    commands, and a command rejects unknown flags there.
    """
    flags: dict[Any, Any] = {}
    for name, value in content.items():
        commands = [word.strip() for word in str(name).split(',')]
        unknown = [word for word in commands if word not in COMMANDS]
        if len(unknown) == len(commands):  # no section
            commands, value = [command], {name: value}
        elif unknown:
            near = did_you_mean(unknown[0], COMMANDS)
            raise ValueError(f'the section {name!r} is for commands with --config, but {unknown[0]!r} is none{near}')
        if not isinstance(value, dict | None):
            raise ValueError(f'the section {name!r} must map flags to values, got {value!r}')
        if command not in commands:
            continue
        twice = sorted(str(flag) for flag in value or {} if flag in flags)
        if twice:
            raise ValueError(f'{twice[0]} comes twice for {command}, the second time in {name!r}: keep one')
        flags.update(value or {})
    return flags


def _by_name(parser: Parser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != 'help'}


def checked_flags(parser: Parser, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of a file as the command line would parse them, except those unknown to the parser.

    Raises:
        ValueError: If a value does not fit its flag; the message begins with the name.
    """
    flags, checked = _by_name(parser), {}
    for name, value in values.items():
        if value is None and name in flags and flags[name].default is not None:
            continue  # a line without a value: the default
        try:
            checked[name] = _checked(parser, flags[name], value) if name in flags else value
        except (ValueError, argparse.ArgumentError) as error:
            message = error.message if isinstance(error, argparse.ArgumentError) else error
            raise ValueError(f'{name} has the bad value {value!r}: {message}') from error
    return checked


def config_flags(parser: Parser, values: Mapping[str, Any]) -> list[str]:
    """Return flags read by ``read_config`` as the words of a command line."""
    flags, words = _by_name(parser), []
    for name, value in values.items():
        flag = flags[name].option_strings[0] if flags[name].option_strings else ''
        if value is None or not flag:
            continue
        if isinstance(value, bool):
            negative = [word for word in flags[name].option_strings[1:] if word.startswith('--no-')]
            words += [flag] if value else negative
        elif isinstance(value, dict):
            words += [flag, *(f'{key}={entry}' for key, entry in value.items())]
        else:
            words += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def _checked(parser: Parser, action: argparse.Action, value: Any) -> Any:
    """Return a value as the command line would parse it."""
    if value is None or action.help == argparse.SUPPRESS:
        return value
    if isinstance(action.default, dict):  # KEY=VALUE ...
        if not isinstance(value, dict):
            raise ValueError('it must be a map, such as {key: value}')
        return value
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError('it must be true or false')
        return value
    several = action.nargs in ('+', '*') or isinstance(action.nargs, int)
    if action.nargs == '*' and value is True:  # as the flag without values
        return []
    if isinstance(value, list | dict) and not (several and isinstance(value, list)):
        raise ValueError(f'it must be {_KINDS.get(_kind(action), "a single text")}')
    entries = [_entry(parser, action, entry) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(action.nargs, int) and len(entries) != action.nargs:
        raise ValueError(f'it must have {action.nargs} values')
    if not several or not entries:
        return entries[0] if entries else entries
    namespace = argparse.Namespace()
    action(parser, namespace, entries)
    return getattr(namespace, action.dest)


def _kind(action: argparse.Action) -> Any:
    return action.type or str


def _entry(parser: Parser, action: argparse.Action, entry: Any) -> Any:
    if _kind(action) is str and not isinstance(entry, str):
        raise ValueError(f'it must be text (in quotes: {str(entry)!r})')
    if isinstance(entry, bool | list | dict) or (_kind(action) is int and isinstance(entry, float)):
        raise ValueError(f'it must be {_KINDS.get(_kind(action), "a number")}')
    converted = parser._get_value(action, str(entry))
    parser._check_value(action, converted)
    return converted


def parse_flags(
    create_parser: Callable[[], Parser], argv: Sequence[str] | None, *, default_config: Callable[..., str] | None = None
) -> tuple[argparse.Namespace, dict[str, Any], dict[str, Any]]:
    """Parse a command line over its ``--config``.

    Args:
        create_parser: Creates the parser.
        argv: The command line; ``sys.argv[1:]`` by default.
        default_config: Returns a config file for a command line without ``--config``, given its flags.

    Returns:
        All flags, only those of the command line, and those of the file.

    Raises:
        SystemExit: On a bad flag or file, with one line.
    """
    without_required(create_parser()).parse_args(argv)  # --help, and flags that do not parse
    given = given_flags(create_parser(), argv)
    path = given.get('config', '') or (default_config(given) if default_config else '')
    parser = create_parser()
    with user_errors(parser.prog):
        configured = read_config(parser, path) if path else {}
        defaults = _not_overridden(parser, given, configured)
    parser.set_defaults(**{**defaults, 'config': path})
    for action in parser._actions:
        action.required = action.required and defaults.get(action.dest) is None
    args = parser.parse_args(argv)
    with user_errors(parser.prog):
        check_seed(args)
    return args, given, configured


def _not_overridden(parser: Parser, given: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's values of flags not set on the command line; raise ``ValueError`` if it contradicts itself."""
    dropped = {*given, *of_another_attack(given, configured)}
    kept = {name: value for name, value in configured.items() if name not in dropped}
    for group in parser._mutually_exclusive_groups:
        names = [action.dest for action in group._group_actions]
        said = [name for name in names if kept.get(name) is not None]
        if len(said) > 1:
            raise ValueError(f'--config: {written(said[0])} and {written(said[1])} exclude each other: give one')
        if set(names) & set(given):
            kept = {name: value for name, value in kept.items() if name not in names}
    return kept


def parse_checked(
    create_parser: Callable[[], Parser],
    argv: Sequence[str],
    check: Callable[[argparse.Namespace, dict[str, Any]], None],
) -> argparse.Namespace:
    """Parse a command line over its ``--config``, and check everything that needs no data.

    Args:
        create_parser: Creates its parser.
        argv: The command line.
        check: Gets all flags, which it may fill in, and only those of the command line; raises ``ValueError``.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    args, given, _ = parse_flags(create_parser, argv)
    with user_errors(create_parser().prog):
        check(args, given)
    return args
