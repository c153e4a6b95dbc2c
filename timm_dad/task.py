"""``DADTask``: Discrete Adversarial Distillation as a timm training task (Zhou et al. 2023, section 3.4)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from timm_dad.augment import DADAugment, PixelNorm
from timm_dad.loss import DADLoss, DADLossConfig, hard_labels
from timm_dad.teacher import Teacher


class DADTask(TrainingTask):  # type: ignore[misc]
    """Distil a frozen teacher into a student on the clean and the DAD view.

    Only the student is trained, wrapped for distributed training and saved. Teacher and VQGAN are frozen here, not
    later, and stay in evaluation mode.

    Args:
        student_model: The model to train; maps normalized images to logits ``[B, K]``.
        teacher: Frozen teacher.
        augment: Makes the DAD view. ``None`` distils the batch's second view as it is (the equal-compute control),
            and needs ``two_views``.
        criterion: Task loss on the clean view; ``nn.CrossEntropyLoss()`` by default.
        loss: Temperature and weights.
        mean: The student's normalization; ``student_model.pretrained_cfg`` by default.
        std: The student's normalization; ``student_model.pretrained_cfg`` by default.
        two_views: Batches hold two views of every image, all first views before all second ones: the first is the
            clean view, the DAD view is made from the second. ``False``: both are made from the one view.
        device: Device of the task.
        dtype: Floating dtype of the task.
        verbose: Log what was built.

    Raises:
        ValueError: If ``augment`` is missing without ``two_views``, or there is no normalization.

    Source: Zhou et al. 2023, arXiv:2311.01441, equation of section 3.4; timm ``LogitDistillationTask`` for the idiom.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher: Teacher,
        augment: DADAugment | None,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        loss: DADLossConfig | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        two_views: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if augment is None and not two_views:
            raise ValueError('without an augment the second view comes with the batch: two_views must be True')
        pretrained_cfg = getattr(student_model, 'pretrained_cfg', None) or {}
        mean, std = mean or pretrained_cfg.get('mean'), std or pretrained_cfg.get('std')
        if mean is None or std is None:
            raise ValueError('the student has no pretrained_cfg with mean and std: pass mean and std')
        self.trainable_module = student_model
        self.teacher = teacher.eval().requires_grad_(False).to(self.device)
        self.vqgan = augment.vqgan.eval().requires_grad_(False).to(self.device) if augment else None
        self.augment = augment
        self.norm = PixelNorm(mean, std)
        self.loss = DADLoss(loss, criterion).to(self.device)
        self.two_views = two_views

    def train(self, mode: bool = True) -> 'DADTask':
        """Set the student's mode; teacher and VQGAN stay in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        if self.vqgan is not None:
            self.vqgan.eval()
        return self

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'DADTask':
        """Wrap the student, and nothing else, in ``DistributedDataParallel``.

        Args:
            device_ids: Devices of this process, as ``DistributedDataParallel`` takes them.
            **ddp_kwargs: Passed on to ``DistributedDataParallel``.

        Returns:
            The task.
        """
        from torch.nn.parallel import DistributedDataParallel

        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the student, for training and evaluation.

        Args:
            backend: Backend of ``torch.compile``.
            mode: Mode of ``torch.compile``.
            **compile_kwargs: Passed on to ``torch.compile``.

        Returns:
            The compiled student.
        """
        compiled: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = compiled
        self.eval_model = compiled
        return self.trainable_module

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute loss, parts and student output of a batch.

        Args:
            input: Student-normalized images ``[B, 3, H, W]``; ``[2B, 3, H, W]`` with ``two_views``.
            target: Class indices or soft targets of ``input``, one row an image.

        Returns:
            - ``loss``: training loss, a scalar
            - ``output``: student logits ``[B, K]`` on the clean view
            - ``task_loss``, ``kd_loss``, ``dad_loss``: its parts before their weights, scalars
            - ``teacher_kept``: fraction of images on whose DAD view the teacher predicts the label, a scalar

        Raises:
            ValueError: If ``two_views`` is set and the batch is not even.
        """
        clean, source, target, source_target = self._split(input, target)
        with torch.no_grad():
            x_pix = self.norm.to_pixels(clean)
            teacher_logits = self.teacher(x_pix)
            if self.augment is None:
                second = source
                second_logits = self.teacher(self.norm.to_pixels(source))
                kept = second_logits.argmax(dim=-1) == hard_labels(source_target)
            else:
                views = self.augment.make_views(self.norm.to_pixels(source) if self.two_views else x_pix, source_target)
                second = self.norm.normalize(views.x_dad).to(input.dtype)
                second_logits, kept = views.dad_logits, views.kept
        # One forward for both views: one set of batch statistics, and one backward under DistributedDataParallel.
        student_logits, student_dad_logits = self.trainable_module(torch.cat([clean, second])).chunk(2)
        parts: dict[str, Tensor] = self.loss(student_logits, teacher_logits, student_dad_logits, second_logits, target)
        return {**parts, 'output': student_logits, 'teacher_kept': kept.float().mean()}

    def _split(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean view, source of the DAD view, and the targets of both."""
        if not self.two_views:
            return input, input, target, target
        if len(input) % 2:
            raise ValueError(f'a batch of two views has an even number of images, got {len(input)}')
        clean, source = input.chunk(2)
        clean_target, source_target = target.chunk(2)
        return clean, source, clean_target, source_target
