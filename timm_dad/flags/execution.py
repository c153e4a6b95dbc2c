"""The flags about where a command runs, and how many images it processes at a time."""

import argparse
import os
from typing import Any

import torch
from accelerate import PartialState

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
# Loader processes by default: timm's 4, or fewer where torch would warn that the machine has not so many cores.
WORKERS = min(4, CORES)


def add_device_arg(group: Any) -> None:
    """Add ``--device``."""
    group.add_argument('--device', default='cuda', help='cuda (or the CPU if there is no GPU) or cpu')


def add_execution_args(group: Any, batch_size: int) -> None:
    """Add batch size, workers and device."""
    group.add_argument('-b', '--batch-size', type=int, default=batch_size, metavar='N', help='images per batch')
    group.add_argument('-j', '--workers', type=int, default=WORKERS, metavar='N', help='data loading processes')
    add_device_arg(group)


def add_ema_arg(group: Any) -> None:
    """Add ``--use-ema`` and ``--no-use-ema``."""
    group.add_argument(
        '--use-ema', action=argparse.BooleanOptionalAction, default=True,
        help='use the moving average of the weights if a checkpoint has one (default)',
    )  # fmt: skip


def device_rule(name: str) -> tuple[bool, str]:
    """Return the rule about ``--device``, for ``check_rules``."""
    return name.split(':')[0] in ('cuda', 'cpu'), f'--device must be cuda or cpu, got {name!r}'


def pick_device(name: str) -> torch.device:
    """Return the device of this process; the CPU if there is no GPU."""
    if name == 'cpu' or not torch.cuda.is_available():
        return torch.device('cpu')
    if ':' in name:
        return torch.device(name)
    device: torch.device = PartialState().device
    return device
