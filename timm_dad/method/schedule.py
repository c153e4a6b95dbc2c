"""Schedule of the DAD view: its probability, weight and attack budget by epoch, as timm schedules mixup."""

import math
from dataclasses import dataclass

import numpy as np

from timm_dad.common.options import check_types, option
from timm_dad.method.attack import AttackConfig
from timm_dad.method.code_space import CodeAttackConfig

EPS_SCHEDULES = ('constant', 'linear', 'cosine')


@dataclass(frozen=True, kw_only=True)
class DADSchedule:
    """Schedule of the DAD view over the epochs of a training.

    Raises:
        ValueError: If a value is out of range.
    """

    prob: float = option(1.0, 'probability that a batch gets a DAD view')
    every: int = option(1, 'make fresh DAD views for every N-th batch, from the first of each epoch on', metavar='N')
    replay: int = option(
        0, 'keep the last N DAD views for batches without fresh ones, which otherwise get no extra view', metavar='N'
    )
    warmup_epochs: int = option(0, 'epochs over which the weight of the extra view rises linearly from 0', metavar='N')
    off_epoch: int = option(0, 'no DAD view from this epoch on; 0: never', metavar='N')
    eps_sched: str = option(
        'constant', 'how radius and step of the attack rise to their full values over --epochs', choices=EPS_SCHEDULES
    )
    eps_start: float = option(0.0, 'radius at the start of the rise, in the unit of the attack')
    epochs: int = option(0, 'epochs over which the radius rises; required if it does')

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.prob <= 1:
            raise ValueError(f'prob is a probability, from 0 to 1, got {self.prob}')
        if self.every < 1:
            raise ValueError(f'every must be 1 (every batch) or more, got {self.every}')
        for name in ('replay', 'warmup_epochs', 'off_epoch', 'eps_start'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name} must be 0 or more, got {getattr(self, name)}')
        if self.replay and not self.prob:
            raise ValueError('replay shows DAD views again, but prob 0 makes none: leave it out')
        if self.eps_sched not in EPS_SCHEDULES:
            raise ValueError(f'eps_sched must be one of {EPS_SCHEDULES}, got {self.eps_sched!r}')
        if self.eps_sched != 'constant' and self.epochs < 1:
            raise ValueError(f'eps_sched {self.eps_sched} needs the number of epochs, got {self.epochs}')

    @property
    def always(self) -> bool:
        """Whether every batch gets a DAD view, fresh or not."""
        in_each_batch = self.replay > 0 or (self.prob == 1 and self.every == 1)
        return in_each_batch and not self.warmup_epochs and not self.off_epoch

    def draws(self, seed: int, epoch: int, batch: int) -> bool:
        """Draw whether a batch of an epoch, both from 0, gets a DAD view of its own; the same for the same numbers."""
        return batch % self.every == 0 and bool(np.random.default_rng((seed, epoch, batch)).random() < self.prob)

    def weight(self, epoch: int) -> float:
        """Return the factor of the DAD loss in an epoch, from 0 (no DAD view is made) to 1."""
        if self.off_epoch and epoch >= self.off_epoch:
            return 0.0
        return min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0

    def shares(self, epochs: int) -> dict[str, float]:
        """Return the fractions of a training's batches by the view they get; they sum to 1.

        Args:
            epochs: Epochs of the training.

        Returns:
            ``view`` (a fresh DAD view), ``replayed`` (a kept one) and ``none``, without fractions that are 0.
        """
        weighted = sum(self.weight(epoch) > 0 for epoch in range(epochs)) / max(epochs, 1)
        view = weighted * self.prob / self.every
        replayed = weighted - view if self.replay else 0.0
        shares = {'view': view, 'replayed': replayed, 'none': 1 - view - replayed}
        return {name: share for name, share in shares.items() if share > 1e-9}

    def attack(self, full: AttackConfig | CodeAttackConfig, epoch: int) -> AttackConfig | CodeAttackConfig:
        """Return the attack of an epoch: its radius is between ``eps_start`` and the full one, its step in proportion.

        Args:
            full: The attack at the end.
            epoch: Epoch, from 0.

        Returns:
            The attack of the epoch; ``full`` from the last epoch on.
        """
        if self.eps_sched == 'constant' or not full.eps:
            return full
        progress = (epoch + 1) / self.epochs
        if progress >= 1:
            return full
        if self.eps_sched == 'cosine':
            progress = (1 - math.cos(math.pi * progress)) / 2
        eps = self.eps_start + (full.eps - self.eps_start) * progress
        return full.scaled(eps)
