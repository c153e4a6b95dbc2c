"""Checkpoints by timm's saver, and what an exact resume needs beside them: the position in the epoch."""

import re
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import CheckpointSaver

LAST = 'last.pth.tar'
_RECOVERY = re.compile(r'recovery-(\d+)-(\d+)\.pth\.tar')


class TaskWithProgress:
    """A task as timm's saver sees it, with ``progress`` beside its own state.

    Args:
        task: The task.

    Attributes:
        progress: Plain numbers that go into the next checkpoint.
    """

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        self.progress: dict[str, Any] = {}

    def get_checkpoint_state(self, ema: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Entries of the checkpoint; timm's saver asks for them."""
        state: dict[str, Any] = self.task.get_checkpoint_state(ema=ema, **kwargs)
        return state if ema else {**state, 'progress': self.progress}


def load_progress(path: str) -> dict[str, Any]:
    """Progress that a checkpoint holds; empty for one of timm's own.

    Args:
        path: Checkpoint.

    Returns:
        ``batches`` done of its epoch (recovery files), sums of the meters by rank, states of schedule and scaler.

    Raises:
        ValueError: If the file is no training checkpoint.
    """
    if not Path(path).is_file():
        raise ValueError(f'--resume must be a checkpoint, got {path!r}, which does not exist')
    checkpoint = _load(path)
    if 'optimizer' not in checkpoint:
        raise ValueError(f'--resume must be a training checkpoint, got {path!r}, which holds no optimizer')
    progress: dict[str, Any] = checkpoint.get('progress', {})
    return progress


def _load(path: str | Path) -> dict[str, Any]:
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f'--resume must be a training checkpoint, got {str(path)!r}: {error}') from error
    return content if isinstance(content, dict) else {}


def find_newest(folder: Path) -> str:
    """The checkpoint that is furthest in training: ``last`` or a recovery file; ``''`` if there is none."""
    found = []
    if (folder / LAST).is_file():
        found.append(((_load(folder / LAST)['epoch'] + 1, 0), folder / LAST))
    for path in folder.glob('recovery-*.pth.tar'):
        match = _RECOVERY.fullmatch(path.name)
        if match:
            found.append(((int(match[1]), int(match[2]) + 1), path))
    return str(max(found)[1]) if found else ''


def remove_recovery(folder: Path) -> None:
    """Remove recovery files; the checkpoint of a later epoch has made them useless."""
    for path in folder.glob('recovery-*.pth.tar'):
        path.unlink(missing_ok=True)


def create_saver(run: Any) -> CheckpointSaver:
    """Timm's saver for a run; goes on with the history of the run that ``--resume`` names."""
    saver = CheckpointSaver(
        model=run.task.trainable_module,
        optimizer=run.optimizer,
        args=run.args,
        task=run.task_with_progress,
        checkpoint_dir=str(run.output_dir),
        recovery_dir=str(run.output_dir),
        decreasing=run.eval_metric == 'loss',
        max_history=run.args.checkpoint_hist,
    )
    if run.args.resume:
        restore_history(saver, run.output_dir)
    return saver


def restore_history(saver: CheckpointSaver, folder: Path) -> None:
    """Give a saver the ranking of the checkpoints in its folder, so that it goes on evicting and naming the best.

    timm 1.0.31 can do it from what it saves; 1.0.28 cannot. Reading the files serves both.
    """
    found = []
    for path in folder.glob('checkpoint-*.pth.tar'):
        checkpoint = _load(path)
        if checkpoint.get('metric') is not None:
            found.append((str(path), checkpoint['metric'], checkpoint['epoch']))
    found.sort(key=lambda entry: (entry[1] if saver.decreasing else -entry[1], entry[2]))
    saver.checkpoint_files = [(path, metric) for path, metric, _ in found]
    if found:
        _, saver.best_metric, saver.best_epoch = found[0]
