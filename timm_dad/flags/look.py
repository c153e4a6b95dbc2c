"""The flag ``--dad-look``, and the look at some pictures that it asks for."""

import argparse
import logging
from typing import Any

import torch

from timm_dad.data.images import Frame, Source
from timm_dad.flags.rules import under_flag
from timm_dad.method.augment import DADAugment
from timm_dad.preview.first_look import FirstLook, first_pictures, look

_logger = logging.getLogger(__name__)


def add_look_arg(group: Any) -> None:
    """Add the flag to a group of a parser."""
    group.add_argument(
        '--dad-look', type=int, default=64, metavar='N',
        help='number of pictures to make DAD views of first, to warn if these cannot teach anything (default: 64; 0: '
        'none)',
    )  # fmt: skip


def look_rule(args: argparse.Namespace) -> tuple[bool, str]:
    """Return the rule about the flag, for ``check_rules``."""
    return args.dad_look >= 0, f'--dad-look must be 0 or more, got {args.dad_look}'


def look_first(
    args: argparse.Namespace, augment: DADAugment, source: Source, frame: Frame, device: torch.device
) -> FirstLook | None:
    """Look at ``--dad-look`` pictures; ``None`` if that is 0, or if the data are a stream."""
    if not args.dad_look:
        return None
    if source.streams:
        _logger.info('Pictures of a stream are not checked first: timm-dad preview shows some')
        return None
    with under_flag('--dad-look:'):
        x_pix, target = first_pictures(source, frame, args.dad_look, device)
    return look(augment, x_pix, target, seed=args.seed, batch_size=args.batch_size)
