"""Resume a training: the checkpoint that ``--resume`` names, and the position in it."""

import logging
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.task import TrainingTask, resume_task_checkpoint

from timm_dad.common.torch_files import read_checkpoint
from timm_dad.training.meters import Meters

LAST = 'last.pth.tar'

_RECOVERY = re.compile(r'recovery-(\d+)-(\d+)\.pth\.tar')
_NUMBERED = re.compile(r'checkpoint-(\d+)\.pth\.tar')

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A training checkpoint that a run resumes from.

    Args:
        path: The file.
        epoch: Next epoch, or the one under way.
        flags: Flags of the run that wrote it; empty if the file does not contain them.
        progress: Position and states besides model, moving average and optimizer; empty for timm's own checkpoints.
        metric: Result of the validation after its last epoch; ``None`` within an epoch.
    """

    path: str
    epoch: int
    flags: Mapping[str, Any]
    progress: Mapping[str, Any]
    metric: float | None = None

    def position(self, images_per_batch: int, accum_steps: int) -> tuple[int, int]:
        """Return the epoch, and the number of its finished batches, in batches of this run.

        Args:
            images_per_batch: Images per batch, over all processes.
            accum_steps: Batches per update.

        Raises:
            ValueError: If that is not a whole number of updates: no batch of this run begins where the other one
                stopped.
        """
        images = self.progress.get('images')
        if images is None:  # of version 0.1: batches a process, and meters of every process
            size = self.flags.get('batch_size', 0)
            images = self.progress.get('batches', 0) * len(self.progress.get('meters', [])) * size
        # The last update of an epoch may have fewer batches.
        unit = images_per_batch * (1 if self.progress.get('epoch_done') else accum_steps)
        if images % unit:
            raise ValueError(
                f'--resume: {self.path} was written after {images} images of epoch {self.epoch}, but an update here '
                f'takes {unit} (--batch-size x processes x --grad-accum-steps), so no update '
                'begins there: choose them so that the images divide evenly, or resume from the end of an epoch'
            )
        return self.epoch, int(images // images_per_batch)


def open_checkpoint(path: str) -> Resumed | None:
    """Open a training checkpoint, without its weights; ``None`` for an empty path.

    Raises:
        ValueError: If there is none, or it is not a training checkpoint.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise ValueError(f'--resume must be a checkpoint, got {path!r}, which does not exist')
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except ValueError as error:
        raise ValueError(f'--resume: {error}') from error
    if not isinstance(checkpoint, dict) or 'optimizer' not in checkpoint:
        raise ValueError(f'--resume must be a training checkpoint, got {path!r}, which contains no optimizer')
    progress = checkpoint.get('progress', {})
    under_way = bool(progress.get('batches') or progress.get('images'))
    done = 'epoch' in checkpoint and checkpoint.get('version', 1) > 1  # before version 2 timm counted what comes next
    epoch = checkpoint.get('epoch', 0) + (done and not under_way)
    flags = checkpoint.get('args')
    flags = vars(flags) if flags is not None else {}
    return Resumed(path=path, epoch=epoch, flags=flags, progress=progress, metric=checkpoint.get('metric'))


def find_newest(folder: Path) -> str:
    """Find the intact checkpoint that is furthest in training; return ``''`` if there is none.

    Raises:
        ValueError: If all are damaged: a new run would overwrite them.
    """
    found = [(_place(path), path.name == LAST, path) for path in folder.glob('*.pth.tar')]
    problems = []
    for _, _, path in sorted((entry for entry in found if entry[0] is not None), reverse=True):
        try:
            read_checkpoint(path, mmap=True)
        except ValueError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _logger.warning('%s; using %s instead', problem, path.name)
        return str(path)
    if problems:
        raise ValueError(f'no checkpoint in {folder} is intact; remove them to start over: {problems[0]}')
    return ''


def _place(path: Path) -> tuple[int, int] | None:
    """Return the epoch and batch after which a checkpoint was written; ``None`` for other files."""
    if path.name == LAST:
        try:
            return read_checkpoint(path, mmap=True)['epoch'] + 1, 0
        except ValueError:
            return sys.maxsize, 0  # damaged, and meant to be the newest
    recovery, numbered = _RECOVERY.fullmatch(path.name), _NUMBERED.fullmatch(path.name)
    if recovery:
        return int(recovery[1]), int(recovery[2]) + 1
    return (int(numbered[1]) + 1, 0) if numbered else None


@dataclass
class TrainState:
    """The position of a training.

    Args:
        meters: Sums of the loss parts in the epoch.
        epoch: Epoch, from 0.
        batch: Number of its finished batches.
        rates: Learning rates of the resumed optimizer's groups, and the factor by which ``--lr`` changed since; empty
            if the optimizer starts fresh.
    """

    meters: Meters
    epoch: int = 0
    batch: int = 0
    rates: list[tuple[float, float]] = field(default_factory=list)


def resume_training(
    task: TrainingTask,
    optimizer: Any,
    state: TrainState,
    resumed: Resumed | None,
    *,
    images_per_batch: int,
    accum_steps: int,
    start_epoch: int | None,
    keep_optimizer: bool,
) -> None:
    """Load weights and optimizer of a checkpoint, and set the position of the training.

    Args:
        task: The training task.
        optimizer: The student's optimizer.
        state: Its position is set.
        resumed: The checkpoint, if there is one.
        images_per_batch: Images per batch, over all processes.
        accum_steps: Batches per update.
        start_epoch: Epoch to start at, whatever the checkpoint says.
        keep_optimizer: Whether to load the state of the optimizer.

    Raises:
        ValueError: If no update of this run begins where the checkpoint was written, or it belongs to another model or
            optimizer.
    """
    if start_epoch is not None:
        state.epoch, state.batch = start_epoch, 0
    elif resumed is not None:
        state.epoch, state.batch = resumed.position(images_per_batch, accum_steps)
    if resumed is None:
        return
    rates = [group['lr'] for group in optimizer.param_groups]
    try:
        resume_task_checkpoint(task, resumed.path, optimizer=optimizer if keep_optimizer else None, log_info=False)
    except (KeyError, RuntimeError, ValueError) as error:  # of load_state_dict: a line for every weight
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'--resume: {resumed.path} does not fit model and optimizer: {textwrap.shorten(reason, 160)}; give the '
            'flags of its run, or load only its weights with --initial-checkpoint'
        ) from error
    if keep_optimizer:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            state.rates.append((group['lr'], rate / (group.get('initial_lr') or rate or 1.0)))
            group['initial_lr'] = rate  # of --lr, which may have changed: schedules begin with it
