"""Train a VQGAN of taming's modules: L1 with LPIPS or L2, commitment, restart of unused codes.

Without taming's discriminator: DAD needs pictures that a teacher classifies alike, not ones sharper than the data.

Source: Esser et al. 2021, arXiv:2012.09841, section 3.1 (losses); Dhariwal et al. 2020, arXiv:2005.00341, section 3.1
(restart of unused codes).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from timm_dad.common.options import option
from timm_dad.common.pixels import psnr
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.nearest import nearest_codes
from timm_dad.vqgan_training.measure import MOST_PSNR, mean_over_images
from timm_dad.vqgan_training.optimize import OptimizerConfig, Trainer
from timm_dad.vqgan_training.perceptual import Perceptual, picture_loss

# Weight of the term that pulls latents to their codes, as in the paper of VQ-VAE (van den Oord et al. 2017,
# arXiv:1711.00937). taming-transformers' quantizer has it on the other term, which pulls codes to latents.
_BETA = 0.25


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig(OptimizerConfig):
    """How a VQGAN is trained.

    Raises:
        ValueError: If a value is out of range.
    """

    restart_interval: int = option(
        50, 'steps between restarts of unused codes at latents of the batch; 0: never', metavar='N'
    )
    restart_until: float = option(0.7, 'fraction of the steps after which no code is restarted', metavar='PCT')

    def rules(self) -> dict[str, tuple[bool, str]]:
        """Return for each field whether it satisfies its rule, and the rule."""
        return {
            **super().rules(),
            'restart_interval': (self.restart_interval >= 0, '0 or more'),
            'restart_until': (0 <= self.restart_until <= 1, 'a fraction, from 0 to 1'),
        }


class VQGANLoss(nn.Module):
    """The loss of a batch of pictures, as the module that is wrapped for several processes.

    Args:
        vqgan: The VQGAN.
        perceptual: Distance of two batches ``[B, 3, H, W]`` in [0, 1], a scalar; ``None``: use L2 instead.
        perceptual_weight: Weight of the distance.
    """

    def __init__(self, vqgan: VQGAN, perceptual: Perceptual | None, perceptual_weight: float) -> None:
        super().__init__()
        self.vqgan = vqgan
        self.perceptual = (perceptual,)  # in a tuple: no sub-module, for it is neither trained nor saved
        self.perceptual_weight = perceptual_weight

    def forward(self, x_pix: Tensor) -> dict[str, Tensor]:
        """Compute the loss, its parts, and the use of the codebook.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of the factor.

        Returns:
            Scalars ``loss``, ``l1``, ``commitment`` and ``l2`` or ``perceptual``; ``codes`` ``[N]``, the indices used;
            ``latents`` ``[N, embed_dim]``, detached.
        """
        vqgan, (perceptual,) = self.vqgan, self.perceptual
        with torch.autocast(x_pix.device.type, enabled=False):  # encoder and decoder bring a precision of their own
            z = vqgan.encode(x_pix)
            z_flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            codes = nearest_codes(z_flat.detach(), vqgan.codebook.detach())
            z_q = F.embedding(codes, vqgan.codebook).view(z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            commitment = F.mse_loss(z_q, z.detach()) + _BETA * F.mse_loss(z, z_q.detach())
            output = vqgan.decode(z + (z_q - z).detach())
            pictures, parts = picture_loss(output, x_pix, perceptual, self.perceptual_weight)
        scalars = {'loss': pictures + commitment, **parts, 'commitment': commitment}
        return {**scalars, 'codes': codes, 'latents': z_flat.detach()}


class VQGANTrainer(Trainer):
    """Optimizer, schedule and codebook of a training, one batch at a time.

    Args:
        vqgan: Trained in place.
        accelerator: Device, processes and precision (of encoder and decoder; codes and losses stay in fp32).
        config: Settings of the training.
        perceptual: From ``create_lpips``; ``None``: use L2 instead.
    """

    config: VQGANTrainConfig
    best_metric, decreasing = 'l1', True

    def __init__(
        self, vqgan: VQGAN, accelerator: Accelerator, config: VQGANTrainConfig, perceptual: Perceptual | None = None
    ) -> None:
        vqgan.requires_grad_(True).train()
        super().__init__(vqgan, VQGANLoss(vqgan, perceptual, config.perceptual_weight), accelerator, config)
        self.used = torch.zeros(vqgan.config.n_embed, device=accelerator.device)

    def step(self, x_pix: Tensor, *more: Any) -> dict[str, Tensor]:
        """Train on one batch, and restart unused codes when due; see ``Trainer.step``."""
        result = super().step(x_pix, *more)
        codes, latents = result.pop('codes'), result.pop('latents')
        self.used += torch.bincount(codes, minlength=len(self.used))
        if self.config.restart_interval and self.steps_done % self.config.restart_interval == 0:
            self._restart(latents)
        return result

    def evaluate(self, loader: Any) -> dict[str, float]:
        """Measure reconstructions ``Q(x)``, clipped to [0, 1], and the codebook; see ``Trainer.evaluate``.

        Returns:
            ``l1`` (mean absolute error), ``psnr`` (dB, mean over images), ``usage`` (fraction of the codes used by any
            picture) and ``perplexity`` (the number of equally frequent codes with the same entropy).
        """
        vqgan, counts = self.vqgan, torch.zeros_like(self.used, dtype=torch.float64)

        def measure(x_pix: Tensor) -> dict[str, Tensor]:
            x_vq, codes = vqgan.reconstruct(x_pix)
            counts.add_(torch.bincount(codes.flatten(), minlength=len(counts)))
            return {'l1': (x_vq - x_pix).double().abs().mean(dim=(1, 2, 3)), 'psnr': psnr(x_vq, x_pix, MOST_PSNR)}

        means = mean_over_images(vqgan, measure, ('l1', 'psnr'), loader, self.accelerator)
        share = self.accelerator.reduce(counts, reduction='sum')
        share = share / share.sum()
        entropy = -torch.special.xlogy(share, share).sum()
        return {**means, 'usage': (share > 0).double().mean().item(), 'perplexity': entropy.exp().item()}

    def _restart(self, latents: Tensor) -> None:
        """Restart codes that no process used at latents of the main process, and reset the counts."""
        used = self.accelerator.reduce(self.used, reduction='sum')
        dead = (used < 1).nonzero().flatten()
        if self.steps_done - 1 < self.config.restart_until * self.config.steps and len(dead):
            self.vqgan.codebook.data[dead] = latents[torch.randint(len(latents), (len(dead),)).to(latents.device)]
            self.vqgan.codebook.data.copy_(broadcast(self.vqgan.codebook.data))
        self.used.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return everything an exact resume needs; every process takes part."""
        return {**super().state_dict(), 'used': self.accelerator.reduce(self.used, reduction='sum')}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        super().load_state_dict(state)
        if self.accelerator.is_main_process:  # the sum over all processes: one of them has it
            self.used.copy_(state['used'])
