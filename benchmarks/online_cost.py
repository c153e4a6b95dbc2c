#!/usr/bin/env python3
"""What a training update costs, an image of the batch: DAD beside plain training and similar techniques.

Same networks and images, in turn in one process. An update is all from the loader's tensors to the optimizer's step.
What a loader makes is not in it: AugMix's pictures, and views and answers of sets, which were made before.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import harness
import results
import torch
import torch.nn.functional as F
import workload
from safetensors.torch import save_file
from timm.loss import JsdCrossEntropy
from timm.task import LogitDistillationTask
from torch import Tensor, nn

from timm_dad import (
    VQGAN,
    AttackConfig,
    DADAugment,
    DADLossConfig,
    DADTask,
    LatentAttackConfig,
    Teacher,
    ascend,
    prepare_frozen,
)
from timm_dad.common.pixels import PixelNorm
from timm_dad.dad_sets.formats import logits_path
from timm_dad.dad_sets.logits import StoredLogits, add_logits, encode_target
from timm_dad.dad_sets.reinforce import ReinforceConfig
from timm_dad.method.loss import teacher_cross_entropy

PLAIN = 'plain cross-entropy'
SPLITS = 3  # of AugMix: the image and two mixtures of it
# No radius changes what an attack costs.
PGD = AttackConfig(norm='linf', eps=4 / 255, step_size=4 / 255, random_start=1.0)
DAT = AttackConfig(step_size=0.1)
MEBI = 2**20


class Updates:
    """The losses of one training update, by technique.

    Args:
        student: The student, in training mode.
        teacher: The frozen teacher.
        vqgan: The frozen VQGAN.
        x_pix: Images ``[B, 3, H, W]``, range [0, 1].
        target: Class indices ``[B]``.
        folder: Where the answers of a reinforced set are written.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, vqgan: VQGAN, x_pix: Tensor, target: Tensor, folder: Path
    ) -> None:
        self.student, self.teacher, self.vqgan = student, teacher, vqgan
        self.x_pix, self.target, self.folder = x_pix, target, folder
        cfg = student.pretrained_cfg
        self.stats: dict[str, Any] = {'mean': cfg['mean'], 'std': cfg['std']}
        self.norm = PixelNorm(**self.stats)
        self.x_norm = self.norm.normalize(x_pix)

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        """Functions that compute the loss of the batch."""
        x_norm, target = self.x_norm, self.target
        splits, split_targets = x_norm.repeat(SPLITS, 1, 1, 1), target.repeat(SPLITS)
        jsd = JsdCrossEntropy(num_splits=SPLITS)
        return {
            PLAIN: lambda: F.cross_entropy(self.student(x_norm), target),
            'AugMix + JSD': lambda: jsd(self.student(splits), split_targets),
            "timm's distillation": self.timm_distillation(),
            'PGD-1': lambda: self.cross_entropy(self.attack(self.x_pix, PGD)),
            'DAT': self.dat,
            'DAD from Q(x)': self.dad(),
            'DAD from x': self.dad(attack_from='input'),
            'DAD on latents': self.dad(attack=LatentAttackConfig()),
            'DAD from a set': self.pairs(self.teacher, target),
            'DAD from a reinforced set': self.pairs(None, self.coded_target()),
        }

    def cross_entropy(self, *views: Tensor) -> Tensor:
        """Cross-entropy of the student on views ``[B, 3, H, W]`` in [0, 1]."""
        x_norm = torch.cat([self.norm.normalize(view) for view in views])
        return F.cross_entropy(self.student(x_norm), self.target.repeat(len(views)))

    def attack(self, start: Tensor, config: AttackConfig) -> Tensor:
        """Images on which the student's own loss is higher, the student in evaluation mode."""
        self.student.eval()
        x_adv = ascend(
            lambda x: teacher_cross_entropy(self.student(self.norm.normalize(x)), self.target), start, config
        )
        self.student.train()
        return x_adv

    def dat(self) -> Tensor:
        """Loss of discrete adversarial training (Mao et al. 2022): no teacher, cross-entropy on both views."""
        x_adv = self.attack(self.vqgan.reconstruct(self.x_pix)[0], DAT)
        return self.cross_entropy(self.x_pix, self.vqgan.reconstruct(x_adv)[0])

    def timm_distillation(self) -> Callable[[], Tensor]:
        """The loss of timm's task."""
        task = LogitDistillationTask(
            self.student,
            self.teacher.model,
            criterion=nn.CrossEntropyLoss(),
            temperature=4.0,
            device=self.x_pix.device,
            verbose=False,
        ).train()
        return lambda: task(self.x_norm, self.target)['loss']

    def dad(self, **how: Any) -> Callable[[], Tensor]:
        """The loss of ``DADTask`` with views that it makes."""
        task = self.task(self.teacher, DADAugment(self.teacher, self.vqgan, **self.stats, **how))
        return lambda: task(self.x_norm, self.target)['loss']

    def pairs(self, teacher: Teacher | None, target: Tensor) -> Callable[[], Tensor]:
        """The loss of ``DADTask`` on pairs, with the teacher's answers or, without one, stored ones."""
        task = self.task(teacher, None, stored=None if teacher else self.stored_answers())
        views, targets = self.x_norm.repeat(2, 1, 1, 1), target.repeat(2)
        return lambda: task(views, targets)['loss']

    def coded_target(self) -> Tensor:
        """Targets ``[B]`` that say which answers of ``stored_answers`` are theirs."""
        labels = enumerate(self.target.tolist())
        return self.target.new_tensor([encode_target(row, 0, 1, label, workload.NUM_CLASSES) for row, label in labels])

    def task(self, teacher: Teacher | None, augment: DADAugment | None, **rest: Any) -> DADTask:
        """A ``DADTask`` of the student."""
        device = self.x_pix.device
        return DADTask(self.student, teacher, augment, **self.stats, **rest, device=device, verbose=False).train()

    def stored_answers(self) -> StoredLogits:
        """The teacher's answers to the batch and its views, as a reinforced set keeps them."""
        count, temperature = len(self.x_pix), DADLossConfig().temperature
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            logits = self.teacher(self.x_pix)[:, None]
        for of in ('clean', 'dad'):
            add_logits(parts, of, logits, ReinforceConfig.top_k, temperature)
        path = self.folder / logits_path(0)
        path.parent.mkdir(parents=True)
        save_file({name: part for name, (part,) in parts.items()}, path)
        shards: Any = SimpleNamespace(root=self.folder, shard_size=count, check_file=lambda *_: None)
        return StoredLogits(shards, 1, workload.NUM_CLASSES, temperature)


@contextlib.contextmanager
def counted(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, list[int]]]:
    """Count the images that go forward and backward through networks, by their names."""
    passes = {name: [0, 0] for name in networks}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def count(_: nn.Module, __: Any, output: Tensor) -> None:
            passes[name][0] += len(output)
            if output.requires_grad:
                output.register_hook(count_backward)

        def count_backward(gradient: Tensor) -> None:
            passes[name][1] += len(gradient)

        return count

    handles = [network.register_forward_hook(hook(name)) for name, network in networks.items()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the parameters and buffers of a network."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def parts_of(student: nn.Module, teacher: Teacher, vqgan: VQGAN) -> dict[str, nn.Module]:
    """The networks whose passes are counted, by name."""
    return {'student': student, 'teacher': teacher.model, 'encoder': vqgan.encoder, 'decoder': vqgan.decoder}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, results.Figure]:
    """Count the passes of each update and its memory, then time them in turn."""
    device = torch.device(args.device)
    student = workload.build_student(args.student).to(device)
    teacher = workload.build_teacher(args.teacher, device=args.device)
    vqgan = workload.build_vqgan(args.vqgan, device=args.device)
    prepare_frozen(teacher, vqgan, harness.set_precision(args.precision), device, compile=args.compile)
    networks = parts_of(student, teacher, vqgan)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    losses = Updates(student, teacher, vqgan, *workload.images(args.batch_size, args.img_size, device), folder).losses()

    def update(loss_of: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            with workload.autocast(args.precision, args.device):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    steps = {name: update(loss) for name, loss in losses.items()}
    # What the first update loads, or on a GPU the first of each kind to choose algorithms, is not of the update.
    for name in steps if device.type == 'cuda' else (PLAIN,):
        steps[name]()
    numbers: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        with counted(networks) as images:
            before, peak = harness.peak_bytes(step, device)
        passes = {part: [count / args.batch_size for count in counts] for part, counts in images.items() if any(counts)}
        weights = sum(weight_bytes(networks[part]) for part in passes)
        numbers[name] = {'training': name, 'passes': passes, 'weights': weights, 'above': peak - before}
    taken = harness.in_rounds(steps, args.rounds, device, warmup=0)
    where = f'{device.type} in {args.precision}' + (', compiled' if args.compile else '')
    return {name: figure(args, where, numbers[name], taken[name], taken[PLAIN]) for name in steps}


def figure(
    args: argparse.Namespace, where: str, numbers: dict[str, Any], taken: list[float], plain: list[float]
) -> results.Figure:
    """The figure of one technique."""
    seconds = [time / args.batch_size for time in taken]
    numbers |= {'where': where, 'seconds': [median(seconds), min(seconds), max(seconds)]}
    return results.Figure.of_ratio(
        harness.ratio(taken, plain),
        figure=f'an update of {numbers["training"]}, seconds an image, {where}',
        against=PLAIN,
        detail=f'{median(seconds):.3g} s; {numbers["weights"] / MEBI:.0f} MiB of weights, '
        f'{numbers["above"] / MEBI:.0f} MiB above; {results.format_passes(numbers["passes"])}; {args.rounds} rounds of '
        f'batches of {args.batch_size} at {args.img_size} px',
        numbers=numbers,
    )


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=3)
    workload.add_flags(parser, batch_size=4, student=True)
    parser.add_argument('--precision', choices=('fp32', 'tf32', 'bf16'), default='fp32', help='of all networks')
    args = parser.parse_args()
    harness.start(args)
    workload.shrink(args)
    if args.quick:
        args.teacher = 'test_resnet'  # one of any size: timm's task resizes nothing
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    for name, found in figures.items():
        key = f'online cost, {args.precision}, {name}, {args.device}' + (', compiled' if args.compile else '')
        harness.report(args, key, found)


if __name__ == '__main__':
    main()
