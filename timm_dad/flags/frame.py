"""The flags about image size and cropping, and the frame they describe."""

import argparse
from collections.abc import Mapping
from typing import Any

from timm_dad.data.images import Frame
from timm_dad.flags.fields import field_kwargs
from timm_dad.flags.rules import naming_flag
from timm_dad.teachers.backbones import INTERPOLATIONS


def add_frame_args(group: Any, *, size_help: str, input_size: bool = True) -> None:
    """Add the flags to a group of a parser, ``--input-size`` only on request."""
    group.add_argument('--img-size', type=int, metavar='N', help=size_help)
    if input_size:
        group.add_argument(
            '--input-size', nargs=3, type=int, metavar='N', help='input dimensions (3 h w), instead of --img-size'
        )
    group.add_argument('--crop-pct', **field_kwargs(Frame, 'crop_pct'))
    group.add_argument('--interpolation', choices=INTERPOLATIONS, **field_kwargs(Frame, 'interpolation'))


def frame_rules(args: argparse.Namespace, given: Mapping[str, Any]) -> tuple[tuple[bool, str], ...]:
    """Return the rules about the size, for ``check_rules``; ``given`` are only the flags of the command line."""
    size = args.input_size
    return (
        (not ('img_size' in given and 'input_size' in given), '--img-size and --input-size: give only one of them'),
        (not size or size[0] == 3, f'--input-size must begin with 3, got {size}'),
    )


def create_frame(args: argparse.Namespace) -> Frame:
    """Return the frame that the flags describe; ``ValueError`` names the flag."""
    side = 224 if args.img_size is None else args.img_size
    size = tuple(args.input_size[1:]) if args.input_size else (side, side)
    with naming_flag({'size': 'input_size' if args.input_size else 'img_size'}):
        return Frame(size=size, interpolation=args.interpolation, crop_pct=args.crop_pct)
