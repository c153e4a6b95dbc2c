"""A tiny VQGAN for tests: untrained, with the codebook of another."""

import torch

from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.distill import create_tiny


def save_tiny(vqgan, path):
    """Write one with the codebook of ``vqgan``; torch's generator stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_vqgan(create_tiny(vqgan, 16, ch=8), path)
