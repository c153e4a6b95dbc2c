"""Moving average, compilation, Accelerate and schedule, in the order of timm's train.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from timm.task import TrainingTask, load_task_ema_checkpoint

from timm_dad.training.resume import Resumed, TrainState


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What a training step does beside forward and backward.

    Args:
        accum_steps: Batches an update.
        clip_grad: Where gradients are clipped; ``None`` for not at all.
        clip_mode: ``norm``, ``value`` or ``agc``.
        synchronize: Wait for a GPU after each step.
        log_interval: Updates between two looks at the means.
        save_images: Save a batch as a picture at each look.
        overlap: Make the DAD views of the next batch beside the student's step.
    """

    accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = 'norm'
    synchronize: bool = False
    log_interval: int = 50
    save_images: bool = False
    overlap: bool = False


def prepare_task(
    task: TrainingTask,
    optimizer: Any,
    accelerator: Accelerator,
    resumed: Resumed | None,
    *,
    ema: Mapping[str, Any] | None,
    compiled: Mapping[str, Any] | None,
) -> Any:
    """Track a moving average and compile the student where asked for, and give student and optimizer to Accelerate.

    Args:
        task: The training task.
        optimizer: Of the student.
        accelerator: Device, processes and precision.
        resumed: The checkpoint whose moving average goes on.
        ema: Arguments of ``task.setup_ema``; ``None`` for no moving average.
        compiled: Arguments of ``torch.compile``; ``None`` not to compile.

    Returns:
        The optimizer, prepared.
    """
    if ema is not None:
        task.setup_ema(**ema)
        if resumed is not None:
            load_task_ema_checkpoint(task, resumed.path)
    if compiled is not None:
        task.compile(**compiled)
        if task.has_ema():
            task.compile_ema(**compiled)
    task.trainable_module = accelerator.prepare_model(task.trainable_module)
    return accelerator.prepare_optimizer(optimizer)


def step_schedule(scheduler: Any, epoch: int, metric: float | None) -> None:
    """Step the schedule to an epoch; plateau waits for a metric once its warm-up is over."""
    waits = hasattr(scheduler, 'lr_scheduler') and epoch > scheduler.warmup_t  # plateau
    if metric is not None or not waits:
        scheduler.step(epoch, metric)


def fast_forward(scheduler: Any, state: TrainState, updates_per_epoch: int, accum_steps: int) -> None:
    """Bring the schedule to where a resumed training is."""
    if state.epoch or state.batch:
        scheduler.step_update(state.epoch * updates_per_epoch + -(-state.batch // accum_steps))
        step_schedule(scheduler, state.epoch, None)
