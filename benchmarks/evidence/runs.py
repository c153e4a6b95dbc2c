"""Results by row and seed: figures of a run, means with 95 % t-intervals, differences paired by seed."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from data import TRAIN_STYLE
from jobs import STUDIES

from timm_dad.commands.demo import half_width, interval
from timm_dad.demo.data import STYLES, UNSEEN_STYLES

Result = dict[str, Any]
Figure = Callable[[Result], float]


def style(name: str) -> Figure:
    """Top-1 on a style."""
    return lambda result: result['styles'][name]


def mean_unseen(result: Result) -> float:
    """Mean top-1 of the styles that neither student nor teacher nor VQGAN has seen."""
    return mean(result['styles'][name] for name in UNSEEN_STYLES)


def mean_but_noto(result: Result) -> float:
    """Mean top-1 of all styles that the student has not seen."""
    return mean(result['styles'][name] for name in STYLES if name != TRAIN_STYLE)


def corruption(name: str) -> Figure:
    """Mean top-1 of a corruption of noto val, over severities."""
    return lambda result: mean(result['corruptions'][name])


def mean_corruptions(result: Result) -> float:
    """Mean top-1 of 15 corruptions x 5 severities of noto val."""
    return mean(mean(values) for values in result['corruptions'].values())


COLUMNS: dict[str, Figure] = {
    'noto val': style(TRAIN_STYLE),
    **{name: style(name) for name in UNSEEN_STYLES},
    '**mean unseen**': mean_unseen,
    'mean but noto': mean_but_noto,
    '**corruptions**': mean_corruptions,
}


class Runs:
    """Results of one study (or several) by row and seed."""

    def __init__(self, results: dict[str, Result], *studies: str) -> None:
        self.rows: dict[str, dict[int, Result]] = {}
        for result in results.values():
            if result['study'] in studies:
                self.rows.setdefault(result['row'], {})[result['seed']] = result

    def cell(self, row: str, figure: Figure) -> str:
        """Mean and interval; empty without results."""
        runs = self.rows.get(row, {})
        return interval([figure(result) for result in runs.values()]) if runs else ''

    def difference(self, row: str, base: str, figure: Figure) -> str:
        """Mean and interval of the difference to another row, over the seeds that both have."""
        ours, theirs = self.rows.get(row, {}), self.rows.get(base, {})
        seeds = sorted(set(ours) & set(theirs))
        if row == base or not seeds:
            return ''
        values = [figure(ours[seed]) - figure(theirs[seed]) for seed in seeds]
        mark = '' if len(values) < 2 else significance(values)
        return f'{interval(values)}{mark}'


def significance(values: Sequence[float]) -> str:
    """A mark where the interval does not hold 0."""
    return ' *' if abs(mean(values)) > half_width(values) else ''


def row_names(study: str) -> list[str]:
    """Rows of a study, in its order."""
    return [job.row for job in STUDIES[study][0]]
