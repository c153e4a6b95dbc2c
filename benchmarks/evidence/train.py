"""One run: train a student by ``train_dad.py`` as a job says, and test it."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from answers import StoredAnswers, ask_once
from data import TRAIN_STYLE, Style, top1
from models import STUDENTS, load_frozen, teacher_facts, teacher_flags, vqgan_facts
from pacs import TRAIN
from reinforced import set_flags
from timm.task import ClassificationTask
from torch import Tensor, nn
from views import DAT_ATTACK, MadeViews, StudentViews, Views, disagreement_views, make_views, student_views

import train_dad
from timm_dad.evaluation.corruptions import CORRUPTIONS
from timm_dad.flags.student import create_student
from timm_dad.flags.train import parse_args
from timm_dad.teachers.temperature import TARGET

# By data set: the recipe, and the style that students see.
RECIPES = {'emoji64': Path(__file__).with_name('recipe.yaml'), 'pacs': Path(__file__).with_name('pacs.yaml')}
TRAIN_STYLES = {'emoji64': TRAIN_STYLE, 'pacs': TRAIN}
DAT_INTERVAL = 8  # epochs between two makings of DAT's views, which the published method makes anew in every step


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the evidence.

    Args:
        study: What it is for.
        row: Its row in the study's table.
        seed: Random seed.
        flags: Flags of ``train_dad.py`` beside the recipe's.
        views: Extra views, if they are made before training.
        mixed: More of them, which extra views are drawn from as well.
        dat: Whether extra views are DAT's: of the student's own gradient.
        disagree: Whether they are of the disagreement attack, made anew as rarely as DAT's.
        online: Whether DAD views are made while training, as the flags say.
        reinforced: If the views lie in a set whose teacher's answers are stored, on how many augmentations of each
            picture: no teacher is asked while training.
        mixtures: Flags of what mixes those pictures before the teacher is asked; none if the training alone mixes.
        distil: Of DAT's views, whether the teacher labels them; else cross-entropy alone, as it was published.
        student: One of ``STUDENTS``.
        teacher: One of ``TEACHERS``.
        vqgan: One of ``VQGANS``.
        data: One of ``RECIPES``; PACS has a teacher and a VQGAN of its own (``pacs_models.py``).
    """

    study: str
    row: str
    seed: int
    flags: tuple[str, ...] = ()
    views: Views | None = None
    mixed: Views | None = None
    dat: bool = False
    disagree: bool = False
    online: bool = False
    reinforced: int = 0
    mixtures: tuple[str, ...] = ()
    distil: bool = True
    student: str = 'cnn'
    teacher: str = 'strong'
    vqgan: str = 'f4'
    data: str = 'emoji64'

    @property
    def key(self) -> str:
        """What the run is known by, in the results."""
        return f'{self.study} | {self.row} | {self.seed}'

    @property
    def settings(self) -> str:
        """Hash of all that the run depends on; results of others are not taken for its own."""
        facts: dict[str, Any] = {
            'recipe': yaml.safe_load(RECIPES[self.data].read_text()),
            'flags': effective_flags([*STUDENTS[self.student], *self.flags]),
            'student': self.student,
            'seed': self.seed,
        }
        if '--dad' in self.flags:
            facts['teacher'] = teacher_facts(self.teacher)
        if self.views is not None or self.dat or self.online or self.disagree:
            facts.update(views=self.views and asdict(self.views), vqgan=vqgan_facts(self.vqgan))
        if self.dat:
            facts.update(dat=[DAT_INTERVAL, asdict(DAT_ATTACK)], has_teacher=self.distil)
        if 'auto' in self.flags:
            facts.update(target=TARGET)
        if self.mixed is not None:
            facts.update(mixed=asdict(self.mixed))
        if self.disagree:
            facts.update(disagree=DAT_INTERVAL)
        if self.reinforced:
            facts.update(reinforced=self.reinforced)
        if self.mixtures:
            facts.update(mixtures=self.mixtures)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def effective_flags(flags: list[str]) -> dict[str, list[str]]:
    """Values of each flag; of one that comes twice the last ones, as argparse takes them."""
    found: dict[str, list[str]] = {}
    for word in flags:
        if word.startswith('--'):
            found[word] = values = []
        else:
            values.append(word)
    return found


@dataclass(frozen=True)
class Materials:
    """What runs on a data set share: pictures, tests, and where teachers and VQGANs are."""

    styles: dict[str, Style]
    tests: dict[str, tuple[np.ndarray, np.ndarray]]
    corrupted: np.ndarray | None
    teachers: dict[str, Path]
    vqgans: dict[str, Path]
    templates: Path
    work: Path
    data: str = 'emoji64'
    data_flags: tuple[str, ...] = ()

    @property
    def train_style(self) -> str:
        """The style that students see."""
        return TRAIN_STYLES[self.data]

    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """Training pictures and labels."""
        style = self.styles[self.train_style]
        keep = style.split == 'train'
        return style.x[keep], style.y[keep]


def run_job(job: Job, materials: Materials) -> dict[str, Any]:
    """Train and test; returns top-1 by style and, if there are any, by corruption (one number a severity)."""
    folder = materials.work / 'runs' / f'{zlib.crc32(job.key.encode()):08x}'
    shutil.rmtree(folder, ignore_errors=True)
    flags = ['--config', str(RECIPES[job.data]), *STUDENTS[job.student], '--seed', str(job.seed), *job.flags]
    flags += [*materials.data_flags, '--output', str(folder.parent), '--experiment', folder.name]
    if job.reinforced:
        models = materials.teachers[job.teacher], materials.vqgans[job.vqgan]
        flags += set_flags(job.reinforced, job.mixtures, *models, materials.work)
    elif '--dad' in job.flags:
        flags += teacher_flags(materials.teachers[job.teacher], materials.templates)
    if job.online:
        flags += ['--dad-vqgan', str(materials.vqgans[job.vqgan])]
    extra_views: MadeViews | None = None
    create_task = train_dad.create_task
    made = job.views is not None and not job.reinforced
    if made or job.dat or job.disagree:
        flags += ['--dad-view', 'random']  # the trainer makes none
    if job.dat or job.disagree:
        extra_views, create_task = views_of_student(job, materials)
    elif made:
        kinds = [views for views in (job.views, job.mixed) if views is not None]
        extra_views = MadeViews(torch.cat([views_of(views, job, materials) for views in kinds], dim=1))
    asked: list[StoredAnswers] = []
    if '--dad' in job.flags and (job.data == 'pacs' or job.study.startswith('latent')):  # or the teacher costs most
        facts = hashlib.sha256(json.dumps(teacher_facts(job.teacher)).encode()).hexdigest()[:8]
        create_task, asked = ask_once(create_task, materials.work / 'answers' / f'{facts}-{job.seed}.npz')
    train_dad.main(flags, extra_views=extra_views, create_task=create_task)
    for teacher in asked:
        teacher.save()
    student = load_student(flags, folder)
    shutil.rmtree(folder)
    return measure(student, materials)


def measure(model: nn.Module, materials: Materials, *, normalize: bool = True) -> dict[str, Any]:
    """Top-1 of a model, as ``run_job`` returns it; ``normalize`` as ``top1`` takes it."""
    y = materials.tests[materials.train_style][1]
    found: dict[str, Any] = {
        'styles': {name: round(top1(model, *test, normalize=normalize), 3) for name, test in materials.tests.items()}
    }
    if materials.corrupted is not None:
        found['corruptions'] = {
            name: [round(top1(model, severity, y, normalize=normalize), 3) for severity in by_severity]
            for name, by_severity in zip(CORRUPTIONS, materials.corrupted, strict=True)
        }
    return found


def load_student(flags: list[str], folder: Path) -> nn.Module:
    """The student of a run's last checkpoint."""
    student = create_student(parse_args(flags))
    checkpoint = torch.load(folder / 'last.pth.tar', map_location='cpu', weights_only=False)
    student.load_state_dict(checkpoint['state_dict'])
    return student.eval().to(memory_format=torch.channels_last)


def views_of(views: Views, job: Job, materials: Materials) -> Tensor:
    """The views that a job's teacher and VQGAN make."""
    teacher, vqgan = materials.teachers[job.teacher], materials.vqgans[job.vqgan]
    path = materials.work / 'views' / f'{views.key(teacher_facts(job.teacher), vqgan_facts(job.vqgan))}.npy'
    x, y = materials.training()
    return make_views(views, x, y, load_frozen(teacher, vqgan), path)


def views_of_student(job: Job, materials: Materials) -> tuple[StudentViews, Callable[..., Any]]:
    """Views that the student has a part in, and the task factory that shows them the student."""
    x, y = materials.training()
    models = load_frozen(materials.teachers[job.teacher], materials.vqgans[job.vqgan])
    if job.disagree:
        temperature = float(effective_flags(list(job.flags)).get('--dad-temperature', ['4'])[0])
        make = partial(disagreement_views, x=x, y=y, models=models, temperature=temperature)
    else:
        x_vq = views_of(Views(kind='reconstruction', count=1), job, materials)
        make = partial(student_views, x=x, y=y, x_vq=x_vq, vqgan=models[1], attack=DAT_ATTACK)
    views = StudentViews(make, DAT_INTERVAL, job.seed)

    def create_task(args: Any, student: nn.Module, device: torch.device, **dad: Any) -> tuple[Any, None]:
        views.student = student
        if job.distil:
            return train_dad.create_task(args, student, device, **dad)
        return ClassificationTask(student, nn.CrossEntropyLoss(), device=device, verbose=False), None

    return views, create_task
