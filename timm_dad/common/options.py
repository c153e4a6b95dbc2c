"""Config fields that carry their help text, so that a flag's default and help are written once, beside their owner."""

from collections.abc import Iterable
from dataclasses import field, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar('T')


def option(default: T, help: str, *, choices: Iterable[Any] | None = None, metavar: str | None = None) -> T:
    """Define a dataclass field by its default and the argparse settings for ``flags.fields.add_fields``.

    Args:
        default: The default.
        help: Description of the field, with its unit or range.
        choices: All values, if there are few.
        metavar: Placeholder of the value in a usage line.
    """
    told = {'help': help, 'choices': choices and tuple(choices), 'metavar': metavar}
    return field(default=default, metadata={name: value for name, value in told.items() if value is not None})


# What a field of a config takes, and what that is called; numbers of NumPy are taken, too.
_KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, 'a whole number'), float: (Real, 'a number'), str: (str, 'text'), bool: (bool, 'True or False'),
    type(None): (type(None), 'None'),
}  # fmt: skip


def check_types(config: Any) -> None:
    """Raise ``TypeError`` if a dataclass field has a wrong type; call it first in ``__post_init__``."""
    for one in fields(config):
        value = getattr(config, one.name)
        parts: Any = get_args(one.type) if get_origin(one.type) is UnionType else (one.type,)
        kinds = [get_origin(kind) or kind for kind in parts]
        taken = [_KINDS.get(kind, (kind, kind.__name__)) for kind in kinds]
        is_truth = isinstance(value, bool) and bool not in kinds  # to Python a whole number
        if is_truth or not isinstance(value, tuple(kind for kind, _ in taken)):
            raise TypeError(f'{one.name} must be {" or ".join(name for _, name in taken)}, got {value!r}')
