"""Time and memory, for the benchmarks: rounds in turn, ratios of pairs, peaks above what was there before."""

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import results
import torch

HERE = Path(__file__).parent
# Of networks: fp32 with and without TF32 in products of matrices and in convolutions, which PyTorch has on for these.
PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16')


def add_flags(parser: argparse.ArgumentParser, rounds: int = 0, on_gpu: bool = True) -> None:
    """Flags of every benchmark; ``--rounds`` where something is timed, ``--device`` where a GPU may do the work."""
    parser.set_defaults(device='cpu')
    if on_gpu:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        parser.add_argument('--device', default=device, help='cpu or cuda')
    parser.add_argument('--threads', type=int, default=2, help='threads of torch on a CPU')
    if rounds:
        parser.add_argument('--rounds', type=int, default=rounds, help='measurements of each; the median counts')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs; writes no results')
    parser.add_argument('--results', type=Path, help='where the figures go (default: results.json, nowhere if --quick)')


def start(args: argparse.Namespace) -> torch.device:
    """Set threads and fill in what ``--quick`` changes; the device."""
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # as the released generator and train_dad.py have it
    if args.quick:
        args.rounds = 1
    elif args.results is None:
        args.results = HERE / 'results.json'
    return torch.device(args.device)


def set_precision(name: str) -> str:
    """Switch TF32 as a precision of ``PRECISIONS`` wants it; its name for ``prepare_frozen``."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != 'fp32'
    return 'fp32' if name == 'tf32' else name


def command() -> str:
    """The command line of this process, as one would type it in the repository; not where its results go."""
    argv = sys.argv[1:]
    while '--results' in argv:
        place = argv.index('--results')
        argv = argv[:place] + argv[place + 2 :]
    return shlex.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *argv])


def report(args: argparse.Namespace, key: str, figure: results.Figure) -> None:
    """Print a figure of this run, and write it to ``--results``."""
    results.write(args.results, key, figure, command(), results.machine(args.device, args.threads))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, with all that it starts on the device."""
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - begin


def in_rounds(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function in each round; every round calls all of them, each round in the opposite order."""
    for function in list(functions.values()) * warmup:
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds):
        for name in functions if index % 2 else reversed(functions):
            taken[name].append(seconds(functions[name], device))
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios of two measurements made in the same round."""
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Bytes in use before a call, and the most in use during it.

    On a GPU: allocated by torch. On a CPU: the resident set of the process; on Linux the kernel's mark of its peak is
    set back first, elsewhere it is the peak since the process began, so that measuring needs a process of its own.
    """
    gc.collect()
    if device.type == 'cuda':
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait(device)
        return before, torch.cuda.max_memory_allocated(device)
    if platform.system() != 'Linux':
        unit = 1 if platform.system() == 'Darwin' else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        function()
        return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    ctypes.CDLL(None).malloc_trim(0)  # give back what was freed, or the call would find it there and take nothing new
    Path('/proc/self/clear_refs').write_text('5')
    before = _status('VmRSS')
    function()
    return before, _status('VmHWM')


def _status(name: str) -> int:
    """Bytes of a line of Linux's status of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))


def in_process(argv: Sequence[str]) -> Any:
    """Run a benchmark in a process of its own; what the last line of its output says, as JSON."""
    environment = {**os.environ, 'PYTHONPATH': str(HERE.parent)}
    done = subprocess.run([sys.executable, *argv], env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
