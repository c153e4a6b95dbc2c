"""What the released generator of DAD images computes for a batch, written anew on taming's own modules.

Source: ``generate_examples.py``, ``attacks/pgd.py`` and ``third_party/vqgan.py`` of
lapisrocks/DiscreteAdversarialDistillation. It is what ours is held against, with the same weights:

- student forward in training mode, with its graph; nobody reads the result;
- clean teacher forward; nobody reads the result;
- ``Q(x)``, without gradients;
- for 8 of 10 batches a random start on the sphere; one teacher forward and backward to the input; one step, projection;
- ``Q`` of that, and a teacher forward on it whose prediction is compared with a method, which is always false.

Networks are laid out as they are built (NCHW). The quantizer builds all distances at once, then looks the codes up,
as in the released ``vqgan.py``; ``one-hot`` is ``VectorQuantizer`` of taming-transformers in its place, which also
builds a matrix of ones and zeros.

NOTE: left out, because it would only flatter ours: autograd's anomaly detection, which is on in the released script;
printing every label; writing PNGs one after another; rebuilding and reloading the VQGAN every epoch; the data loader.
The released code runs the attack and the VQGAN in fp32 even with ``--amp``; here the caller's autocast goes for all of
it. Its teacher takes raw pixels; here it normalizes them, as ours.
"""

import contextlib
import io
import random
from typing import Literal

import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules import model as taming
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn

from timm_dad import VQGAN, Teacher

EPS, STEP_SIZE = 0.1, 0.01  # L2, over the whole image, in [0, 1] pixel units
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LookupQuantizer(nn.Module):
    """The released quantizer: every distance at once, then a look-up.

    Args:
        n_embed: Number of codes.
        embed_dim: Channels of one code.
    """

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[B, D, h, w]`` to the nearest codes, and their indices ``[B * h * w]``."""
        rows = z.permute(0, 2, 3, 1).contiguous()
        flat, codebook = rows.flatten(0, 2), self.embedding.weight
        squares = (flat**2).sum(1, keepdim=True) + (codebook**2).sum(1)
        codes = (squares - 2 * torch.einsum('nd,kd->nk', flat, codebook)).argmin(1)
        return self.embedding(codes).view(rows.shape).permute(0, 3, 1, 2).contiguous(), codes


class OneHotQuantizer(VectorQuantizer):
    """taming's ``VectorQuantizer``, all of its forward."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[B, D, h, w]`` to the nearest codes, and their indices ``[B * h * w]``."""
        z_q, _, (_, _, codes) = super().forward(z)
        return z_q, codes.flatten()


class TamingVQGAN(nn.Module):
    """A VQGAN on taming's own ``forward``, with the weights of ours (shared, not copied).

    Args:
        vqgan: Ours.
        quantizer: ``lookup`` or ``one-hot``.
    """

    def __init__(self, vqgan: VQGAN, quantizer: Literal['lookup', 'one-hot'] = 'lookup') -> None:
        super().__init__()
        config = vqgan.config
        channels, sizes = config.ddconfig['z_channels'], (config.n_embed, config.embed_dim)
        with torch.device('meta'), contextlib.redirect_stdout(io.StringIO()):  # taming prints when it builds
            self.encoder = taming.Encoder(**{'double_z': False, **config.ddconfig})
            self.decoder = taming.Decoder(**config.ddconfig)
            self.quantize = LookupQuantizer(*sizes) if quantizer == 'lookup' else OneHotQuantizer(*sizes, beta=0.25)
            self.quant_conv = nn.Conv2d(channels, config.embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.embed_dim, channels, 1)
        weights = {name: value.contiguous() for name, value in vqgan.state_dict().items()}
        self.load_state_dict(weights, assign=True)
        self.eval()

    def forward(self, x_pix: Tensor) -> tuple[Tensor, Tensor]:
        """``Q(x)`` in [0, 1] of images ``[B, 3, H, W]`` in [0, 1], and its codes ``[B * h * w]``."""
        z_q, codes = self.quantize(self.quant_conv(self.encoder(2.0 * x_pix - 1.0)))
        x_vq = self.decoder(self.post_quant_conv(z_q)).float().clamp(-1.0, 1.0)
        return (x_vq + 1.0) / 2.0, codes


class Released(nn.Module):
    """The released generator, for one batch.

    Args:
        vqgan: Ours, whose weights it takes.
        teacher: Its network, normalization and classes.
        student: Its network; gets ImageNet's normalization.
        quantizer: ``lookup`` or ``one-hot``.
        random_start: Probability that a batch starts from a random point of the ball.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        teacher: Teacher,
        student: nn.Module,
        *,
        quantizer: Literal['lookup', 'one-hot'] = 'lookup',
        random_start: float = 0.8,
    ) -> None:
        super().__init__()
        self.vqgan = TamingVQGAN(vqgan, quantizer)
        self.teacher = teacher
        self.student = student.train()
        self.random_start = random_start
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def ask_teacher(self, x_pix: Tensor) -> Tensor:
        """Logits ``[B, K]``, in the precision of the caller (``Teacher.forward`` keeps it out)."""
        return self.teacher.select(self.teacher.model(self.teacher.normalize(x_pix)))

    def forward(self, x_pix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Make DAD images.

        Args:
            x_pix: Images ``[B, 3, H, W]``, range [0, 1].
            target: Class indices ``[B]``.

        Returns:
            DAD images, same shape and range, and their codes ``[B * h * w]``.
        """
        student_logits = self.student((x_pix - self.mean) / self.std)  # its graph lives as long as the batch
        teacher_logits = self.ask_teacher(x_pix)
        with torch.no_grad():
            x_vq, _ = self.vqgan(x_pix)
        x_adv = x_vq
        if random.random() < self.random_start:
            noise = torch.randn_like(x_vq)
            x_adv = (x_vq + EPS * noise / _length(noise)).clamp(0, 1)
        x_adv = x_adv.clone().detach().requires_grad_(True)
        F.cross_entropy(self.ask_teacher(x_adv), target, reduction='none').mean().backward()
        with torch.no_grad():
            moved = x_adv + STEP_SIZE * x_adv.grad / _length(x_adv.grad)
            x_adv = (x_vq + (moved - x_vq).renorm(2, 0, EPS)).clamp(0, 1)
            x_dad, codes = self.vqgan(x_adv)
            self.ask_teacher(x_dad).argmax(1)
        del student_logits, teacher_logits
        return x_dad, codes


def _length(direction: Tensor) -> Tensor:
    """L2 norm of each image ``[B, 3, H, W]``, as ``[B, 1, 1, 1]``, never quite 0."""
    return direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10
