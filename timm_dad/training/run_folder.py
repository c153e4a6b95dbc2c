"""The folder of a run: locked by one run at a time, with its flags and its summary."""

import argparse
import csv
import itertools
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from timm import utils

from timm_dad.common.errors import OwnError
from timm_dad.common.files import make_folder, replacing, write_file
from timm_dad.common.text_files import read_yaml
from timm_dad.flags.rules import written
from timm_dad.flags.temperature import keep_temperature
from timm_dad.training.meters import NonFiniteLossError

_logger = logging.getLogger(__name__)

ARGS = 'args.yaml'
SUMMARY = 'summary.csv'
SUITES = 'suites.csv'
# Weights and states of any run, of `timm-dad train` and `timm-dad vqgan` alike.
_OF_RUNS = ('*.pth.tar', 'best.safetensors', 'last.safetensors', 'resume.pt')
# Flags that may differ between a run and its resumption without changing what is trained.
_INCIDENTAL = {
    'config', 'data', 'experiment', 'local_rank', 'no_resume_opt', 'output', 'resume', 'save_epochs', 'start_epoch',
    'stop_epoch',
}  # fmt: skip
_FIXED = ('model', 'num_classes', 'in_chans')
# What the state of an optimizer holds, whatever the flags say; its rate is of the schedule.
_OPTIMIZER = ('opt', 'opt_eps', 'opt_betas', 'opt_kwargs', 'momentum', 'weight_decay', 'layer_decay')


class RunFolder:
    """The folder of a run, locked against other runs: from ``with`` on if it exists, else from ``start`` on.

    Args:
        path: The folder.
        accelerator: Processes and trackers; the main process locks the folder and writes to it.
        find_run: Returns a file of an older run in a folder; empty if there is none.
        resume: Whether to continue an older run.
        flag: The flag that names the folder, for errors.

    Raises:
        ValueError: If another run uses the folder, or it contains an older run not to be continued; in all processes.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        find_run: Callable[[Path], str],
        *,
        resume: bool,
        flag: str = '--output/--experiment',
    ) -> None:
        named = [path]  # after the time, where --experiment does not name it: one name for all processes
        broadcast_object_list(named)
        self.path, self.accelerator, self.flag = named[0], accelerator, flag
        self._find_run, self._resume = find_run, resume
        self._lock = FileLock(self.path / '.lock')

    def __enter__(self) -> 'RunFolder':
        """Lock the folder, if it exists."""
        self._hold(only_if=self.path.is_dir(), resume=self._resume)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Release it; a ``KeyboardInterrupt`` gets the flags for resuming."""
        self._lock.release()
        if isinstance(error, KeyboardInterrupt):
            error.args = self.resume_flags

    @property
    def resume_flags(self) -> tuple[str, ...]:
        """The flags, each with its value, that continue this run."""
        names = self.flag.split('/')  # of the folder alone, or of the folder that it is in and its name
        values = (str(self.path),) if len(names) == 1 else (str(self.path.parent), self.path.name)
        return (*itertools.chain(*zip(names, values, strict=True)), '--resume', 'auto')

    @contextmanager
    def advising_where_to_go_on(self) -> Iterator[None]:
        """Add to the error of a non-finite loss where to resume from.

        Raises:
            OwnError: In the processes with the non-finite loss.
            SystemExit: In the others.
        """
        try:
            yield
        except NonFiniteLossError as error:
            if not str(error):
                sys.exit(2)  # another process says why
            kept = self._find_run(self.path)
            advice = 'start again (there is no checkpoint yet)'
            if kept:
                advice = f'resume from {kept} with {shlex.join(self.resume_flags)}'
            raise OwnError(f'{error}; lower --lr or set --clip-grad, and {advice}') from error

    def _hold(self, *, only_if: bool, resume: bool) -> None:
        """Take the lock, and create the folder for it; raise in all processes if it is not available."""
        refusal = ['']
        if self.accelerator.is_main_process and only_if:
            try:
                make_folder(self.path)
                self._lock.acquire(timeout=0)
                refusal = [self._older_run(resume)]
                if refusal[0]:
                    self._lock.release()
            except Timeout:
                refusal = ['is in use by another run; choose another folder']
            except OSError as error:
                refusal = [f'cannot be written: {error}']
        broadcast_object_list(refusal)  # no process waits for one that stopped
        if refusal[0]:
            raise ValueError(f'{self.flag}: {self.path} {refusal[0]}')

    def _older_run(self, resume: bool) -> str:
        """Say why the folder is not for this run; empty if it is."""
        try:
            if self._find_run(self.path):
                return '' if resume else 'contains an older run; choose another folder, or --resume auto'
        except ValueError:  # damaged checkpoints alone; of --resume, ``resolve`` names them
            return '' if resume else 'contains an older run; choose another folder'
        kept = sorted(path.name for pattern in _OF_RUNS for path in self.path.glob(pattern))
        return f'contains {kept[0]} of a run that cannot be resumed here; choose another folder' if kept else ''

    def resolve(self, resume: str) -> str:
        """Return the path of ``--resume``; ``auto`` is the newest checkpoint here, if any, for all processes."""
        if resume != 'auto':
            return resume
        found = ['', '']
        if self.accelerator.is_main_process:
            try:
                found = [self._find_run(self.path), '']
            except ValueError as error:
                found = ['', f'--resume auto: {error}']
        broadcast_object_list(found)
        newest, problem = found
        if problem:
            raise ValueError(problem)
        _logger.info('--resume auto: %s', newest or f'no checkpoint in {self.path}, starting')
        return newest

    def start(self, flags: Mapping[str, Any], epoch: int) -> None:
        """Write the flags, and cut the summaries where the run begins, in the main process.

        Flags of an older run are kept beside the new ones, and changes are logged in one line.

        Args:
            flags: Plain values by name.
            epoch: First epoch to be trained.
        """
        self._hold(only_if=not self._lock.is_locked, resume=False)  # what another run made meanwhile is its own
        if not self.accelerator.is_main_process:
            return
        path, text = self.path / ARGS, yaml.safe_dump(dict(flags), default_flow_style=False)
        changed = changed_flags(_read_flags(path), yaml.safe_load(text)) if path.exists() else []
        if changed:
            _logger.info('Flags that changed since: %s', ', '.join(changed))
            kept = (self.path / f'args-{number}.yaml' for number in itertools.count(1))
            write_file(next(own for own in kept if not own.exists()), path.read_bytes())
        write_file(path, text)
        for name in (SUMMARY, SUITES):
            cut_summary(self.path / name, epoch)

    def log_epoch(
        self,
        epoch: int,
        train_metrics: Mapping[str, float],
        eval_metrics: Mapping[str, float] | None,
        optimizer: Any,
        *,
        plain: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        """Write an epoch's metrics and learning rate to the trackers, the summary and the terminal.

        Args:
            epoch: The epoch.
            train_metrics: Means of the loss parts.
            eval_metrics: Validation metrics: the moving average's, if there is one.
            optimizer: The student's optimizer.
            plain: The student's own metrics, if the others are the moving average's; not in the summary.
            notes: Additional text for the terminal.
            hidden: Metrics not shown on the terminal.
        """
        own = {f'val_plain_{name}': value for name, value in (plain or {}).items()}
        rates = [group['lr'] for group in optimizer.param_groups]
        rate = sum(rates) / len(rates)
        tracked = {f'val_{name}': value for name, value in (eval_metrics or {}).items()}
        self.accelerator.log({**train_metrics, **tracked, **own, 'lr': rate}, step=epoch)
        if not self.accelerator.is_main_process:
            return
        kind = 'val_' if plain is None else 'val_ema_'
        told = {f'{kind}{name}': value for name, value in (eval_metrics or {}).items()}
        shown = [
            f'{name} {value:.4g}'
            for name, value in {**train_metrics, **told, **own, 'lr': rate}.items()
            if name.rsplit('_', 1)[-1] not in hidden
        ]
        _logger.info('Epoch %d: %s', epoch, '  '.join([*shown, *notes]))
        with appending(self.path / SUMMARY) as temporary:
            utils.update_summary(
                epoch, train_metrics, eval_metrics, filename=str(temporary), lr=rate,
                write_header=not temporary.stat().st_size,
            )  # fmt: skip


def _read_flags(path: Path) -> dict[str, Any]:
    try:
        flags = read_yaml(path)
    except ValueError as error:
        raise ValueError(f'{path} is not YAML ({error}): move it away') from error
    return flags if isinstance(flags, dict) else {}


def changed_flags(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the changes between the flags of two runs, as ``--flag old -> new``."""
    return [
        f'{written(name)} {before[name]} -> {now[name]}'
        for name in sorted(before.keys() & now.keys() - _INCIDENTAL)
        if before[name] != now[name]
    ]


def check_resumed_flags(before: Mapping[str, Any], now: Mapping[str, Any], *, keep_optimizer: bool = True) -> None:
    """Raise an error if a run is resumed with changes that are not allowed.

    Args:
        before: Flags of the run that wrote the checkpoint, empty without one; unknown flags are not compared.
        now: Flags of this run; those that are ``None`` are taken from the model.
        keep_optimizer: Whether the optimizer's state is resumed.

    Raises:
        ValueError: If model, classes, channels, or optimizer and its settings differ.
    """
    for name in (*_FIXED, *(_OPTIMIZER if keep_optimizer else ())):
        old, new = before.get(name), now.get(name)
        if (None in (old, new) and name in _FIXED) or old == new or name not in before:
            continue
        fix = 'leave it unchanged, or ' + ('start another run' if name in _FIXED else 'give --no-resume-opt')
        raise ValueError(f'{written(name)} must be {old}, as in the resumed run, got {new}: {fix}')


def take_over_flags(args: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """Take over the temperature found by a run before it is resumed, and reject changes as above.

    Args:
        args: Flags of this run.
        before: Flags of the run that wrote the checkpoint, empty without one.
    """
    keep_temperature(args, before)
    check_resumed_flags(before, vars(args), keep_optimizer=not args.no_resume_opt)


@contextmanager
def appending(path: Path) -> Iterator[Path]:
    """Yield a copy of a file, if it exists, for a writer that appends to it, and replace the file afterwards."""
    before = path.read_bytes() if path.exists() else b''
    with replacing(path) as temporary:
        temporary.write_bytes(before)
        yield temporary


def cut_summary(path: Path, epoch: int) -> None:
    """Drop the rows of epochs that will be trained again.

    Raises:
        ValueError: If it is not a table of epochs.
    """
    if not path.exists():
        return
    try:
        lines = [line for line in path.read_bytes().decode('utf-8-sig').splitlines(keepends=True) if line.strip()]
        rows = list(csv.DictReader(lines))
        kept = [line for line, row in zip(lines[1:], rows, strict=True) if int(row['epoch']) < epoch]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a table of epochs ({type(error).__name__}: {error}), so no rows can be added: move it away'
        ) from error
    write_file(path, ''.join([*lines[:1], *kept]))
