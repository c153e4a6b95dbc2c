"""The command ``timm-dad probe``: fit a linear head on the features of an image tower.

Zero-shot is weak off ImageNet (Radford et al. 2021, arXiv:2103.00020, section 3.1.5); a linear probe needs the training
labels and one pass over the pictures. The fit uses torch's LBFGS: the problem is convex and a few lines long, it runs
on the device of the features, including a GPU, and needs no additional package.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from timm_dad.common.errors import user_errors
from timm_dad.common.hashing import content_hash
from timm_dad.common.log import setup_logging
from timm_dad.common.progress import progress
from timm_dad.data.datasets import check_class_names, check_images, dataset_class_names
from timm_dad.flags.config import add_config_arg, parse_checked
from timm_dad.flags.data import add_source_args, create_dataset, data_flag
from timm_dad.flags.execution import add_execution_args, device_rule, pick_device
from timm_dad.flags.parser import Parser, add_alias
from timm_dad.flags.rules import check_rules, under_flag
from timm_dad.frozen.prepare import PRECISIONS, prepare_frozen
from timm_dad.teachers.heads import LinearHead, load_tower, save_head
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.zero_shot import unit_features

_logger = logging.getLogger(__name__)

PROGRAM = 'timm-dad probe'
L2_GRID = tuple(10.0**exponent for exponent in range(0, -9, -1))


def fit_head(
    features: Tensor, labels: Tensor, l2: float, start: tuple[Tensor, Tensor] | None = None, num_classes: int = 0
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression: the minimum of ``mean cross-entropy + l2 / 2 * ||weight||^2``.

    Args:
        features: ``[N, D]``.
        labels: Class indices ``[N]``.
        l2: Strength of the regularization.
        start: Weight and bias to start from; zeros by default.
        num_classes: ``K``; by default the number of classes in ``labels``.

    Returns:
        Weight ``[K, D]`` and bias ``[K]``.
    """
    num_classes = num_classes or int(labels.max()) + 1
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (part.clone().requires_grad_(True) for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn='strong_wolfe'
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def split_held_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices ``[N]`` by class, at random.

    Args:
        labels: Class indices ``[N]``.
        fraction: Fraction of each class that is held out; none of a class with one picture.
        seed: Seed.

    Returns:
        Indices to fit on, and held-out ones.

    Raises:
        ValueError: If nothing is held out.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = [], []
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        count = min(max(1, round(fraction * len(index))), len(index) - 1)
        held_out.append(index[:count])
        kept.append(index[count:])
    if not sum(map(len, held_out)):
        raise ValueError('every class has one picture: choosing the regularization needs two pictures of some classes')
    return torch.cat(kept), torch.cat(held_out)


def fit_probe(
    features: Tensor, labels: Tensor, num_classes: int, held_out: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Fit a head with its regularization chosen on a held-out part, then refit on everything.

    The choice is by cross-entropy, not by accuracy, because the probabilities are distilled.

    Args:
        features: Features of unit length ``[N, D]``.
        labels: Class indices ``[N]``.
        num_classes: ``K``.
        held_out: Fraction of each class that is held out.
        seed: Seed of the split.

    Returns:
        Weight ``[K, D]``, bias ``[K]`` and the results ``l2``, ``held_out_loss`` and ``held_out_top1`` in percent.

    Raises:
        ValueError: If a class has no picture.
    """
    empty = sorted(set(range(num_classes)) - set(labels.tolist()))
    if empty:
        raise ValueError(f'every class needs pictures to fit on, but the labels {empty[:5]} have none')
    # Features of unit length lie in a narrow cone: centred and scaled, the same problem is well conditioned.
    mean = features.mean(dim=0)
    scale = (features - mean).square().mean().sqrt().clamp_min(1e-12)
    x = (features - mean) / scale
    fit, test = (index.to(x.device) for index in split_held_out(labels.cpu(), held_out, seed))
    start, best = None, (float('inf'), 0.0, 0.0)
    for l2 in L2_GRID:
        start = fit_head(x[fit], labels[fit], l2, start, num_classes)
        logits = F.linear(x[test], *start)
        loss = F.cross_entropy(logits, labels[test]).item()
        top1 = 100 * (logits.argmax(dim=-1) == labels[test]).float().mean().item()
        _logger.info('l2 %.0e: held-out loss %.4f, top-1 %.2f', l2, loss, top1)
        best = min(best, (loss, l2, top1))
        if loss > 2 * best[0]:
            break  # far past the best: the rest of the grid overfits more
    loss, l2, top1 = best
    weight, bias = fit_head(x, labels, l2, num_classes=num_classes)
    weight = weight / scale
    return weight, bias - weight @ mean, {'l2': l2, 'held_out_loss': loss, 'held_out_top1': top1}


@torch.no_grad()
def extract_features(tower: Teacher, loader: DataLoader[tuple[Tensor, Tensor]], device: torch.device) -> list[Tensor]:
    """Extract features ``[N, D]`` of unit length and labels ``[N]`` of a loader's pictures in [0, 1]; on the CPU."""
    features, labels = [], []
    for x_pix, label in progress(loader, desc='Features', leave=False):
        features.append(unit_features(tower, x_pix.to(device)).cpu())
        labels.append(label)
    return [torch.cat(features), torch.cat(labels)]


def main(argv: Sequence[str]) -> None:
    """Run ``timm-dad probe`` with its command line."""
    args = parse_checked(create_parser, argv, _check)
    setup_logging()
    with user_errors(PROGRAM):
        head = make_probe(args)
        save_head(args.output, head)
    _logger.info(
        '%s: %d classes, held-out top-1 %.2f; use it with --dad-teacher probe:%s',
        *(args.output, len(head.weight), head.facts['held_out_top1'], args.output),
    )


def create_parser() -> Parser:
    """Create the parser of ``timm-dad probe``."""
    parser = Parser(
        prog=PROGRAM,
        usage='%(prog)s --data-dir DIR --dad-teacher SPEC --output FILE [flags]',
        description='Fit a linear head on the frozen features of a teacher, for --dad-teacher probe:FILE.',
    )
    add_config_arg(parser)
    add_source_args(parser.add_argument_group('Dataset'), 'train', alias='--train-split')
    group = parser.add_argument_group('DAD: teacher')
    spec = group.add_argument(
        '--dad-teacher', metavar='SPEC', default='open_clip:ViT-L-14/openai',
        help='timm:MODEL, timm:MODEL/FILE or open_clip:MODEL/PRETRAINED',
    )  # fmt: skip
    precision = group.add_argument(
        '--dad-precision', choices=tuple(PRECISIONS), default='fp32', help='precision of the image tower'
    )
    add_alias(group, spec, '--teacher')
    add_alias(group, precision, '--precision')
    group = parser.add_argument_group('Head')
    group.add_argument('--output', metavar='FILE', required=True, help='safetensors file to write')
    group.add_argument('--held-out', type=float, default=0.1, metavar='PART', help='part of each class to choose l2 on')
    group.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the held-out part')
    add_execution_args(parser.add_argument_group('Execution'), 128)
    return parser


def _check(args: argparse.Namespace, _: dict[str, Any]) -> None:
    output = Path(args.output)
    rules = (
        (output.suffix == '.safetensors', f'--output must end in .safetensors, got {args.output!r}'),
        (not output.exists(), f'--output {args.output} already exists: move it away, or give the name of another file'),
        (output.parent.is_dir(), f'--output must be in a folder that exists, got {args.output!r}'),
        (0 < args.held_out < 1, f'--held-out must be between 0 and 1, got {args.held_out}'),
        (args.batch_size > 0, f'--batch-size must be 1 or more, got {args.batch_size}'),
        (args.workers >= 0, f'--workers must be 0 or more, got {args.workers}'),
        device_rule(args.device),
    )
    check_rules(rules)


def make_probe(args: argparse.Namespace) -> LinearHead:
    """Fit the head that the flags describe; raise ``ValueError`` if data or tower cannot be used."""
    dataset = create_dataset(args, args.split, split_flag='--split')
    check_images(dataset, data_flag(args))
    check_class_names(dataset_class_names(dataset), data_flag(args))
    with under_flag(f'--dad-teacher {args.dad_teacher}:'):
        visual, norm = load_tower(args.dad_teacher)
    sha256 = content_hash(visual.state_dict())
    tower = Teacher(visual, **norm, num_classes=0)
    device = pick_device(args.device)
    prepare_frozen(tower, None, args.dad_precision, device)
    size, interpolation = (3, *norm['input_size']), norm['interpolation']
    dataset.transform = create_transform(
        size, is_training=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation
    )
    loader = DataLoader(dataset, args.batch_size, num_workers=args.workers)
    features, labels = extract_features(tower, loader, device)
    names = dataset_class_names(dataset)
    num_classes = len(names) if names else int(labels.max()) + 1
    weight, bias, facts = fit_probe(features.to(device), labels.to(device), num_classes, args.held_out, args.seed)
    return LinearHead(
        weight=weight.cpu(),
        bias=bias.cpu(),
        tower=args.dad_teacher,
        tower_sha256=sha256,
        class_names=names,
        facts={**facts, 'pictures': len(labels), 'seed': args.seed},
    )
