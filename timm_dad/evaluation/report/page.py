"""``report.html`` of ``timm-dad evaluate``: the tables of ``report.md``, plots, the worst pictures and the settings."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from timm_dad.common.html_report import ShownPicture, pictures, plots, report_page, settings
from timm_dad.common.markdown import format_table
from timm_dad.evaluation.report.text import format_markdown

_WORST = (
    '<h2>Most confidently wrong</h2>\n<p>For each model and suite, the pictures whose wrong answer has the largest '
    'probability, as the model got them (for attacked suites: before the attack).</p>\n'
)


def make_page(
    report: Mapping[str, Any],
    plot_files: Sequence[Path],
    worst: Mapping[str, Mapping[str, Sequence[ShownPicture]]],
    flags: Mapping[str, str],
) -> str:
    """Build the page; equal input gives equal text.

    Args:
        report: From ``build_report``.
        plot_files: From ``write_plots``.
        worst: Pictures by suite and model, from ``worst_pictures``.
        flags: Settings that the figures depend on, by flag.
    """
    text = f'{format_markdown(report)}\n**Suites**\n\n{_suites(report)}\n'
    shown = ''.join(_of_suite(suite, of_models) for suite, of_models in worst.items())
    return report_page('timm-dad evaluate', text, f'{plots(plot_files)}{_WORST}{shown}{settings(flags)}')


def _suites(report: Mapping[str, Any]) -> str:
    rows = [['suite', 'kind', 'classes', 'parts', 'images']]
    for name, facts in report['suites'].items():
        numbers = (facts['classes'], len(facts['parts']), sum(facts['parts'].values()))
        rows.append([name, facts['kind'], *(f'{number:,}' for number in numbers)])
    return format_table(rows, 2)


def _of_suite(suite: str, of_models: Mapping[str, Sequence[ShownPicture]]) -> str:
    models = ''.join(f'<h4>{escape(model)}</h4>\n{pictures(shown)}' for model, shown in of_models.items())
    return f'<h3>{escape(suite)}</h3>\n{models}'
