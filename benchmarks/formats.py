#!/usr/bin/env python3
"""Bytes, decoding speed and lost fidelity of the formats of a DAD set, as the table of docs/generate.md.

Views of the demo's pictures, or of ``--data-dir``. Speed is relative to PNG, one thread; fidelity is PSNR to the view
as the VQGAN decodes it, and on how many the teacher answers with the same class.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORMATS = (
    '--format folder --image-format png',
    '--format folder --image-format jpeg --quality 95',
    '--format folder --image-format jpeg --quality 85',
    '--format folder --image-format webp --quality 95',
    '--format folder --image-format webp --quality 80',
    '--format codes',
)


def measure(flags: list[str], exact: Any, teacher: Any, vqgan: Any) -> tuple[float, float, float, float]:
    """Bytes a view, seconds to read one, PSNR in dB and share of equal answers, against ``exact`` ``[N, 3, H, W]``."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    from timm_dad.commands import generate as generate_command
    from timm_dad.common.pixels import psnr
    from timm_dad.dad_sets.read import DADSet

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            summary = generate_command.main([*flags, '--output', folder])
        dad_set = DADSet(folder)
        dad_set.decoder = vqgan
        names = [item['name'] for manifest in dad_set.manifests() for item in manifest.items]
        rounds = []
        for _ in range(3):
            begin = time.perf_counter()
            pictures = [dad_set.image(index, 0, name) for index, name in enumerate(names)]
            rounds.append((time.perf_counter() - begin) / len(names))
    views = torch.stack([pil_to_tensor(picture) for picture in pictures]).float() / 255
    decibel = psnr(views, exact).mean().item()
    with torch.no_grad():
        same = (teacher(views).argmax(dim=1) == teacher(exact).argmax(dim=1)).float().mean().item()
    return summary['bytes_per_view'], min(rounds), decibel, same


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(ROOT))
    import torch

    from timm_dad.commands import generate as generate_command
    from timm_dad.commands.generate_job import Job, open_source
    from timm_dad.dad_sets.formats import unpack_codes
    from timm_dad.dad_sets.read import DADSet

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data-dir', help='pictures (default: the demo)')
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--dad-teacher', default='demo')
    parser.add_argument('--dad-vqgan', default='demo')
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = ['--data-dir', args.data_dir] if args.data_dir else ['--dataset', 'demo/noto']
    common = [*data, '--img-size', str(args.img_size), '--dad-teacher', args.dad_teacher]
    common += ['--dad-vqgan', args.dad_vqgan, '--workers', '0']
    config = generate_command.parse_args([*common, '--output', '.'])
    source = open_source(config)
    augment = Job.open(config, source, torch.device('cpu')).augment
    vqgan = augment.vqgan
    with tempfile.TemporaryDirectory() as folder:  # the views as the VQGAN decodes them, from their codes
        with contextlib.redirect_stdout(sys.stderr):
            generate_command.main([*common, '--format', 'codes', '--output', folder])
        dad_set = DADSet(folder)
        side = -(-args.img_size // vqgan.config.factor)
        codes = [
            unpack_codes(dad_set._read(i, 0, ''), (side, side), vqgan.config.n_embed) for i in range(dad_set.num_images)
        ]
    with torch.no_grad():
        parts = [vqgan.decode_codes(part) for part in torch.stack(codes).split(64)]
    exact = torch.cat(parts)[..., : args.img_size, : args.img_size]
    rows = [measure([*common, *flags.split()], exact, augment.teacher, vqgan) for flags in FORMATS]
    out = sys.stdout
    out.write(
        '| format | bytes a view | reading a view, PNG = 1 | PSNR, dB | same answer of the teacher |\n'
        '|---|---|---|---|---|\n'
    )
    for flags, (size, seconds, psnr, same) in zip(FORMATS, rows, strict=True):
        out.write(f'| `{flags}` | {size:.0f} | {seconds / rows[0][1]:.2f} | {psnr:.1f} | {same:.1%} |\n')


if __name__ == '__main__':
    main()
