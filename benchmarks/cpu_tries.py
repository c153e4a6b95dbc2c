#!/usr/bin/env python3
"""What could make the VQGAN faster on a CPU: tries on its decoder, against what is done now.

The decoder's last level works at the size of the image: with f8 it is a third of the multiply-adds. What is done now is
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


class Winograd(nn.Module):
    """A 3 x 3 convolution as F(4 x 4, 3 x 3) of Lavin & Gray (2016): matrix products of a quarter of the arithmetic."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # The published matrices: of input tiles, of weights, of output tiles.
        first = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0]]
        to_tiles = torch.tensor([*first, [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]).float()
        of_weights = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
        from_tiles = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
        from_tiles = from_tiles.float()
        weights = torch.einsum('ik,ockl,jl->ijco', of_weights, conv.weight.float(), of_weights)
        self.weights, self.bias = weights.flatten(0, 1).to(conv.weight.dtype), conv.bias
        self.to_tiles, self.from_tiles = torch.kron(to_tiles, to_tiles), torch.kron(from_tiles, from_tiles)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve feature maps whose sides are multiples of 4."""
        batch, channels, height, width = x.shape
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)
        products = (self.to_tiles @ tiles.reshape(36, -1)).view(36, -1, channels) @ self.weights
        out = (self.from_tiles @ products.view(36, -1)).view(4, 4, batch, height // 4, width // 4, -1)
        out = out.permute(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1) + self.bias
        return out.permute(0, 3, 1, 2)


def winograd(conv: nn.Conv2d, shape: torch.Size) -> nn.Module:
    """The convolution by Winograd's algorithm, if it is one of 3 x 3 on sides that are multiples of 4."""
    fits = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and not (shape[-1] % 4 or shape[-2] % 4)
    return Winograd(conv) if fits else conv


def run(function: Callable[[Tensor], Tensor], h: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute a function of feature maps in fp32, or in bf16 by autocast."""
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=dtype is torch.bfloat16):
        return function(h).float()


def with_convolutions(network: nn.Module, h: Tensor, other: Callable[[nn.Conv2d, torch.Size], nn.Module]) -> nn.Module:
    """Put others in place of the convolutions that are called, each told the shape of the feature maps it meets."""
    shapes: dict[nn.Module, torch.Size] = {}
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        conv.register_forward_pre_hook(lambda module, inputs: shapes.update({module: inputs[0].shape}))
        for conv in convolutions
    ]
    run(network, h, convolutions[0].weight.dtype)
    for hook in hooks:
        hook.remove()
    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if conv in shapes:
                setattr(module, name, other(conv, shapes[conv]))
    return network


def build(args: argparse.Namespace, precision: str) -> dict[str, Run]:
    """The tries, each on a network of its own with the same weights, and the same feature maps."""
    dtype = PRECISIONS[precision]

    def network(layout: torch.memory_format = torch.channels_last) -> nn.Module:
        decoder = workload.build_vqgan(args.vqgan).decoder
        part = (decoder if args.part == 'decoder' else LastLevel(decoder)).eval().requires_grad_(False)
        round_weights(part, dtype)
        return part.to(memory_format=layout)

    decoder = workload.build_vqgan(args.vqgan).decoder
    side = args.img_size // 2 ** (decoder.num_resolutions - 1)
    last = decoder.up[0].block[0].in_channels, args.img_size, args.img_size
    shape = (decoder.conv_in.in_channels, side, side) if args.part == 'decoder' else last

    plain = torch.randn(args.batch_size, *shape)
    h = plain.contiguous(memory_format=torch.channels_last)
    pool = ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1))

    def in_blocks(size: int, each: Callable[..., Any] = map) -> Run:
        own = network()
        return lambda: torch.cat(list(each(lambda block: run(own, block, dtype), h.split(size))))

    now, contiguous = network(), network(torch.contiguous_format)
    packed, by_winograd = (with_convolutions(network(), h, other) for other in (Prepacked, winograd))
    inductor, frozen = (torch.compile(network(), dynamic=False) for _ in range(2))

    def freezing() -> Tensor:
        with torch._inductor.config.patch(freezing=True):
            return run(frozen, h, dtype)

    return {
        NOW: lambda: run(now, h, dtype),
        'contiguous': lambda: run(contiguous, plain, dtype),
        'weights prepacked for oneDNN': lambda: run(packed, h, dtype),
        'Winograd convolutions': lambda: run(by_winograd, h, dtype),
        'blocks of 1 image': in_blocks(1),
        'blocks of 2 images': in_blocks(2),
        f'{args.threads} threads, an image each': in_blocks(1, pool.map),
        'inductor': lambda: run(inductor, h, dtype),
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
    harness.add_flags(parser, rounds=5, on_gpu=False)
    parser.add_argument('--part', choices=('last level', 'decoder'), default='last level', help='what is run')
    parser.add_argument('--batch-size', type=int, default=4, help='images of a batch')
    parser.add_argument('--img-size', type=int, default=128, help='side of the images')
    parser.add_argument('--vqgan', choices=('openimages-f8-16384', 'tiny'), default='openimages-f8-16384')
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'bf16'), default=('fp32', 'bf16'))
    args = parser.parse_args()
    device = harness.start(args)
    if args.quick:
        args.batch_size, args.img_size, args.vqgan = 2, 16, 'tiny'
    part = "VQGAN's decoder" if args.part == 'decoder' else "last level of the VQGAN's decoder"
    amx = 'with AMX' if torch.cpu._is_amx_tile_supported() else 'without AMX'
    for precision in args.precision:
        tries = usable(build(args, precision), 1e-3 if precision == 'fp32' else 0.2)
        taken = harness.in_rounds(tries, args.rounds, device)
        for name in list(tries)[1:]:
            figure = results.Figure.of_ratio(
                harness.ratio(taken[NOW], taken[name]),
                figure=f'speed of the {part}, {precision}, {name}, cpu {amx}',
                against=f'{NOW}, eager, {args.batch_size} images at once, {args.threads} threads',
                detail=f'{median(taken[name]):.3g} against {median(taken[NOW]):.3g} s; {args.rounds} rounds of '
                f'{args.batch_size} images at {args.img_size} px',
                numbers={'seconds': taken[name], 'now': taken[NOW]},
            )
            key = f'cpu tries, {args.part}, {precision}, {name}, {amx}'
            harness.report(args, key, figure)


if __name__ == '__main__':
    main()
