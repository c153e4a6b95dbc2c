"""Find the places of DAD's lines in timm's ``train.py``: beside the calls they belong to, whatever surrounds these."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_IMPORT = b'from timm_dad import timm_train as dad'
_LINES = (
    rb'^(?:%s|[ \t]*(?:\w+, \w+ = )?dad\.(?:add_dad_args|check_args|pair_views|set_epoch)\([\w, ]*\))\r?\n' % _IMPORT
)
_TASK = rb'dad\.choose_task\(\w+, ([\w.]+), \w+, \w+\)'

_Place = TypeVar('_Place')


def add_lines(source: bytes) -> bytes:
    """Add DAD's lines to a ``train.py`` that has none.

    Raises:
        ValueError: If places are missing or ambiguous; the message names them all.
    """
    script = _Script(source)
    for edit in (_import, _flags, _data, _task, _epoch):
        try:
            edit(script)
        except _MissingError as error:
            script.missing.append(str(error))
    if script.missing:
        raise ValueError(f'found {"; ".join(dict.fromkeys(script.missing))}')
    return script.text()


def remove_lines(source: bytes) -> bytes:
    """Remove from a ``train.py`` what ``add_lines`` adds."""
    return re.sub(_TASK, rb'\1', re.sub(_LINES, b'', source, flags=re.MULTILINE))


def has_lines(source: bytes) -> bool:
    """Return whether a ``train.py`` has lines of DAD."""
    return re.search(rb'^%s\r?$' % _IMPORT, source, re.MULTILINE) is not None


class _MissingError(Exception):
    """The place of an edit is missing or not unique."""


@dataclass(frozen=True)
class _Found:
    """A statement that calls a function, and the call."""

    statement: ast.stmt
    call: ast.Call

    @property
    def target(self) -> str:
        """The name that the result is assigned to, or the first of several; empty if there is none."""
        targets = getattr(self.statement, 'targets', [])
        target = targets[-1] if targets else None
        first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
        return _name(first)

    @property
    def given(self) -> set[str]:
        """Names of the variables passed to the call."""
        return {_name(value) for value in (*self.call.args, *(keyword.value for keyword in self.call.keywords))}

    def keyword(self, name: str) -> ast.expr | None:
        """Return the value of a keyword in the call."""
        return next((keyword.value for keyword in self.call.keywords if keyword.arg == name), None)


class _Script:
    """A ``train.py``: its statements, the lines to add, and the missing places."""

    def __init__(self, source: bytes) -> None:
        try:
            self.tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f'no Python: {error}') from error
        self.lines = source.splitlines(keepends=True)
        self.added: dict[int, bytes] = {}
        self.missing: list[str] = []

    def text(self) -> bytes:
        """Return the script with the added lines."""
        return b''.join(self.added.get(index, b'') + line for index, line in enumerate(self.lines))

    def add(self, statement: ast.stmt, text: str, *, after: bool = False) -> None:
        """Add a line before or after a statement, with its indentation and line end."""
        last = self.lines[statement.end_lineno - 1]  # type: ignore[operator]  # statements of ast.parse have one
        indent = self.lines[statement.lineno - 1][: statement.col_offset]
        end = b'\r\n' if last.endswith(b'\r\n') else b'\n'
        if indent.strip() or not last.endswith(b'\n'):
            raise _MissingError(f'no line of its own for the statement in line {statement.lineno}')
        place = statement.end_lineno if after else statement.lineno - 1
        self.added[place] = self.added.get(place, b'') + indent + text.encode() + end  # type: ignore[index, arg-type]

    def find(self, scope: ast.AST, function: str) -> list[_Found]:
        """Find statements inside ``scope`` that only call a function."""
        found = []
        for node in ast.walk(scope):
            value = node.value if isinstance(node, ast.Assign | ast.Expr) else None
            if isinstance(value, ast.Call) and re.fullmatch(function, _name(value.func)):
                found.append(_Found(node, value))  # type: ignore[arg-type]  # Assign and Expr are statements
        return found

    # What several edits need.

    @property
    def flags(self) -> tuple[ast.FunctionDef, _Found]:
        """The function that parses the flags, and the statement in it."""
        functions = [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]
        found = [(function, call) for function in functions for call in self.find(function, '_?parse_args')]
        found = [(function, call) for function, call in found if isinstance(call.call.func, ast.Name) and call.target]
        return _one(found, '`args = _parse_args()` in a function')

    @property
    def epoch(self) -> _Found:
        """The call that trains an epoch."""
        return _one(self.find(self.flags[0], 'train_one_epoch'), 'call of train_one_epoch where the flags are parsed')

    @property
    def loader(self) -> _Found:
        """The call that creates the training loader."""
        what = '`loader = create_loader(dataset, input_size=config[...], collate_fn=collate, ...)` for train_one_epoch'
        found = [each for each in self.find(self.flags[0], 'create_loader') if each.target in self.epoch.given]
        found = [each for each in found if all(_loader_names(each))]
        return _one(found, what)

    @property
    def task(self) -> _Found:
        """The call that creates timm's plain task."""
        found = [each for each in self.find(self.flags[0], 'ClassificationTask') if each.target in self.epoch.given]
        return _one(found, '`task = ClassificationTask(...)` for train_one_epoch')


def _import(script: _Script) -> None:
    imports = [node for node in script.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    of_timm = [node for node in imports if any(name.split('.')[0] == 'timm' for name in _modules(node))]
    if not of_timm:
        raise _MissingError('no import of timm')
    script.add(of_timm[-1], _IMPORT.decode(), after=True)


def _flags(script: _Script) -> None:
    parsers = script.find(ast.Module(script.tree.body, []), 'ArgumentParser')
    parsers = [each for each in parsers if each.statement in script.tree.body and each.target]
    if not parsers:
        raise _MissingError('no `parser = argparse.ArgumentParser(...)`')
    _, found = script.flags
    script.add(found.statement, f'dad.add_dad_args({parsers[-1].target})')
    script.add(found.statement, f'dad.check_args({found.target})', after=True)


def _data(script: _Script) -> None:
    dataset, config, collate = _loader_names(script.loader)
    args = script.flags[1].target
    call = f'dad.pair_views({args}, {dataset}, {config}, {collate})'
    script.add(script.loader.statement, f'{dataset}, {collate} = {call}')


def _task(script: _Script) -> None:
    dataset, config, _ = _loader_names(script.loader)
    function = script.task.call.func
    line, place = script.lines[function.lineno - 1], slice(function.col_offset, function.end_col_offset)
    chosen = f'dad.choose_task({script.flags[1].target}, {line[place].decode()}, {dataset}, {config})'
    script.lines[function.lineno - 1] = line[: place.start] + chosen.encode() + line[place.stop :]


def _epoch(script: _Script) -> None:
    function, _ = script.flags
    inside = [
        loop for loop in ast.walk(function)
        if isinstance(loop, ast.For) and any(node is script.epoch.statement for node in ast.walk(loop))
    ]  # fmt: skip
    epoch = _name(inside[-1].target) if inside else ''
    if not epoch:
        raise _MissingError('no `for epoch in ...` around train_one_epoch')
    script.add(script.epoch.statement, f'dad.set_epoch({script.task.target}, {epoch})')


def _one(found: Sequence[_Place], what: str) -> _Place:
    if len(found) != 1:
        raise _MissingError(f'{len(found) or "no"} {what}')
    return found[0]


def _name(node: ast.AST | None) -> str:
    """Return the name of a variable or function, without its module; empty for anything else."""
    return str(getattr(node, 'id', getattr(node, 'attr', '')))


def _modules(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules that a statement imports, or imports from."""
    if isinstance(node, ast.ImportFrom):
        yield node.module or ''
    else:
        yield from (name.name for name in node.names)


def _loader_names(loader: _Found) -> tuple[str, str, str]:
    """Return the variables of data set, data config and collate in a call of ``create_loader``; empty if missing."""
    dataset = loader.call.args[0] if loader.call.args else loader.keyword('dataset')
    size = loader.keyword('input_size')
    config = size.value if isinstance(size, ast.Subscript) else None
    return _name(dataset), _name(config), _name(loader.keyword('collate_fn'))
