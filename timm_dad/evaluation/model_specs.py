"""The SPECs of ``timm-dad evaluate --model``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timm_dad.evaluation.trained_run import run_folder

SOURCES = ('timm', 'open_clip', 'probe', 'run', 'teacher')


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by name.

    Args:
        name: What it is called in the report.
        spec: ``timm:MODEL``, ``timm:MODEL/FILE``, ``open_clip:MODEL/PRETRAINED``, ``probe:FILE``, ``demo``,
            ``run:FOLDER`` (the student of a training run), ``run:FILE`` (a checkpoint in it) or ``teacher:FOLDER``
            (that run's teacher).
    """

    name: str
    spec: str

    @property
    def file(self) -> str:
        """The file of ``timm:MODEL/FILE``; else empty."""
        source, _, name = self.spec.partition(':')
        return '' if source != 'timm' or ':' in name.split('/')[0] else name.partition('/')[2]

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r'[^\w.-]+', '-', self.name).strip('-.')


def parse_models(texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """Read ``--model``: ``SPEC`` or ``NAME=SPEC``; a SPEC without a colon is one of timm's names.

    Raises:
        ValueError: If a SPEC is none, or two models have one name.
    """
    models = tuple(_parse_model(text) for text in texts)
    slugs = [model.slug for model in models]
    twice = sorted({model.name for model in models if slugs.count(model.slug) > 1})
    if twice:
        raise ValueError(f'--model: every model needs a name of its own, got {twice[0]} twice; write NAME=SPEC')
    return models


def _parse_model(text: str) -> ModelSpec:
    name, separator, spec = text.partition('=')
    if not separator or re.search('[:/]', name):  # an equals sign in a path
        name, spec = '', text
    if spec != 'demo' and ':' not in spec:
        spec = f'timm:{spec}'
    source, _, rest = spec.partition(':')
    if spec != 'demo' and (source not in SOURCES or not rest):
        raise ValueError(
            f'--model takes SPEC or NAME=SPEC, SPEC being a name of timm, {", ".join(f"{s}:..." for s in SOURCES)} or '
            f'demo, got {text!r}'
        )
    model = ModelSpec(name=name or _default_name(source, rest), spec=spec)
    if not model.slug:
        raise ValueError(f'--model: a name needs letters or digits, got {text!r}')
    return model


def _default_name(source: str, rest: str) -> str:
    if source == 'demo':
        return 'demo'
    if source in ('run', 'teacher'):
        folder = run_folder(rest).resolve().name
        return f'{folder}-teacher' if source == 'teacher' else folder
    return Path(rest).stem if source == 'probe' else rest
