"""The hook of ``--eval-suites``: evaluate the student during training, and student and teacher at the end."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.task import TrainingTask

from timm_dad.evaluation.predict import EvalConfig
from timm_dad.evaluation.report.figures import MEAN_OOD, WHOLE, Results
from timm_dad.evaluation.report.plots import write_plots
from timm_dad.evaluation.report.write import build_report, write_report
from timm_dad.method.task import DADTask
from timm_dad.training.run_folder import SUITES, appending, cut_summary
from timm_dad.training.suites import StudentSuites
from timm_dad.training.validate import eval_model

FIGURES = ('top1', 'top5')

_logger = logging.getLogger(__name__)


class SuitesHook:
    """Evaluate a student on suites at an interval of epochs, and student and teacher at the end.

    Args:
        suites: The suites.
        task: The training task.
        accelerator: Processes and trackers.
        folder: Folder for figures and report.
        num_epochs: Number of epochs of the training.
        batch_size: Images per batch.
        workers: Number of processes that load images.
        interval: Epochs between evaluations; 0 for only the one at the end.
        use_ema: Whether to evaluate the moving average, if there is one.
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
        self.suites, self.task, self.accelerator, self.folder = suites, task, accelerator, folder
        self.num_epochs, self.interval, self.use_ema, self.seen = num_epochs, interval, use_ema, seen
        self.config = EvalConfig(batch_size=batch_size, workers=workers)

    def __call__(self, epoch: int) -> None:
        """Evaluate the student after an epoch, if due; ``at_end`` covers the last one."""
        if self.interval and (epoch + 1) % self.interval == 0 and epoch + 1 < self.num_epochs:
            self._log(epoch, self._evaluate())

    def at_end(self) -> dict[str, Any]:
        """Evaluate student and teacher, and write the report.

        Returns:
            Top-1 by suite as ``student`` and, with a teacher, ``teacher``; the path of the report, and a table.
        """
        predictions = self._evaluate(with_teacher=True)
        found = self._log(max(0, self.num_epochs - 1), predictions)
        if self.accelerator.is_main_process:
            self._write_report(predictions)
        results = {model: {suite: values['top1'] for suite, values in named.items()} for model, named in found.items()}
        return {**results, 'table': format_suites(results, self.seen), 'report': str(self.folder / 'report.md')}

    def _evaluate(self, *, with_teacher: bool = False) -> Results:
        teacher = self.task.teacher if with_teacher and isinstance(self.task, DADTask) else None
        student = eval_model(self.task, use_ema=self.use_ema)
        return self.suites.evaluate(student, teacher, self.config, self.accelerator.device)

    def _log(self, epoch: int, predictions: Results) -> dict[str, dict[str, dict[str, float]]]:
        """Write top-1 and top-5 to ``suites.csv``, the trackers and the log; return them by model and suite."""
        figures = build_report(predictions, self.suites.suites, resamples=0)['figures']
        found = {
            model: {
                suite: {figure: parts[WHOLE][figure]['value'] for figure in FIGURES}
                for suite, parts in of_model.items()
                if suite != MEAN_OOD
            }
            for model, of_model in figures.items()
        }
        rows = [(model, suite, values) for model, of_model in found.items() for suite, values in of_model.items()]
        logged = {
            f'suites/{suite}/{model}_{figure}': value
            for model, suite, values in rows
            for figure, value in values.items()
        }
        self.accelerator.log(logged, step=epoch)
        if self.accelerator.is_main_process:
            path = self.folder / SUITES
            cut_summary(path, epoch)  # a run that is resumed at its end evaluates its last epoch again
            with appending(path) as temporary, temporary.open('a', newline='') as file:
                writer = csv.writer(file)
                if not file.tell():
                    writer.writerow(('epoch', 'model', 'suite', *FIGURES))
                for model, suite, values in rows:
                    writer.writerow((epoch, model, suite, *(f'{value:.4f}' for value in values.values())))
            student = '  '.join(f'{suite} {values["top1"]:.1f}' for suite, values in found['student'].items())
            _logger.info('Epoch %d: top-1 on suites: %s', epoch, student)
        return found

    def _write_report(self, predictions: Results) -> None:
        """Write the report of ``timm-dad evaluate``, and its plots if matplotlib is installed."""
        report = build_report(predictions, self.suites.suites)
        report['notes'] += self.suites.notes
        write_report(report, self.folder)
        write_plots(report, self.folder)


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


def format_results(results: Mapping[str, Any]) -> str:
    """Format the results of the hooks at the end: that table, and the paths of report and preview."""
    lines = [results['table']] if 'table' in results else []
    lines += [f'{name.capitalize()}: {results[name]}' for name in ('report', 'preview') if name in results]
    return '\n'.join(lines)
