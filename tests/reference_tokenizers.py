"""Tokenizers as their own libraries compute them, in few lines and under the names of their checkpoints.

diffusers' ``VQModel`` is the real one. LlamaGen and SEED-Voken are on no package index: what stands here was written
from their source, on taming's blocks where theirs are the same.
"""

import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import AttnBlock, Decoder, Downsample, Encoder, ResnetBlock, Upsample
from torch import nn

LEVELS = [1, 1, 2]


def widen(model, codebook=None):
    """Weights whose latents fall on many codes, and whose codes decode to more than grey."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # norms and biases, too
        if codebook is not None:
            codebook.normal_()
            model.quant_conv.weight.mul_(3)
    return model.eval().requires_grad_(False)


def diffusers_model(**changes):
    import diffusers

    blocks = {'block_out_channels': (32, 32, 64), 'layers_per_block': 1, 'latent_channels': 4, 'sample_size': 16}
    model = diffusers.VQModel(
        **{
            **blocks,
            'down_block_types': ('DownEncoderBlock2D', 'DownEncoderBlock2D', 'AttnDownEncoderBlock2D'),
            'up_block_types': ('AttnUpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D'),
            'num_vq_embeddings': 32,
            **changes,
        }
    )
    return widen(model, model.quantize.embedding.weight)


def movq():
    """The kind of kandinsky-community/kandinsky-2-2-decoder, subfolder ``movq``."""
    return diffusers_model(norm_type='spatial', vq_embed_dim=4)


def amused():
    """The kind of amused/amused-256, subfolder ``vqvae``."""
    blocks = {'down_block_types': ('DownEncoderBlock2D',) * 3, 'up_block_types': ('UpDecoderBlock2D',) * 3}
    return diffusers_model(**blocks, mid_block_add_attention=False, lookup_from_codebook=True)


def of_diffusers(model, x_pix):
    """Codes ``[B, h, w]`` and images in [0, 1] of a ``VQModel``."""
    h = model.encode(2 * x_pix - 1).latents
    codes = model.quantize(h)[2][2].view(len(x_pix), *h.shape[2:])
    return codes, (model.decode(h).sample.clamp(-1, 1) + 1) / 2


def _resnet(width, out_width):
    return ResnetBlock(in_channels=width, out_channels=out_width, temb_channels=0, dropout=0.0)


class _LlamaGenHalf(nn.Module):
    """Encoder or decoder of LlamaGen: blocks under ``conv_blocks``, attention at the smallest size."""

    def __init__(self, decodes, ch=32, z_channels=8, blocks=1):
        super().__init__()
        widths = [ch * factor for factor in LEVELS]
        self.decodes, width = decodes, widths[-1] if decodes else ch
        self.conv_in = nn.Conv2d(z_channels if decodes else 3, width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for index, out in reversed(list(enumerate(widths))) if decodes else enumerate(widths):
            level, smallest = nn.Module(), index == len(widths) - 1
            count = blocks + decodes
            level.res = nn.ModuleList(_resnet(out if i else width, out) for i in range(count))
            level.attn = nn.ModuleList(AttnBlock(out) for _ in range(count) if smallest)
            if decodes and index:
                level.upsample = Upsample(out, True)
            if not decodes and not smallest:
                level.downsample = Downsample(out, True)
            self.conv_blocks.append(level)
            width = out
        inner = widths[-1]
        self.mid = nn.ModuleList([_resnet(inner, inner), AttnBlock(inner), _resnet(inner, inner)])
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3 if decodes else z_channels, 3, padding=1)

    def middle(self, h):
        return self.mid[2](self.mid[1](self.mid[0](h, None)), None)

    def forward(self, x):
        h = self.conv_in(x)
        if self.decodes:
            h = self.middle(h)
        for level in self.conv_blocks:
            for index, block in enumerate(level.res):
                h = block(h, None)
                h = level.attn[index](h) if len(level.attn) else h
            for name in ('upsample', 'downsample'):
                h = getattr(level, name)(h) if hasattr(level, name) else h
        if not self.decodes:
            h = self.middle(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class LlamaGen(nn.Module):
    """``VQModel`` of FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = _LlamaGenHalf(False), _LlamaGenHalf(True)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(32, 4)
        self.quantize.register_buffer('codebook_used', torch.zeros(64))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        widen(self, self.quantize.embedding.weight)

    def forward(self, x_pix):
        h = self.quant_conv(self.encoder(2 * x_pix - 1))
        z = F.normalize(h.permute(0, 2, 3, 1), dim=-1)
        codebook = F.normalize(self.quantize.embedding.weight, dim=-1)
        codes = torch.cdist(z.flatten(0, 2), codebook).argmin(dim=1).view(z.shape[:3])
        output = self.decoder(self.post_quant_conv(codebook[codes].permute(0, 3, 1, 2)))
        return codes, (output.clamp(-1, 1) + 1) / 2


IBQ_CONFIG = {
    'double_z': False,
    'z_channels': 8,
    'resolution': 16,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': LEVELS,
    'num_res_blocks': 1,
    'attn_resolutions': [4],
    'dropout': 0.0,
}


class IBQ(nn.Module):
    """``IBQ`` of TencentARC/SEED-Voken, ``src/IBQ/models/ibqgan.py``."""

    target = 'src.IBQ.models.ibqgan.IBQ'
    params = {'n_embed': 32, 'embed_dim': 6, 'ddconfig': IBQ_CONFIG, 'l2_normalize': False, 'use_ema': True}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(**IBQ_CONFIG), Decoder(**IBQ_CONFIG)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(32, 6)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        widen(self, self.quantize.embedding.weight)

    def forward(self, x_pix):
        h = self.quant_conv(self.encoder(2 * x_pix - 1))
        logits = torch.einsum('bdhw,nd->bnhw', h, self.quantize.embedding.weight)
        codes = logits.softmax(dim=1).argmax(dim=1)
        quantized = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return codes, (self.decoder(self.post_quant_conv(quantized)).clamp(-1, 1) + 1) / 2


MAGVIT2_CONFIG = {
    'double_z': False,
    'z_channels': 5,
    'resolution': 16,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': LEVELS,
    'num_res_blocks': 2,
}


class OpenMAGVIT2:
    """``VQModel`` of TencentARC/SEED-Voken, ``src/Open_MAGVIT2/models/lfqgan.py``, as functions of named weights."""

    target = 'src.Open_MAGVIT2.models.lfqgan.VQModel'
    params = {'n_embed': 32, 'embed_dim': 5, 'ddconfig': MAGVIT2_CONFIG, 'use_ema': True}  # noqa: RUF012

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def conv(self, x, name, **kwargs):
        return F.conv2d(x, self.state[f'{name}.weight'], self.state.get(f'{name}.bias'), **kwargs)

    def norm(self, x, name):
        return F.group_norm(x, 32, self.state[f'{name}.weight'], self.state[f'{name}.bias'], eps=1e-6)

    def blocks(self, x, name):
        for index in range(MAGVIT2_CONFIG['num_res_blocks']):
            at = f'{name}.{index}'
            h = self.conv(F.silu(self.norm(x, f'{at}.norm1')), f'{at}.conv1', padding=1)
            h = self.conv(F.silu(self.norm(h, f'{at}.norm2')), f'{at}.conv2', padding=1)
            x = h + (self.conv(x, f'{at}.nin_shortcut') if f'{at}.nin_shortcut.weight' in self.state else x)
        return x

    def encode(self, x):
        h = self.conv(x, 'encoder.conv_in', padding=1)
        for index in range(len(LEVELS)):
            h = self.blocks(h, f'encoder.down.{index}.block')
            if index < len(LEVELS) - 1:
                h = self.conv(h, f'encoder.down.{index}.downsample', stride=2, padding=1)
        h = self.blocks(h, 'encoder.mid_block')
        return self.conv(F.silu(self.norm(h, 'encoder.norm_out')), 'encoder.conv_out')

    def adapt(self, x, z, name):
        values = z.flatten(2)
        gamma, beta = (
            F.linear(each, self.state[f'{name}.{of}.weight'], self.state[f'{name}.{of}.bias'])[..., None, None]
            for of, each in (('gamma', (values.var(dim=-1) + 1e-6).sqrt()), ('beta', values.mean(dim=-1)))
        )
        return gamma * F.group_norm(x, 32, eps=1e-6) + beta

    def decode(self, z):
        h = self.blocks(self.conv(z, 'decoder.conv_in', padding=1), 'decoder.mid_block')
        for index in reversed(range(len(LEVELS))):
            h = self.blocks(self.adapt(h, z, f'decoder.adaptive.{index}'), f'decoder.up.{index}.block')
            if index:
                h = self.conv(h, f'decoder.up.{index}.upsample.conv1', padding=1)
                batch, width, height, side = h.shape  # depth to space: row, column, channel
                h = h.view(batch, 2, 2, width // 4, height, side).permute(0, 3, 4, 1, 5, 2)
                h = h.reshape(batch, width // 4, 2 * height, 2 * side)
        return self.conv(F.silu(self.norm(h, 'decoder.norm_out')), 'decoder.conv_out', padding=1)

    def __call__(self, x_pix):
        signs = torch.where(self.encode(2 * x_pix - 1) > 0, 1.0, -1.0)
        codes = ((signs > 0) * 2 ** torch.arange(5)[:, None, None]).sum(dim=1)
        return codes, (self.decode(signs).clamp(-1, 1) + 1) / 2
