"""How all plots look, and how they are written: equal input gives equal bytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_dad.common.extras import require_extra
from timm_dad.common.files import replacing

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
def new_plot(path: Path, title: str, width: float, height: float) -> Iterator[Any]:
    """Yield a figure of that size, in inches, and write it as PNG; the style is ours, whatever the user's own.

    It makes room for its labels, and has no window and no global state. It needs the extra ``eval``.
    """
    matplotlib = require_extra('matplotlib', 'eval')
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        figure = require_extra('matplotlib.figure', 'eval').Figure((width, height), layout='constrained')
        figure.suptitle(title, fontsize=11)
        yield figure
        with replacing(path) as temporary:
            # The version of matplotlib would stand in the file.
            figure.savefig(temporary, dpi=_DPI, metadata={'Software': None})


def line_style(place: int) -> dict[str, str]:
    """Colour and marker of the model at this place of the report."""
    return {'color': _COLOURS[place % len(_COLOURS)], 'marker': _MARKERS[place % len(_MARKERS)]}


def add_legend(figure: Any, handles: Sequence[Any]) -> None:
    """One legend for all panels, below them, in as many columns as fit; the figure grows by its height."""
    longest = max(len(handle.get_label()) for handle in handles) + 6
    columns = min(len(handles), max(1, int(figure.get_figwidth() * _LETTERS_AN_INCH / longest)))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * rows)
    figure.legend(handles=handles, loc='outside lower center', ncols=columns)
