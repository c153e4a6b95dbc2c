"""What is due when: epochs by an interval, and timm's schedules, stepped as its train.py steps them."""

from typing import Any

from timm_dad.training.resume import TrainState


def is_due(epoch: int, interval: int, num_epochs: int) -> bool:
    """Tell whether an epoch, from 0, is one of every ``interval``, or the last."""
    return epoch + 1 == num_epochs or (epoch + 1) % interval == 0


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
