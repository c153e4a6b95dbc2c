"""The models of ``timm-dad evaluate``: their SPECs, and how each wants its images cut."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.models import load_checkpoint
from torch import Tensor
from torchvision.transforms import Compose

from timm_dad.common.hashing import content_hash
from timm_dad.evaluation.model_specs import ModelSpec
from timm_dad.evaluation.networks import text_sketch, uncut_network
from timm_dad.evaluation.suite_data import Suite
from timm_dad.evaluation.trained_run import create_run_student, create_run_teacher
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.teachers.classes import in_label_order
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec
from timm_dad.teachers.teacher import Teacher

# open_clip's ways to fit a picture into a square, by timm's names.
_CROP_MODES = {'shortest': 'center', 'longest': 'border', 'squash': 'squash'}
# What the library's errors name, and what it is called here.
_FLAGS = {
    '--dad-teacher': '--model',
    '--dad-classnames': '--classnames',
    '--dad-templates': '--templates',
    '--dad-class-map': '--class-map',
    '--num-classes is': 'the number of classes is',
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes one of the model's size, as timm's transform for evaluation does it.

    Args:
        input_size: ``(height, width)``.
        interpolation: As timm names it.
        crop_pct: Part of the resized picture that is taken.
        crop_mode: ``center``, ``border`` or ``squash``.
        fill: Colour of a border, in [0, 1] pixel units.
    """

    input_size: tuple[int, int]
    interpolation: str = 'bicubic'
    crop_pct: float = 1.0
    crop_mode: str = 'center'
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)

    def transform(self) -> Callable[[Image.Image], Image.Image]:
        """Picture to picture of ``input_size``: timm's transform, up to the tensor."""
        steps = create_transform(
            (3, *self.input_size),
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.fill,
            use_prefetcher=True,
        ).transforms
        return Compose(steps[:-1])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A classifier for the classes of one suite.

    Args:
        name: What it is called.
        network: Maps images ``[B, 3, H, W]`` in [0, 1] to logits ``[B, K]``; its normalization is inside.
        preprocess: How it wants its images cut.
        fingerprint: Hash of all that its answers depend on, but precision and device.
        timm_name: timm's name of it, with its tag, where it has the weights that timm publishes.
        uncut_network: The same as ``network`` on images of any size, none of which it resizes; ``None`` where the
            network takes one size alone.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    preprocess: Preprocess
    fingerprint: str = ''
    timm_name: str | None = None
    uncut_network: Callable[[Tensor], Tensor] | None = None

    def network_for(self, suite: Suite) -> Callable[[Tensor], Tensor]:
        """The network for a suite's images: where they go in as they are it does not resize them, if it can."""
        return self.network if suite.resize or self.uncut_network is None else self.uncut_network


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What flags say of all models.

    Args:
        use_ema: Take the moving average of the weights where a checkpoint has one.
        use_train_size: Take the size that a timm model was trained at where it is tested at another one.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        class_names: Names for a text tower, as ``read_class_file`` gives them.
        templates: Prompts for a text tower.
        class_map: The class of a model with a head of its own that each class of the data is, as ``read_class_file``
            gives it.
    """

    use_ema: bool = True
    use_train_size: bool = False
    precision: str = 'fp32'
    class_names: list[str] | dict[str, str] | None = None
    templates: Sequence[str] | None = None
    class_map: list[str] | dict[str, str] | None = None


def suite_classes(suite: Suite, options: ModelOptions) -> DataClasses:
    """The classes that a model must tell apart for a suite: ImageNet's 1000 where the suite groups them.

    Raises:
        ValueError: If ``class_names`` or ``class_map`` are not of these classes.
    """
    names = list(ImageNetInfo().label_names()) if suite.groups is not None else suite.class_names
    count = len(names) if suite.groups is not None and names is not None else suite.num_classes

    def by_class(content: list[str] | dict[str, str] | None, flag: str, what: str) -> list[str] | None:
        if content is None:
            return None
        try:
            return in_label_order(content, names, count, what)
        except ValueError as error:
            raise ValueError(
                f'{flag}: suite {suite.name}: {error} (suites of other classes: give a map from class folder, or '
                'evaluate them in a call of their own)'
            ) from error

    return DataClasses(
        num_classes=count,
        class_names=names,
        spoken=by_class(options.class_names, '--classnames', 'class names'),
        templates=options.templates,
        class_map=by_class(options.class_map, '--class-map', "model's classes"),
    )


def open_model(
    model: ModelSpec, data: DataClasses, options: ModelOptions, device: torch.device | None = None
) -> EvalModel:
    """Load a model for the classes of a suite, and prepare it.

    Args:
        model: Name and SPEC.
        data: Classes of the suite, of ``suite_classes``.
        options: What flags say of it.
        device: Where it runs; the CPU by default.

    Returns:
        The frozen model, in ``options.precision``.

    Raises:
        ValueError: If it cannot be loaded, or its classes are not those of the suite.
    """
    device = device or torch.device('cpu')
    try:
        teacher, preprocess = _load(model, data, options, device)
    except ValueError as error:
        message = str(error)
        for theirs, ours in _FLAGS.items():
            message = message.replace(theirs, ours)
        raise ValueError(f'--model {model.name}: {message}') from error
    teacher.input_size = preprocess.input_size
    facts = {'model': teacher.fingerprint(), 'text': text_sketch(teacher), 'preprocess': asdict(preprocess)}
    prepare_frozen(teacher, None, options.precision, device)
    return EvalModel(
        name=model.name,
        network=teacher,
        preprocess=preprocess,
        fingerprint=content_hash({}, facts),
        timm_name=_timm_name(model, teacher),
        uncut_network=uncut_network(teacher),
    )


def _timm_name(model: ModelSpec, teacher: Teacher) -> str | None:
    cfg: Any = getattr(teacher.model, 'pretrained_cfg', None) or {}
    if not model.spec.startswith('timm:') or model.file or 'local-dir:' in model.spec or not cfg.get('tag'):
        return None
    return f'{cfg["architecture"]}.{cfg["tag"]}'


def _load(
    model: ModelSpec, data: DataClasses, options: ModelOptions, device: torch.device
) -> tuple[Teacher, Preprocess]:
    source, _, rest = model.spec.partition(':')
    if source == 'run':
        student, config = create_run_student(rest, data, use_ema=options.use_ema)
        return student, _timm_preprocess(config)
    if source == 'teacher':
        teacher = create_run_teacher(rest, data, device)
        return teacher, preprocess_of(teacher)
    teacher = create_teacher_by_spec(model.spec, data, device=device)
    if model.file and not options.use_ema:
        load_checkpoint(teacher.model, model.file, use_ema=False)  # timm's create_model has taken the moving average
    return teacher, preprocess_of(teacher, use_train_size=options.use_train_size)


def preprocess_of(teacher: Teacher, use_train_size: bool = False) -> Preprocess:
    """How a teacher of timm or open_clip wants its images cut.

    Args:
        teacher: The teacher. Of several the one with the largest input decides; the others resize what it gets.
        use_train_size: Take the size that a timm model was trained at. By default it is the size that timm's
            ``validate.py`` tests it at, which is larger for some.
    """
    if isinstance(teacher, TeacherEnsemble):
        members: list[Any] = list(teacher.teachers)
        return preprocess_of(max(members, key=lambda member: member.input_size), use_train_size)
    visual: Any = getattr(teacher.model, 'visual', teacher.model)
    cfg = getattr(visual, 'preprocess_cfg', None)
    if cfg is None:
        return _timm_preprocess(resolve_data_config({}, model=visual, use_test_size=not use_train_size))
    return Preprocess(
        input_size=teacher.input_size,
        interpolation=teacher.interpolation,
        crop_mode=_CROP_MODES[cfg.get('resize_mode', 'shortest')],
        fill=(cfg.get('fill_color', 0) / 255,) * 3,
    )


def _timm_preprocess(config: dict[str, Any]) -> Preprocess:
    height, width = config['input_size'][-2:]
    return Preprocess(
        input_size=(height, width),
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        fill=tuple(config['mean']),
    )
