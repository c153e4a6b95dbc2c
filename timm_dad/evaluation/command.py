"""``timm-dad evaluate``: robustness of models, from the flags to the report."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from timm_dad.common.errors import is_main_process, user_errors
from timm_dad.common.files import write_file
from timm_dad.common.log import setup_logging
from timm_dad.evaluation.args import PROGRAM, create_config, create_options, describe_settings, parse_args
from timm_dad.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from timm_dad.evaluation.evaluate import Evaluation, evaluate
from timm_dad.evaluation.models import parse_models
from timm_dad.evaluation.report.figures import MEAN_OOD
from timm_dad.evaluation.report.page import make_page
from timm_dad.evaluation.report.plots import write_plots
from timm_dad.evaluation.report.text import format_markdown
from timm_dad.evaluation.report.timm_results import TimmResults, read_timm_results
from timm_dad.evaluation.report.worst import worst_pictures
from timm_dad.evaluation.report.write import build_report, write_report
from timm_dad.evaluation.suites.changed import attacked_suites, clean_counterparts, corrupted_suites
from timm_dad.evaluation.suites.open import PUBLISHED, find_suites, mark_clean, open_suites, parse_suite
from timm_dad.evaluation.suites.suite import Suite
from timm_dad.flags.rules import under_flag

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run ``timm-dad evaluate`` with flags ``argv``; return the report, which is empty except in the main process."""
    args = parse_args(argv)
    setup_logging()
    with user_errors(PROGRAM):
        published = read_timm_results(args.timm_results) if args.timm_results else None
        suites, missing = collect_suites(args)
        state = start_processes(args.device)
        models, options = parse_models(args.model), create_options(args)  # checked by parse_args
        evaluation = evaluate(models, suites, create_config(args), options, Path(args.output), state.device)
        report: dict[str, Any] = {}
        if is_main_process():
            report = write_all(args, suites, missing, evaluation, published)
        state.destroy_process_group()
    return report


def collect_suites(args: argparse.Namespace) -> tuple[list[Suite], list[str]]:
    """Return the suites that the flags ask for, including derived ones, and the names of missing ones."""
    texts, missing = list(args.suite), []
    if args.data_root:
        with under_flag('--data-root:'):
            named = {parse_suite(text)[0] for text in texts}
            found = find_suites(args.data_root, named)
        texts += [f'{name}={path}' for name, path in found.items()]
        missing = [name for name in PUBLISHED if name not in found and name not in named]
    with under_flag('--suite'):
        suites, not_there = open_suites(texts)
    if missing:
        _logger.warning('--data-root %s does not contain %s', args.data_root, ', '.join(missing))
    if not_there:
        _logger.warning('--suite: there is no folder for %s', ', '.join(not_there))
    missing = [*(parse_suite(text)[0] for text in not_there), *missing]
    if not suites:
        flag = f'--data-root {args.data_root}' if args.data_root else '--suite'
        raise ValueError(f'{flag}: nothing to evaluate on, there is no data for {", ".join(missing)}')
    with under_flag('--clean'):
        suites = mark_clean(suites, [name for name in args.clean if name not in missing])
    made = list(clean_counterparts(suites))
    corruptions, attacks = (list(dict.fromkeys(names)) for names in (args.corrupt or CORRUPTIONS, args.attack))
    for suite in suites:
        if suite.kind != 'corruption' and args.corrupt is not None:
            made += corrupted_suites(suite, corruptions, sorted({*(args.severity or SEVERITIES)}))
        if suite.kind != 'corruption':
            made += attacked_suites(suite, attacks, args.attack_images)
    names = [suite.name for suite in (*suites, *made)]
    taken = [name for name in names if names.count(name) > 1 or name == MEAN_OOD]
    if taken:
        raise ValueError(f'--suite: {taken[0]} is also the name of a suite or mean made here: give another NAME')
    return [*suites, *made], missing


def start_processes(device: str) -> PartialState:
    """Start the process group, if there is one, on the device of ``--device``."""
    if ':' in device and torch.cuda.is_available():
        torch.cuda.set_device(device)
    return PartialState(cpu=device == 'cpu')


def write_all(
    args: argparse.Namespace,
    suites: Sequence[Suite],
    missing: Sequence[str],
    evaluation: Evaluation,
    published: TimmResults | None,
) -> dict[str, Any]:
    """Write report, plots and page to files, and the report to the terminal."""
    report = build_report(
        evaluation.results, suites,
        resamples=args.bootstrap, seed=args.seed, missing=missing, timm_results=published,
        timm_models=evaluation.timm_models,
    )  # fmt: skip
    report['notes'] += evaluation.notes
    files = write_report(report, args.output)
    plots = write_plots(report, args.output, published)
    worst = worst_pictures(evaluation.results, suites, evaluation.frames, args.seed)
    page = Path(args.output, 'report.html')
    write_file(page, make_page(report, plots, worst, describe_settings(args)))
    files += [page, *plots]
    print(format_markdown(report))
    print(f'Files in {args.output}: {" ".join(file.name for file in files)}, predictions')
    return report
