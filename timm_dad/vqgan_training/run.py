"""A run of ``timm-dad vqgan``: epochs, metrics, files, and an exact resume."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from timm_dad.common.files import replacing
from timm_dad.common.progress import progress, tell
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.training.batches import Batches
from timm_dad.training.meters import Meters, Metrics, merged
from timm_dad.training.run_folder import RunFolder, changed_flags
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.optimize import Trainer

_logger = logging.getLogger(__name__)

STATE = 'resume.pt'
# Of the file; that of 0.1 has none.
_VERSION = 2
_LOG_INTERVAL = 50


def find_state(folder: Path) -> str:
    """Return the file for an exact resume of the run in a folder; empty if there is none."""
    path = folder / STATE
    return str(path) if path.is_file() else ''


class VQGANRun:
    """Train by epochs, with metrics and files after each; all processes take part.

    Args:
        trainer: The trainer.
        batches: Training images in [0, 1].
        loader_val: Validation images in [0, 1], only of this process.
        folder: Folder for the files.
        settings: Settings that a resumed run must share, by flag.
        recovery_interval: Steps between recovery files; 0 for none.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches,
        loader_val: Any,
        folder: RunFolder,
        settings: Mapping[str, Any],
        recovery_interval: int = 0,
    ) -> None:
        self.trainer, self.batches, self.loader_val, self.folder = trainer, batches, loader_val, folder
        self.settings, self.recovery_interval = dict(settings), recovery_interval
        self.accelerator = folder.accelerator
        self.meters = Meters(self.accelerator)
        self.epoch, self.batch, self.best = 0, 0, math.inf

    def resume(self, path: str) -> None:
        """Continue where the run that wrote the file of ``find_state`` stopped, if there is one.

        Raises:
            ValueError: If it cannot be read, or a run with other settings wrote it.
        """
        if not path:
            return
        try:
            state: dict[str, Any] = read_checkpoint(path)
        except ValueError as error:
            raise ValueError(f'--resume auto: {error}; or remove it to start over') from error
        if state.get('version') != _VERSION:
            raise ValueError(
                f'--resume auto: {path} is from version 0.1, which drew samples in another way; choose another --output'
            )
        changed = changed_flags(state['settings'], self.settings)
        if changed:
            raise ValueError(f'--resume auto: {path} has other flags: {", ".join(changed)}; choose another --output')
        try:
            self.trainer.load_state_dict(state['trainer'])
        except RuntimeError as error:
            raise ValueError(
                f'--resume auto: {path} holds another architecture: give the --init of its run, or another --output'
            ) from error
        self.epoch, self.batch, self.best = state['epoch'], state['batch'], state['best']
        self.meters.reset(*merged(state['meters'], self.accelerator.process_index, self.accelerator.num_processes))

    def train(self) -> dict[str, float]:
        """Train for the remaining steps; return the metrics on the validation data.

        Raises:
            NonFiniteLossError: If the loss is not finite; the files stay from before.
        """
        if self.trainer.steps_done >= self.trainer.config.steps:
            _logger.info('%s is fully trained: all %d steps are done', self.folder.path, self.trainer.config.steps)
            return self.trainer.evaluate(self.loader_val)
        metrics: dict[str, float] = {}
        while self.trainer.steps_done < self.trainer.config.steps:
            train_metrics = self._train_one_epoch()
            metrics = self.trainer.evaluate(self.loader_val)
            self.folder.log_epoch(
                self.epoch - 1, {'step': self.trainer.steps_done, **train_metrics}, metrics, self.trainer.optimizer
            )
            self._save_epoch(metrics[self.trainer.best_metric] * (1 if self.trainer.decreasing else -1))
        return metrics

    def _train_one_epoch(self) -> Metrics:
        """Run one pass over the training images, or the rest of it; return the means of loss and parts."""
        trainer, meters, total = self.trainer, self.meters, len(self.batches)
        batches = self.batches.of_epoch(self.epoch, self.batch)
        show, desc = self.accelerator.is_main_process, f'Epoch {self.epoch}'
        bar = progress(batches, show=show, desc=desc, total=total, leave=False, initial=self.batch)
        for batch, x_pix, _ in bar:
            parts = trainer.step(x_pix)
            done = trainer.steps_done
            meters.add(parts, len(x_pix), f'step {done}')
            meters.read()
            if done % _LOG_INTERVAL == 0:
                tell(bar, f'epoch {self.epoch}, step {done} of {trainer.config.steps}', meters.means, decimals=4)
            if done == trainer.config.steps:
                break
            if self.recovery_interval and done % self.recovery_interval == 0 and batch + 1 < total:
                self._save_state(batch + 1)
        metrics = meters.reduce()
        meters.reset()
        self.epoch, self.batch = self.epoch + 1, 0
        return metrics

    def _save_epoch(self, error: float) -> None:
        """Write ``last``, ``best`` if it is the best, and the file for a resume."""
        names = ('last', 'best') if error < self.best else ('last',)
        self.best = min(self.best, error)
        if self.accelerator.is_main_process:
            for name in names:
                save_vqgan(self.trainer.vqgan, self.folder.path / f'{name}.safetensors')
        self._save_state()

    def _save_state(self, batch: int = 0) -> None:
        """Write everything an exact resume needs as one file, atomically."""
        state = {
            'version': _VERSION,
            'trainer': self.trainer.state_dict(),
            'settings': self.settings,
            'epoch': self.epoch,
            'batch': batch,
            'best': self.best,
            'meters': gather_object([(self.meters.sums, self.meters.count)]),
        }
        if self.accelerator.is_main_process:
            with replacing(self.folder.path / STATE, sync=True) as temporary, temporary.open('wb') as file:
                torch.save(state, file)
