"""The command ``timm-dad``.

``train`` is ``train_dad.py``; ``demo`` compares plain, KD and DAD on the embedded data; ``patch`` adds the flags
``--dad`` to timm's own ``train.py``; ``run`` starts that file with them, without touching it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_dad import run_timm
from timm_dad.demo import run
from timm_dad.patch import patch_file


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog='timm-dad', description=__doc__, add_help=False)
    parser.add_argument(
        'command', nargs='?', choices=('train', 'demo', 'patch', 'run'), help='what to do; COMMAND --help tells more'
    )
    parser.add_argument('-h', '--help', action='store_true', help='show this message and exit')
    args, _ = parser.parse_known_args(arguments[:1])
    if args.command is None:
        parser.print_help()
        sys.exit(0 if args.help else 2)
    if args.command == 'train':
        import train_dad

        train_dad.main(arguments[1:])
    elif args.command == 'demo':
        run.main(arguments[1:])
    elif args.command == 'patch':
        patch_timm(arguments[1:])
    else:
        run_timm.main(arguments[1:])


def patch_timm(argv: Sequence[str]) -> None:
    """The command ``patch``."""
    parser = argparse.ArgumentParser(
        prog='timm-dad patch',
        description="Add the flags --dad to timm's train.py (or the extra to its pyproject.toml).",
    )
    parser.add_argument('path', type=Path, help="timm's checkout, or the file")
    parser.add_argument('--revert', action='store_true', help='take the lines out again')
    args = parser.parse_args(argv)
    try:
        print(patch_file(args.path, revert=args.revert))
    except (OSError, ValueError) as error:
        sys.exit(f'timm-dad patch: error: {error}')
