"""The command line of ``timm-dad train``: parser, config file, checks, and the run's folder."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.models import safe_model_name

from timm_dad.common.errors import user_errors
from timm_dad.demo.data import DEMO_CONFIG
from timm_dad.flags.checks import check_args, check_extra_args
from timm_dad.flags.config import add_config_arg, parse_flags
from timm_dad.flags.dad import add_dad_args, check_dad_args
from timm_dad.flags.parser import Parser
from timm_dad.flags.task import check_task_args
from timm_dad.flags.timm import add_timm_args

PROGRAM = 'timm-dad train'


def create_parser(program: str = PROGRAM) -> Parser:
    """Create the parser of ``timm-dad train``, or of a program that takes its flags."""
    parser = Parser(
        prog=program,
        usage='%(prog)s [--data-dir DIR] [--model MODEL] [--dad ...] [flags]',
        description='timm training with Discrete Adversarial Distillation. Without data, it runs the embedded demo. '
        '--help dad shows only the flags of DAD.',
    )
    add_config_arg(parser)
    add_dad_args(parser)
    _add_own_args(parser.add_argument_group('DAD: in this trainer'))
    add_timm_args(parser)
    return parser


def _add_own_args(group: Any) -> None:
    """Add the flags that timm's train.py with the flags of DAD lacks."""
    group.add_argument(
        '--dad-preview-interval', type=int, default=0, metavar='N',
        help='epochs between preview sheets of DAD views, for folder and trackers (default: one at the end)',
    )  # fmt: skip


def parse_args(
    argv: Sequence[str] | None = None, *, create_parser: Callable[[], Parser] = create_parser
) -> argparse.Namespace:
    """Parse, check everything that needs no data, and fill in the demo if there is no data set.

    Values come from the command line (``sys.argv[1:]`` by default), then from ``--config``, then from the defaults.

    Args:
        argv: The command line.
        create_parser: Creates the parser: this module's, which may have more flags.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    args, given, configured = parse_flags(create_parser, argv, default_config=_demo_without_data)
    args.data_dir = args.data_dir or args.data
    defaults = create_parser()
    chosen = {name for name in (*given, *configured) if getattr(args, name) != defaults.get_default(name)}
    if 'device' not in given and not torch.cuda.is_available():
        args.device = 'cpu'
    with user_errors(defaults.prog):
        check_task_args(args, given, configured)
        check_args(args, chosen)
        check_dad_args(args, given, configured)
        check_extra_args(args)
    return args


def _demo_without_data(given: Mapping[str, Any]) -> str:
    return '' if {'data', 'data_dir', 'dataset'} & set(given) else str(DEMO_CONFIG)


def run_path(args: argparse.Namespace) -> Path:
    """Return the folder of a run: ``--output``/``--experiment``, with timm's naming."""
    name: str = args.experiment
    if not name:
        cfg = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
        size = args.img_size or (args.input_size or (cfg.input_size if cfg else (224,)))[-1]
        name = f'{datetime.now().strftime("%Y%m%d-%H%M%S")}-{safe_model_name(args.model)}-{size}'
    return Path(args.output or './output/train') / name


def init_trackers(args: argparse.Namespace, accelerator: Accelerator, run_name: str) -> None:
    """Start a run in the trackers, if any; they record the flags."""
    if not accelerator.log_with:
        return
    wandb = {'name': run_name, 'tags': args.wandb_tags}
    if args.wandb_resume_id:
        wandb.update(id=args.wandb_resume_id, resume='must')
    flags = {name: flag if isinstance(flag, int | float | str) else str(flag) for name, flag in vars(args).items()}
    accelerator.init_trackers(args.wandb_project or 'timm-dad', flags, {'wandb': wandb})


def learning_rate(args: argparse.Namespace, num_processes: int) -> float:
    """Return ``--lr`` or, without it, ``--lr-base`` scaled by the images per update like timm's train.py."""
    ratio = args.batch_size * num_processes * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
    scale = args.lr_base_scale or ('sqrt' if adaptive else 'linear')
    return float(args.lr or args.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio))
