"""The style of all plots, and how they are written: equal input gives equal bytes."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_dad.common.extras import require_extra
from timm_dad.common.files import replacing

_logger = logging.getLogger(__name__)

# Colours that colour-blind readers can tell apart (Okabe & Ito); markers tell more models apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
GREY = '#8c8c8c'
_MARKERS = 'osD^vPX*'
_RC = {
    'font.family': 'DejaVu Sans',  # comes with matplotlib: the same everywhere
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#e6e6e6',
    'legend.frameon': False,
}
_DPI, _LETTERS_AN_INCH, _ROW_INCHES = 150, 14, 0.2


@contextmanager
def new_plot(
    path: Path, title: str, panels: int, columns: int, size: tuple[float, float], **share: bool
) -> Iterator[Any]:
    """Yield the axes ``[rows, columns]`` of some panels, then write them as PNG with one legend for all.

    ``size`` is the size of a panel, in inches. The user's own matplotlib style is ignored; no window opens, and no
    global state changes. Needs the extra ``eval``.
    """
    matplotlib, figures = (require_extra(name, 'eval') for name in ('matplotlib', 'matplotlib.figure'))
    rows = -(-panels // columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        figure = figures.Figure((max(6, size[0] * columns), size[1] * rows + 0.6), layout='constrained')
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(rows, columns, squeeze=False, **share)
        for axis in axes.flat[panels:]:
            axis.axis('off')
        yield axes
        _add_legend(figure, axes.flat)
        with replacing(path) as temporary:
            # By default the file would contain the version of matplotlib.
            figure.savefig(temporary, dpi=_DPI, metadata={'Software': None})


def plot_files(plots: Iterable[Path]) -> list[Path]:
    """Write plots one after another; without the extra ``eval``, log a warning and return no more files."""
    try:
        return list(plots)
    except ImportError as error:
        _logger.warning('No plots: %s', error)
        return []


def line_style(place: int) -> dict[str, str]:
    """Return colour and marker of the model at this place in the report."""
    return {'color': _COLOURS[place % len(_COLOURS)], 'marker': _MARKERS[place % len(_MARKERS)]}


def _add_legend(figure: Any, axes: Iterable[Any]) -> None:
    """Add one legend below all panels, in as many columns as fit; the figure grows by its height."""
    by_label = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    handles = list(by_label.values())
    longest = max(map(len, by_label)) + 6
    columns = min(len(handles), max(1, int(figure.get_figwidth() * _LETTERS_AN_INCH / longest)))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * rows)
    figure.legend(handles=handles, loc='outside lower center', ncols=columns)
