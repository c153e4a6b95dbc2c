"""The proposal of ``timm-dad init`` for data on a machine, and its config."""

import importlib.util
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from timm_dad.flags.execution import CORES
from timm_dad.teachers.spec import DEFAULT_TEACHER
from timm_dad.teachers.trained import BEST
from timm_dad.vqgan.presets import PRESETS

_PACKAGES = {'open_clip': 'clip', 'taming': 'vqgan', 'imagecorruptions': 'eval'}  # and the extra that installs each
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Route:
    """A way to train on some kind of machine.

    An empty teacher is trained first, like the student; an empty VQGAN is that of the demo, fine-tuned.
    """

    why: str
    teacher: str = ''
    vqgan: str = ''
    model: str
    img_size: int
    batch_size: int


PUBLIC_VQGAN = 'kandinsky-f8-16384'
ROUTES = {
    'public weights': Route(
        why='a GPU and public weights: CLIP, which recognizes the classes by their folder names',
        teacher=DEFAULT_TEACHER, vqgan=PUBLIC_VQGAN, model='resnet50', img_size=224, batch_size=64,
    ),
    'own, GPU': Route(why='a GPU and no public weights', model='resnet18', img_size=128, batch_size=64),
    'own, CPU': Route(
        why='no GPU: small networks, and no download', model='resnet10t', img_size=64, batch_size=32
    ),
}  # fmt: skip
# Repositories of the public weights.
_REPOSITORIES = ('timm/vit_large_patch14_clip_224.openai', PRESETS[PUBLIC_VQGAN].url.removeprefix('hf://'))
_EPOCHS = 30
_VIEWS = 2  # cached views per picture
VQGAN_BATCH = 16
_VQGAN_STEPS = (100, 3000)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine to train on.

    Args:
        cores: CPU cores.
        memory: RAM in GB.
        gpu: Name and memory of the GPU; empty without one.
        missing: Extras of timm-dad that are not installed.
        cached: Whether the public weights are in the cache of the hub.
        offline: Why nothing can be downloaded; empty if downloads are possible.
    """

    cores: int
    memory: float
    gpu: str
    missing: frozenset[str]
    cached: bool
    offline: str

    def __str__(self) -> str:
        """Return all of it in one line."""
        lacks = f'extras not installed: {", ".join(sorted(self.missing))}' if self.missing else 'all extras installed'
        there = 'public weights in the cache' if self.cached else 'no public weights in the cache'
        where = f'no downloads ({self.offline})' if self.offline else 'downloads possible'
        return f'{self.cores} cores, {self.memory:.0f} GB, {self.gpu or "no GPU"}; {lacks}; {there}, {where}'


def look_at_machine(device: torch.device) -> Machine:
    """Inspect the machine for a training on ``device``, and check whether the hub can be reached."""
    gpu = ''
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        gpu = f'{properties.name}, {properties.total_memory / _GB:.0f} GB'
    return Machine(
        cores=CORES,
        memory=psutil.virtual_memory().total / _GB,
        gpu=gpu,
        missing=frozenset(extra for name, extra in _PACKAGES.items() if importlib.util.find_spec(name) is None),
        cached=all(_is_cached(repository) for repository in _REPOSITORIES),
        offline=_why_offline(),
    )


def _is_cached(address: str) -> bool:
    """Return whether the hub's cache has weights of ``USER/NAME[/FOLDER]``."""
    user, name, *inside = address.split('/')
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=f'{user}/{name}', repo_type='model'), 'snapshots')
    return any(next(folder.glob('/'.join(['*', *inside, f'*{end}'])), None) for end in ('.safetensors', '.bin'))


def _why_offline() -> str:
    if constants.HF_HUB_OFFLINE:
        return 'HF_HUB_OFFLINE is set'
    try:
        request = urllib.request.Request(constants.ENDPOINT, method='HEAD')
        urllib.request.urlopen(request, timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, 'reason', error)
        return f'the hub cannot be reached: {getattr(reason, "strerror", None) or reason}'
    return ''


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data, as flags and facts; ``suite`` is empty if ``timm-dad evaluate`` cannot read the data."""

    flags: dict[str, Any]  # for all commands that read data, without splits
    name: str
    train_split: str
    val_split: str
    num_classes: int
    suite: str
    named: bool  # whether the data names its classes
    spoken: bool  # and not by numbers, so a CLIP can recognize them
    streams: bool
    count: int  # training pictures
    side: int  # median shorter side of the pictures, in pixels


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Teacher, VQGAN, size and length of a training."""

    why: str
    teacher: str
    vqgan: str
    model: str
    img_size: int
    batch_size: int
    epochs: int
    views: int  # cached views per picture; 0: new views in each batch
    vqgan_steps: int
    pretrained: bool
    folder: Path  # for everything that is trained

    @property
    def own_teacher(self) -> bool:
        """Whether a teacher is trained first."""
        return self.teacher == f'run:{self.folder / "teacher"}'

    @property
    def own_vqgan(self) -> bool:
        """Whether a VQGAN is trained first."""
        return self.vqgan == str(self.folder / 'vqgan' / 'best.safetensors')

    def missing(self) -> list[Path]:
        """Return the missing files of teacher and VQGAN, if these are trained first."""
        files = [self.folder / 'teacher' / BEST] if self.own_teacher else []
        files += [Path(self.vqgan)] if self.own_vqgan else []
        return [path for path in files if not path.is_file()]


def propose(machine: Machine, data: Data, teacher: str = '', vqgan: str = '', img_size: int = 0) -> Proposal:
    """Propose a training for machine and data; the given teacher, VQGAN and size take precedence."""
    public = not {'clip', 'vqgan'} & machine.missing and (machine.cached or not machine.offline)
    spoken = data.spoken or bool(teacher)
    route = ROUTES['own, CPU' if not machine.gpu else 'public weights' if public and spoken else 'own, GPU']
    folder = Path('output') / data.name
    own_vqgan = 'demo' if data.streams else str(folder / 'vqgan' / 'best.safetensors')  # VQGAN training reads no stream
    size = img_size or (route.img_size if data.side >= route.img_size else max(32, data.side // 8 * 8))
    room = shutil.disk_usage(tempfile.gettempdir()).free / 4
    cached = not data.streams and _VIEWS * data.count * 3 * size**2 < room
    least, most = _VQGAN_STEPS
    batch_size = route.batch_size if machine.gpu or machine.memory > 4 else route.batch_size // 2
    while batch_size > 2 and batch_size > data.count // 2:
        batch_size //= 2
    return Proposal(
        why=route.why,
        teacher=teacher or route.teacher or f'run:{folder / "teacher"}',
        vqgan=vqgan or route.vqgan or own_vqgan,
        model=route.model,
        img_size=size,
        batch_size=batch_size,
        epochs=_EPOCHS,
        views=_VIEWS if cached else 0,
        vqgan_steps=min(most, max(least, 10 * data.count // VQGAN_BATCH)),
        pretrained=bool(route.teacher and not machine.offline),
        folder=folder,
    )


Line = tuple[str, Any, str]  # a flag, its value, and why


def config_text(proposal: Proposal, data: Data, machine: Machine, header: Sequence[str]) -> str:
    """Return the YAML file for ``--config``; ``header`` becomes lines of comment."""
    lines = [f'# {line}' for line in header]
    for commands, flags in _sections(proposal, data, machine):
        lines += ['', f'{commands}:']
        for name, value, why in flags:
            text = f'  {name}: {_yaml(value)}'
            lines.append(f'{text:<40}  # {why}' if why else text)
    return '\n'.join(lines) + '\n'


def _yaml(value: Any) -> str:
    """Format a value on one line."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix('...\n').strip()


def _sections(proposal: Proposal, data: Data, machine: Machine) -> list[tuple[str, list[Line]]]:
    folder = proposal.folder
    classes: list[Line] = [] if data.named else [('num_classes', data.num_classes, 'the data does not name them')]
    sections: list[tuple[str, list[Line]]] = [
        ('train, info, generate, preview, diagnose, vqgan train', [
            *((name, value, '') for name, value in data.flags.items()),
            ('img_size', proposal.img_size, 'twice the size takes four times as long'),
        ]),
        ('train, info, generate, preview, diagnose', [
            *classes,
            ('dad_teacher', proposal.teacher, 'it must know the classes well'),
            ('dad_vqgan', proposal.vqgan, 'Q(x) must keep what the teacher sees'),
            ('dad_attack', 'latent', "pixels is the paper's, but changes less (docs/attacks.md)"),
        ]),
        ('train, info', _train_lines(proposal, data)),
    ]  # fmt: skip
    if proposal.own_vqgan:
        sections.append(('vqgan train', [
            ('train_split', data.train_split, ''),
            ('val_split', data.val_split, ''),
            ('init', 'demo', 'the VQGAN to fine-tune: that of the demo'),
            ('batch_size', min(VQGAN_BATCH, data.count), ''),
            ('steps', proposal.vqgan_steps, 'more steps make Q(x) sharper'),
            ('output', str(folder / 'vqgan'), ''),
        ]))  # fmt: skip
    sections += [
        ('generate', [('split', data.train_split, ''), ('output', str(folder / 'views'), 'for --dad-dir of train')]),
        ('preview', [('split', data.val_split, ''), ('output', str(folder / 'preview'), '')]),
    ]
    if data.suite:
        sections += _measured(proposal, data, machine)
    return sections


def _train_lines(proposal: Proposal, data: Data) -> list[Line]:
    pretrained: list[Line] = [('pretrained', True, 'ImageNet weights, downloaded by timm')]
    cached = 'views of each picture, made once; 0: new ones in each batch, slower'
    online = 'new views in each batch: ' + ('the data is a stream' if data.streams else 'a cache would fill the disk')
    return [
        ('train_split', data.train_split, ''),
        ('val_split', data.val_split, ''),
        ('model', proposal.model, 'the student: any model of timm'),
        *(pretrained if proposal.pretrained else []),
        ('batch_size', proposal.batch_size, 'reduce it if memory runs out'),
        ('epochs', proposal.epochs, 'time grows in proportion'),
        ('dad', True, '--no-dad on the command line trains without it'),
        ('dad_cache', proposal.views, cached if proposal.views else online),
        ('output', str(proposal.folder), ''),
        ('experiment', 'student', 'folder of the run, in output'),
    ]


def _measured(proposal: Proposal, data: Data, machine: Machine) -> list[tuple[str, list[Line]]]:
    student = f'run:{proposal.folder / "student"}'
    models = [f'student={student}', f'teacher={proposal.teacher}']
    corrupt: list[Line] = [('corrupt', [], 'all 15 corruptions, at 5 severities')]
    return [
        ('evaluate', [
            ('model', models, ''),
            ('suite', [data.suite], 'and folders of the same classes that look different: sketch=FOLDER'),
            *(corrupt if 'eval' not in machine.missing else []),
            ('output', str(proposal.folder / 'evaluate'), ''),
        ]),
        ('diagnose', [
            ('split', data.train_split, ''),
            ('ood', [data.suite], 'better: folders of the same classes that look different'),
            ('student', student, ''),
            ('output', str(proposal.folder / 'diagnose'), ''),
        ]),
    ]  # fmt: skip
