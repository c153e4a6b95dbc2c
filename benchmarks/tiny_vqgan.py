#!/usr/bin/env python3
"""A tiny VQGAN for the demo's: what it costs, and how alike it is on validation pictures of emoji64.

It is trained on training pictures of the demo's seen styles; no picture of the unseen styles or the tuning style is.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from demo_build import Style, batches, random_affine, random_colour, read_style, to_tensor
from timm.utils import setup_default_logging
from torch import Tensor
from tqdm import tqdm

from timm_dad import VQGAN, load_vqgan
from timm_dad.demo.data import DEMO_VQGAN, SEEN_STYLES, SIZE, UNSEEN_STYLES
from timm_dad.vqgan.save import save_vqgan
from timm_dad.vqgan_training.distill import (
    Distiller,
    Targets,
    compare,
    create_tiny,
    make_targets,
    pass_macs,
)
from timm_dad.vqgan_training.optimize import OptimizerConfig

# Each picture is moved and coloured so many ways, once: the original is most of a step, and its answers are kept.
COPIES = 4
STEPS = 4000
BATCH_SIZE = 64
LR = 3e-3


def pictures(styles: Mapping[str, Style], names: Sequence[str], split: str) -> Tensor:
    """Pictures ``[N, 3, S, S]`` in [0, 1] of a split, ``train`` or ``val``, of some styles."""
    return to_tensor(np.concatenate([styles[name].x[styles[name].split == split] for name in names]))


def build_tiny(
    vqgan: Path,
    styles: Mapping[str, Style],
    output: Path,
    *,
    names: Sequence[str] = SEEN_STYLES,
    steps: int = STEPS,
    ch: int | None = None,
    precision: str = 'bf16',
    seed: int = 0,
) -> Path:
    """Weights of a tiny VQGAN that imitates another; trained if they are not there.

    Args:
        vqgan: The other, as ``load_vqgan`` takes it.
        styles: Pictures by style.
        output: Weights to write, ``NAME.safetensors``; ``NAME.yaml`` is written beside it.
        names: Styles whose training pictures it sees.
        steps: Optimizer steps, of ``BATCH_SIZE`` pictures each.
        ch: Width; by default the widest with a tenth of the multiply-adds.
        precision: Of the training: ``fp32`` or ``bf16``.
        seed: Of all that is random.

    Returns:
        ``output``.
    """
    if output.is_file():
        return output
    x = pictures(styles, names, 'train')
    torch.manual_seed(seed)
    original = load_vqgan(vqgan)
    accelerator = Accelerator(mixed_precision={'fp32': 'no', 'bf16': 'bf16'}[precision], cpu=True)
    trainer = Distiller(create_tiny(original, SIZE, ch), original, accelerator, OptimizerConfig(steps=steps, lr=LR))
    x = torch.cat([random_colour(random_affine(x, 0.2, 0.3, 0.1), 0.3) for _ in range(COPIES)])
    parts = [make_targets(original, batch) for batch in tqdm(x.split(BATCH_SIZE), desc='targets', mininterval=10)]
    targets = Targets(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    progress = tqdm(batches(len(x), BATCH_SIZE, steps), total=steps, desc='tiny VQGAN', mininterval=10)
    for step, index in enumerate(progress):
        means = trainer.step(x[index], Targets(*(tensor[index] for tensor in targets)))
        if step % 50 == 49:
            progress.set_postfix({name: f'{value.item():.4f}' for name, value in means.items()})
    output.parent.mkdir(parents=True, exist_ok=True)
    save_vqgan(trainer.vqgan, output)
    return output


def measure(tiny: VQGAN, original: VQGAN, x_pix: Tensor) -> dict[str, float]:
    """Metrics of ``compare`` on pictures ``[N, 3, S, S]``, in fp32."""
    return compare(tiny, original, [(batch, None) for batch in x_pix.split(100)], Accelerator(cpu=True))


def main() -> None:
    """Train, or take what is there, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--source', type=Path, required=True, help='folder of emoji64: <style>.npz')
    parser.add_argument('--vqgan', type=Path, default=DEMO_VQGAN, help="what it imitates (default: the demo's)")
    parser.add_argument('--output', type=Path, default=Path('output/tiny-demo/vqgan.safetensors'), help='its weights')
    parser.add_argument('--steps', type=int, default=STEPS, help='optimizer steps')
    parser.add_argument('--ch', type=int, help='width (default: the widest with a tenth of the multiply-adds)')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='bf16', help='precision of the training')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    args = parser.parse_args()
    setup_default_logging()
    torch.set_num_threads(args.threads)
    styles = {name: read_style(args.source / f'{name}.npz') for name in (*SEEN_STYLES, *UNSEEN_STYLES)}
    path = build_tiny(
        args.vqgan, styles, args.output, steps=args.steps, ch=args.ch, precision=args.precision, seed=args.seed
    )
    tiny, original = load_vqgan(path), load_vqgan(args.vqgan)
    macs = [pass_macs(vqgan.config, SIZE) / 1e9 for vqgan in (tiny, original)]
    sys.stdout.write(
        '| validation pictures of | GMACs a pass | ratio | equal codes, % | PSNR to the original | of its codes '
        '| to the pictures | the original to the pictures |\n|' + '---|' * 8 + '\n'
    )
    for name in styles:
        found = measure(tiny, original, pictures(styles, (name,), 'val'))
        numbers = (f'{found[of]:.2f}' for of in ('psnr', 'psnr_decoder', 'psnr_input', 'psnr_original'))
        cells = (name, f'{macs[0]:.4f}', f'{macs[1] / macs[0]:.1f}', f'{100 * found["agreement"]:.1f}', *numbers)
        sys.stdout.write(f'| {" | ".join(cells)} |\n')


if __name__ == '__main__':
    main()
