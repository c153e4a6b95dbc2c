"""timm's checkpoint saver, made safe for full disks and failing machines."""

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from timm.utils import CheckpointSaver

from timm_dad.common.files import naming_file
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.teachers.trained import BEST
from timm_dad.training.resume import LAST

_logger = logging.getLogger(__name__)


class Saver(CheckpointSaver):  # type: ignore[misc]
    """Write every file to disk before it gets its name, and finish what a killed run started.

    Attributes:
        save_epochs: Epochs after which ``milestone-N`` is kept, whatever its metric.
    """

    save_epochs: Collection[int] = ()

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple[float | None, int | None]:
        """Write ``last``, a numbered checkpoint depending on its metric, and a milestone if one is due.

        Returns:
            Best metric and its epoch.
        """
        best: tuple[float | None, int | None] = super().save_checkpoint(epoch, metric)
        self._keep_milestone(epoch)
        return best

    def _keep_milestone(self, epoch: int) -> None:
        """Link ``last``, which is that of an epoch, as a milestone."""
        path = Path(self.checkpoint_dir) / f'milestone-{epoch + 1}{self.extension}'
        if epoch + 1 in self.save_epochs:
            self._duplicate(str(path.with_name(LAST)), str(path))

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        # Given a path, torch hides what the disk says.
        with naming_file(save_path), open(save_path, 'wb') as file:
            super()._save(file, epoch, metric)
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)  # timm's removes dst before

    def restore(self) -> None:
        """Restore the ranking of the checkpoints in the folder, and create links that a killed run did not.

        timm 1.0.31 can restore the ranking from what it saves; 1.0.28 cannot. Reading the files serves both.
        """
        folder = Path(self.checkpoint_dir)
        read = {path: _epoch_and_metric(path) for path in folder.glob('checkpoint-*.pth.tar')}
        found = [(epoch, metric, path) for path, (epoch, metric) in read.items() if metric is not None]
        self._rank(found)
        epoch, metric = _epoch_and_metric(folder / LAST)
        if metric is not None:
            self._keep_milestone(epoch)
        if metric is not None and epoch not in [entry[0] for entry in found] and self._earns_a_place(metric):
            if len(self.checkpoint_files) >= self.max_history:
                self._cleanup_checkpoints(1)
            path = folder / f'{self.save_prefix}-{epoch}{self.extension}'
            self._duplicate(str(folder / LAST), str(path))
            kept = [entry for entry in found if (str(entry[2]), entry[1]) in self.checkpoint_files]
            self._rank([*kept, (epoch, metric, path)])
        if self.best_epoch is not None and _epoch_and_metric(folder / BEST)[0] != self.best_epoch:
            _logger.info('%s is recreated from %s', folder / BEST, self.checkpoint_files[0][0])
            self._duplicate(self.checkpoint_files[0][0], str(folder / BEST))

    def _earns_a_place(self, metric: float) -> bool:
        free = len(self.checkpoint_files) < self.max_history
        return free or bool(self.cmp(metric, self.checkpoint_files[-1][1]))

    def _rank(self, found: list[tuple[int, float, Path]]) -> None:
        """Order checkpoints from best to worst, and equal ones by epoch."""
        ranked = sorted(found, key=lambda entry: (entry[1] if self.decreasing else -entry[1], entry[0]))
        self.checkpoint_files = [(str(path), metric) for _, metric, path in ranked]
        if ranked:
            self.best_epoch, self.best_metric, _ = ranked[0]


def _epoch_and_metric(path: Path) -> tuple[Any, Any]:
    """Return epoch and metric stored in a checkpoint; twice ``None``, with a warning, if it is damaged."""
    if not path.exists():
        return None, None
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except ValueError as error:
        _logger.warning('%s; it is skipped', error)
        return None, None
    return checkpoint.get('epoch'), checkpoint.get('metric')
