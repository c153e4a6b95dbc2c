#!/usr/bin/env python3
"""What each public VQGAN costs, as the tables of docs/vqgan.md: parameters, multiply-adds and speed.

Weights are random, for none of these depends on them. Speed is that of ``Q(x)`` in fp32, relative to the default, which
is timed in the same rounds; on a CPU by the time of the processor, one thread, which other work disturbs less.
"""

import argparse
import sys
import time
from collections.abc import Callable

import harness
import torch
from torch import Tensor

from timm_dad import VQGAN
from timm_dad.vqgan.config import VQGANConfig
from timm_dad.vqgan.presets import PRESETS
from timm_dad.vqgan_training.distill import pass_macs

DEFAULT = 'openimages-f8-16384'


def reconstruct(config: VQGANConfig, x_pix: Tensor) -> Callable[[], Tensor]:
    """``Q`` of images ``[B, 3, H, W]``, of random weights, as a function to be timed; it has run on a small part."""
    vqgan = VQGAN(config).to(x_pix.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    vqgan(x_pix[..., :32, :32])
    return lambda: vqgan(x_pix)


def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call: on a GPU until it is done, on a CPU of the processor."""
    if device.type == 'cuda':
        return harness.seconds(function, device)
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu or cuda')
    parser.add_argument('--rounds', type=int, default=2, help='measurements of each')
    parser.add_argument('--quick', action='store_true', help='pictures of 32 px, to see that it runs')
    parser.add_argument('--presets', nargs='+', choices=PRESETS, default=list(PRESETS), help='which (default: all)')
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--batch-size', type=int, default=1)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = 32 if args.quick else args.img_size
    x_pix = torch.rand(args.batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    default = reconstruct(PRESETS[DEFAULT].config, x_pix)
    sys.stdout.write(
        '| preset | grid | bits | parameters, M | GMACs | images/s of the default |\n|' + '---|' * 6 + '\n'
    )
    for name in args.presets:
        config = PRESETS[name].config
        with torch.device('meta'):
            parameters = sum(value.numel() for value in VQGAN(config).parameters())
        other = reconstruct(config, x_pix)
        taken = [(seconds(default, device), seconds(other, device)) for _ in range(args.rounds)]
        middle, low, high = harness.ratio(*zip(*taken, strict=True))
        side, bits = size // config.factor, (config.n_embed - 1).bit_length()
        cells = (
            f'`{name}`',
            f'{side} x {side}',
            f'{bits} x {side * side} = {bits * side * side}',
            f'{parameters / 1e6:.1f}',
            f'{pass_macs(config, size) / 1e9:.0f}',
            f'{middle:.2f} ({low:.2f} to {high:.2f})',
        )
        sys.stdout.write(f'| {" | ".join(cells)} |\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
