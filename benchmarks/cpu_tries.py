#!/usr/bin/env python3
"""What could make the VQGAN faster on a CPU: tries on the last level of its decoder, against what is done now.

The last level works at the size of the image: with f8 it is a third of the decoder's multiply-adds. What is done now is
eager PyTorch on channels-last feature maps, the whole batch at once.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import harness
import results
import torch
import workload
from torch import Tensor, nn

from timm_dad.frozen.prepare import PRECISIONS, round_weights
from timm_dad.vqgan.networks import _run_end, _run_level

NOW = 'channels-last'
Run = Callable[[], Tensor]


class LastLevel(nn.Module):
    """Feature maps ``[B, C, H, W]`` to images ``[B, 3, H, W]``, as the end of taming's decoder."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.level, self.norm_out, self.conv_out = decoder.up[0], decoder.norm_out, decoder.conv_out

    def forward(self, h: Tensor) -> Tensor:
        """Decode."""
        return _run_end(self, _run_level(self.level, h))


class Prepacked(nn.Module):
    """A convolution whose weights lie as oneDNN wants them for feature maps of one shape."""

    def __init__(self, conv: nn.Conv2d, shape: torch.Size) -> None:
        super().__init__()
        self.bias, self.dtype = conv.bias, conv.weight.dtype
        self.settings = conv.padding, conv.stride, conv.dilation, conv.groups
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(conv.weight.to_mkldnn(), *self.settings, list(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        pointwise = torch.ops.mkldnn._convolution_pointwise
        return pointwise(x.to(self.dtype), self.packed, self.bias, *self.settings, 'none', [], '')  # type: ignore[no-any-return]


def prepacked(network: nn.Module, shape: torch.Size) -> nn.Module:
    """Put ``Prepacked`` in place of all convolutions of a network whose feature maps have all one size."""
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Conv2d):
            setattr(network, name, Prepacked(module, torch.Size((shape[0], module.in_channels, *shape[2:]))))
        else:
            prepacked(module, shape)
    return network


def build(args: argparse.Namespace, precision: str) -> dict[str, Run]:
    """The tries, each on a network of its own with the same weights, and the same feature maps."""
    dtype = PRECISIONS[precision]

    def network(layout: torch.memory_format = torch.channels_last) -> nn.Module:
        level = LastLevel(workload.build_vqgan(args.vqgan).decoder).eval().requires_grad_(False)
        round_weights(level, dtype)
        return level.to(memory_format=layout)

    channels = network().level.block[0].in_channels
    plain = torch.randn(args.batch_size, channels, args.img_size, args.img_size)
    h = plain.contiguous(memory_format=torch.channels_last)
    pool = ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1))

    def run(function: Callable[[Tensor], Tensor], h: Tensor = h) -> Tensor:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=dtype is torch.bfloat16):
            return function(h).float()

    def in_blocks(size: int, each: Callable[..., Any] = map) -> Run:
        own = network()
        return lambda: torch.cat(list(each(lambda block: run(own, block), h.split(size))))

    now, contiguous, packed = network(), network(torch.contiguous_format), prepacked(network(), h.shape)
    inductor, frozen = (torch.compile(network(), dynamic=False) for _ in range(2))

    def freezing() -> Tensor:
        with torch._inductor.config.patch(freezing=True):
            return run(frozen)

    return {
        NOW: lambda: run(now),
        'contiguous': lambda: run(contiguous, plain),
        'weights prepacked for oneDNN': lambda: run(packed),
        'blocks of 1 image': in_blocks(1),
        'blocks of 2 images': in_blocks(2),
        f'{args.threads} threads, an image each': in_blocks(1, pool.map),
        'inductor': lambda: run(inductor),
        'inductor, freezing': freezing,
    }


def usable(tries: dict[str, Run], tolerance: float) -> dict[str, Run]:
    """Those that run and give the same images, with a line for each of the others."""
    expected, found = tries[NOW](), {}
    for name, run in tries.items():
        try:
            apart = (run() - expected).abs().max().item()
            if apart > tolerance:
                raise ValueError(f'images are apart by {apart:.2g}')
            found[name] = run
        except Exception as error:  # inductor raises what it likes
            sys.stdout.write(f'cpu tries, {name}: {type(error).__name__}, {str(error)[:200]}\n')
    return found


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=5)
    parser.add_argument('--batch-size', type=int, default=4, help='images of a batch')
    parser.add_argument('--img-size', type=int, default=128, help='side of the images')
    parser.add_argument('--vqgan', choices=('openimages-f8-16384', 'tiny'), default='openimages-f8-16384')
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'bf16'), default=('fp32', 'bf16'))
    args = parser.parse_args()
    device = harness.start(args)
    if args.quick:
        args.batch_size, args.img_size, args.vqgan = 2, 16, 'tiny'
    amx = 'with AMX' if torch.cpu._is_amx_tile_supported() else 'without AMX'
    for precision in args.precision:
        tries = usable(build(args, precision), 1e-3 if precision == 'fp32' else 0.2)
        taken = harness.in_rounds(tries, args.rounds, device)
        for name in list(tries)[1:]:
            figure = results.Figure.of_ratio(
                harness.ratio(taken[NOW], taken[name]),
                figure=f"speed of the last level of the VQGAN's decoder, {precision}, {name}, cpu {amx}",
                against=f'{NOW}, eager, {args.batch_size} images at once, {args.threads} threads',
                detail=f'{median(taken[name]):.3g} against {median(taken[NOW]):.3g} s; {args.rounds} rounds of '
                f'{args.batch_size} images at {args.img_size} px',
                numbers={'seconds': taken[name], 'now': taken[NOW]},
            )
            machine = results.machine('cpu', args.threads)
            results.write(args.results, f'cpu tries, {precision}, {name}', figure, harness.command(), machine)


if __name__ == '__main__':
    main()
