#!/usr/bin/env python3
"""What grows with a DAD set: memory of making one and of training from it, and seconds to open it.

Most of the set is written here, its shards links to one file; ``generate`` goes on with it, makes the last shards and
finishes it, and training draws its batches from all of it. Every measurement has a process of its own.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import results
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from timm_dad import VQGAN, DADAugment, DADPairs, DADSet, Teacher, VQGANConfig, prepare_frozen
from timm_dad.common.spread import spread
from timm_dad.dad_sets.formats import FormatConfig, Item, encode_image, lay_out
from timm_dad.dad_sets.generate import generate
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.manifest import (
    FORMAT_VERSION,
    SETTINGS,
    ShardManifest,
    canonical_json,
    manifest_path,
    settings_id,
)
from timm_dad.dad_sets.match import NUM_COMPARED
from timm_dad.dad_sets.views import SetViews
from timm_dad.data.images import Frame, Source
from timm_dad.training.loaders import create_train_loader

NORM = {'mean': (0, 0, 0), 'std': (1, 1, 1)}
SIDE, CLASSES, SHARD, BATCHES = 8, 10, 200, 40
LAST = 5  # shards that are left to be made
PARTS = ('make', 'generate', 'train', 'open', 'parse')
MEBI = 2**20


class Synthetic(torch.utils.data.Dataset):
    """So many pictures of one colour each, of which it holds none; like torchvision's, it lists no files."""

    transform: Any = None
    classes = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.new('RGB', (SIDE, SIDE), (index % 256, index // 256 % 256, index // 65536))
        return self.transform(image) if self.transform else image, index % CLASSES


def how() -> GenerateConfig:
    """A set of small shards."""
    return GenerateConfig(frame=Frame(size=(SIDE, SIDE)), files=FormatConfig(), shard_size=SHARD, batch_size=100)


def settings(source: Source) -> dict[str, Any]:
    """What ``generate`` gets beside ``how``."""
    data = {'num_images': len(source), 'num_classes': CLASSES, 'class_names': None, 'split': 'train', 'listing': None}
    return {'format_version': FORMAT_VERSION, 'data': {**data, 'identified_by': source.identified_by}}


def write_most(root: Path, source: Source) -> None:
    """Write all shards of a set but the last ones, as ``generate`` would."""
    config = how()
    whole = {**settings(source), **config.settings}
    root.mkdir(parents=True)
    (root / SETTINGS).write_bytes(canonical_json(whole) + b'\n')
    (root / 'shards').mkdir()
    (root / 'manifest').mkdir()
    view = encode_image(np.zeros((SIDE, SIDE, 3), np.uint8), config.files)
    compared = set(spread(len(source), NUM_COMPARED))
    header = {'items': SHARD, 'settings': settings_id(whole), 'codes_used': 'AAA='}  # none of 16
    for shard in range(len(source) // SHARD - LAST):
        indices = range(shard * SHARD, (shard + 1) * SHARD)
        hashes = {index: source.read(index).sha256 if index in compared else f'{index:064x}' for index in indices}
        items = [
            Item(index, source.name(index, index % CLASSES), index % CLASSES, hashes[index], [view])
            for index in indices
        ]
        if not shard:
            contents, places, files = lay_out(0, items, config.files)
            ((first, data),) = contents.items()
            (root / first).write_bytes(data)
        path = f'shards/{shard:06d}.tar'
        if shard:
            os.link(root / first, root / path)
        lines = [
            {**vars(item), 'views': [{**own, 'path': path, 'seed': 2**60 + item.index, 'kept': True, 'l2': 1.234567}]}
            for item, (own,) in zip(items, places, strict=True)
        ]
        own = {**header, 'shard': shard, 'first': indices[0], 'files': [{**files[0], 'path': path}]}
        manifest_path(root, shard).write_bytes(ShardManifest(own, lines).to_bytes())


def create_augment() -> DADAugment:
    """A teacher and a VQGAN that cost next to nothing."""
    sizes = {'z_channels': 2, 'resolution': SIDE, 'in_channels': 3, 'out_ch': 3, 'ch': 32, 'ch_mult': [1, 1]}
    config = VQGANConfig(ddconfig={**sizes, 'num_res_blocks': 0, 'attn_resolutions': []}, n_embed=16, embed_dim=2)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    teacher = Teacher(network, **NORM, input_size=(SIDE, SIDE), num_classes=CLASSES)
    vqgan = VQGAN(config)
    prepare_frozen(teacher, vqgan)
    return DADAugment(teacher, vqgan, **NORM)


def make_rest(root: Path, source: Source) -> int:
    """Peak of ``generate``, which makes what is missing and finishes the set."""
    augment = create_augment()
    _, peak = harness.peak_bytes(
        lambda: generate(source, augment, root, how(), settings(source), progress=False), torch.device('cpu')
    )
    return peak


def train(root: Path, source: Source) -> int:
    """Peak of a training: the set, its pairs with the data, and batches of them in a student's steps."""
    student = timm.create_model('resnet50', num_classes=CLASSES)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)

    def steps() -> None:
        pairs = DADPairs(source, SetViews(DADSet(root), source))
        loader = create_train_loader(
            pairs, Accelerator(cpu=True), seed=0, batch_size=64, input_size=(3, SIDE, SIDE), num_workers=0, no_aug=True
        )
        for number, (images, target) in enumerate(loader):
            if number < 2:
                nn.functional.cross_entropy(student(images), target).backward()
                optimizer.step()
            if number == BATCHES:  # by now rows of all parts of its table were read
                return

    return harness.peak_bytes(steps, torch.device('cpu'))[1]


def measure(args: argparse.Namespace) -> Any:
    """One part, in this process."""
    source = Source(Synthetic(args.images))
    if args.part == 'make':
        return write_most(args.root, source)
    if args.part == 'generate':
        return make_rest(args.root, source)
    if args.part == 'train':
        return train(args.root, source)
    begin = time.perf_counter()
    dad_set = DADSet(args.root)
    if args.part == 'parse':  # as where there is no table
        dad_set.index['files'] = []
        begin = time.perf_counter()
        dad_set._read_table()
    return time.perf_counter() - begin


def run(part: str, root: Path, images: int) -> Any:
    """One part, in a process of its own."""
    return harness.in_process([__file__, '--part', part, '--root', str(root), '--images', str(images)])


def at_once(root: Path, images: int, count: int) -> list[float]:
    """Seconds in which each of several processes opens the set, all at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: run('open', root, images), range(count)))


def figures(args: argparse.Namespace, folder: Path) -> dict[str, results.Figure]:
    """Make a small set and a large one, and measure both."""
    sizes, peaks = {'small': 1_000, 'large': args.images}, {}
    for name, images in sizes.items():
        run('make', folder / name, images)
        peaks[name] = {'generate': run('generate', folder / name, images)}
    for name, images in sizes.items():
        peaks[name]['train'] = min(run('train', folder / name, images) for _ in range(args.rounds))
    found = {}
    for part, what in {'generate': 'making a DAD set', 'train': 'training from a DAD set'}.items():
        few, many = peaks['small'][part], peaks['large'][part]
        found[f'large set, memory, {part}'] = results.Figure(
            figure=f'peak memory, {what} of {args.images:,} images', against='of 1,000 images',
            value=many / few, low=many / few, high=many / few, at_most=1.05,
            detail=f'{many / MEBI:.0f} against {few / MEBI:.0f} MiB; pictures that no list of files is held of',
            numbers={'peak': many, 'small': few},
        )  # fmt: skip
    seconds = [run('open', folder / 'large', args.images) for _ in range(args.rounds)]
    together = [max(at_once(folder / 'large', args.images, 4)) for _ in range(args.rounds)]
    parse, shards = run('parse', folder / 'large', args.images), args.images // SHARD
    found['large set, open'] = results.Figure(
        figure=f'opening a DAD set of {shards:,} shards', against='2 s',
        value=median(seconds) / 2, low=min(seconds) / 2, high=max(seconds) / 2, at_most=1,
        detail=f'{median(seconds):.2g} s, and {median(together):.2g} s the slowest of 4 processes at once; without its '
        f'table each would take {parse:.2g} s to parse the manifests',
        numbers={'seconds': seconds, 'four': together, 'parse': parse},
    )  # fmt: skip
    return found


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3, on_gpu=False)
    parser.add_argument('--images', type=int, default=1_000_000, help='of the large set')
    parser.add_argument('--part', choices=PARTS, help='measure this one, here')
    parser.add_argument('--root', type=Path, help='the set, of --part')
    args = parser.parse_args()
    args.threads = 1
    if args.part:
        torch.set_num_threads(1)
        sys.stdout.write(f'{json.dumps(measure(args))}\n')
        return
    harness.start(args)
    args.images = 10_000 if args.quick else args.images
    with tempfile.TemporaryDirectory() as folder:
        for key, figure in figures(args, Path(folder)).items():
            harness.report(args, key, figure)


if __name__ == '__main__':
    main()
