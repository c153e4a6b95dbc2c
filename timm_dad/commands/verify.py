"""The command ``timm-dad verify``: compare every byte of a DAD set with its manifests."""

import sys
from collections.abc import Sequence
from pathlib import Path

from timm_dad.common.errors import user_errors
from timm_dad.common.progress import say
from timm_dad.dad_sets.hub import cached_repo, in_store, set_folder
from timm_dad.dad_sets.store_folder import is_finished
from timm_dad.dad_sets.verify import verify
from timm_dad.flags.parser import Parser

PROGRAM = 'timm-dad verify'


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad verify`` with its command line.

    Raises:
        SystemExit: With 1 if anything is damaged, or the set is not finished; with 2 if there is no set.
    """
    parser = Parser(prog=PROGRAM, description='Compare every byte of a DAD set with its manifests.')
    parser.add_argument(
        'root', metavar='DIR', help='folder of the set, or its URL (hf://USER/NAME[@REVISION], s3://BUCKET/NAME, ...)'
    )
    args = parser.parse_args(argv)
    with user_errors(PROGRAM):
        damages, root = [], args.root if in_store(args.root) else set_folder(args.root)
        for damage in verify(root, progress=True):
            say(damage)
            damages.append(damage)
        finished = is_finished(root)
    if damages:
        repo = cached_repo(root) if isinstance(root, Path) else None
        fix = f'remove {repo}' if repo else 'run the same timm-dad generate with --repair'
        sys.exit(f'{len(damages)} damaged. To {"fetch" if repo else "make"} them again: {fix}')
    if not finished:
        sys.exit(f'{args.root} is not finished, but what exists is intact; run the same timm-dad generate to continue')
    print(f'{args.root} is whole')
