"""The parser of all commands: defaults in the help, help on one group by name, and one-line errors."""

import argparse
import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from timm_dad.common.errors import user_errors

_MOST = 2**63 - 1  # of the integers of torch


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the closest known word, as the end of an error line; empty if none is close."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f'; did you mean {close[0]}?' if close else ''


def add_alias(group: Any, action: argparse.Action, *flags: str) -> None:
    """Add older names for a flag of a parser, or of a group of it, which the help does not show."""
    group._option_string_actions.update(dict.fromkeys(flags, action))


class _HelpFormatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help or ''
        nothing = default is None or isinstance(default, bool) or default in ('', [], {}, argparse.SUPPRESS)
        if nothing or 'default' in text or not action.option_strings:
            return text
        shown = ' '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in _values(default))
        return f'{text} (default: {shown})'.replace('(default: %', '(default: %%')


def _values(default: Any) -> Sequence[Any]:
    return default if isinstance(default, list | tuple) else [default]


class _Help(argparse.Action):
    """``--help``, for everything or for the groups with a word in their title."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        sys.stdout.write(parser.format_groups(values) if values else parser.format_help())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """``argparse.ArgumentParser`` without abbreviations; takes its arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{'formatter_class': _HelpFormatter, 'allow_abbrev': False, **kwargs, 'add_help': False})
        self.add_argument(
            '-h', '--help', nargs='?', action=_Help, default=argparse.SUPPRESS, metavar='GROUP',
            help='show this message, or only the groups with a word in their title, and exit',
        )  # fmt: skip

    def format_groups(self, word: str) -> str:
        """Return the help of the groups with a word in their title."""
        formatter = self._get_formatter()
        found = [group for group in self._action_groups if word.lower() in (group.title or '').lower()]
        if not found:
            titles = [str(group.title) for group in self._action_groups if group._group_actions]
            self.error(f'--help {word}: there is no such group; the groups are {", ".join(titles)}')
        for group in found:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; raise ``SystemExit`` on an unknown flag, naming the closest known one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
            known = [flag for action in shown for flag in action.option_strings]
            flag = next((word for word in unknown if word.startswith('-')), '').split('=')[0]
            self.error(f'unrecognized arguments: {" ".join(unknown)}{did_you_mean(flag, known)}')
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with one line, like all user errors."""
        with user_errors(self.prog):
            raise ValueError(message)
        raise AssertionError('user_errors ends the process')

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        value: Any = super()._get_value(action, arg_string)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentError(action, f'must be a finite number, got {arg_string!r}')
        if isinstance(value, int) and abs(value) > _MOST:
            raise argparse.ArgumentError(action, f'must be from -{_MOST} to {_MOST}, got {arg_string}')
        return value
