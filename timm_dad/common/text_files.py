"""Text files of users: UTF-8, YAML and JSON, with one-line errors that state file, line and column."""

import json
from pathlib import Path
from typing import Any

import yaml


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: If it cannot be read, or is not UTF-8; the message begins with the path.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a named pipe would wait for ever
            raise ValueError(f'{path} is not a file')
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror or error}') from error
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line, column = data.count(b'\n', 0, error.start) + 1, error.start - data.rfind(b'\n', 0, error.start)
        raise ValueError(f'{path}, line {line}, column {column}: not UTF-8; save the file as UTF-8') from error


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that comes twice is an error, not the second value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(':merge'):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f'{key.value!r} comes twice', key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file of plain values, ``None`` if it is empty; raise ``ValueError`` as in ``read_text``."""
    text = read_text(path)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f', line {mark.line + 1}, column {mark.column + 1}' if mark else ''
        raise ValueError(f'{path}{place}: not valid YAML: {error.problem or error.context}') from error
    except yaml.reader.ReaderError as error:
        line, column = text.count('\n', 0, error.position) + 1, error.position - text.rfind('\n', 0, error.position)
        raise ValueError(f'{path}, line {line}, column {column}: not valid YAML: {error.reason}') from error
    except RecursionError as error:
        raise ValueError(f'{path}: not valid YAML: nested too deeply') from error
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # What yaml's constructors raise on a date or number that is none; they do not say where.
        raise ValueError(f'{path}: not valid YAML: {error}') from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raise ``ValueError`` as in ``read_text``."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f'{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}'
        raise ValueError(message) from error
    except RecursionError as error:
        raise ValueError(f'{path}: not valid JSON: nested too deeply') from error
    except ValueError as error:  # a number of more digits than Python converts
        raise ValueError(f'{path}: not valid JSON: {error}') from error
