"""Notes to the figures of a report, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from timm_dad.evaluation.report.figures import ALEXNET_CLEAN, HEADLINE_PARTS, WHOLE
from timm_dad.evaluation.suites.open import PUBLISHED

_IMAGENET_C_IMAGES = 50_000


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on what a report lacks and how its figures were computed."""
    return [*_on_missing(report), *_on_corruptions(report), *_on_shifted(report)]


def _on_missing(report: Mapping[str, Any]) -> Iterator[str]:
    if report['missing_suites']:
        yield f'Not evaluated, because their data does not exist: {", ".join(report["missing_suites"])}.'
    for name, headline in HEADLINE_PARTS.items():
        facts = report['suites'].get(name, {'missing_parts': []})
        missing = facts['missing_parts']
        if missing:
            yield f'{name} lacks {", ".join(missing)}.'
        if headline in missing:
            yield (
                f'{name} as a whole is here the mean of {", ".join(facts["parts"])}, not {headline}, which papers '
                'mean and timm publishes, so it is not compared with their figures.'
            )


def _on_corruptions(report: Mapping[str, Any]) -> Iterator[str]:
    for name, facts in report['suites'].items():
        missing = facts['missing_parts']
        if missing and facts['kind'] == 'corruption':
            some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
            yield (
                f'{name} lacks {len(missing)} of the 75 parts of ImageNet-C ({some}): it has no mCE, and its mean '
                'error covers only the parts that exist.'
            )
        fewest, most = min(facts['parts'].values()), max(facts['parts'].values())
        if facts['normalizer'] == 'alexnet' and (fewest, most) != (_IMAGENET_C_IMAGES, _IMAGENET_C_IMAGES):
            images = f'{fewest:,}' if fewest == most else f'{fewest:,} to {most:,}'
            yield f'{name} has {images} images a part; published figures use {_IMAGENET_C_IMAGES:,}.'
        wholes = [of_model[name][WHOLE] for of_model in report['figures'].values()]
        if any('mce' in whole and 'relative_mce' not in whole for whole in wholes):
            yield (
                f"No relative mCE on {name}: AlexNet's clean error is measured on ImageNet val, so it needs the suite "
                f'{ALEXNET_CLEAN}, with all classes in every part.'
            )
    made = [name for name, facts in report['suites'].items() if facts['corrupted_here']]
    if made and len(report['models']) > 1:
        yield (
            f'{", ".join(made)}: images are corrupted at the input size of each model. Models with different '
            'sizes are not compared on the same pixels.'
        )


def _on_shifted(report: Mapping[str, Any]) -> Iterator[str]:
    shifted = [name for name, facts in report['suites'].items() if facts['kind'] == 'ood']
    if len(shifted) > 1:
        yield f'Mean OOD is the plain mean of top-1 on {", ".join(shifted)}.'
    own = [name for name in shifted if name not in PUBLISHED]
    if own:
        yield (
            f'Suites of your own that count as shifted data: {", ".join(own)}. If one is not shifted, name it '
            'clean, val or validation, or list it with --clean of timm-dad evaluate.'
        )
    lines: dict[tuple[str, str], list[str]] = {}
    for name, facts in report['baselines'].items():
        lines.setdefault((facts['clean'], facts['source']), []).append(name)
    for (clean, source), names in lines.items():
        counts = sorted({report['baselines'][name]['models'] for name in names})
        what = 'timm results for training on ImageNet-1k only' if source == 'timm' else source
        yield (
            f'Effective robustness on {", ".join(names)}: percentage points above what a line in logit space through '
            f'{" to ".join(map(str, counts[:: len(counts) - 1 or 1]))} {what} predicts from top-1 on {clean}.'
        )
    for name, facts in report['baselines'].items():
        if facts['above'] is not None:
            yield (
                f'On {name} it is defined above {facts["above"]} % on {facts["clean"]}, the top-1 of the ResNet-50 '
                'whose errors it contains; the line uses only models above it.'
            )
    without = [name for name in shifted if name not in report['baselines']]
    if without:
        needs = '' if any(facts['kind'] == 'clean' for facts in report['suites'].values()) else 'a clean suite, and '
        yield (
            f'No effective robustness on {", ".join(without)}: it needs {needs}3 or more models that differ on the '
            'clean suite or, for suites that timm publishes, --timm-results.'
        )
