"""A DAD set with the teacher's answers on augmentations, as a user makes it, for the rows that load no teacher."""

from collections.abc import Sequence
from pathlib import Path

from models import teacher_flags, templates_file

from timm_dad.commands import generate

AUGMENTED = ('--aa', 'rand-m9-mstd0.5-inc1')
VIEWS = ('--dad-attack', 'latent', '--dad-views', '4')
# What the recipe's trainings do to pictures, and settings of the set.
_RECIPE = (
    '--dataset demo/noto --num-classes 16 --img-size 32 --crop-pct 1.0 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 '
    '--scale 0.5 1.0 --color-jitter 0.0 --workers 0 --device cpu --format wds'
).split()


def set_flags(repeats: int, mixtures: Sequence[str], teacher: Path, vqgan: Path, work: Path) -> list[str]:
    """Make the set, or find it made, with the flags of its ``mixtures``; the flags of ``train_dad.py`` that name it."""
    folder = work / 'sets' / f'{teacher.name}-{vqgan.stem}-{repeats}{"".join(mixtures)}'
    flags = [*_RECIPE, *VIEWS, *AUGMENTED, *mixtures, '--reinforce', str(repeats), '--dad-vqgan', str(vqgan)]
    generate.main([*flags, *teacher_flags(teacher, templates_file(work)), '--output', str(folder)])
    return ['--dad-dir', str(folder), '--dad-stored-logits']
