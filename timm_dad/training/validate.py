"""Validation: top-1, top-5 and loss, or mAP and F1 for multi-label, over all processes, each image counted once."""

from collections import OrderedDict
from typing import Any

import torch
from accelerate import Accelerator
from timm import utils
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset

from timm_dad.data.pictures import NOTHING_READ, DataError
from timm_dad.training.meters import Metrics


def eval_model(task: TrainingTask, *, use_ema: bool = True) -> nn.Module:
    """Return the model to evaluate: the moving average, if there is one, else the student; without distributed wrapper.

    Args:
        task: The training task.
        use_ema: Whether to use the moving average.
    """
    model: nn.Module = task.get_eval_model(ema=use_ema and task.has_ema())
    return model.module if isinstance(model, DistributedDataParallel) else model


def validate_task(
    task: TrainingTask, loader: Any, accelerator: Accelerator, *, use_ema: bool = True
) -> tuple[Metrics | None, Metrics | None]:
    """Measure the model to evaluate and, if that is the moving average, the student itself; ``None`` without either.

    Args:
        task: The training task.
        loader: From ``create_eval_loader``; ``None`` without validation data.
        accelerator: Device and processes.
        use_ema: Whether to use the moving average, if there is one.
    """
    if loader is None:
        return None, None
    averaged = use_ema and task.has_ema()

    def measure(*, use_ema: bool) -> Metrics:
        # timm's evaluator, where older ones of timm have none to compare with.
        evaluator = task.create_evaluator() if getattr(task, 'multi_label', False) else Accuracy(accelerator)
        return validate(eval_model(task, use_ema=use_ema), loader, accelerator, evaluator)

    plain = measure(use_ema=False)
    return (measure(use_ema=True), plain) if averaged else (plain, None)


class Accuracy:
    """Loss (cross-entropy), top-1 and top-5 with one class per image, like timm's evaluators, for any timm version."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count logits ``[B, K]`` and class indices ``[B]``."""
        correct = output.topk(min(5, output.shape[1])).indices == target[:, None]
        loss = nn.functional.cross_entropy(output, target, reduction='sum')
        count = torch.tensor(len(target)).to(loss)
        self.totals += torch.stack([count, correct[:, 0].sum(), correct.sum(), loss]).to(self.totals)

    def compute(self, distributed: bool = False) -> Metrics:
        """Return ``loss``, and ``top1`` and ``top5`` in percent, over all processes."""
        count, top1, top5, loss = self.accelerator.reduce(self.totals, reduction='sum').tolist()
        return OrderedDict(loss=loss / count, top1=100 * top1 / count, top5=100 * top5 / count)


@torch.inference_mode()
def validate(model: nn.Module, loader: Any, accelerator: Accelerator, evaluator: Any = None) -> Metrics:
    """Measure a model on validation data.

    Args:
        model: Maps normalized images to logits.
        loader: From ``create_eval_loader``.
        accelerator: Device and processes.
        evaluator: ``Accuracy``, by default, or one of timm's.

    Returns:
        The evaluator's result: ``loss``, and metrics in percent.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    streams = isinstance(loader.dataset, IterableDataset)
    # timm's sampler pads the last round, so that all processes have as many images; what is padded is not counted.
    remaining = 0 if streams else len(range(accelerator.process_index, len(loader.dataset), accelerator.num_processes))
    evaluator, counted = evaluator or Accuracy(accelerator), 0
    for input, target in loader:
        input, target = input.to(accelerator.device, dtype), target.to(accelerator.device)
        count = len(target) if streams else min(len(target), max(remaining, 0))
        remaining -= count
        evaluator.update(model(input).float()[:count], target[:count])
        counted += count
    if streams and not counted:
        raise DataError(NOTHING_READ)
    metrics: Metrics = evaluator.compute(distributed=accelerator.num_processes > 1)
    return metrics


def distribute_batch_norm(task: TrainingTask, num_processes: int, mode: str, *, ema: bool = True) -> None:
    """Unify the running statistics of all processes, as timm does after every epoch.

    Args:
        task: The training task.
        num_processes: Number of processes.
        mode: ``reduce`` (their mean), ``broadcast`` (those of the first) or empty (unchanged).
        ema: Whether to include the moving average.
    """
    if num_processes == 1 or not mode:
        return
    for is_ema in (False, True)[: 1 + ema]:
        module = task.get_trainable_module(ema=is_ema)
        if module is not None:
            utils.distribute_bn(module, num_processes, mode == 'reduce')
