"""Checkpoints by timm's saver, with what an exact resume needs in addition: the position in the epoch."""

import argparse
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from timm import utils
from timm.task import TrainingTask
from torch import Tensor

from timm_dad.training.meters import Meters, merged
from timm_dad.training.resume import Resumed, TrainState
from timm_dad.training.saver import Saver


class _TaskWithProgress:
    """A task as timm's saver sees it, with ``progress`` added to its own state."""

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        self.progress: dict[str, Any] = {}

    def get_checkpoint_state(self, ema: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return the entries of the checkpoint for timm's saver."""
        state: dict[str, Any] = self.task.get_checkpoint_state(ema=ema, **kwargs)
        return state if ema else {**state, 'progress': self.progress}


@dataclass
class Checkpoints:
    """Write checkpoints of a training, and restore a run's state beyond model, average and optimizer.

    All processes call it; only the main one writes.

    Args:
        task: The training task.
        optimizer: Accelerate's optimizer.
        scheduler: timm's schedule; the state of ``plateau`` is stored.
        accelerator: Processes, and the loss scaler.
        folder: Folder to write to.
        flags: Flags of the run, stored in every checkpoint.
        decreasing: Whether a lower metric is better.
        history: Number of checkpoints to keep.
        images_per_batch: Images per batch, over all processes.
        num_batches: Number of batches per epoch.
        accum_steps: Batches per update.
        recovery_interval: Updates between recovery files; 0 for none.
        save_epochs: Epochs after which the checkpoint is kept, whatever its metric.
    """

    task: TrainingTask
    optimizer: Any
    scheduler: Any
    accelerator: Accelerator
    folder: Path
    flags: argparse.Namespace
    _: KW_ONLY
    decreasing: bool
    history: int
    images_per_batch: int
    num_batches: int
    accum_steps: int = 1
    recovery_interval: int = 0
    save_epochs: Collection[int] = ()

    def __post_init__(self) -> None:
        self._task = _TaskWithProgress(self.task)
        self.saver = None
        if self.accelerator.is_main_process:
            self.saver = Saver(
                model=self.task.trainable_module,
                optimizer=self.optimizer,
                args=self.flags,
                task=self._task,
                checkpoint_dir=str(self.folder),
                recovery_dir=str(self.folder),
                decreasing=self.decreasing,
                max_history=self.history,
            )
            self.saver.save_epochs = self.save_epochs

    def save_epoch(self, epoch: int, metric: float) -> dict[str, Any]:
        """Write ``last`` and, by its metric, a numbered checkpoint.

        Returns:
            ``best_metric`` and ``best_epoch``, in the main process.
        """
        self._remember()
        if self.saver is None:
            return {}
        best_metric, best_epoch = self.saver.save_checkpoint(epoch, metric=metric)
        for path in self.folder.glob('recovery-*.pth.tar'):
            path.unlink(missing_ok=True)  # this one is later
        return {'best_metric': best_metric, 'best_epoch': best_epoch}

    def best_with(self, epoch: int, metric: float) -> tuple[float, int]:
        """Return the best metric and its epoch, counting an epoch that is not saved yet."""
        if self.saver is None or self.saver.best_metric is None or self.saver.cmp(metric, self.saver.best_metric):
            return metric, epoch
        return self.saver.best_metric, self.saver.best_epoch

    def save_recovery(self, epoch: int, batch: int, meters: Meters) -> None:
        """Write a recovery file after a batch of an epoch, if it is due."""
        updates = -(-(batch + 1) // self.accum_steps)
        if not self.recovery_interval or updates % self.recovery_interval:
            return
        self._remember((batch + 1) * self.images_per_batch, meters, epoch_done=batch + 1 == self.num_batches)
        if self.saver is not None:
            self.saver.save_recovery(epoch, batch_idx=batch)

    def _remember(self, images: int = 0, meters: Meters | None = None, *, epoch_done: bool = False) -> None:
        progress = self._task.progress
        progress.update(images=images, epoch_done=epoch_done)
        progress.update(meters=[] if meters is None else gather_object([(meters.sums, meters.count)]))
        progress['buffers'] = gather_object([self._buffers()]) if self.accelerator.num_processes > 1 else []
        if self.accelerator.scaler is not None:
            progress['scaler'] = self.accelerator.scaler.state_dict()
        if hasattr(self.scheduler, 'lr_scheduler'):  # plateau
            progress['plateau'] = self.scheduler.lr_scheduler.state_dict()
            progress['plateau_rates'] = self.scheduler.restore_lr  # those without noise

    def _modules(self) -> dict[str, Any]:
        modules = {'': self.task.get_trainable_module(), 'ema.': self.task.get_trainable_module(ema=True)}
        return {prefix: utils.unwrap_model(module) for prefix, module in modules.items() if module is not None}

    def _buffers(self) -> dict[str, Tensor]:
        """Return buffers of student and moving average: batch norm statistics, which differ between processes."""
        return {
            prefix + name: buffer.cpu()
            for prefix, module in self._modules().items()
            for name, buffer in module.named_buffers()
        }

    def restore(self, resumed: Resumed | None, state: TrainState) -> None:
        """Restore loss scaler, batch norm and meters from a checkpoint, and the history of its folder.

        Args:
            resumed: The checkpoint, if there is one.
            state: Its meters are set if the checkpoint is within an epoch.
        """
        if resumed is None:
            return
        if self.saver is not None:
            self.saver.restore()
        progress, accelerator = resumed.progress, self.accelerator
        if progress.get('scaler') and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(progress['scaler'])
        if len(progress.get('buffers', [])) == accelerator.num_processes:
            own = progress['buffers'][accelerator.process_index]
            for prefix, module in self._modules().items():
                for name, buffer in module.named_buffers():
                    if prefix + name in own:  # a moving average may be new
                        buffer.copy_(own[prefix + name])
        if state.batch:
            states = [_sums_and_count(each) for each in progress['meters']]
            state.meters.reset(*merged(states, accelerator.process_index, accelerator.num_processes))


def _sums_and_count(meters: Any) -> tuple[dict[str, float], int]:
    """Return sums and count of a process; version 0.1 stored a count for every part."""
    if not isinstance(meters, dict):
        return meters[0], meters[1]
    counts = [count for _, count in meters.values()]
    return {name: total for name, (total, _) in meters.items()}, counts[0] if counts else 0
