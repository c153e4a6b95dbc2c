"""What happens after an epoch beside training: suites, previews, and whatever a caller adds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.task import TrainingTask

from timm_dad.method.augment import DADAugment
from timm_dad.training.preview import PreviewHook
from timm_dad.training.suites import StudentSuites
from timm_dad.training.suites_hook import SuitesHook

# Called with the epoch, from 0, once it is trained and before it is saved.
Hook = Callable[[int], None]


def create_hooks(
    task: TrainingTask,
    augment: DADAugment | None,
    suites: StudentSuites,
    loader_val: Any,
    accelerator: Accelerator,
    folder: Path,
    num_epochs: int,
    *,
    evaluation: Mapping[str, Any],
    preview: Mapping[str, Any],
) -> list[SuitesHook | PreviewHook]:
    """Create the hooks of the trainer; each has ``at_end``, too.

    Args:
        task: The training task.
        augment: Makes DAD views, if any are made.
        suites: Suites to evaluate on, none or some.
        loader_val: Validation data to show DAD views of, if there is any.
        accelerator: Processes and trackers.
        folder: Folder of the run.
        num_epochs: Epochs of the training.
        evaluation: More arguments of ``SuitesHook``.
        preview: More arguments of ``PreviewHook``.
    """
    hooks: list[SuitesHook | PreviewHook] = []
    if suites.suites:
        hooks.append(SuitesHook(suites, task, accelerator, folder, num_epochs, **evaluation))
    if augment is not None and loader_val is not None:
        hooks.append(PreviewHook(augment, task, loader_val, accelerator, folder, num_epochs, **preview))
    return hooks


def format_results(results: Mapping[str, Any]) -> str:
    """Format what hooks found at the end: the table of the suites, and where report and preview are."""
    lines = [results['table']] if 'table' in results else []
    lines += [f'{name.capitalize()}: {results[name]}' for name in ('report', 'preview') if name in results]
    return '\n'.join(lines)
