"""A tiny VQGAN for tests: untrained, with the codebook of another."""

import dataclasses

import torch

from timm_dad.vqgan.model import VQGAN
from timm_dad.vqgan.save import save_vqgan


def save_tiny(vqgan, path):
    """Write one with the codebook of ``vqgan``; torch's generator stays as it is."""
    config = vqgan.config
    ddconfig = {**config.ddconfig, 'ch': 8, 'ch_mult': [1] * len(config.ddconfig['ch_mult']), 'attn_resolutions': []}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tiny = VQGAN(dataclasses.replace(config, ddconfig=ddconfig, networks='tiny')).eval()
    with torch.no_grad():
        tiny.codebook.copy_(vqgan.codebook)
    save_vqgan(tiny, path)
