"""Which classes gain and which lose from one model to another, on the same images: a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.report.plot_style import COLOURS, GREY, drawing, new_figure, save_figure

Array = NDArray[np.float64]

_MAX_BARS, _NAMED, _MAX_NAME = 40, 10, 34


def class_accuracy(predictions: Sequence[Predictions]) -> tuple[NDArray[np.int64], Array]:
    """Classes that occur ``[C]``, and top-1 of ``M`` models on each, in percent, ``[M, C]``, on the same images."""
    label = predictions[0].label
    if not all(np.array_equal(one.label, label) for one in predictions):
        raise ValueError('change by class is of predictions of the same images, their labels differ')
    classes, index = np.unique(label, return_inverse=True)
    totals = np.bincount(index)
    return classes, np.stack([100 * np.bincount(index, weights=one.correct) / totals for one in predictions])


def display_names(class_names: Sequence[str] | None, classes: Sequence[int]) -> list[str]:
    """Short names of classes: WordNet ids of ImageNet by their first word, others as they are, else numbers."""
    descriptions = ImageNetInfo().label_descriptions(as_dict=True)
    names = []
    for index in classes:
        name = class_names[index] if class_names else f'class {index}'
        name = descriptions[name].split(',')[0] if name in descriptions else name
        names.append(name if len(name) <= _MAX_NAME else f'{name[: _MAX_NAME - 1]}…')
    return names


def plot_class_change(
    reference: Predictions,
    other: Predictions,
    path: Path,
    models: tuple[str, str],
    suite: str,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Plot the change of top-1 of each class from ``reference`` to ``other``, which ``models`` names, into ``path``.

    Up to 40 classes are sorted bars; more are points, with the classes that change most named beside.
    """
    classes, accuracy = class_accuracy([reference, other])
    change = accuracy[1] - accuracy[0]
    names = display_names(class_names, classes.tolist())
    order = np.argsort(change, kind='stable').tolist()
    with drawing():
        if len(classes) <= _MAX_BARS:
            figure = new_figure(7, 1.6 + 0.24 * len(classes))
            _draw_bars(figure.subplots(), change[order], [names[index] for index in order])
        else:
            figure = new_figure(9, 6)
            axis, beside = figure.subplots(1, 2, width_ratios=(5, 3))
            _draw_points(axis, accuracy, models)
            _draw_list(beside, change[order], [names[index] for index in order])
        figure.suptitle(f'{suite}: top-1 by class\n{models[1]} against {models[0]}', fontsize=10)
        return save_figure(figure, path)


def _draw_bars(axis: Any, change: Array, names: Sequence[str]) -> None:
    axis.barh(range(len(names)), change, color=[COLOURS[int(value < 0)] for value in change])
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.grid(axis='y', visible=False)
    axis.set_xlabel('change of top-1, percentage points')


def _draw_points(axis: Any, accuracy: Array, models: tuple[str, str]) -> None:
    # Classes have few images, so points fall on each other: one point for all at a place, larger for more.
    places, counts = np.unique(accuracy.round(6), axis=1, return_counts=True)
    colours = [COLOURS[int(second < first)] if first != second else GREY for first, second in places.T]
    axis.scatter(*places, s=8 + 8 * counts, c=colours, alpha=0.6, linewidths=0)
    axis.plot((0, 100), (0, 100), color='black', linewidth=0.8)
    axis.set(xlim=(-3, 103), ylim=(-3, 103))
    axis.set_xlabel(f'{models[0]}: top-1 of a class, %')
    axis.set_ylabel(f'{models[1]}: top-1 of a class, %')


def _draw_list(axis: Any, change: Array, names: Sequence[str]) -> None:
    axis.axis('off')
    axis.set(xlim=(0, 1), ylim=(0, 1))
    groups = (
        ('gain most', COLOURS[0], [place for place in range(len(names))[::-1][:_NAMED] if change[place] > 0]),
        ('lose most', COLOURS[1], [place for place in range(_NAMED) if change[place] < 0]),
    )
    step, y = 1 / (2 * _NAMED + 4), 1.0
    for title, colour, places in groups:
        axis.text(0, y, title, color=colour, fontweight='bold', va='top')
        for row, place in enumerate(places, 1):
            axis.text(0.12, y - row * step, f'{change[place]:+.1f}', va='top', ha='right')
            axis.text(0.16, y - row * step, names[place], va='top', parse_math=False)
        y -= (_NAMED + 2) * step
