#!/usr/bin/env python3
"""What stored answers cost and lose: top-K against all classes, mixed answers against asking, and speed of training.

``--only NAME ...`` runs a part. The demo's teacher has 16 classes; with ``--imagenet`` (a folder of ImageNet's layout)
and ``--weights`` an EfficientNet-Lite0 of 1,000 classes is asked, too. Writes ``reinforced.json`` beside this file.

A loss is known by its gradient to the student's logits, ``p_student - p_teacher``: errors are of that, and relative. A
teacher's answer on another augmentation of the same picture stands for the student.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import results
import timm
import torch
from readme_tables import fill, markdown
from timm.data import ImageDataset, Mixup, create_transform
from timm.task import TrainingTask
from torch import Tensor

import train_dad
from timm_dad import Teacher, create_open_clip_teacher, prepare_frozen
from timm_dad.commands import generate
from timm_dad.dad_sets.logits import dense_logits, sparse_logits
from timm_dad.demo.data import DEMO_TEACHER, TEMPLATES, DemoDataset, class_names

OUTPUT = harness.HERE / 'reinforced.json'
MODEL = 'tf_efficientnet_lite0'
AA = 'rand-m9-mstd0.5-inc1'
IMAGENET_TRAIN = 1_281_167
TOP_K = {'demo': (1, 2, 5, 10, 16), MODEL: (1, 5, 10, 20, 50, 100, 1000)}
TEMPERATURES = (1.0, 4.0)
MIXES = {'Mixup 0.8': {'mixup_alpha': 0.8}, 'CutMix 1.0': {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0}}


def load(args: argparse.Namespace) -> Iterator[tuple[str, Any, Teacher, float]]:
    """Name, data set, teacher, and the smallest share of a crop: timm's own on ImageNet, the demo recipe's."""
    demo = create_open_clip_teacher(f'local-dir:{DEMO_TEACHER}', class_names(), TEMPLATES)
    prepare_frozen(demo)
    yield 'demo', DemoDataset('noto', 'train'), demo, 0.5
    if args.imagenet:
        network = timm.create_model(MODEL)
        network.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)
        cfg = network.pretrained_cfg
        teacher = Teacher(network, mean=cfg['mean'], std=cfg['std'], input_size=(224, 224), num_classes=1000)
        prepare_frozen(teacher)
        yield MODEL, ImageDataset(str(args.imagenet)), teacher, 0.08


def augmented(data: Any, teacher: Teacher, count: int, scale: float, seed: int) -> Tensor:
    """Pictures ``[N, 3, H, W]`` in [0, 1], cropped and with RandAugment; the seed says how."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    size = teacher.input_size[0]
    data.transform = create_transform(
        size, is_training=True, auto_augment=AA, scale=(scale, 1.0), mean=(0, 0, 0), std=(1, 1, 1)
    )
    chosen = np.random.default_rng(0).permutation(len(data))[:count]
    return torch.stack([data[int(i)][0] for i in chosen])


@torch.inference_mode()
def ask(teacher: Teacher, x_pix: Tensor) -> Tensor:
    """Logits ``[N, K]``."""
    return torch.cat([teacher(batch) for batch in x_pix.split(32)]).float()


def error(kept: Tensor, full: Tensor, student: Tensor, temperature: float) -> dict[str, float]:
    """What is lost by answers ``kept`` in place of ``full`` ones: KL in nats, gradient, and the likeliest class."""
    p_kept, p_full, p_student = ((logits / temperature).softmax(dim=1) for logits in (kept, full, student))
    kl = (p_full * (p_full.clamp_min(1e-30).log() - p_kept.clamp_min(1e-30).log())).sum(dim=1)
    return {
        'kl': kl.mean().item(),
        'gradient': ((p_kept - p_full).norm() / (p_student - p_full).norm()).item(),
        'agree': (p_kept.argmax(1) == p_full.argmax(1)).double().mean().item(),
    }


def top_k(args: argparse.Namespace) -> dict[str, Any]:
    """Bytes and error by the number of classes that are kept."""
    rows = []
    for name, data, teacher, scale in load(args):
        full, student = (ask(teacher, augmented(data, teacher, args.count, scale, seed)) for seed in (0, 1))
        for k in TOP_K[name]:
            for temperature in TEMPERATURES:
                parts = sparse_logits(full, k, temperature)
                kept = dense_logits(*parts, full.shape[1])
                size = sum(part[0].numel() * part.element_size() for part in parts)
                rows.append({'teacher': name, 'k': k, 'temperature': temperature, 'bytes': size})
                rows[-1] |= error(kept, full, student, temperature)
    return {'rows': rows}


def mixing(args: argparse.Namespace) -> dict[str, Any]:
    """Answers on mixed pictures: the mean of the two answers, and that on the heavier one alone, against asking."""
    rows = []
    for name, data, teacher, scale in load(args):
        x_pix, others = (augmented(data, teacher, args.count // 2 * 2, scale, seed) for seed in (0, 1))
        own = ask(teacher, x_pix)
        for mix, how in MIXES.items():
            mixed, weights = mixed_in_pairs(x_pix, how)
            asked, student = ask(teacher, mixed), ask(teacher, mixed_in_pairs(others, how)[0])
            for temperature in TEMPERATURES:
                mean = weights @ (own / temperature).softmax(1)
                answers = {
                    'mean of the two': temperature * mean.clamp_min(1e-30).log(),
                    'the heavier one alone': own[weights.argmax(1)],
                }
                for what, given in answers.items():
                    row = {'teacher': name, 'mix': mix, 'temperature': temperature, 'answer': what}
                    rows.append(row | error(given, asked, student, temperature))
    return {'rows': rows}


def mixed_in_pairs(x_pix: Tensor, how: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Each two pictures mixed, with a weight of their own, and how much ``[N, N]`` of each is in each; always alike."""
    mixed, weights = [], []
    for start in range(0, len(x_pix), 2):
        np.random.seed(start)
        mixup = Mixup(**how, num_classes=2, label_smoothing=0.0)
        pair, weight = mixup(x_pix[start : start + 2].clone(), torch.arange(2))
        mixed.append(pair)
        weights.append(weight)
    return torch.cat(mixed), torch.block_diag(*weights)


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Pictures that the student sees in a second: trained from a reinforced set, and by plain cross-entropy.

    The data are picture files, as most are: views are, too, and the demo's arrays, which nobody decodes, are not.
    """
    size, half = str(32 if args.quick else args.img_size), ('0.5',) * 3
    loading = '--workers', str(args.workers), '--device', args.device
    aug = ('--aa', AA, '--scale', '0.5', '1.0', '--mean', *half, '--std', *half)
    with tempfile.TemporaryDirectory() as folder:
        dad_set, pictures = Path(folder) / 'set', write_pictures(Path(folder) / 'data', int(size), args.copies)
        data = ('--data-dir', str(pictures), '--num-classes', '16', '--img-size', size, *loading)
        generate.main([
            *data, *aug, '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--reinforce', '2', '--output', str(dad_set),
        ])  # fmt: skip
        torch.set_num_threads(args.threads)
        common = (*data, *aug, '--model', args.model, '--mixup', '0.8', '--output', folder)
        common += ('--epochs', '2', '--val-interval', '2')
        pairs = ('--dad', '--dad-dir', str(dad_set), '--dad-stored-logits', '--batch-size', str(args.batch_size))
        rates: dict[str, Callable[[], float]] = {
            'reinforced': partial(rate, (*common, *pairs), 2 * args.batch_size),
            'plain': partial(rate, (*common, '--batch-size', str(2 * args.batch_size)), 2 * args.batch_size),
        }
        found: dict[str, list[float]] = {name: [] for name in rates}
        for turn in range(args.rounds):
            for name in rates if turn % 2 else reversed(rates):
                found[name].append(rates[name]())
    figure = results.Figure.of_ratio(
        harness.ratio(found['reinforced'], found['plain']),
        figure=f'training from a reinforced set, pictures that the student sees per second, {args.device}',
        against='plain cross-entropy training, the same augmentations',
        at_least=0.97,
        detail=f'{np.median(found["reinforced"]):.4g} against {np.median(found["plain"]):.4g} pictures/s; {args.model} '
        f'at {size} px, batches of {2 * args.batch_size}, RandAugment and Mixup, pictures and views in PNG files; '
        f'{args.rounds} rounds of 2 epochs',
    )
    key = 'training, reinforced' + ('' if args.device == 'cpu' else f', {args.device}')
    harness.report(args, key, figure)
    return {}


def write_pictures(root: Path, size: int, copies: int) -> Path:
    """Write the demo's pictures as PNG files, each so many times, a folder a class; returns the folder."""
    for split in ('train', 'validation'):
        data = DemoDataset('noto', split)
        for index, (picture, label) in enumerate(data):
            folder = root / split / class_names()[label]
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                picture.resize((size, size)).save(folder / f'{index:04}-{copy}.png')
    return root


def rate(flags: tuple[str, ...], batch_size: int) -> float:
    """Pictures per second of a training, from the last step of its first epoch to that of its second.

    So all loading is in it; processes of a loader begin anew with each epoch.
    """
    begins: list[float] = []

    def create_task(*args: Any, **kwargs: Any) -> tuple[TrainingTask, Any]:
        task, augment = train_dad.create_task(*args, **kwargs)
        task.register_forward_pre_hook(lambda module, _: begins.append(time.perf_counter()))
        return task, augment

    train_dad.main(list(flags), create_task=create_task)
    half = len(begins) // 2
    return batch_size * half / (begins[-1] - begins[half - 1])


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    'top-k': top_k,
    'mixing': mixing,
    'training': training,
}


def tables(measured: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/generate.md."""
    header = ['teacher', 'K', 'bytes an answer', 'ImageNet, N = 8', *(f'error at T = {t:g}' for t in TEMPERATURES)]
    lines: dict[tuple[str, int], list[str]] = {}
    for row in measured['top-k']['rows']:
        size = row['bytes'] * 2 * 8 * IMAGENET_TRAIN / 1e9
        start = [row['teacher'], str(row['k']), str(row['bytes']), f'{size:.1f} GB']
        lines.setdefault((row['teacher'], row['k']), start).append(f'{row["gradient"]:.1%}')
    mixes: dict[tuple[str, ...], list[str]] = {}
    for row in measured['mixing']['rows']:
        key = (row['teacher'], row['mix'], row['answer'])
        mixes.setdefault(key, list(key)).append(f'{row["gradient"]:.0%}')
        if row['temperature'] == TEMPERATURES[-1]:
            mixes[key].append(f'{row["agree"]:.0%}')
    errors = [f'error at T = {t:g}' for t in TEMPERATURES]
    return {
        'top-k': markdown(header, list(lines.values())),
        'mixing': markdown(['teacher', 'mixed by', 'answer', *errors, 'same likeliest class'], list(mixes.values())),
    }


def main() -> None:
    """Measure, write, fill the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_flags(parser, rounds=5)
    parser.add_argument('--only', nargs='+', choices=tuple(PARTS), default=tuple(PARTS), help='parts to run')
    parser.add_argument('--imagenet', type=Path, help='folder of ImageNet pictures, one folder a class')
    parser.add_argument('--weights', type=Path, help=f"weights of {MODEL} under timm's names")
    parser.add_argument('--count', type=int, default=400, help='pictures that are asked about')
    parser.add_argument('--model', default='resnet18', help='student of the part training')
    parser.add_argument('--batch-size', type=int, default=32, help='pairs of a batch of the part training')
    parser.add_argument('--img-size', type=int, default=64, help='side of its pictures')
    parser.add_argument('--workers', type=int, default=0, help='processes that load them')
    parser.add_argument('--copies', type=int, default=1, help='how often each of the 821 pictures is there')
    parser.add_argument('--output', type=Path, help=f'where they go (default: {OUTPUT.name}, nowhere if --quick)')
    args = parser.parse_args()
    if args.quick:
        args.count, args.batch_size, args.model = 8, 64, 'test_resnet'
    elif args.output is None:
        args.output = OUTPUT
    harness.start(args)
    for name in args.only:
        measured = PARTS[name](args)
        if measured and args.output:
            about = {'command': harness.command(), 'machine': results.machine(args.device, args.threads)}
            results.store(args.output, name, {**measured, **about, 'versions': results.versions()})
    if args.output == OUTPUT and set(args.only) & {'top-k', 'mixing'}:
        fill(harness.HERE.parent / 'docs' / 'generate.md', tables(results.read(args.output)))


if __name__ == '__main__':
    main()
