"""Distil a VQGAN to a tiny one: the same codebook, similar codes and pictures, a tenth of the arithmetic.

The tiny encoder imitates the original's latents before quantization; the tiny decoder imitates the pictures that the
original decodes from its codes. Both learn in one step; the codebook and the 1 x 1 convolutions around it are the
original's, frozen.

NOTE: the choice of codes is not imitated in addition to the latents (divergence of softmax(-distance)): on the demo,
that gave fewer equal codes, not more.

Source: networks arranged as in TAESD, which is trained similarly (madebyollin/taesd).
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from timm_dad.common.macs import count_macs
from timm_dad.common.pixels import psnr
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan_training.measure import MOST_PSNR, mean_over_images
from timm_dad.vqgan_training.optimize import OptimizerConfig, Trainer
from timm_dad.vqgan_training.perceptual import Perceptual, picture_loss

# By default a tiny VQGAN takes at most this part of the original's multiply-adds.
_SHARE = 0.1
# Widths are multiples of it.
_STEP = 4
# Pictures of one colour have latents that are all the same.
_LEAST_VARIANCE = 1e-12


def pass_macs(config: VQGANConfig, size: int) -> float:
    """Return the multiply-adds of ``Q(x)``, encoder, search and decoder, for a square image the factor divides."""
    with torch.device('meta'), torch.no_grad():
        vqgan = VQGAN(config)
        x = torch.empty(1, 3, size, size)
        networks = count_macs(lambda: vqgan.run_decoder(vqgan.quant_conv(vqgan.encoder(x))))
    return networks + (size // config.factor) ** 2 * config.search_macs


def describe(vqgan: VQGAN, size: int) -> str:
    """Format the parameters, and the multiply-adds of a pass at this image side."""
    parameters = sum(value.numel() for value in vqgan.parameters())
    return f'{parameters / 1e6:.3g} M parameters, {pass_macs(vqgan.config, size) / 1e9:.3g} GMACs a pass at {size} px'


def tiny_config(config: VQGANConfig, ch: int) -> VQGANConfig:
    """Return the architecture of a tiny VQGAN with another one's codes: one width ``ch``, three blocks per size."""
    ddconfig = {
        **config.ddconfig,
        'ch': ch,
        'ch_mult': [1] * len(config.ddconfig['ch_mult']),
        'num_res_blocks': 3,
        'attn_resolutions': [],
    }
    return replace(config, ddconfig=ddconfig, networks='tiny')


def default_ch(config: VQGANConfig, size: int) -> int:
    """Return the width of the widest tiny VQGAN with a tenth of the multiply-adds, at least 4 (64 for the paper's)."""
    most = _SHARE * pass_macs(config, size)
    ch = _STEP
    while pass_macs(tiny_config(config, ch + _STEP), size) <= most:
        ch += _STEP
    return ch


def create_tiny(original: VQGAN, size: int, ch: int | None = None) -> VQGAN:
    """Create a tiny VQGAN to be trained: everything but encoder and decoder is the original's, and frozen.

    Args:
        original: The VQGAN whose codebook it shares.
        size: Side of the images, for the default width.
        ch: Width; ``default_ch`` by default.
    """
    tiny = VQGAN(tiny_config(original.config, ch or default_ch(original.config, size)))
    networks = ('encoder.', 'decoder.')
    shared = {name: value for name, value in original.state_dict().items() if not name.startswith(networks)}
    tiny.load_state_dict({**tiny.state_dict(), **shared})
    tiny.requires_grad_(False)
    for network in (tiny.encoder, tiny.decoder):
        network.requires_grad_(True)
    return tiny


class Targets(NamedTuple):
    """The original's results for a batch of pictures.

    Args:
        latents: Before quantization ``[B, embed_dim, h, w]``, fp32.
        quantized: Their codes, same shape.
        pictures: ``[B, 3, H, W]``, nominally [0, 1], not clamped.
    """

    latents: Tensor
    quantized: Tensor
    pictures: Tensor


@torch.no_grad()
def make_targets(original: VQGAN, x_pix: Tensor) -> Targets:
    """Compute a VQGAN's results for images ``[B, 3, H, W]`` in [0, 1], with sides that are multiples of the factor."""
    latents = original.encode(x_pix).float()
    quantized = original.embed(original.codes_of(latents))
    return Targets(latents, quantized, original.decode(quantized).float())


class DistillLoss(nn.Module):
    """The loss of a batch of pictures, as the module that is wrapped for several processes.

    Args:
        tiny: The VQGAN to train.
        original: The VQGAN to imitate.
        perceptual: Distance of two batches ``[B, 3, H, W]`` in [0, 1], a scalar; ``None``: use L2 instead.
        perceptual_weight: Weight of the distance.
    """

    def __init__(self, tiny: VQGAN, original: VQGAN, perceptual: Perceptual | None, perceptual_weight: float) -> None:
        super().__init__()
        self.tiny = tiny
        self.frozen = (original, perceptual)  # in a tuple: no sub-modules, for they are neither trained nor saved
        self.perceptual_weight = perceptual_weight

    def forward(self, x_pix: Tensor, targets: Targets | None = None) -> dict[str, Tensor]:
        """Compute the loss and its parts.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1], sides multiples of the factor.
            targets: The original's results for them, if known.

        Returns:
            Scalars ``loss``, ``latents`` (squared error in units of their variance), ``l1`` and ``l2`` or
            ``perceptual``.
        """
        original, perceptual = self.frozen
        with torch.autocast(x_pix.device.type, enabled=False):  # encoder and decoder bring a precision of their own
            z_target, z_q, x_target = targets or make_targets(original, x_pix)
            z = self.tiny.encode(x_pix).float()
            latents = F.mse_loss(z, z_target) / z_target.var().clamp_min(_LEAST_VARIANCE)
            output = self.tiny.decode(z_q).float()
            pictures, parts = picture_loss(output, x_target, perceptual, self.perceptual_weight)
        return {'loss': latents + pictures, 'latents': latents, **parts}


class Distiller(Trainer):
    """Optimizer and schedule of a distillation, one batch at a time.

    Args:
        tiny: From ``create_tiny``; trained in place.
        original: The VQGAN to imitate; frozen in place.
        accelerator: Device, processes and precision (of encoders and decoders; codes and losses stay in fp32).
        config: Settings of the training.
        perceptual: From ``create_lpips``; ``None``: use L2 instead.
    """

    best_metric, decreasing = 'psnr', False  # to the original's pictures: encoder and decoder both count

    def __init__(
        self,
        tiny: VQGAN,
        original: VQGAN,
        accelerator: Accelerator,
        config: OptimizerConfig,
        perceptual: Perceptual | None = None,
    ) -> None:
        self.original = original.to(accelerator.device).requires_grad_(False).eval()
        for network in (original.encoder, original.decoder):
            accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
        for network in (tiny.encoder, tiny.decoder):
            network.to(memory_format=torch.channels_last)  # a third off the step, on a CPU too
        loss = DistillLoss(tiny, original, perceptual, config.perceptual_weight)
        super().__init__(tiny.train(), loss, accelerator, config)

    def evaluate(self, loader: Any) -> dict[str, float]:
        """Return the metrics of ``compare``."""
        return compare(self.vqgan, self.original, loader, self.accelerator)


def compare(tiny: VQGAN, original: VQGAN, loader: Any, accelerator: Accelerator) -> dict[str, float]:
    """Measure how similar two VQGANs with the same codebook are.

    Args:
        tiny: The first VQGAN; its mode is restored afterwards.
        original: The second one, in evaluation mode.
        loader: Batches of images ``[B, 3, H, W]`` in [0, 1] and labels, only of this process.
        accelerator: Device and processes, over which sums are taken.

    Returns:
        ``agreement``, the share of equal codes; and means over images of PSNRs in dB: ``psnr`` of the tiny one's
        ``Q(x)`` to the original's, ``psnr_decoder`` of its pictures from the original's codes to the original's,
        ``psnr_input`` of its ``Q(x)`` to the images, and ``psnr_original`` of the original's to the images.
    """
    names = ('agreement', 'psnr', 'psnr_decoder', 'psnr_input', 'psnr_original')

    def measure(x_pix: Tensor) -> dict[str, Tensor]:
        x_original, codes = original.reconstruct(x_pix)
        x_tiny, codes_tiny = tiny.reconstruct(x_pix)
        height, width = x_pix.shape[-2:]
        x_decoder = tiny.decode_codes(codes)[..., :height, :width]
        return {
            'agreement': (codes_tiny == codes).double().mean(dim=(1, 2)),
            'psnr': psnr(x_tiny, x_original, MOST_PSNR),
            'psnr_decoder': psnr(x_decoder, x_original, MOST_PSNR),
            'psnr_input': psnr(x_tiny, x_pix, MOST_PSNR),
            'psnr_original': psnr(x_original, x_pix, MOST_PSNR),
        }

    return mean_over_images(tiny, measure, names, loader, accelerator)
