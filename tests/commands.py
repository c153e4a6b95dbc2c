"""Commands for tests: their words, and the one line that they end with."""

import sys

import pytest


def words(values, more, files):
    """A command line: flags by name, where ``None`` leaves one out, then ``more``, whose ``{files}`` is a folder."""
    given = [[f'--{name.replace("_", "-")}', str(value)] for name, value in values.items() if value is not None]
    return [word for flag in given for word in flag] + [str(word).format(files=files) for word in more]


def error_line(capsys, main, argv):
    """The one line that the ``main`` of a command ends with, which begins with the command's name."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    start = f'{sys.modules[main.__module__].PROGRAM}: error: '
    (line,) = [line for line in capsys.readouterr().err.splitlines() if start in line]
    return line
