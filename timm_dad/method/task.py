"""``DADTask``: Discrete Adversarial Distillation as a timm training task (Zhou et al. 2023, section 3.4)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from timm_dad.method import student as students
from timm_dad.method.augment import DADAugment
from timm_dad.method.chunked import Chunked
from timm_dad.method.disagreement import Disagreement
from timm_dad.method.extra import ExtraView, Prepared, StoredAnswers, like
from timm_dad.method.loss import Criterion, DADLoss, DADLossConfig, create_criterion
from timm_dad.method.parts import (
    check_kinds,
    check_parts,
    describe_student,
    describe_teacher,
    frozen_parts,
    keep_student_alone,
)
from timm_dad.method.replay import ReplayCache
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.splits import add_splits
from timm_dad.method.targets import SingleLabel, Targets
from timm_dad.teachers.features import Answer
from timm_dad.teachers.teacher import Teacher

_logger = logging.getLogger(__name__)


class DADTask(TrainingTask):  # type: ignore[misc]
    """Distillation of a frozen teacher into a student on the clean and the DAD view.

    Only the student is trained, wrapped for distributed training and saved (``state_dict``), with ``feature_weight``
    together with the adapter of its features. Teacher and VQGAN are frozen on construction, and stay in evaluation
    mode.

    Args:
        student_model: The model to train; maps normalized images to logits ``[B, K]``.
        teacher: Frozen teacher; ``None`` with ``stored``.
        augment: Makes the DAD view from the clean view. ``None``: batches are pairs, which end with the extra views of
            all images (DAD views made before, or random ones: the control at equal compute).
        apart: With ``augment``: make the DAD view from separate pictures at the end of the batch, one for every image,
            instead of the clean images (which may be augmented more).
        stored: The teacher's logits, for pairs with targets from ``encode_target``.
        criterion: Task loss on everything in the batch except extra views; that of ``targets`` by default.
        criterion_kwargs: Without a ``criterion``: arguments of ``timm.loss.create_classification_loss`` (timm 1.0.31).
        loss: Temperature and weights; ``label_free`` for data without labels, whose targets are not read;
            ``feature_weight`` needs a teacher ``with_features`` and a student with features like timm's models.
        targets: Kind of targets; ``SingleLabel()`` by default.
        schedule: Probability, weight and attack budget of the DAD view by epoch, as set by ``set_epoch``.
        mean: The student's normalization; ``student_model.pretrained_cfg`` by default.
        std: The student's normalization; ``student_model.pretrained_cfg`` by default.
        num_splits: Augmentation splits of the batch (AugMix), one split after the other, the clean one first; extra
            views of pairs are not counted.
        micro_batch: Images per teacher forward; only without ``augment``, which has its own. 0: as many as fit in
            memory.
        seed: Seed of the draw of batches that get a DAD view, the same in all processes.
        device: Device of the task.
        dtype: Floating dtype of the task.
        verbose: Log what was built.

    Raises:
        ValueError: If there is no normalization or ``augment`` has another; if split batch norm is used with a schedule
            that leaves out the DAD view; if not exactly one of teacher and stored logits is given; if only one of
            ``augment`` and ``loss`` is label-free; in a call, if targets are of another kind.
        TypeError: If ``teacher`` is not a ``Teacher``, ``augment`` not a ``DADAugment``, or a config of another type.

    Source: Zhou et al. 2023, arXiv:2311.01441, equation of section 3.4; timm ``LogitDistillationTask`` for the idiom.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher: Teacher | None,
        augment: DADAugment | None,
        *,
        apart: bool = False,
        stored: StoredAnswers | None = None,
        criterion: Criterion | None = None,
        criterion_kwargs: Mapping[str, Any] | None = None,
        loss: DADLossConfig | None = None,
        targets: Targets | None = None,
        schedule: DADSchedule | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_splits: int = 1,
        micro_batch: int = 0,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        check_kinds(teacher=(teacher, Teacher | None), augment=(augment, DADAugment | None))
        check_kinds(loss=(loss, DADLossConfig | None), schedule=(schedule, DADSchedule | None))
        norm = students.find_norm(student_model, mean, std, augment)
        self.trainable_module = student_model
        # Parts of the task, so that they move with it.
        self.teacher, self.vqgan = teacher, augment and augment.vqgan
        self.gradient_vqgan = augment and augment.gradient_vqgan
        for frozen in frozen_parts(self).values():
            frozen.eval().requires_grad_(False).to(self.device)
        self.augment, self.apart, self.stored = augment, apart, stored
        self.pairs, self.full_attack = augment is None or apart, augment.attack if augment else None
        self.chunked = augment.chunked if augment else Chunked(micro_batch)
        self.norm, self.num_splits, self.seed = norm, num_splits, seed
        self.targets, self.schedule = targets or SingleLabel(), schedule or DADSchedule()
        self.multi_label = self.targets.multi_label  # the attribute of timm's tasks
        criterion = create_criterion(criterion, criterion_kwargs, multi_label=self.multi_label)
        self.loss = DADLoss(loss, criterion, self.targets.distillation_loss).to(self.device)
        check_parts(teacher, stored, augment, self.targets, apart=apart, loss=self.loss.config, schedule=self.schedule)
        self.replay = ReplayCache(self.schedule.replay) if self.schedule.replay else None
        if augment is not None and getattr(augment.attack, 'objective', '') == 'disagreement':
            assert self.teacher is not None
            temperature = self.loss.config.temperature
            augment.disagreement = Disagreement(student_model, self.teacher, norm, temperature, self.targets)
        if self.loss.config.feature_weight:
            assert self.teacher is not None
            self.trainable_module = students.with_adapter(student_model, self.teacher.feature_dim)
        if add_splits(student_model, num_splits + 1) and not self.schedule.always:
            raise ValueError('split batch norm needs a DAD view in every batch: always must hold for the schedule')
        self.set_epoch(0)
        keep_student_alone(self)
        if verbose:
            _logger.info('DAD: %s, %s, %s', self.loss.config, self.full_attack, self.schedule)

    def __repr__(self) -> str:
        made_by = self.augment or f'None, teacher={describe_teacher(self.teacher)}'
        student = describe_student(self.get_eval_model())
        return f'DADTask(student={student}, augment={made_by}, loss={self.loss.config}, schedule={self.schedule})'

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Set weight and attack budget of the DAD view for an epoch, from 0, and the next batch in it."""
        self.epoch, self.next_batch = epoch, batch
        self.dad_weight = self.schedule.weight(epoch)
        if self.augment is not None and self.full_attack is not None:
            self.augment.attack = self.schedule.attack(self.full_attack, epoch)

    def train(self, mode: bool = True) -> 'DADTask':
        """Set the student's mode; teacher and VQGANs stay in evaluation mode."""
        super().train(mode)
        for frozen in frozen_parts(self).values():
            frozen.eval()
        return self

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'DADTask':
        """Wrap only the student in ``DistributedDataParallel``, and pass it the arguments."""
        self.trainable_module = students.distributed(self.trainable_module, self.device, device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the student for training and evaluation, with the arguments of ``torch.compile``."""
        options = {'backend': backend, 'mode': mode, **compile_kwargs}
        self.trainable_module, self.eval_model = students.compiled(self.trainable_module, **options)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """Return the student or, with ``ema``, its moving average, without an adapter."""
        return students.without_adapter(super().get_eval_model(module, ema))

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the state of the adapter under timm's name for it; empty without an adapter."""
        return students.adapter_state(module or self.get_trainable_module(ema))

    def load_task_state(self, state: Any, strict: bool = True, module: Any = None, ema: bool = False) -> None:
        """Load a state from ``get_task_state``; an adapter missing in it stays unchanged."""
        students.load_adapter(module or self.get_trainable_module(ema), state, strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """Return the parameters whose gradients are clipped; ``exclude_head`` omits the last two, as in timm."""
        return students.clip_parameters(self.trainable_module, exclude_head)

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Create timm's evaluator of the student (timm 1.0.31 or later); ``kwargs`` are its arguments."""
        return self.targets.create_evaluator(self.device, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute loss, parts and student output of a batch.

        Args:
            input: Student-normalized images ``[V * B, 3, H, W]`` of ``V`` augmentation splits; for pairs, ``V`` counts
                the extra views, which come last.
            target: Class indices, soft or multi-hot targets of ``input``, one row per image; with stored logits, the
                result of ``encode_target`` for class indices.

        Returns:
            - ``loss``: training loss, a scalar
            - ``output``: student logits ``[num_splits * B, K]``, without extra views
            - ``task_loss``, ``kd_loss``, ``dad_loss``, ...: parts of the loss before their weights, scalars
            - ``teacher_kept``: fraction of images on whose DAD view the teacher predicts the label (with several
                labels: the same set of classes as on the image), a scalar

            Without a DAD view (schedule), ``dad_loss`` and ``teacher_kept`` are 0.

        Raises:
            ValueError: If the batch does not consist of whole splits, or images are not floating-point
                ``[B, 3, H, W]``, or the first batch is not normalized.
        """
        num_views = self.num_splits + self.pairs
        if len(input) % num_views:
            raise ValueError(f'a batch of {num_views} views must be a multiple of that, got {len(input)} images')
        num_images = len(input) // num_views
        own = num_images * self.num_splits
        label = target if self.stored is None else self.stored.labels(target)
        prepared = self._prepare(input, target)
        logits, extra = prepared.logits, prepared.extra
        views = input
        if extra is None:
            views = input[:own]
        elif self.augment:
            views = torch.cat([input[:own], extra.x_norm])
        # One forward for all views: one set of batch statistics, and one backward under DistributedDataParallel.
        found = self.trainable_module(views)
        output, features = found if self.loss.config.feature_weight else (found, None)
        pairs = students.feature_pairs(features, prepared)
        if extra is None:
            parts: dict[str, Tensor] = self.loss(output, logits, None, None, label[:own], features=pairs)
            return {**parts, 'output': output, 'teacher_kept': torch.zeros_like(parts['loss'])}
        output, dad_output = output.split([own, num_images])
        dad_label = label[own:] if self.pairs else label[:num_images]
        parts = self.loss(output, logits, dad_output, extra.logits, label[:own], self.dad_weight, dad_label, pairs)
        return {**parts, 'output': output, 'teacher_kept': extra.kept.float().mean()}

    @torch.no_grad()
    def _prepare(self, input: Tensor, target: Tensor) -> Prepared:
        """Get what does not depend on the student, once per batch: the teacher's answers and the extra view."""
        self.norm.check(input)
        if not self.loss.config.label_free:
            self.targets.check(target)
        num_images = len(input) // (self.num_splits + self.pairs)
        label = target if self.stored is None else self.stored.labels(target)
        fresh = self._wants_fresh_view()
        if self.augment is not None:
            base = slice(-num_images, None) if self.apart else slice(num_images)
            return self._make_extra(input[:num_images], input[base], label[base], fresh)
        return self._take_extra(input, target, label[num_images * self.num_splits :], fresh)

    def _make_extra(self, clean: Tensor, base: Tensor, label: Tensor, fresh: bool) -> Prepared:
        """Get the teacher's answers on clean images ``[B, 3, H, W]``, and DAD views of ``base`` or replayed ones."""
        assert self.augment is not None
        x_pix = self.norm.to_pixels(clean)
        answer: Answer | None = None
        extra: tuple[Any, ...]
        if fresh:
            views = self.augment.make_views(self.norm.to_pixels(base) if self.apart else x_pix, label)
            extra = views.x_dad, views.dad_logits, views.kept, views.dad_features
            if views.clean_logits is not None and not self.apart and views.dad_features is None:
                answer = Answer(views.clean_logits)
            if self.replay is not None:
                self.replay.add(*extra)
        elif self.replay is not None and self.dad_weight:
            extra = self.replay.draw(len(clean))
        else:
            answer = self._ask_teacher(x_pix)
            return Prepared(answer.logits, None, answer.features)
        x_dad, *dad_answers = extra
        x_norm = like(self.norm.normalize(x_dad), clean)
        answer = answer or self._ask_teacher(x_pix)
        return Prepared(answer.logits, ExtraView(x_norm, *dad_answers), answer.features)

    def _take_extra(self, input: Tensor, target: Tensor, label: Tensor, wanted: bool) -> Prepared:
        """Get the teacher's answers on the clean images of pairs, and their extra view with the labels ``label``."""
        clean, x_norm = input[: len(label)], input[-len(label) :]
        if self.stored is not None:
            answer, of_extra = map(Answer, self.stored.read(target))
        elif not wanted:
            answer = self._ask_teacher(self.norm.to_pixels(clean))
            return Prepared(answer.logits, None, answer.features)
        else:  # one forward for both
            pairs = input if self.num_splits == 1 else torch.cat([clean, x_norm])
            answer, of_extra = self._ask_teacher(self.norm.to_pixels(pairs)).halves()
        label = self.targets.answer(answer.logits) if self.loss.config.label_free else label
        kept = self.targets.keeps(of_extra.logits, label, answer.logits)
        extra = ExtraView(x_norm, of_extra.logits, kept, of_extra.features) if wanted else None
        return Prepared(answer.logits, extra, answer.features)

    def _ask_teacher(self, x_pix: Tensor) -> Answer:
        assert self.teacher is not None
        answer: Answer = self.chunked(self.teacher.answer, x_pix)
        return answer

    def _wants_fresh_view(self) -> bool:
        """Draw whether this batch gets new DAD views: one draw for all its images, as timm draws mixup.

        All processes draw the same, because a step takes as long as its slowest process.
        """
        index = self.next_batch
        self.next_batch += 1
        # Nothing to replay yet: in the first batch, or the first one after a training was resumed.
        wanted = self.replay is not None and not len(self.replay)
        return self.dad_weight != 0 and (wanted or self.schedule.draws(self.seed, self.epoch, index))
