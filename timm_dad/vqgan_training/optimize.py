"""Common parts of the VQGAN trainings: settings, an optimizer's step, everything a resume needs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from timm_dad.common.options import check_types, option
from timm_dad.vqgan.model import VQGAN


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and schedule (one cycle).

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = option(1e-4, 'weight decay')
    clip_grad: float = option(1.0, 'largest norm of the gradient', metavar='NORM')
    perceptual_weight: float = option(1.0, 'weight of LPIPS')

    def __post_init__(self) -> None:
        check_types(self)
        for name, (holds, rule) in self.rules().items():
            if not holds:
                raise ValueError(f'{name} must be {rule}, got {getattr(self, name)}')

    def rules(self) -> dict[str, tuple[bool, str]]:
        """Return for each field whether it satisfies its rule, and the rule."""
        return {
            'steps': (self.steps >= 2, '2 or more'),
            'lr': (0 < self.lr < 1, 'between 0 and 1'),
            'weight_decay': (0 <= self.weight_decay <= 1, 'from 0 to 1'),
            'clip_grad': (self.clip_grad > 0, 'more than 0'),
            'perceptual_weight': (0 < self.perceptual_weight < math.inf, 'more than 0 (or --perceptual none)'),
        }


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up over 5 % of the steps, then decay by cosine to zero; needs at least 2 steps."""
    lr = optimizer.param_groups[0]['lr']
    # OneCycleLR divides by zero where the warm-up is one whole step.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=max(0.05, 1.5 / steps))


class Trainer(ABC):
    """Optimizer and schedule of a training, one batch at a time.

    Args:
        vqgan: Trained in place, as far as its parameters require gradients.
        loss: Maps images ``[B, 3, H, W]`` in [0, 1] to ``loss``, a scalar, and other results that ``step`` uses; it is
            wrapped for several processes.
        accelerator: Device, processes and precision (of encoder and decoder; codes and losses stay in fp32).
        config: Optimizer and schedule.

    Attributes:
        steps_done: Number of steps so far.
        best_metric: The metric of the best checkpoint.
        decreasing: Whether a lower metric is better.
    """

    best_metric: str
    decreasing: bool

    def __init__(self, vqgan: VQGAN, loss: nn.Module, accelerator: Accelerator, config: OptimizerConfig) -> None:
        self.accelerator, self.config = accelerator, config
        self.vqgan = vqgan.to(accelerator.device)
        for network in (vqgan.encoder, vqgan.decoder):
            accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
        self.loss = accelerator.prepare_model(loss)
        self._trained = [parameter for parameter in vqgan.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self._trained, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
        self.schedule = one_cycle(optimizer, config.steps)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.steps_done = 0

    @abstractmethod
    def evaluate(self, loader: Any) -> dict[str, float]:
        """Measure metrics on batches of images ``[B, 3, H, W]`` in [0, 1] and labels, only of this process."""

    def step(self, x_pix: Tensor, *more: Any) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], on the device, of this process.
            *more: Further inputs of the loss.

        Returns:
            ``loss``, and its parts before their weights, scalars, detached.
        """
        result: dict[str, Tensor] = self.loss(x_pix, *more)
        self.optimizer.zero_grad()
        self.accelerator.backward(result['loss'])
        if self.accelerator.scaler is not None:  # there is none for fp16 on a CPU
            self.accelerator.unscale_gradients(self.optimizer)
        nn.utils.clip_grad_norm_(self._trained, self.config.clip_grad)
        self.optimizer.step()
        self.steps_done += 1
        if self.steps_done < self.config.steps:  # the last step's rate remains: the schedule would rise again
            self.schedule.step()
        return {name: value.detach() for name, value in result.items()}

    def _stateful(self) -> dict[str, Any]:
        parts = {'vqgan': self.vqgan, 'optimizer': self.optimizer, 'schedule': self.schedule}
        return {**parts, 'scaler': self.accelerator.scaler} if self.accelerator.scaler is not None else parts

    def state_dict(self) -> dict[str, Any]:
        """Return everything an exact resume needs; every process takes part."""
        states = {name: part.state_dict() for name, part in self._stateful().items()}
        return {**states, 'steps_done': self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; a loss scaler starts fresh if there was none."""
        for name, part in self._stateful().items():
            if state.get(name):
                part.load_state_dict(state[name])
        self.steps_done = state['steps_done']
