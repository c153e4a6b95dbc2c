#!/usr/bin/env python3
"""Where a GPU's time goes while DAD images are made, and what the VQGAN's steps that are one there give (``fused``).

With the fused steps and without them, in turn in one process: whole attacks, single feature maps of the VQGAN, its
attention, and beside them the two ways to enlarge a feature map. The shares are of the time of the GPU's kernels.
"""

import argparse
import copy
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import harness
import results
import torch
import torch.nn.functional as F
import workload
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from workload import FAITHFUL, LATENT

from timm_dad.frozen.prepare import PRECISIONS
from timm_dad.vqgan import fused, networks

# The first kind whose pattern a kernel's name has.
KINDS = {
    'layout': r'nchwToNhwc|nhwcToNchw|convertTensor|transpose|permute|CatArray',
    'attention': r'attention|flash|fmha|softmax',
    'group norm and SiLU': 'RowwiseMoments|GroupNorm|ComputeInternal|ComputeFused|silu|_moments|_scale_and|_gradient',
    'convolutions and matrix products': r'conv|gemm|xmma|cutlass|cudnn|nvjet|winograd|dgrad|fprop',
    'copies and casts': r'copy|memcpy|memset|fill',
    'sums': r'_add$|CUDAFunctor_add',
    'reductions and search': r'reduce|argm',
}
FUSED, APART = 'fused', 'apart'
# Feature maps [channels, side] of the f8 VQGAN at 224 px, and the groups of its norms.
MAPS, GROUPS = ((128, 224), (256, 112), (512, 28)), 32


@contextmanager
def using(way: str) -> Iterator[None]:
    """Norms as the package computes them, or by PyTorch alone."""
    if way == FUSED:
        yield
        return
    with (
        patch.object(fused, '_fits', lambda *_: False),
        patch.object(networks, 'attention', F.scaled_dot_product_attention),
    ):
        yield


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), 'elementwise')


def shares(function: Callable[[], Any], device: torch.device) -> tuple[str, list[tuple[str, float]]]:
    """Shares of the time of the kernels of a call by kind, in words; and the kernels that take the most of it."""
    activity = ProfilerActivity.CUDA if device.type == 'cuda' else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        function()
        harness.wait(device)
    kinds: dict[str, float] = {}
    kernels = []
    for event in profiler.key_averages():
        time = event.self_device_time_total if device.type == 'cuda' else event.self_cpu_time_total
        kinds[kind_of(event.key)] = kinds.get(kind_of(event.key), 0.0) + time
        kernels.append((event.key, time))
    whole = sum(kinds.values()) or 1.0
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    words = ', '.join(f'{kind} {time / whole:.0%}' for kind, time in ordered if time > whole / 200)
    return words, sorted(((name, time / whole) for name, time in kernels), key=lambda item: -item[1])[:12]


def compare(args: argparse.Namespace, calls: dict[str, Callable[[], Any]], key: str, **figure: Any) -> None:
    """Write the ratio of the seconds of two calls, the second to the first."""
    taken = harness.in_rounds(calls, args.rounds, torch.device(args.device), warmup=2)
    first, second = calls
    seconds = {name: median(values) for name, values in taken.items()}
    detail = f'{seconds[first] * 1e3:.4g} against {seconds[second] * 1e3:.4g} ms; ' + figure.pop('detail')
    ratio = harness.ratio(taken[second], taken[first])
    found = results.Figure.of_ratio(ratio, detail=detail, numbers=seconds, **figure)
    harness.report(args, key, found)


def whole(args: argparse.Namespace) -> None:
    """Profile and compare making DAD images."""
    device = torch.device(args.device)
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    for name, variant in workload.make_variants(args, args.precision, names=(FAITHFUL, LATENT)).items():
        told, peaks = {}, {}

        def call(way: str, variant: workload.Variant = variant) -> Callable[[], Any]:
            def made() -> None:
                with using(way):
                    variant(x_pix, target)

            return made

        for way in (APART, FUSED):
            call(way)()
            before, peak = harness.peak_bytes(call(way), device)
            peaks[way] = (peak - before) / 2**20
            told[way], kernels = shares(call(way), device)
            for kernel, share in kernels:
                sys.stdout.write(f'{name}, {way}: {share:6.1%} {kernel[:110]}\n')
        compare(
            args,
            {way: call(way) for way in (FUSED, APART)},
            f'kernels, {name}, {args.precision}, {args.device}',
            figure=f'speed, making DAD images, {name}, fused steps, {args.precision}, {device.type}',
            against="PyTorch's own steps",
            detail=f'batches of {args.batch_size} at {args.img_size} px; {peaks[FUSED]:.0f} against {peaks[APART]:.0f} '
            f'MiB at the peak; {told[FUSED]}; against {told[APART]}',
        )


def single(args: argparse.Namespace) -> None:
    """Compare norm and SiLU on single feature maps, with a gradient and without, and tell how far they agree."""
    device, dtype = torch.device(args.device), PRECISIONS[args.precision]
    for channels, side in ((64, 8),) if args.quick else MAPS:
        torch.manual_seed(0)
        norm = nn.GroupNorm(GROUPS, channels, eps=1e-6, device=device)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.requires_grad_(False)
        x = torch.randn(args.batch_size, channels, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        conv = nn.Conv2d(channels, 8, 1, device=device, dtype=dtype).to(memory_format=torch.channels_last)

        def forward(norm: nn.Module = norm, x: Tensor = x, conv: nn.Module = conv) -> Tensor:
            with workload.autocast(args.precision, args.device):
                return conv(fused.norm_silu(norm, x))  # type: ignore[no-any-return]

        def call(way: str, gradient: bool, forward: Callable[..., Tensor] = forward, x: Tensor = x) -> Any:
            def called() -> None:
                with using(way), torch.set_grad_enabled(gradient):
                    y = forward(x=x.requires_grad_(gradient))
                    if gradient:
                        torch.autograd.grad(y, x, torch.ones_like(y))

            return called

        sys.stdout.write(f'{channels} x {side}, from fp64: {agreement(norm, x)}\n')
        for gradient in (False, True):
            what = 'group norm and SiLU, then a convolution to 8 channels' + ', and its gradient' * gradient
            compare(
                args,
                {way: call(way, gradient) for way in (FUSED, APART)},
                f'kernels, {channels} x {side}{", gradient" * gradient}, {args.precision}, {args.device}',
                figure=f'speed of {what}, {args.precision}, {device.type}',
                against="PyTorch's own",
                detail=f'feature maps of {channels} x {side} x {side}, batches of {args.batch_size}',
            )


def attentive(args: argparse.Namespace) -> None:
    """Compare the attention of one head of many channels, with its gradient."""
    device, dtype = torch.device(args.device), PRECISIONS[args.precision]
    shape = (args.batch_size, 1, 16 if args.quick else 784, 512)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def call(attention: Callable[..., Tensor]) -> Callable[[], Any]:
        def called() -> None:
            with workload.autocast(args.precision, args.device):
                y = attention(q, k, v)
            torch.autograd.grad(y, (q, k, v), torch.ones_like(y))

        return called

    compare(
        args,
        {FUSED: call(fused.attention), APART: call(F.scaled_dot_product_attention)},
        f'kernels, attention, {args.precision}, {args.device}',
        figure=f'speed of attention by matrix products, with its gradient, {args.precision}, {device.type}',
        against='scaled_dot_product_attention',
        detail=f'batches of {args.batch_size}, {shape[2]} places, one head of 512 channels',
    )


def agreement(norm: nn.GroupNorm, x: Tensor) -> str:
    """How far the fused step in fp32 is from PyTorch's in fp64, beside PyTorch's in fp32."""
    x = x[:2].float().requires_grad_()
    exact = copy.deepcopy(norm).double()
    dy = torch.randn_like(x)
    expected = F.silu(exact(x.double()))
    (gradient,) = torch.autograd.grad(expected, x, dy.double())
    words = []
    for way in (FUSED, APART):
        with using(way):
            y = fused.norm_silu(norm, x)
            (own,) = torch.autograd.grad(y, x, dy)
        words.append(f'{way}: {(y - expected).abs().max():.1e}, gradient {(own - gradient).abs().max():.1e}')
    return '; '.join(words)


def enlarged(args: argparse.Namespace) -> None:
    """Compare a transposed convolution with an upsampling and a convolution."""
    device, dtype = torch.device(args.device), PRECISIONS[args.precision]
    for channels, side in ((16, 8),) if args.quick else MAPS[1:]:
        block: Any = nn.Module()
        block.with_conv, block.conv = True, nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        block.to(memory_format=torch.channels_last)
        x = torch.randn(args.batch_size, channels, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        ways = {
            'one': torch.no_grad()(lambda block=block, x=x: networks.upsample(block, x)),
            'two': torch.no_grad()(lambda block=block, x=x: block.conv(F.interpolate(x, scale_factor=2.0))),
        }
        compare(
            args,
            ways,
            f'kernels, enlarging {channels} x {side}, {args.precision}, {args.device}',
            figure=f'speed of an upsampling and its convolution as one transposed, {args.precision}, {device.type}',
            against='one after the other',
            detail=f'feature maps of {channels} x {side} x {side}, batches of {args.batch_size}',
        )


def main() -> None:
    """Compare all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=5)
    workload.add_flags(parser, batch_size=64, compile=False)
    parser.add_argument('--precision', choices=tuple(PRECISIONS), default='bf16', help='of all networks')
    args = parser.parse_args()
    harness.start(args)
    workload.shrink(args)
    single(args)
    attentive(args)
    enlarged(args)
    whole(args)


if __name__ == '__main__':
    main()
