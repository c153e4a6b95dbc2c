"""The models to evaluate: their SPECs, the classes they must distinguish, and the framing of their images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor

from timm_dad.common.hashing import content_hash
from timm_dad.data.images import Frame
from timm_dad.evaluation.runs import create_run_teacher
from timm_dad.evaluation.suites.class_folders import imagenet_wnids
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.flags.rules import under_flag
from timm_dad.flags.runs import create_spec_teacher
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.teachers.backbones import takes_any_size
from timm_dad.teachers.classes import in_label_order
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.spec import DataClasses, check_spec
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.trained import run_folder
from timm_dad.teachers.zero_shot import ZeroShotClassifier

SOURCES = ('timm', 'open_clip', 'probe', 'run', 'teacher', 'wise')
# open_clip's ways to fit a picture into a square, by timm's names.
_CROP_MODES = {'shortest': 'center', 'longest': 'border', 'squash': 'squash'}
_SUMS = 8


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model, and its name in the report.

    A SPEC is ``timm:MODEL``, ``timm:MODEL/FILE``, ``open_clip:MODEL/PRETRAINED``, ``probe:FILE``, ``demo``,
    ``run:FOLDER`` (the student of a training run), ``run:FILE`` (a checkpoint in it), ``teacher:FOLDER`` (that run's
    teacher) or ``wise:A+B@ALPHA`` (two of the first five, interpolated).
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
        """The name in a form fit for a folder."""
        return re.sub(r'[^\w.-]+', '-', self.name).strip('-.')


def parse_models(texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """Parse models given as ``SPEC`` or ``NAME=SPEC``; a SPEC without a colon is one of timm's names.

    Raise ``ValueError`` if a SPEC is malformed, or two models have the same name.
    """
    models = tuple(_parse_model(text) for text in texts)
    slugs = [model.slug for model in models]
    twice = sorted({model.name for model in models if slugs.count(model.slug) > 1})
    if twice:
        raise ValueError(f'every model needs its own name, got {twice[0]} twice; write NAME=SPEC')
    return models


def _parse_model(text: str) -> ModelSpec:
    name, separator, spec = text.partition('=')
    if not separator or re.search('[:/]', name):  # an equals sign in a path
        name, spec = '', text
    if spec != 'demo' and ':' not in spec:
        spec = f'timm:{spec}'
    source, _, rest = spec.partition(':')
    if text.startswith('='):
        raise ValueError(f'NAME=SPEC needs a name, got {text!r}')
    if spec != 'demo' and (source not in SOURCES or not rest):
        raise ValueError(
            f'a model is SPEC or NAME=SPEC, where SPEC is a name of timm, {", ".join(f"{s}:..." for s in SOURCES)} or '
            f'demo, got {text!r}'
        )
    if source == 'wise':
        check_spec(spec)
    model = ModelSpec(name=name or _default_name(source, rest), spec=spec)
    if not model.slug:
        raise ValueError(f'a name needs letters or digits, got {text!r}')
    return model


def _default_name(source: str, rest: str) -> str:
    if source == 'demo':
        return 'demo'
    if source in ('run', 'teacher'):
        folder = run_folder(rest).resolve().name
        return f'{folder}-teacher' if source == 'teacher' else folder
    return Path(rest).stem if source == 'probe' else rest


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A classifier for the classes of one suite."""

    name: str
    network: Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [0, 1] -> logits [B, K]; its normalization is inside
    frame: Frame
    fingerprint: str = ''  # hash of all that its answers depend on, but precision and device
    timm_name: str | None = None  # with its tag, where it has the weights that timm publishes
    uncut_network: Callable[[Tensor], Tensor] | None = None  # without resizing; None where it takes one size alone

    def network_for(self, suite: Suite) -> Callable[[Tensor], Tensor]:
        """Return the network for a suite's images; where these must not be resized, one that does not, if possible."""
        return self.network if suite.resize or self.uncut_network is None else self.uncut_network


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options for all models; names and map as ``read_class_file`` returns them."""

    use_ema: bool = True  # take the moving average of the weights where a checkpoint has one
    use_train_size: bool = False  # the size that a timm model was trained at where it is tested at another one
    precision: str = 'fp32'
    class_names: list[str] | dict[str, str] | None = None  # for a text tower, as are the templates
    templates: Sequence[str] | None = None
    class_map: list[str] | dict[str, str] | None = None  # the class of a model's own head that each of the data is


def suite_classes(suite: Suite, options: ModelOptions) -> DataClasses:
    """Return the classes that a model must distinguish for a suite: ImageNet's 1000 if the suite groups them."""
    names, count = (suite.class_names, suite.num_classes) if suite.groups is None else (imagenet_wnids(), 1000)

    def by_class(content: list[str] | dict[str, str] | None, what: str) -> list[str] | None:
        try:
            return None if content is None else in_label_order(content, names, count, what)
        except ValueError as error:
            raise ValueError(
                f'suite {suite.name}: {error} (suites with other classes: give a map from class folder, or evaluate '
                'them in a separate call)'
            ) from error

    return DataClasses(
        num_classes=count,
        class_names=names,
        spoken=by_class(options.class_names, 'class names'),
        templates=options.templates,
        class_map=by_class(options.class_map, 'entries of the class map'),
    )


def open_model(
    model: ModelSpec, data: DataClasses, options: ModelOptions, device: torch.device | None = None
) -> EvalModel:
    """Load a model for the classes of a suite, and prepare it on ``device``, by default the CPU.

    Raise ``ValueError`` if it cannot be loaded, or its classes are not those of the suite.
    """
    device = device or torch.device('cpu')
    with under_flag(f'{model.name}:'):
        teacher, frame = _load(model, data, options, device)
    teacher.input_size = frame.size
    preprocess = {name: getattr(frame, name) for name in ('interpolation', 'crop_pct', 'crop_mode', 'fill')}
    preprocess['input_size'] = frame.size
    facts = {
        'model': teacher.fingerprint(),
        'layers': _layers(teacher),
        'text': text_sketch(teacher),
        'preprocess': preprocess,
    }
    prepare_frozen(teacher, None, options.precision, device)
    return EvalModel(
        name=model.name,
        network=teacher,
        frame=frame,
        fingerprint=content_hash({}, facts),
        timm_name=_timm_name(model, teacher),
        uncut_network=uncut_network(teacher),
    )


def _layers(network: torch.nn.Module) -> list[str]:
    """Describe what networks of the same weights may differ by: activations, pooling and the like."""
    return [
        f'{name}: {type(layer).__name__}({layer.extra_repr()}) {getattr(layer, "global_pool", "")!s:.40}'
        for name, layer in network.named_modules()
    ]


def _timm_name(model: ModelSpec, teacher: Teacher) -> str | None:
    cfg: Any = getattr(teacher.model, 'pretrained_cfg', None) or {}
    if not model.spec.startswith('timm:') or model.file or 'local-dir:' in model.spec or not cfg.get('tag'):
        return None
    return f'{cfg["architecture"]}.{cfg["tag"]}'


def _load(model: ModelSpec, data: DataClasses, options: ModelOptions, device: torch.device) -> tuple[Teacher, Frame]:
    source, _, rest = model.spec.partition(':')
    if source == 'teacher':
        teacher = create_run_teacher(rest, data, device)
        return teacher, frame_of(teacher)
    teacher = create_spec_teacher(model.spec, data, device=device, use_ema=options.use_ema)
    return teacher, frame_of(teacher, use_train_size=options.use_train_size)


def frame_of(teacher: Teacher, use_train_size: bool = False) -> Frame:
    """Return the framing that a teacher from timm or open_clip needs.

    For several teachers, the one with the largest input decides; the others resize its images. The default size of a
    timm model is the one that timm's ``validate.py`` tests it at, which for some is larger than ``use_train_size``.
    """
    if isinstance(teacher, TeacherEnsemble):
        members: list[Any] = list(teacher.teachers)
        return frame_of(max(members, key=lambda member: member.input_size), use_train_size)
    visual: Any = getattr(teacher.model, 'visual', teacher.model)
    cfg = getattr(visual, 'preprocess_cfg', None)
    if cfg is None:
        return Frame.of_timm(resolve_data_config({}, model=visual, use_test_size=not use_train_size))
    return Frame(
        size=teacher.input_size,
        interpolation=teacher.interpolation,
        crop_mode=_CROP_MODES[cfg.get('resize_mode', 'shortest')],
        fill=(cfg.get('fill_color', 0) / 255,) * 3,
    )


def uncut_network(teacher: Teacher) -> Callable[[Tensor], Tensor] | None:
    """Return a teacher without its resizing, if its network takes any size (open_clip's, and several, do not)."""
    if not takes_any_size(getattr(teacher.model, 'visual', teacher.model)):
        return None

    def network(x_pix: Tensor) -> Tensor:
        with torch.autocast(x_pix.device.type, enabled=False):
            return teacher.select(teacher.model(teacher.norm.normalize(x_pix)))

    return network


def text_sketch(teacher: Teacher) -> list[float]:
    """Return some sums of zero-shot heads' text features, which tell one text tower from another.

    ``Teacher.fingerprint`` covers only the prompts, since features of two machines differ in the last bits; but two
    CLIPs may share the image tower and not the text tower (LiT). NOTE: of a million rounded features, some always lie
    on a rounding boundary; a few sums hardly ever do, and if one does, its parts are recomputed.
    """
    sketch: list[float] = []
    for module in teacher.modules():
        if isinstance(module, ZeroShotClassifier):
            features = module.text_features.double().cpu()
            place = torch.arange(features.numel(), dtype=torch.float64)
            for frequency in range(1, _SUMS + 1):
                total = (features.flatten() * (frequency * place).cos()).sum() / features.shape[1] ** 0.5
                sketch.append(round(total.item(), 3))
    return sketch
