"""Files that say something of every class of the data: its name, or the teacher's class that it is."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def read_class_file(path: str | Path, column: str) -> list[str] | dict[str, str]:
    """Read one value a class.

    Args:
        path: ``.json`` (a list in the order of the labels, or a map from the class's folder), ``.csv`` (a header with
            ``column``; rows in the order of the labels, or with the class's folder in a column ``class``), or text (one
            line a class, in the order of the labels).
        column: What the values are called in a csv header.

    Returns:
        Values in the order of the labels, or by the class's folder.

    Raises:
        ValueError: If the file holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8-sig')
        if path.suffix == '.json':
            content = _from_json(json.loads(text))
        elif path.suffix == '.csv':
            content = _from_csv(text, column)
        else:
            content = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f'{path} cannot be read (text, .json or .csv, in UTF-8): {error}') from error
    if not content:
        raise ValueError(f'{path} is empty; give one {column} a class')
    return content


def _from_json(content: object) -> list[str] | dict[str, str]:
    values = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise ValueError('it must be a list of names, or a map from class folder to name')
    return {key: str(value) for key, value in content.items()} if isinstance(content, dict) else list(map(str, values))


def _from_csv(text: str, column: str) -> list[str] | dict[str, str]:
    rows = csv.DictReader(text.splitlines(), strict=True)
    header = list(rows.fieldnames or [])
    if column not in header:
        raise ValueError(f'its header must have a column {column!r} (and may have one "class"), got {header}')
    values = [(row.get('class'), row[column]) for row in rows]
    if not all(value for _, value in values):
        raise ValueError(f'row {[bool(value) for _, value in values].index(False) + 1} has no {column}')
    if 'class' not in header:
        return [value for _, value in values]
    by_class = {str(name): value for name, value in values}
    if len(by_class) < len(values):
        raise ValueError('its column "class" names a class twice')
    return by_class


def in_label_order(
    content: list[str] | dict[str, str], class_names: Sequence[str] | None, num_classes: int, what: str
) -> list[str]:
    """Values of ``read_class_file`` in the order of the labels.

    Args:
        content: What the file says; a map may hold more classes than the data.
        class_names: The data's class folders; without them the keys of a map are the labels ``"0"``, ``"1"``, ...
        num_classes: Classes of the data.
        what: What the values are, for errors.

    Raises:
        ValueError: If there is not one value a class.
    """
    if isinstance(content, list):
        if len(content) != num_classes:
            raise ValueError(f'there are {len(content)} {what} and --num-classes is {num_classes}; give one a class')
        return content
    keys = class_names or [str(index) for index in range(num_classes)]
    missing = [key for key in keys if key not in content]
    if missing:
        found = f'{len(keys) - len(missing)} of {len(keys)} classes'
        raise ValueError(f'the {what} name {found} of the data; there is no entry for {missing[:3]}')
    return [content[key] for key in keys]
