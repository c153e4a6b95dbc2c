"""The command ``timm-dad convert``: write a VQGAN's checkpoint as safetensors."""

from collections.abc import Sequence
from pathlib import Path

from timm_dad.common.errors import user_errors
from timm_dad.flags.parser import Parser
from timm_dad.vqgan.convert import convert

PROGRAM = 'timm-dad convert'


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad convert`` with its command line."""
    parser = Parser(
        prog=PROGRAM,
        description='Write NAME.safetensors, and NAME.yaml if there is none, beside the checkpoint NAME of a VQGAN.',
    )
    parser.add_argument(
        'checkpoint', type=Path, metavar='CKPT', help='.ckpt, .pth or .pt of a library that --dad-vqgan supports'
    )
    parser.add_argument(
        '--config', metavar='YAML', help='its YAML if not beside it, or the preset with the same architecture'
    )
    parser.add_argument(
        '--trust', action='store_true', help='run any code in the checkpoint: only if you trust its source'
    )
    args = parser.parse_args(argv)
    with user_errors(PROGRAM):
        try:
            path = convert(args.checkpoint, args.config, trust=args.trust)
        except OSError as error:
            raise ValueError(str(error)) from error
    print(f'{path} is written; use it with --dad-vqgan {path}')
