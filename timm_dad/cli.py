"""The command ``timm-dad``: a table of commands, each imported only when used."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from timm_dad.common.errors import run_command
from timm_dad.common.version import __version__
from timm_dad.flags.parser import Parser, did_you_mean

# Command: its module, its function, and what it does.
COMMANDS = {
    'train': ('train_dad', 'main', 'train a timm model, with or without DAD'),
    'init': ('timm_dad.commands.init', 'main', 'inspect a folder of pictures and write a config for it'),
    'demo': ('timm_dad.commands.demo', 'main', 'compare plain training, KD and DAD on the embedded pictures'),
    'preview': ('timm_dad.commands.preview', 'main', 'show the DAD views of a few images'),
    'info': ('timm_dad.commands.info', 'main', 'estimate what a training needs: parameters, GMACs, time, memory'),
    'generate': ('timm_dad.commands.generate', 'main', 'make the DAD views of a data set in advance, for --dad-dir'),
    'verify': ('timm_dad.commands.verify', 'main', 'compare a DAD set with its manifests'),
    'push': ('timm_dad.commands.push', 'main', 'upload a DAD set or a student to the Hugging Face Hub'),
    'export': ('timm_dad.commands.export', 'main', 'write a student for timm, ONNX Runtime or torch.export'),
    'evaluate': ('timm_dad.evaluation.command', 'main', 'measure robustness on suites, corruptions and attacks'),
    'diagnose': ('timm_dad.diagnosis.command', 'main', 'find what limits a student on shifted data'),
    'probe': ('timm_dad.commands.probe', 'main', 'fit a linear head for a teacher'),
    'vqgan': ('timm_dad.vqgan_training.command', 'main', 'train a VQGAN, or distil a tiny one'),
    'convert': ('timm_dad.commands.convert', 'main', "write a VQGAN's checkpoint as safetensors"),
    'patch': ('timm_dad.commands.patch', 'main', "add the flags --dad to timm's own train.py"),
    'run': ('timm_dad.commands.patch', 'run', "run timm's train.py with those flags, without changing the file"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Command line without the program; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog='timm-dad',
        usage='%(prog)s COMMAND [flags]',
        description='Discrete Adversarial Distillation for timm.\n\ncommands (see COMMAND --help for details):\n'
        + '\n'.join(f'  {name:<10}{does}' for name, (*_, does) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'timm-dad {__version__}')
    parser.add_argument('command', nargs='?', metavar='COMMAND', help='command to run')
    command = parser.parse_args(arguments[:1]).command
    if command is None:
        parser.print_help()
        sys.exit(2)
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS) or f'; there are {", ".join(COMMANDS)}'
        parser.error(f'there is no command {command!r}{near}')
    module, function, _ = COMMANDS[command]

    def run() -> object:
        return getattr(importlib.import_module(module), function)(arguments[1:])

    if argv is None:
        run_command(run, ['timm-dad', *arguments], resumes=command in ('train', 'vqgan'))
    else:  # called from Python, where Ctrl-C is the caller's
        run()
