"""The report of ``timm-dad evaluate`` as plain numbers: figures with intervals, differences, published figures."""

import json
from collections.abc import Mapping, Sequence
from operator import sub
from pathlib import Path
from typing import Any

from timm_dad.common.files import write_file
from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.report.bootstrap import LEVEL, RESAMPLES, Estimate, combine, mean_estimate
from timm_dad.evaluation.report.figures import (
    ALEXNET_CLEAN,
    BASELINE_ABOVE,
    HEADLINE_PARTS,
    MEAN_OOD,
    WHOLE,
    Results,
    SuiteFigures,
    add_whole,
    clean_suite,
    estimate_parts,
    have_same_classes,
    missing_parts,
)
from timm_dad.evaluation.report.metrics import fit_baseline
from timm_dad.evaluation.report.notes import notes
from timm_dad.evaluation.report.text import format_csv, format_markdown
from timm_dad.evaluation.report.timm_results import TimmResults, baseline_points
from timm_dad.evaluation.suites.changed import CorruptedPart
from timm_dad.evaluation.suites.suite import Suite

# Figures by model, suite, part and name, with facts about them, as JSON takes them.
Report = dict[str, Any]

_DIGITS = 4


def build_report(
    results: Results,
    suites: Sequence[Suite],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    missing: Sequence[str] = (),
    timm_results: TimmResults | None = None,
    timm_models: Mapping[str, tuple[str, int]] | None = None,
) -> Report:
    """Compute all figures of some models on some suites.

    Args:
        results: Predictions by model (the name shown), suite and part.
        suites: The suites of the predictions, in the order of the report.
        resamples: Bootstrap resamples of the images; 0 gives no intervals.
        seed: Source of all randomness.
        missing: Names of requested suites whose data does not exist.
        timm_results: What timm publishes, for comparison and as baseline of effective robustness.
        timm_models: timm's name (with its tag) and input size of each model that timm has.

    Returns:
        Settings, facts and ``notes``; ``figures[model][suite][part][figure]`` with ``value``, ``low``, ``high``
        (``None`` without resamples) and ``images``, in percent, where part ``*`` is the whole suite; ``differences`` to
        the first model likewise; ``published[model][suite][figure]`` with ``value`` and ``difference`` (less timm's).

    Raises:
        ValueError: If models were given different images.
    """
    reference, *others = results
    figures = estimate_parts(results, suites, resamples, seed)
    ood = [suite.name for suite in suites if suite.kind == 'ood']
    for model, of_model in figures.items():
        _add_wholes(of_model, suites, results[model])
        if ood:
            of_model[MEAN_OOD] = {WHOLE: {'top1': mean_estimate([of_model[name][WHOLE]['top1'] for name in ood])}}
    baselines = _add_robustness(figures, suites, timm_results)
    report: Report = {
        'models': list(results),
        'reference': reference,
        'bootstrap': {'resamples': resamples, 'seed': seed, 'level': LEVEL},
        'suites': {suite.name: _facts(suite, suites, results[reference]) for suite in suites},
        'missing_suites': list(missing),
        'figures': {model: _plain(of_model) for model, of_model in figures.items()},
        'differences': {model: _plain(_differences(figures[model], figures[reference])) for model in others},
        'published': _published(figures, timm_results or {}, timm_models or {}),
        'baselines': baselines,
    }
    report['notes'] = notes(report)
    return report


def _add_wholes(
    of_model: dict[str, SuiteFigures], suites: Sequence[Suite], results: Mapping[str, Mapping[str, Predictions]]
) -> None:
    # Clean suites first: relative mCE needs ImageNet val.
    for suite in sorted(suites, key=lambda suite: suite.kind == 'corruption'):
        comparable = (
            suite.normalizer is not None
            and ALEXNET_CLEAN in of_model
            and have_same_classes(results, suite.name, ALEXNET_CLEAN)
        )
        add_whole(suite, of_model[suite.name], of_model[ALEXNET_CLEAN][WHOLE]['top1'] if comparable else None)


def _add_robustness(
    figures: Mapping[str, dict[str, SuiteFigures]], suites: Sequence[Suite], timm_results: TimmResults | None
) -> dict[str, dict[str, Any]]:
    baselines = {}
    for suite in suites:
        clean = clean_suite(suites, suite.name)
        if suite.kind != 'ood' or clean is None:
            continue
        above = BASELINE_ABOVE.get((suite.name, clean))
        tops = {
            model: (of_model[clean][WHOLE]['top1'], of_model[suite.name][WHOLE]['top1'])
            for model, of_model in figures.items()
            if of_model[clean][WHOLE]['top1'].value > (above or -1)
        }
        # Of ImageNet-V2, timm publishes matched-frequency: no line for the mean of other variants.
        headline = HEADLINE_PARTS.get(suite.name)
        is_published = headline is None or headline in [part.name for part in suite.parts]
        candidates = {
            'timm': baseline_points(timm_results or {}, clean, suite.name) if is_published else [],
            'models of this report': [(x.value, y.value) for x, y in tops.values()],
        }
        for source, points in candidates.items():
            baseline = fit_baseline([point for point in points if point[0] > (above or -1)])
            if baseline is None:  # too few models; without any baseline there is no such figure, and a note explains it
                continue
            line = {'slope': _round(baseline.slope), 'intercept': _round(baseline.intercept), 'models': baseline.models}
            baselines[suite.name] = {'clean': clean, 'source': source, 'above': above, **line}
            for model, (x, y) in tops.items():
                of_suite = figures[model][suite.name][WHOLE]
                of_suite['effective_robustness'] = combine(baseline.effective_robustness, x, y, images=y.images)
            break
    return baselines


def _differences(figures: dict[str, SuiteFigures], reference: dict[str, SuiteFigures]) -> dict[str, SuiteFigures]:
    return {
        suite: {
            part: {
                name: combine(sub, estimate, reference[suite][part][name], images=estimate.images)
                for name, estimate in estimates.items()
                if name in reference[suite][part]
            }
            for part, estimates in parts.items()
        }
        for suite, parts in figures.items()
    }


def _round(value: float) -> float:
    return round(value, _DIGITS) + 0.0  # no -0.0


def _plain(figures: Mapping[str, SuiteFigures]) -> dict[str, Any]:
    def plain(estimate: Estimate) -> dict[str, Any]:
        low, high = (None if bound is None else _round(bound) for bound in estimate.interval() or (None, None))
        return {'value': _round(estimate.value), 'low': low, 'high': high, 'images': estimate.images}

    return {
        suite: {part: {name: plain(one) for name, one in named.items()} for part, named in parts.items()}
        for suite, parts in figures.items()
    }


def _published(
    figures: Mapping[str, dict[str, SuiteFigures]], timm: TimmResults, names: Mapping[str, tuple[str, int]]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    published: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for model, (name, size) in names.items():
        for suite, by_size in timm.get(name, {}).items():
            ours = figures[model].get(suite, {}).get(HEADLINE_PARTS.get(suite, WHOLE))
            if ours and size in by_size:
                published.setdefault(model, {})[suite] = {
                    figure: {'value': value, 'difference': _round(ours[figure].value - value)}
                    for figure, value in zip(('top1', 'top5'), by_size[size], strict=True)
                }
    return published


def _facts(suite: Suite, suites: Sequence[Suite], of_model: Mapping[str, Mapping[str, Predictions]]) -> dict[str, Any]:
    return {
        'kind': suite.kind,
        'classes': suite.num_classes,
        'clean': clean_suite(suites, suite.name),
        'normalizer': suite.normalizer,
        'corrupted_here': isinstance(suite.parts[0], CorruptedPart),
        'parts': {part.name: len(of_model[suite.name][part.name]) for part in suite.parts},
        'missing_parts': missing_parts(suite),
    }


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write ``report.json``, ``report.csv`` and ``report.md`` (to temporary names first); returns the files."""
    texts = {
        'report.json': json.dumps(report, indent=1, allow_nan=False) + '\n',
        'report.csv': format_csv(report),
        'report.md': format_markdown(report),
    }
    for name, text in texts.items():
        write_file(Path(folder, name), text)
    return [Path(folder, name) for name in texts]
