"""Decide what is due when: epochs at an interval, and timm's schedules, stepped as in its train.py."""

from collections.abc import Collection
from typing import Any

from timm.scheduler import create_scheduler_v2

from timm_dad.flags.rules import flag_errors
from timm_dad.training.resume import Resumed, TrainState


def is_due(epoch: int, interval: int, num_epochs: int, also: Collection[int] = ()) -> bool:
    """Return whether an epoch, from 0, completes an ``interval``, is the last, or is the last of ``also`` many."""
    return epoch + 1 == num_epochs or (epoch + 1) % interval == 0 or epoch + 1 in also


def create_schedule(optimizer: Any, *, stop_epoch: int | None, **settings: Any) -> tuple[Any, int]:
    """Create timm's schedule.

    Args:
        optimizer: The student's optimizer.
        stop_epoch: Number of the schedule's epochs to train; all by default.
        **settings: Passed on to ``create_scheduler_v2``.

    Returns:
        The schedule, and the number of epochs to train.

    Raises:
        ValueError: If timm rejects the settings.
    """
    with flag_errors('--sched and its flags'):
        scheduler, num_epochs = create_scheduler_v2(optimizer, **settings)
    return scheduler, stop_epoch or num_epochs


def step_schedule(scheduler: Any, epoch: int, metric: float | None) -> None:
    """Step the schedule to an epoch; plateau waits for a metric once its warm-up is over."""
    waits = hasattr(scheduler, 'lr_scheduler') and epoch > scheduler.warmup_t  # plateau
    if metric is not None or not waits:
        scheduler.step(epoch, metric)


def fast_forward(
    scheduler: Any, state: TrainState, resumed: Resumed | None, updates_per_epoch: int, accum_steps: int
) -> None:
    """Advance the schedule to the position of a resumed training.

    Args:
        scheduler: timm's, new.
        state: Position of the training.
        resumed: The checkpoint, if there is one.
        updates_per_epoch: Number of updates per epoch.
        accum_steps: Batches per update.
    """
    if hasattr(scheduler, 'lr_scheduler'):
        _resume_plateau(scheduler, state, resumed)
    elif state.epoch or state.batch:
        scheduler.step_update(state.epoch * updates_per_epoch + -(-state.batch // accum_steps))
        scheduler.step(state.epoch)


def _resume_plateau(scheduler: Any, state: TrainState, resumed: Resumed | None) -> None:
    """Restore plateau, the only schedule whose rate is not a function of the epoch."""
    progress = resumed.progress if resumed is not None else {}
    if progress.get('plateau'):
        scheduler.lr_scheduler.load_state_dict(progress['plateau'])
        if progress.get('plateau_rates') and state.rates:  # those without noise
            calm = zip(progress['plateau_rates'], state.rates, strict=True)
            scheduler.restore_lr = [rate * factor for rate, (_, factor) in calm]
    if not state.epoch:
        return  # as it was made: timm's step to epoch 0 sets the rate of a warm-up, even without one
    if state.epoch <= scheduler.warmup_t:
        scheduler.step(state.epoch)
        return
    rates = [rate * factor for rate, factor in state.rates] or scheduler.base_values
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group['lr'] = rate
    if resumed is not None and not state.batch:  # written before the step after its epoch
        step_schedule(scheduler, state.epoch, resumed.metric)
