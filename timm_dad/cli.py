"""The command ``timm-dad``: ``train`` is ``train_dad.py``, ``demo`` compares plain, KD and DAD on the embedded data."""

import argparse
import sys
from collections.abc import Sequence

from timm_dad.demo import run


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog='timm-dad', description=__doc__, add_help=False)
    parser.add_argument('command', nargs='?', choices=('train', 'demo'), help='what to do; COMMAND --help tells more')
    parser.add_argument('-h', '--help', action='store_true', help='show this message and exit')
    args, _ = parser.parse_known_args(arguments[:1])
    if args.command is None:
        parser.print_help()
        sys.exit(0 if args.help else 2)
    if args.command == 'train':
        import train_dad

        train_dad.main(arguments[1:])
    else:
        run.main(arguments[1:])
