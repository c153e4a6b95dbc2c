"""A model's predictions on one part of a suite: each image once, in any number of processes."""

import itertools
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from timm_dad.common.files import replacing
from timm_dad.common.options import check_types
from timm_dad.common.progress import progress
from timm_dad.data.images import Frame, FramedImages, collate_images
from timm_dad.evaluation.attacks import Classifier, EvalAttackConfig, run_attack
from timm_dad.evaluation.corruptions import SeededCorruption
from timm_dad.evaluation.models import EvalModel
from timm_dad.evaluation.suites.changed import AttackedPart, CorruptedPart
from timm_dad.evaluation.suites.class_folders import imagenet_wnids
from timm_dad.evaluation.suites.suite import Part, Suite


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model's predictions on the ``N`` images of one part of a suite, in the order of the data."""

    label: NDArray[np.int64]  # [N], indices among the suite's classes, as are those predicted
    predicted: NDArray[np.int64]  # class of the largest logit; -1 where it is none of the suite's
    confidence: NDArray[np.float32]  # its softmax probability
    correct: NDArray[np.bool_]  # whether it is right (several labels may be: ReaL)
    correct5: NDArray[np.bool_]  # whether one of the five largest is

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.label)

    def save(self, path: Path) -> None:
        """Write them as ``.npz``."""
        with replacing(path) as temporary:
            np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> 'Predictions':
        """Read the output of ``save``; raise ``ValueError`` if the file contains something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error) as error:
            raise ValueError(f'{path} contains no predictions: {error}; remove it to make them again') from error


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How models are evaluated.

    Args:
        batch_size: Images per batch, in one process.
        workers: Number of data loading processes per process.
        seed: Source of all randomness of corruptions and attacks.
        attack: Threat model of attacks.

    Raises:
        ValueError: If a value is out of range.
    """

    batch_size: int = 128
    workers: int = 4
    seed: int = 0
    attack: EvalAttackConfig = field(default_factory=EvalAttackConfig)

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (('batch_size', 1), ('workers', 0), ('seed', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be {least} or more, got {getattr(self, name)}')


def evaluate_part(model: EvalModel, suite: Suite, part: Part, config: EvalConfig, device: torch.device) -> Predictions:
    """Predict every image of a part, in the order of the data; all processes take part, and all get the result.

    Batches, not images, are distributed: a batch contains the same images with any number of processes, so the
    predictions are bit-identical. Raise ``ValueError`` if an image cannot be used, or logits are not finite.
    """
    state = PartialState()
    starts = range(0, len(part.dataset), config.batch_size)
    batches = [range(start, min(start + config.batch_size, len(part.dataset))) for start in starts]
    own = range(state.process_index, len(batches), state.num_processes)
    loader = DataLoader(
        part_images(model.frame, suite, part, config.seed),
        batch_sampler=[list(batches[number]) for number in own],
        num_workers=config.workers,
        collate_fn=collate_images,
        pin_memory=device.type == 'cuda',
        generator=torch.Generator(),  # the global one may be a training's
    )
    show = state.is_main_process
    bar = progress(loader, desc=f'{model.name}: {suite.name}/{part.name}', show=show, leave=False)
    network = model.network_for(suite)
    answers = {}
    for number, batch in zip(own, bar, strict=True):
        if isinstance(batch, ValueError):
            raise ValueError(f'suite {suite.name}: {batch}')
        x_pix, label = batch[0].to(device).float() / 255, batch[1].to(device)
        if isinstance(part, AttackedPart):
            x_pix = run_attack(
                part.attack, _counting(network, bar), x_pix, label, config.attack, config.seed, index=batches[number]
            )
        answers[number] = (*_answer(model, suite, x_pix), batch[1].numpy())
    # One dict a process; the last round of batches may have none for some.
    gathered = {number: answer for found in gather_object([answers]) for number, answer in found.items()}
    top, confidence, labels = (
        np.concatenate(column) for column in zip(*(gathered[number] for number in sorted(gathered)), strict=True)
    )
    return judge(suite, part, top, confidence, labels)


def _counting(network: Classifier, bar: Any) -> Classifier:
    """Show how often an attack calls the network: AutoAttack does so some thousand times per batch."""
    passes = itertools.count(1)

    def ask(x_pix: Tensor) -> Tensor:
        number = next(passes)
        if number % 10 == 0:
            bar.set_postfix_str(f'{number} passes')
        return network(x_pix)

    return ask


def part_images(frame: Frame, suite: Suite, part: Part, seed: int) -> FramedImages:
    """Return the images of a part, framed unless they must not be, then corrupted if the part says so."""
    corruption = SeededCorruption(part.corruption, part.severity, seed) if isinstance(part, CorruptedPart) else None
    return FramedImages(part.dataset, frame if suite.resize else None, corruption)


@torch.inference_mode()
def _answer(model: EvalModel, suite: Suite, x_pix: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the classes of the five largest logits ``[B, 5]``, and the probability of the first ``[B]``."""
    logits = model.network_for(suite)(x_pix).float().cpu()
    if not logits.isfinite().all():
        raise ValueError(f'{model.name}: its logits on {suite.name} are not finite; use precision fp32')
    top = logits.topk(min(5, logits.shape[1])).indices
    return top.numpy(), logits.softmax(dim=1).amax(dim=1).numpy()


def judge(
    suite: Suite,
    part: Part,
    top: NDArray[np.int64],
    confidence: NDArray[np.float32],
    label: NDArray[np.int64],
) -> Predictions:
    """Compare the classes ``top`` of the five largest logits ``[N, 5]``, largest first, with labels ``[N]``.

    If a suite groups ImageNet's classes, an answer counts as the group that contains it, and as none otherwise
    (abarbu/objectnet-template-pytorch, ``objectnet_eval.py`` and ``validate_and_score.py``). If an image has several
    right labels, any of them is right (Beyer et al. 2020, arXiv:2006.07159, section 3; timm's ``RealLabelsImagenet``).
    """
    if suite.groups is not None:
        group_of = {wnid: group for group, wnids in enumerate(suite.groups) for wnid in wnids}
        top = np.array([group_of.get(wnid, -1) for wnid in imagenet_wnids()])[top]
    hits = top == label[:, None]
    if part.multi_labels is not None:
        hits = np.array([np.isin(row, right) for row, right in zip(top, part.multi_labels, strict=True)])
    return Predictions(
        label=label.astype(np.int64),
        predicted=top[:, 0].astype(np.int64),
        confidence=confidence.astype(np.float32),
        correct=hits[:, 0],
        correct5=hits.any(axis=1),
    )
