"""Figures that timm publishes for its models (``results/*.csv`` of its repository), for comparison and baselines.

Source: huggingface/pytorch-image-models, results/README.md.
"""

import csv
from pathlib import Path

# File of each suite. ``-clean`` is ImageNet val restricted to the 200 classes of A or R.
FILES = {
    'imagenet': 'results-imagenet.csv',
    'imagenet-real': 'results-imagenet-real.csv',
    'imagenet-v2': 'results-imagenetv2-matched-frequency.csv',
    'imagenet-a': 'results-imagenet-a.csv',
    'imagenet-a-clean': 'results-imagenet-a-clean.csv',
    'imagenet-r': 'results-imagenet-r.csv',
    'imagenet-r-clean': 'results-imagenet-r-clean.csv',
    'imagenet-sketch': 'results-sketch.csv',
}
# Top-1 and top-5, in percent: TimmResults[model][suite][image size].
TimmResults = dict[str, dict[str, dict[int, tuple[float, float]]]]

# Words in timm's pretrained tags that mean more data than ImageNet-1k, or adversarial training.
_MORE_DATA = {
    *('in12k', 'in21k', 'in22k', 'jft', 'ig1b', 'yfcc100m', 'laion2b', 'laiona', 'openai', 'webli', 'clip'),
    *('m30m', 'm38m', 'seer', 'swag', 'ssld', 'adv', 'ap'),
}


def read_timm_results(folder: str | Path) -> TimmResults:
    """Read timm's ``results/*.csv`` from a folder; ``ValueError`` if there are none, or one has other columns."""
    found = {suite: Path(folder, name) for suite, name in FILES.items() if Path(folder, name).is_file()}
    if not found:
        raise ValueError(
            f"--timm-results must be the folder results of timm's repository, with {FILES['imagenet']} and similar "
            f'files; {folder} has none of them'
        )
    results: TimmResults = {}
    for suite, path in found.items():
        try:
            with path.open(newline='', encoding='utf-8') as file:
                for row in csv.DictReader(file):
                    figures = (float(row['top1']), float(row['top5']))
                    results.setdefault(row['model'], {}).setdefault(suite, {})[int(row['img_size'])] = figures
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path} must have the columns model, img_size, top1 and top5 with numbers ({error!r}); copy it again'
            ) from error
    return results


def is_imagenet1k_only(model: str) -> bool:
    """Return whether, by timm's tag, a model was trained on ImageNet-1k only, and not adversarially."""
    words = model.partition('.')[2].split('_')
    before = words[: words.index('ft')] if 'ft' in words else ['in1k']
    return 'in1k' in words and not _MORE_DATA & set(words) and bool({'in1k', 'fcmae'} & set(before))


def baseline_points(results: TimmResults, clean: str, ood: str) -> list[tuple[float, float]]:
    """Return clean and OOD top-1, in percent, of models trained on ImageNet-1k only: one pair per model and image size.

    Effective robustness is measured against these points; the list is empty if timm publishes none.
    """
    return [
        (suites[clean][size][0], suites[ood][size][0])
        for model, suites in sorted(results.items())
        if is_imagenet1k_only(model) and clean in suites and ood in suites
        for size in sorted(suites[clean].keys() & suites[ood].keys())
    ]
