"""``diagnose.html``: the report of ``timm-dad diagnose`` with plots, the worst pictures and the settings."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from timm_dad.common.html_report import ShownPicture, pictures, plots, report_page, settings
from timm_dad.diagnosis.data import DAD
from timm_dad.diagnosis.report import TITLE


def make_page(
    report: Mapping[str, Any],
    text: str,
    plot_files: Sequence[Path],
    worst: Mapping[str, Sequence[ShownPicture]],
    flags: Mapping[str, str],
) -> str:
    """Build the page; equal input gives equal text.

    Args:
        report: From ``diagnose``.
        text: From ``format_report``.
        plot_files: From ``write_plots``.
        worst: Pictures by set of images, from ``WorstImages``.
        flags: Settings that the numbers depend on, by flag.
    """
    has_student = report['terms'] is not None
    shown = ''.join(_of_set(name, of_set, has_student) for name, of_set in worst.items())
    more = f'{plots(plot_files)}<h2>The worst pictures</h2>\n{shown}{settings(flags)}'
    return report_page('timm-dad diagnose', text.removeprefix(TITLE), more)


def _of_set(name: str, shown: Sequence[ShownPicture], has_student: bool) -> str:
    title = f'{name}: the {"student" if has_student else "teacher"} is most confidently wrong'
    if name == DAD and has_student:
        title = 'DAD views: the student most confidently disagrees with the teacher'
    return f'<h3>{escape(title)}</h3>\n{pictures(shown)}'
