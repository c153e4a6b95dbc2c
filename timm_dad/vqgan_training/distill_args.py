"""Flags of ``timm-dad vqgan distill``: those of ``train`` without the architecture, and the VQGAN that is imitated."""

import argparse
from collections.abc import Sequence

from timm_dad.flags.rules import check_rules
from timm_dad.vqgan_training.args import (
    add_data_flags,
    add_training_flags,
    check_at_least_one,
    check_common,
    optimizer_config,
    parse,
)
from timm_dad.vqgan_training.optimize import OptimizerConfig

PROGRAM = 'timm-dad vqgan distill'


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``timm-dad vqgan distill``; training defaults are those of the config dataclass."""
    default = OptimizerConfig(steps=2)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='Train a tiny encoder and decoder that imitate a VQGAN, with its codebook, for --dad-vqgan.',
        allow_abbrev=False,
    )
    add_data_flags(parser, img_size='that of --vqgan')
    group = parser.add_argument_group('VQGANs')
    group.add_argument('--vqgan', metavar='PATH', help='VQGAN to imitate, as --dad-vqgan takes it; or demo')
    group.add_argument(
        '--ch', type=int, metavar='N', help='channels (default: the most with a tenth of the multiply-adds)'
    )
    add_training_flags(parser, default, lr=str(default.lr))
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and check what needs neither data nor the VQGAN.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    return parse(create_parser(), argv, _check_args)


def _check_args(args: argparse.Namespace) -> None:
    check_rules(((args.vqgan, '--vqgan must name the VQGAN to imitate (a file, a folder, a preset, or demo)'),))
    check_at_least_one(args, ('ch',))
    check_common(args)
    optimizer_config(args, steps=args.steps or 2)
