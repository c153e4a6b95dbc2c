"""Preview sheets of DAD views during training: in the run's folder, and in trackers that accept pictures."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.task import TrainingTask
from torch import Tensor
from torch.utils.data import IterableDataset

from timm_dad.common.files import write_file
from timm_dad.common.spread import spread
from timm_dad.dad_sets.maker import view_seed
from timm_dad.data.pictures import as_label
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.preview.image import describe_settings, preview_image, shown_names
from timm_dad.preview.sheet import make_sheet, png_bytes
from timm_dad.training.schedule import is_due

_logger = logging.getLogger(__name__)

NUM_IMAGES = 6
# Trackers of Accelerate that take arrays of pictures [N, H, W, 3], and what they must be told.
PICTURE_TRACKERS: dict[str, dict[str, str]] = {'tensorboard': {'dataformats': 'NHWC'}, 'wandb': {}, 'swanlab': {}}


class PreviewHook:
    """Write a sheet of DAD views at an interval of epochs, and one at the end.

    Args:
        augment: Makes the views.
        loader: Validation data, from which a few images are shown.
        task: Sets the attack of an epoch.
        accelerator: Processes and trackers; the main process writes.
        folder: Folder to write to.
        num_epochs: Number of epochs of the training.
        seed: Seed of the random starts.
        interval: Epochs between sheets; 0 for only the one at the end.
        class_names: Names of the classes, if they have any.
    """

    def __init__(
        self,
        augment: DADAugment,
        loader: Any,
        task: TrainingTask,
        accelerator: Accelerator,
        folder: Path,
        num_epochs: int,
        *,
        seed: int,
        interval: int,
        class_names: Sequence[str] | None,
    ) -> None:
        self.augment, self.loader, self.task = augment, loader, task
        self.accelerator, self.folder = accelerator, folder
        self.seed, self.interval, self.num_epochs, self.class_names = seed, interval, num_epochs, class_names
        blind = [tracker.name for tracker in accelerator.trackers if tracker.name not in PICTURE_TRACKERS]
        if interval and blind:
            _logger.warning('--dad-preview-interval: %s accepts no pictures, see the output folder', ', '.join(blind))

    def __call__(self, epoch: int) -> None:
        """Write the sheet of an epoch, if it is due."""
        due = self.interval and is_due(epoch, self.interval, self.num_epochs)
        if not due or not self.accelerator.is_main_process:
            return
        pixels = np.asarray(self._write(epoch, f'preview-{epoch}.png'))
        for tracker in self.accelerator.trackers:
            if tracker.name in PICTURE_TRACKERS:
                tracker.log_images({'preview': pixels[None]}, step=epoch, **PICTURE_TRACKERS[tracker.name])

    def at_end(self) -> dict[str, Any]:
        """Write ``preview.png`` of the last epoch; return its path as ``preview``."""
        if self.accelerator.is_main_process:
            self._write(max(0, self.num_epochs - 1), 'preview.png')
        return {'preview': str(self.folder / 'preview.png')}

    def _write(self, epoch: int, name: str) -> Image.Image:
        if isinstance(self.task, DADTask):
            self.task.set_epoch(epoch)
        images = [
            preview_image(self.augment, x_pix, label, title=title, seed=view_seed(self.seed, place, epoch))
            for place, (x_pix, label, title) in enumerate(self.images)
        ]
        names = shown_names(self.class_names, self.augment.teacher.num_classes)
        sheet = make_sheet(images, names, f'epoch {epoch}; {describe_settings(self.augment)}')
        write_file(self.folder / name, png_bytes(sheet))
        return sheet

    @cached_property
    def images(self) -> list[tuple[Tensor, int | Tensor, str]]:
        """A few validation images in [0, 1], spread evenly (or from a stream's first batch), with labels and titles."""
        dataset, to_pixels = self.loader.dataset, self.augment.norm.to_pixels
        if isinstance(dataset, IterableDataset):
            with torch.random.fork_rng(devices=[]):  # loaders draw seeds for their workers
                input, target = next(iter(self.loader))
            chosen = spread(len(target), NUM_IMAGES)
            return [(to_pixels(input[i : i + 1])[0], as_label(target[i]), f'image {i}') for i in chosen]
        shown = []
        for index in spread(len(dataset), NUM_IMAGES):
            image, label = dataset[index]
            # Where timm's prefetcher is to normalize, the data set gives bytes.
            x_pix = torch.as_tensor(image)
            x_pix = x_pix.float() / 255 if x_pix.dtype == torch.uint8 else to_pixels(x_pix[None])[0]
            shown.append((x_pix, as_label(label), f'image {index}'))
        return shown
