"""The command ``timm-dad``.

``train`` is ``train_dad.py``; ``demo`` compares plain, KD and DAD on the embedded data; ``patch`` adds the flags
``--dad`` to timm's own ``train.py``; ``run`` starts that file with them, without touching it; ``convert`` writes the
checkpoint of a VQGAN as safetensors; ``probe`` fits a linear head for a teacher; ``vqgan train`` trains a VQGAN,
``vqgan distill`` a tiny one that imitates it;
``info`` says what a training would take; ``generate`` makes the DAD views of a data set once, ``verify`` checks them;
``preview`` shows those of a few images; ``evaluate`` measures robustness; ``diagnose`` what limits a student on OOD
data.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_dad import run_timm
from timm_dad.commands import demo
from timm_dad.patch import patch_file
from timm_dad.vqgan.convert import convert

# Commands that are imported when they are used.
_MODULES = {
    'probe': 'timm_dad.commands.probe',
    'vqgan': 'timm_dad.vqgan_training.command',
    'info': 'timm_dad.commands.info',
    'generate': 'timm_dad.commands.generate',
    'verify': 'timm_dad.commands.verify',
    'diagnose': 'timm_dad.diagnosis.command',
    'evaluate': 'timm_dad.evaluation.command',
    'preview': 'timm_dad.commands.preview',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog='timm-dad', description=__doc__, add_help=False)
    parser.add_argument(
        'command', nargs='?', choices=('train', 'demo', 'patch', 'run', 'convert', *_MODULES),
        help='what to do; COMMAND --help tells more',
    )  # fmt: skip
    parser.add_argument('-h', '--help', action='store_true', help='show this message and exit')
    args, _ = parser.parse_known_args(arguments[:1])
    if args.command is None:
        parser.print_help()
        sys.exit(0 if args.help else 2)
    if args.command == 'train':
        import train_dad

        train_dad.main(arguments[1:])
    elif args.command == 'demo':
        demo.main(arguments[1:])
    elif args.command == 'patch':
        patch_timm(arguments[1:])
    elif args.command == 'convert':
        convert_vqgan(arguments[1:])
    elif args.command in _MODULES:
        importlib.import_module(_MODULES[args.command]).main(arguments[1:])
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


def convert_vqgan(argv: Sequence[str]) -> None:
    """The command ``convert``."""
    parser = argparse.ArgumentParser(
        prog='timm-dad convert',
        description='Write NAME.safetensors, and NAME.yaml if there is none, beside the checkpoint NAME of a VQGAN.',
    )
    parser.add_argument('checkpoint', type=Path, metavar='CKPT', help='.ckpt, .pth or .pt (taming, latent-diffusion)')
    parser.add_argument(
        '--config', metavar='YAML', help='its YAML if that is not beside it, or the preset whose architecture it has'
    )
    parser.add_argument(
        '--trust', action='store_true', help='run whatever code the checkpoint asks for: only if you trust its source'
    )
    args = parser.parse_args(argv)
    try:
        path = convert(args.checkpoint, args.config, trust=args.trust)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'timm-dad convert: error: {error}')
    print(f'{path} is written; use it with --dad-vqgan {path}')
