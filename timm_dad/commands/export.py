"""``timm-dad export``: the student of a run for timm, ONNX Runtime or torch.export, checked on pictures."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.data import create_transform

from timm_dad.commands.programs import Network, check_packages, onnx_use, torch_use, write_onnx, write_torch
from timm_dad.commands.student import CARD, Student, timm_use
from timm_dad.common.errors import user_errors
from timm_dad.common.files import filling_folder, write_file
from timm_dad.common.log import setup_logging
from timm_dad.flags.execution import add_ema_arg
from timm_dad.flags.parser import Parser
from timm_dad.flags.rules import check_new_output, check_rules, flag_errors
from timm_dad.flags.runs import validation_pictures
from timm_dad.teachers.trained import BEST
from timm_dad.training.resume import LAST

PROGRAM = 'timm-dad export'
TOLERANCE = 1e-3  # of the largest logit
_PICTURES = 32
_RUN = 'run:'
_WRITERS: dict[str, Callable[[Student, Path], Network]] = {
    'timm': Student.write, 'onnx': write_onnx, 'torch': write_torch,
}  # fmt: skip
_CHECKPOINTS = {'best': BEST, 'last': LAST}


def create_parser() -> Parser:
    """Create the parser of ``timm-dad export``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s RUN --output DIR --format timm|onnx|torch [flags]',
        description='Write the student of a run for use elsewhere, with a model card. Its logits on pictures are '
        "compared with those of the run's checkpoint; if they differ, nothing is written.",
    )
    parser.add_argument('run', metavar='RUN', help='folder of a training, or a checkpoint in it; run:RUN works, too')
    parser.add_argument('--output', required=True, metavar='DIR', help='folder to write, new or empty')
    parser.add_argument(
        '--format', required=True, choices=tuple(_WRITERS),
        help="timm: weights and config for timm.create_model('local-dir:DIR'); onnx: for ONNX Runtime (extra export); "
        'torch: a program that torch.export.load reads without timm',
    )  # fmt: skip
    parser.add_argument('--checkpoint', choices=tuple(_CHECKPOINTS), help='checkpoint in the folder (default: best)')
    add_ema_arg(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad export`` with its command line."""
    args = create_parser().parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        check_new_output(Path(args.output))
        run = _checkpoint(args)
        if args.format == 'onnx':
            check_packages()
        student = Student(run, use_ema=args.use_ema)
        with filling_folder(Path(args.output)) as folder:
            with flag_errors(f'--format {args.format}: {student.checkpoint}'):  # torch raises what it likes
                told = check(student, _WRITERS[args.format](student, folder))
            write_file(folder / CARD, _card(args, student, told))
            names = sorted(path.name for path in folder.iterdir())
        print(f'{told}\nFiles in {args.output}: {" ".join(names)}')


def _checkpoint(args: argparse.Namespace) -> str:
    """Return the run, or the checkpoint in it that the flags name."""
    run: str = args.run.removeprefix(_RUN)
    if args.checkpoint is None:
        return run
    path = Path(run, _CHECKPOINTS[args.checkpoint])
    rules = (
        (not Path(run).is_file(), f'--checkpoint {args.checkpoint} is for a folder, but {run} is a checkpoint: leave '
         'it out'),
        (path.is_file(), f'--checkpoint {args.checkpoint}: {run} has no {path.name}: choose another one'),
    )  # fmt: skip
    check_rules(rules)
    return str(path)


@torch.no_grad()
def check(student: Student, network: Network) -> str:
    """Compare the logits of a network with the student's on pictures, the first one alone and the others together.

    Returns:
        A description of how close they are.

    Raises:
        ValueError: If they differ by more than ``TOLERANCE`` of the largest logit, or of 1 if all are smaller.
    """
    what, pictures = validation_pictures(student.flags, _PICTURES)
    transform = create_transform(**student.images, is_training=False)
    x = torch.stack([transform(picture) for picture in pictures])
    parts = [part for part in (x[:1], x[1:]) if len(part)]
    expected, found = (torch.cat([model(part) for part in parts]) for model in (student.model, network))
    difference, most = (found - expected).abs().max().item(), TOLERANCE * max(1, expected.abs().max().item())
    same = int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
    told = f'{len(x)} pictures of {what}: largest difference of logits {difference:.2g}, same top-1 on {same} of them'
    if not difference <= most:  # true of NaN, too
        raise ValueError(f'{told}; the limit is {most:.2g}, so nothing was written')
    return told


def _card(args: argparse.Namespace, student: Student, told: str) -> str:
    name, rows = Path(args.output).absolute().name, [('compared with PyTorch', told)]
    if args.format == 'timm':
        return student.card(name, timm_use(f'local-dir:{name}'), library='timm', rows=rows)
    return student.card(name, (onnx_use if args.format == 'onnx' else torch_use)(student), rows=rows)
