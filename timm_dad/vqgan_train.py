"""Training a VQGAN of taming's modules: L1 with LPIPS or L2, commitment, restart of unused codes.

Without taming's discriminator: DAD wants pictures that a teacher reads alike, not sharper ones than the data holds.

Source: Esser et al. 2021, arXiv:2012.09841, section 3.1 (losses); Dhariwal et al. 2020, arXiv:2005.00341, section 3.1
(restart of codes that are not used).
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import save_file
from torch import Tensor, nn

from timm_dad.discretize import VQGAN, nearest_codes
from timm_dad.extras import require_extra

_logger = logging.getLogger(__name__)

# Weight of the term that pulls latents to their codes, as in taming.
_BETA = 0.25
# A mean squared error of 1e-10 is 100 dB: a picture that is reconstructed exactly has no finite PSNR.
_LEAST_MSE = 1e-10

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """How a VQGAN is trained.

    Args:
        steps: Optimizer steps of the whole training; the schedule (one cycle) spans them.
        lr: Highest learning rate, of AdamW.
        weight_decay: Its weight decay.
        clip_grad: Largest norm of the gradient.
        perceptual_weight: Weight of LPIPS, where it is used.
        restart_interval: Steps after which codes that no latent took are put on latents of the batch; 0 for never.
        restart_until: Fraction of the steps after which none is restarted.

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = 1e-4
    clip_grad: float = 1.0
    perceptual_weight: float = 1.0
    restart_interval: int = 50
    restart_until: float = 0.7

    def __post_init__(self) -> None:
        rules = {
            'steps': (self.steps >= 2, '2 or more'),
            'lr': (0 < self.lr < 1, 'between 0 and 1'),
            'weight_decay': (0 <= self.weight_decay <= 1, 'from 0 to 1'),
            'clip_grad': (self.clip_grad > 0, 'more than 0'),
            'perceptual_weight': (0 < self.perceptual_weight < math.inf, 'more than 0 (or --perceptual none)'),
            'restart_interval': (self.restart_interval >= 0, '0 or more'),
            'restart_until': (0 <= self.restart_until <= 1, 'a fraction, from 0 to 1'),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f'{name} must be {rule}, got {getattr(self, name)}')


class VQGANLoss(nn.Module):
    """The loss of a batch of pictures; what is wrapped for several processes.

    Args:
        vqgan: The VQGAN.
        perceptual: Distance of two batches ``[B, 3, H, W]`` in [0, 1], a scalar; ``None``: L2 in its place.
        perceptual_weight: Its weight.
    """

    def __init__(self, vqgan: VQGAN, perceptual: Perceptual | None, perceptual_weight: float) -> None:
        super().__init__()
        self.vqgan = vqgan
        self.perceptual = [perceptual]  # in a list: no sub-module, for it is neither trained nor saved
        self.perceptual_weight = perceptual_weight

    def forward(self, x_pix: Tensor) -> dict[str, Tensor]:
        """Compute the loss, its parts, and what the codebook did.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of the factor.

        Returns:
            Scalars ``loss``, ``l1``, ``commitment`` and ``l2`` or ``perceptual``; ``codes`` ``[N]``, the indices taken;
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
            l1 = F.l1_loss(output, x_pix)
            if perceptual is None:
                second = {'l2': F.mse_loss(output, x_pix)}
                loss = l1 + second['l2'] + commitment
            else:
                second = {'perceptual': perceptual(output, x_pix)}
                loss = l1 + self.perceptual_weight * second['perceptual'] + commitment
        return {'loss': loss, 'l1': l1, **second, 'commitment': commitment, 'codes': codes, 'latents': z_flat.detach()}


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up over 5 % of the steps, then cosine to zero; for 2 steps or more."""
    lr = optimizer.param_groups[0]['lr']
    # OneCycleLR divides by zero where the warm-up is one whole step.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=max(0.05, 1.5 / steps))


class VQGANTrainer:
    """Optimizer, schedule and codebook of a training, one batch at a time.

    Args:
        vqgan: Trained in place.
        accelerator: Device, processes and precision (of encoder and decoder; codes and losses stay in fp32).
        config: How it is trained.
        perceptual: From ``create_lpips``; ``None``: L2 in its place.
    """

    def __init__(
        self, vqgan: VQGAN, accelerator: Accelerator, config: VQGANTrainConfig, perceptual: Perceptual | None = None
    ) -> None:
        self.accelerator, self.config = accelerator, config
        self.vqgan = vqgan.to(accelerator.device).requires_grad_(True).train()
        for network in (vqgan.encoder, vqgan.decoder):
            accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
        self.loss = accelerator.prepare_model(VQGANLoss(vqgan, perceptual, config.perceptual_weight))
        optimizer = torch.optim.AdamW(
            vqgan.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.schedule = one_cycle(optimizer, config.steps)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.used = torch.zeros(vqgan.config.n_embed, device=accelerator.device)
        self.codes_used = 0  # codes that some latent took, in the last whole interval
        self.steps_done = 0

    def step(self, x_pix: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], on the device; of this process.

        Returns:
            Loss and parts before their weights, scalars, detached.
        """
        result = self.loss(x_pix)
        self.optimizer.zero_grad()
        self.accelerator.backward(result['loss'])
        if self.accelerator.scaler is not None:  # there is none for fp16 on a CPU
            self.accelerator.unscale_gradients(self.optimizer)
        nn.utils.clip_grad_norm_(self.vqgan.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.schedule.step()
        self.steps_done += 1
        codes, latents = result.pop('codes'), result.pop('latents')
        self.used += torch.bincount(codes, minlength=len(self.used))
        if self.config.restart_interval and self.steps_done % self.config.restart_interval == 0:
            self._restart(latents)
        return {name: value.detach() for name, value in result.items()}

    def _restart(self, latents: Tensor) -> None:
        """Put codes that no process used on latents of the main process, and start counting anew."""
        used = self.accelerator.reduce(self.used, reduction='sum')
        dead = (used < 1).nonzero().flatten()
        self.codes_used = len(used) - len(dead)
        if self.steps_done - 1 < self.config.restart_until * self.config.steps and len(dead):
            self.vqgan.codebook.data[dead] = latents[torch.randint(len(latents), (len(dead),)).to(latents.device)]
            self.vqgan.codebook.data.copy_(broadcast(self.vqgan.codebook.data))
        self.used.zero_()

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs; every process takes part."""
        scaler = self.accelerator.scaler
        return {
            'vqgan': self.vqgan.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'schedule': self.schedule.state_dict(),
            'scaler': scaler.state_dict() if scaler is not None else {},
            'used': self.accelerator.reduce(self.used, reduction='sum'),
            'codes_used': self.codes_used,
            'steps_done': self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.vqgan.load_state_dict(state['vqgan'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.load_state_dict(state['schedule'])
        if state['scaler'] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        if self.accelerator.is_main_process:  # the sum over all processes: one of them has it
            self.used.copy_(state['used'])
        self.codes_used, self.steps_done = state['codes_used'], state['steps_done']


@torch.no_grad()
def evaluate_vqgan(vqgan: VQGAN, loader: Any, accelerator: Accelerator) -> dict[str, float]:
    """Measure reconstructions ``Q(x)``, clipped to [0, 1], and the codebook.

    Args:
        vqgan: The VQGAN; its mode is as before afterwards.
        loader: Batches of images ``[B, 3, H, W]`` in [0, 1] and labels; of this process alone.
        accelerator: Device and processes, over which sums are taken.

    Returns:
        ``l1`` (mean absolute error), ``psnr`` (dB, mean over images), ``usage`` (fraction of the codes that some
        picture takes) and ``perplexity`` (the number of codes that, taken equally often, have as much entropy).
    """
    mode = vqgan.training
    vqgan.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    counts = torch.zeros(vqgan.config.n_embed, dtype=torch.float64, device=accelerator.device)
    for x_pix, _ in loader:
        x_pix = x_pix.to(accelerator.device)
        codes = vqgan.encode_to_codes(x_pix)
        error = (vqgan.decode_codes(codes) - x_pix).double()
        l1, mse = error.abs().mean(dim=(1, 2, 3)), error.square().mean(dim=(1, 2, 3))
        psnr = -10 * mse.clamp_min(_LEAST_MSE).log10()
        sums += torch.stack([torch.tensor(len(x_pix)).to(l1), l1.sum(), psnr.sum()])
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
    vqgan.train(mode)
    count, l1_sum, psnr_sum = accelerator.reduce(sums, reduction='sum').tolist()
    share = accelerator.reduce(counts, reduction='sum')
    share = share / share.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return {
        'l1': l1_sum / count,
        'psnr': psnr_sum / count,
        'usage': (share > 0).double().mean().item(),
        'perplexity': entropy.exp().item(),
    }


def missing_for_lpips() -> str:
    """What LPIPS lacks on this machine, as one clause; empty if nothing."""
    if find_spec('lpips') is None:
        return 'the package lpips is not installed (pip install lpips)'
    name = os.path.basename(torchvision.models.VGG16_Weights.IMAGENET1K_V1.url)
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    if not (folder / name).is_file():
        return f"torchvision's {name} is not in {folder} (--perceptual lpips downloads it)"
    return ''


def create_lpips(device: torch.device) -> Perceptual:
    """LPIPS of the package ``lpips`` on VGG16, as taming trains with.

    NOTE: taming's own copy needs a download of its linear weights and its package ``taming.modules.losses`` needs more
    packages than it names; ``lpips`` ships those weights. VGG16 is torchvision's, downloaded once.

    Args:
        device: Where it runs.

    Returns:
        Mean distance of two batches ``[B, 3, H, W]`` in [0, 1].

    Raises:
        ImportError: If ``lpips`` is not installed.
        ValueError: If its weights cannot be loaded.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """
    try:
        lpips = require_extra('lpips', 'vqgan')
    except ImportError as error:
        raise ImportError('--perceptual lpips needs the package lpips; run: pip install lpips') from error
    try:
        network = lpips.LPIPS(net='vgg', verbose=False).to(device).eval().requires_grad_(False)
    except Exception as error:  # no network, a broken file: torch and torchvision raise what they like
        raise ValueError(f'--perceptual lpips: its VGG16 could not be loaded: {error}') from error

    def distance(output: Tensor, x_pix: Tensor) -> Tensor:
        value: Tensor = network(output, x_pix, normalize=True).mean()
        return value

    return distance


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write weights as safetensors (never half a file under its final name)."""
    temporary = path.with_name(f'{path.name}.tmp')
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in module.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    temporary.chmod(0o644)  # safetensors writes for its owner alone
    os.replace(temporary, path)


def save_vqgan(vqgan: VQGAN, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``NAME.safetensors`` and, beside it, ``NAME.yaml`` in taming's layout: what ``load_vqgan`` reads.

    Args:
        vqgan: The VQGAN.
        path: The weights.
        dtype: Precision on the disk.
    """
    temporary = path.with_name(f'{path.stem}.yaml.tmp')
    temporary.write_text(vqgan.config.to_yaml())
    os.replace(temporary, path.with_suffix('.yaml'))
    write_weights(vqgan, path, dtype)
