#!/usr/bin/env python3
"""Wall time of an online DAD step against the sum of its parts, each timed alone.

The step is ``DADTask.forward``, backward and the optimizer. The parts are the networks' work and nothing else: student
forward and backward on both views, the teacher's forward and backward for the attack, its forward on the DAD view (with
the attack from Q(x) on the clean view too), and the passes through the VQGAN. The optimizer, losses, noise, projection
and normalization are no parts: they count against the step.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import harness
import results
import torch
import torch.nn.functional as F
import workload
from torch import Tensor
from workload import FAITHFUL, FROM_INPUT

from timm_dad import DADTask, Teacher

AT_MOST = 1.05
# Passes of a batch through each part of a step.
PASSES = {
    FAITHFUL: {'student forward + backward': 1, 'teacher forward + backward': 1, 'teacher forward': 2, 'VQGAN': 2},
    FROM_INPUT: {'student forward + backward': 1, 'teacher forward + backward': 1, 'teacher forward': 1, 'VQGAN': 1},
}


def attack_gradient(teacher: Teacher, x_pix: Tensor, target: Tensor) -> Tensor:
    """The teacher's forward and backward to the input."""
    x_pix = x_pix.detach().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(teacher(x_pix), target), x_pix)[0]


def create_task(args: argparse.Namespace, name: str) -> DADTask:
    """A task that makes views online, in one of the modes."""
    vqgan = workload.build_vqgan(args.vqgan, device=args.device)
    teacher = workload.build_teacher(args.teacher, device=args.device)
    augment = workload.make_ours(args, vqgan, teacher, [name], args.precision, random_start=0.8)[name]
    student = workload.build_student(args.student).to(args.device)
    device = torch.device(args.device)
    return DADTask(student, teacher, augment, mean=(0.5,) * 3, std=(0.5,) * 3, device=device, verbose=False).train()


def measure(args: argparse.Namespace, name: str, task: DADTask) -> results.Figure:
    """Time the step and its parts in turn."""
    device = torch.device(args.device)
    student, teacher, vqgan, augment = task.trainable_module, task.teacher, task.vqgan, task.augment
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    x_pix, target = workload.images(args.batch_size, args.img_size, device)
    x_norm = augment.norm.normalize(x_pix)
    views, labels = torch.cat([x_norm, x_norm]), torch.cat([target, target])

    def student_alone() -> None:
        with workload.autocast(args.precision, args.device):
            loss = F.cross_entropy(student(views), labels)
        loss.backward()
        optimizer.zero_grad()

    def step() -> None:
        with workload.autocast(args.precision, args.device):
            loss = task(x_norm, target)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def no_grad(function: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(function)

    parts = {
        'student forward + backward': student_alone,
        'teacher forward + backward': lambda: attack_gradient(teacher, x_pix, target),
        'teacher forward': no_grad(lambda: teacher(x_pix)),
        'VQGAN': no_grad(lambda: vqgan.reconstruct(x_pix)),
    }
    taken = harness.in_rounds({'step': step, **parts}, args.rounds, device)
    passes = PASSES[name]
    sums = [sum(passes[part] * taken[part][index] for part in parts) for index in range(args.rounds)]
    middle = {part: median(values) for part, values in taken.items()}
    listed = ', '.join(f'{passes[part]} x {part} {middle[part]:.3g} s' for part in parts)
    return results.Figure.of_ratio(
        harness.ratio(taken['step'], sums),
        figure=f'an online DAD step, {name}, {args.precision}, {args.device}',
        against='sum of its parts timed alone',
        at_most=AT_MOST,
        detail=f'step {middle["step"]:.3g} s: {listed}; {args.rounds} rounds of batches of {args.batch_size} at '
        f'{args.img_size} px',
        numbers=middle,
    )


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_flags(parser, rounds=7)
    workload.add_flags(parser, batch_size=4, student=True)
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='of all networks')
    args = parser.parse_args()
    harness.start(args)
    workload.shrink(args)
    for name in PASSES:
        task = create_task(args, name)
        figure = measure(args, name, task)
        key = f'step, {args.precision}, {name}, {args.device}'
        harness.report(args, key, figure)


if __name__ == '__main__':
    main()
