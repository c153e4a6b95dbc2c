"""The hook of ``--eval-suites``: evaluate the student while it is trained, and student and teacher at the end."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.task import TrainingTask
from torch import nn

from timm_dad.common.files import write_file
from timm_dad.data.images import Frame
from timm_dad.evaluation.predict import EvalConfig
from timm_dad.evaluation.report.figures import Results
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.method.task import DADTask
from timm_dad.training.on_pixels import OnPixels, fixed_size
from timm_dad.training.run_folder import SUITES
from timm_dad.training.suites import (
    SuiteResults,
    accuracies,
    add_rows,
    evaluate_on_suites,
    match_suite,
    read_rows,
    write_suite_report,
)
from timm_dad.training.validate import eval_model

_logger = logging.getLogger(__name__)


class StudentSuites:
    """Suites, and how a student takes them.

    Args:
        suites: Of ``open_eval_suites``.
        student: The student, on its device.
        data_config: Size, crop and normalization of validation, of ``timm.data.resolve_data_config``.
        num_classes: Classes of the student.
        class_names: Names of its training data's classes, if they have any.

    Raises:
        ValueError: If the student does not know the classes of a suite.
    """

    def __init__(
        self,
        suites: Sequence[Suite],
        student: nn.Module,
        data_config: Mapping[str, Any],
        num_classes: int,
        class_names: Sequence[str] | None,
    ) -> None:
        self.suites, self.data_config = suites, data_config
        self.indices = {suite.name: match_suite(suite, num_classes, class_names) for suite in suites}
        self.size = fixed_size(student, suites, tuple(data_config['input_size'][-2:]))


class SuitesHook:
    """Evaluate a student on suites every so many epochs, and student and teacher at the end.

    Args:
        suites: The suites.
        task: The training task.
        accelerator: Processes and trackers.
        folder: Where figures and report go.
        num_epochs: Epochs of the training.
        batch_size: Images a batch.
        workers: Processes that load images.
        interval: Epochs between two evaluations; 0 for the one at the end alone.
        use_ema: Evaluate the moving average, if there is one.
        seen: Suites that the teacher was trained on, for the table.
    """

    def __init__(
        self,
        suites: StudentSuites,
        task: TrainingTask,
        accelerator: Accelerator,
        folder: Path,
        num_epochs: int,
        *,
        batch_size: int,
        workers: int,
        interval: int,
        use_ema: bool,
        seen: Sequence[str],
    ) -> None:
        self.fitted, self.suites, self.task = suites, suites.suites, task
        self.accelerator, self.folder, self.num_epochs = accelerator, folder, num_epochs
        self.interval, self.use_ema, self.seen = interval, use_ema, seen
        self.config = EvalConfig(batch_size=batch_size, workers=workers)

    def __call__(self, epoch: int) -> None:
        """Evaluate the student after an epoch, if it is due; after the last one ``at_end`` does."""
        if self.interval and (epoch + 1) % self.interval == 0 and epoch + 1 < self.num_epochs:
            self._log(epoch, accuracies(self._evaluate(all_parts=False)))

    def at_end(self) -> dict[str, Any]:
        """Evaluate student and teacher, and write the report.

        Returns:
            Top-1 by suite as ``student`` and, with a teacher, ``teacher``; the path of the report, and a table.
        """
        if isinstance(self.task, DADTask) and self.task.teacher is not None:
            predictions = self._evaluate(teacher=self.task.teacher)
        else:
            predictions = self._evaluate()
        found = accuracies(predictions)
        self._log(max(0, self.num_epochs - 1), found)
        results = {label: {name: top1 for name, (top1, _) in named.items()} for label, named in found.items()}
        if self.accelerator.is_main_process:
            write_suite_report(predictions, self.suites, self.folder, self.fitted.size)
        return {**results, 'table': format_suites(results, self.seen), 'report': str(self.folder / 'report.md')}

    def _evaluate(self, *, teacher: nn.Module | None = None, all_parts: bool = True) -> Results:
        config = self.fitted.data_config
        network = eval_model(self.task, use_ema=self.use_ema)
        student = OnPixels(network, config['mean'], config['std'], self.fitted.size, config['interpolation'])
        models: dict[str, nn.Module] = {'student': student, **({} if teacher is None else {'teacher': teacher})}
        device = self.accelerator.device
        frame = Frame(
            size=tuple(config['input_size'][-2:]),
            interpolation=config['interpolation'],
            crop_pct=config['crop_pct'],
        )
        return evaluate_on_suites(
            {label: model.to(device) for label, model in models.items()},
            self.suites,
            self.fitted.indices,
            frame,
            self.config,
            device,
            all_parts=all_parts,
        )

    def _log(self, epoch: int, results: SuiteResults) -> None:
        """Figures into ``suites.csv``, the trackers and the log."""
        figures = {
            f'suites/{name}/{label}_{figure}': value
            for label, named in results.items()
            for name, values in named.items()
            for figure, value in zip(('top1', 'top5'), values, strict=True)
        }
        self.accelerator.log(figures, step=epoch)
        if self.accelerator.is_main_process:
            path = self.folder / SUITES
            write_file(path, add_rows(read_rows(path), epoch, results))
            student = '  '.join(f'{name} {values[0]:.1f}' for name, values in results['student'].items())
            _logger.info('Epoch %d: top-1 on suites: %s', epoch, student)


def format_suites(results: Mapping[str, Mapping[str, float]], seen: Sequence[str] = ()) -> str:
    """Format top-1 by data set, for student and teacher.

    Args:
        results: Top-1, in percent, by model and suite.
        seen: Suites that the teacher was trained on.
    """
    lines = [f'{"top-1":<34}' + ''.join(f'{label:>10}' for label in results)]
    for name in results['student']:
        mark = ' (seen by the teacher)' if name in seen and 'teacher' in results else ''
        lines.append(f'{name + mark:<34}' + ''.join(f'{top1[name]:>10.1f}' for top1 in results.values()))
    return '\n'.join(lines)
