"""Plots of ``timm-dad diagnose`` as PNG: errors by set of images, and the terms of the bound."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_dad.diagnosis.limiting_term import TERMS
from timm_dad.evaluation.report.plot_style import line_style, new_plot, plot_files

_RISKS = ('teacher_error', 'student_error', 'disagreement')
_GROUP = 0.8  # width of a group of bars, as a fraction of the distance between groups
_INCHES = 1.1  # per group


def write_plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``risks.png`` and, with a student, ``terms.png``; return their paths.

    Without the extra ``eval`` it logs a warning and writes none.
    """
    return plot_files(_write_plots(report, folder))


def _write_plots(report: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    yield _plot_bars(report['risks'], _RISKS, folder / 'risks.png', 'Errors and disagreement, %')
    if report['terms']:
        title = "Terms that bound the student's error, %"
        yield _plot_bars(report['terms'], TERMS, folder / 'terms.png', title, 'student_error')


def _plot_bars(
    found: Mapping[str, Mapping[str, Any]], names: Sequence[str], path: Path, title: str, line: str = ''
) -> Path:
    """Plot a group of bars for each set, one for each available name, with the value of ``line`` drawn across it."""
    names = [name for name in names if all(name in of for of in found.values())]
    places, width = np.arange(len(found)), _GROUP / len(names)
    with new_plot(path, title, 1, 1, (_INCHES * len(found) + 1, 3)) as axes:
        axis = axes[0, 0]
        for number, name in enumerate(names):
            left = places - _GROUP / 2 + number * width
            heights = [100 * of[name] for of in found.values()]
            colour = line_style(number)['color']
            axis.bar(left, heights, width, align='edge', color=colour, label=name.replace('_', ' '))
        if line:
            ends = places - _GROUP / 2, places + _GROUP / 2
            heights = [100 * of[line] for of in found.values()]
            axis.hlines(heights, *ends, color='black', linewidth=2, label=line.replace('_', ' '))
        axis.axhline(0, color='black', linewidth=0.8)
        axis.grid(visible=False, axis='x')
        axis.set_xticks(places, list(found))
    return path
