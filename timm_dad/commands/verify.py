"""The command ``timm-dad verify``: compare every byte of a DAD set with its manifests."""

import sys
from collections.abc import Sequence
from pathlib import Path

from timm_dad.common.errors import user_errors
from timm_dad.common.progress import say
from timm_dad.dad_sets.manifest import INDEX
from timm_dad.dad_sets.verify import verify
from timm_dad.flags.parser import Parser

PROGRAM = 'timm-dad verify'


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad verify`` with a command line from there on.

    Raises:
        SystemExit: With 1 if anything is wrong, or the set is not finished; with 2 if there is no set.
    """
    parser = Parser(prog=PROGRAM, description='Compare every byte of a DAD set with its manifests.')
    parser.add_argument('root', type=Path, metavar='DIR', help='folder of the set')
    args = parser.parse_args(argv)
    with user_errors(PROGRAM):
        damages = []
        for damage in verify(args.root, progress=True):
            say(damage)
            damages.append(damage)
    if damages:
        sys.exit(f'{len(damages)} damaged. To make them again: the same timm-dad generate, with --repair')
    if not (args.root / INDEX).exists():
        sys.exit(f'{args.root} is not finished: what is there is whole; the same timm-dad generate goes on')
    print(f'{args.root} is whole')
