"""Plots of ``timm-dad evaluate`` as PNG: severity curves, and OOD against clean accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_dad.evaluation.report.figures import WHOLE
from timm_dad.evaluation.report.metrics import logit
from timm_dad.evaluation.report.plot_style import GREY, line_style, new_plot, plot_files
from timm_dad.evaluation.report.timm_results import TimmResults, baseline_points

Point = tuple[float, float, float]  # value, low, high

_MAX_COLUMNS = 4
_CLEAN_SUFFIXES = ('-c-bar', '-3dcc', '-corrupted', '-c')
_LOWEST, _HIGHEST = 0.1, 99.9  # 0 % and 100 % have no place on logit axes
_TICKS = (_LOWEST, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, _HIGHEST)
_STEPS = (5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of ticks, where these are too few
_MIN_TICKS = 3


def write_plots(report: Mapping[str, Any], folder: str | Path, timm_results: TimmResults | None = None) -> list[Path]:
    """Write the plots that a report has data for: severity curves, and OOD against clean; a single point gets no plot.

    Returns the files: ``severity-SUITE.png``, and ``ood.png`` with timm's published results as points behind its line.
    Without the extra ``eval`` it logs a warning and writes none.
    """
    files = plot_files(_write_plots(report, Path(folder), timm_results or {}))
    for path in (Path(folder, 'ood.png'), *Path(folder).glob('severity-*.png')):
        if path not in files:  # of an earlier report
            path.unlink(missing_ok=True)
    return files


def _write_plots(report: Mapping[str, Any], folder: Path, timm_results: TimmResults) -> Iterator[Path]:
    for suite, facts in report['suites'].items():
        if facts['kind'] == 'corruption' and len(_severities(report, suite)) > 1:
            yield plot_severity(report, suite, folder / f'severity-{suite}.png')
    by_timm = any(line['source'] == 'timm' for line in report['baselines'].values())
    if ood_pairs(report) and (len(report['models']) > 1 or by_timm):
        yield plot_ood(report, folder / 'ood.png', timm_results)


def _severities(report: Mapping[str, Any], suite: str) -> list[int]:
    """Return the severities of a corruption suite, with 0 if its clean images are in the report."""
    there = {int(part.rpartition('/')[2]) for part in report['suites'][suite]['parts']}
    return sorted(there | ({0} if _clean_of(suite) in report['suites'] else set()))


def _clean_of(suite: str) -> str:
    return next((suite.removesuffix(end) for end in _CLEAN_SUFFIXES if suite.endswith(end)), '')


def plot_severity(report: Mapping[str, Any], suite: str, path: Path) -> Path:
    """Plot top-1 against severity into ``path``: one panel per corruption and one for their mean, one line per model.

    Clean top-1 is shown at severity 0 if the clean version of ``suite`` is in the report. Intervals are bands.
    """
    corruptions = list(dict.fromkeys(part.rpartition('/')[0] for part in report['suites'][suite]['parts']))
    severities, clean = _severities(report, suite), _clean_of(suite)
    panels = len(corruptions) + 1
    columns, title = min(_MAX_COLUMNS, panels), f'{suite}: top-1 by severity'
    with new_plot(path, title, panels, columns, (2.8, 2.1), sharex=True, sharey=True) as axes:
        for axis, title in zip(axes.flat, ['mean', *corruptions], strict=False):
            axis.set_title(title.replace('_', ' '), fontweight='bold' if title == 'mean' else 'normal')
            for place, model in enumerate(report['models']):
                figures = report['figures'][model]
                points = _curve(figures[suite], WHOLE if title == 'mean' else title, severities)
                if points and clean in figures:
                    points[0] = _point(figures[clean][WHOLE]['top1'])
                _draw_curve(axis, points, place, model)
        axes.flat[0].set_xticks(severities)
        for axis in axes[:, 0]:
            axis.set_ylabel('top-1, %')
        for place in range(columns):
            last = [axis for axis in axes[:, place] if axis.axison]
            if last:
                last[-1].set_xlabel('severity')
                last[-1].tick_params(labelbottom=True)
    return path


def _point(figure: Mapping[str, Any]) -> Point:
    value = figure['value']
    return (value, value, value) if figure['low'] is None else (value, figure['low'], figure['high'])


def _curve(figures: Mapping[str, Any], corruption: str, severities: Sequence[int]) -> dict[int, Point]:
    """Return top-1 by severity."""
    parts = {severity: f'{corruption}/{severity}' for severity in severities}
    return {severity: _point(figures[part]['top1']) for severity, part in parts.items() if part in figures}


def _draw_curve(axis: Any, points: Mapping[int, Point], place: int, label: str) -> None:
    x = sorted(points)
    value, low, high = np.array([points[severity] for severity in x], np.float64).reshape(-1, 3).T
    style = line_style(place)
    axis.plot(x, value, label=label, markersize=4, linewidth=1.4, **style)
    axis.fill_between(x, low, high, color=style['color'], alpha=0.15, linewidth=0)


def ood_pairs(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the clean suite of each suite of shifted data, if there is one."""
    suites = report['suites'].items()
    return {suite: facts['clean'] for suite, facts in suites if facts['kind'] == 'ood' and facts['clean']}


def plot_ood(report: Mapping[str, Any], path: Path, timm_results: TimmResults | None = None) -> Path:
    """Plot OOD against clean top-1 on logit axes into ``path``: one panel per suite, with the baseline.

    The baseline is the line of effective robustness. If it is fitted to models that timm publishes (``timm_results``),
    these are points behind it.
    """
    pairs = ood_pairs(report)
    columns = 2 if len(pairs) == 4 else min(3, len(pairs))
    with new_plot(path, 'OOD against clean top-1, logit axes', len(pairs), columns, (3.9, 3.6)) as axes:
        for axis, (suite, clean) in zip(axes.flat, pairs.items(), strict=False):
            _draw_ood(axis, report, suite, clean, timm_results or {})
    return path


def _draw_ood(axis: Any, report: Mapping[str, Any], suite: str, clean: str, timm_results: TimmResults) -> None:
    points = {
        (place, model): [_point(figures[name][WHOLE]['top1']) for name in (clean, suite)]
        for place, (model, figures) in enumerate(report['figures'].items())
    }
    line = report['baselines'].get(suite)
    listed = baseline_points(timm_results, clean, suite) if line and line['source'] == 'timm' else []
    if listed:
        x, y = _axis(listed).T
        axis.scatter(x, y, s=5, color=GREY, alpha=0.35, linewidths=0, label='timm, ImageNet-1k only')
    for (place, model), sides in points.items():
        (x, left, right), (y, low, high) = (map(float, _axis(side)) for side in sides)
        # With few resamples the figure may be outside its interval.
        bars = {'xerr': np.clip([[x - left], [right - x]], 0, None), 'yerr': np.clip([[y - low], [high - y]], 0, None)}
        axis.errorbar(x, y, **bars, **line_style(place), linestyle='', markersize=6, linewidth=1, label=model, zorder=3)
    for place, which in enumerate('xy'):  # the intervals, too
        shown = [value for sides in points.values() for value in sides[place]]
        _set_ticks(axis, which, [*shown, *(point[place] for point in listed)])
    if line:
        # Straight on these axes.
        ends = np.array(axis.get_xlim()).clip(-np.inf if line['above'] is None else float(_axis(line['above'])))
        axis.plot(ends, line['slope'] * ends + line['intercept'], color='black', linewidth=1, label='baseline')
    axis.set_title(suite)
    axis.set_xlabel(f'{clean}, top-1 %')
    axis.set_ylabel(f'{suite}, top-1 %')


def _axis(accuracy: Any) -> Any:
    return logit(np.clip(accuracy, _LOWEST, _HIGHEST))


def _set_ticks(axis: Any, which: str, values: Sequence[float]) -> None:
    low, high = float(_axis(min(values))), float(_axis(max(values)))
    margin = 0.08 * (high - low) + 0.15
    low, high = low - margin, high + margin
    grids: list[Sequence[float]] = [_TICKS, *(np.arange(step, 100, step).tolist() for step in _STEPS)]
    inside = ([tick for tick in grid if low <= logit(tick) <= high] for grid in grids)
    ticks = next(found for found in inside if len(found) >= _MIN_TICKS)
    getattr(axis, f'set_{which}lim')(low, high)
    getattr(axis, f'set_{which}ticks')(logit(ticks), [f'{tick:.4g}' for tick in ticks])
