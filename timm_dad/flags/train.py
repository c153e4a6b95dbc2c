"""The command line of ``timm-dad train``: parser, config file, checks, and where the run goes."""

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate import Accelerator
from timm.models import safe_model_name
from timm.utils import ParseKwargs

from timm_dad.demo.data import DEMO_CONFIG
from timm_dad.flags.checks import check_args, check_extra_args
from timm_dad.flags.dad import add_dad_args, check_dad_args
from timm_dad.flags.rules import given_flags
from timm_dad.flags.timm import add_timm_args


def create_parser() -> argparse.ArgumentParser:
    """The parser of ``train_dad.py``."""
    parser = argparse.ArgumentParser(
        prog='train_dad.py',
        usage='%(prog)s [--data-dir DIR] [--model MODEL] [--dad ...] [flags]',
        description='timm training with Discrete Adversarial Distillation. Without data, the embedded demo.',
        allow_abbrev=False,
    )
    parser.add_argument('-c', '--config', default='', metavar='FILE', help='YAML file with defaults for these flags')
    add_timm_args(parser)
    add_dad_args(parser)
    return parser


def _read_config(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        parser.error(f'--config must be a YAML file, got {path!r}, which does not exist')
    content = yaml.safe_load(Path(path).read_text()) or {}
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(content) - known) if isinstance(content, dict) else [content]
    if unknown:
        parser.error(f'--config {path} must map flags to values; these are no flags: {unknown}')
    config: dict[str, Any] = content
    for action in parser._actions:
        value = config.get(action.dest)
        if value is None or isinstance(action, argparse.BooleanOptionalAction | ParseKwargs):
            continue
        for entry in value if isinstance(value, list) else [value]:
            wrong = action.choices is not None and entry not in action.choices
            wrong |= action.type is int and not isinstance(entry, int)
            wrong |= action.type is float and not isinstance(entry, int | float)
            wrong |= action.nargs == 0 and not isinstance(entry, bool)
            if wrong:
                parser.error(f'--config {path}: {action.dest} has the bad value {entry!r}')
    return config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, check what needs no data, and fill in the demo when there is no data set.

    Values come from the command line (``sys.argv[1:]`` by default), then ``--config``, then the defaults.

    Raises:
        SystemExit: On a bad flag, with one line that names flag, rule, value and fix.
    """
    parser = create_parser()
    explicit = given_flags(create_parser(), argv)
    config = explicit.get('config', '')
    if not config and not {'data', 'data_dir', 'dataset'} & set(explicit):
        config = str(DEMO_CONFIG)
    from_config = _read_config(parser, config) if config else {}
    parser.set_defaults(**from_config)
    args = parser.parse_args(argv)
    args.config = config
    args.data_dir = args.data_dir or args.data
    defaults = create_parser()
    chosen = {name for name in (*explicit, *from_config) if getattr(args, name) != defaults.get_default(name)}
    if 'device' not in explicit and not torch.cuda.is_available():
        args.device = 'cpu'
    try:
        check_args(args, chosen)
        check_dad_args(args, explicit, from_config)
        check_extra_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def run_path(args: argparse.Namespace) -> Path:
    """Folder of a run: ``--output``/``--experiment``, named as timm names them."""
    name: str = args.experiment
    if not name:
        cfg = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
        size = args.img_size or (args.input_size or (cfg.input_size if cfg else (224,)))[-1]
        name = f'{datetime.now().strftime("%Y%m%d-%H%M%S")}-{safe_model_name(args.model)}-{size}'
    return Path(args.output or './output/train') / name


def init_trackers(args: argparse.Namespace, accelerator: Accelerator, run_name: str) -> None:
    """Begin a run in the trackers, if there are any; they keep the flags."""
    if not accelerator.log_with:
        return
    wandb = {'name': run_name, 'tags': args.wandb_tags}
    if args.wandb_resume_id:
        wandb.update(id=args.wandb_resume_id, resume='must')
    flags = {name: flag if isinstance(flag, int | float | str) else str(flag) for name, flag in vars(args).items()}
    accelerator.init_trackers(args.wandb_project or 'timm-dad', flags, {'wandb': wandb})


def learning_rate(args: argparse.Namespace, num_processes: int) -> float:
    """``--lr`` or, without it, ``--lr-base`` scaled with the images of an update, as timm's train.py scales it."""
    ratio = args.batch_size * num_processes * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
    scale = args.lr_base_scale or ('sqrt' if adaptive else 'linear')
    return float(args.lr or args.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio))
