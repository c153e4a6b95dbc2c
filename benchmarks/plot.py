"""The picture of ``scaling.json``: a small panel for each sweep."""

from pathlib import Path
from typing import Any

from workload import FAITHFUL, FROM_INPUT, RELEASED

from timm_dad.common.files import replacing

COLOURS = {RELEASED: 'tab:gray', FAITHFUL: 'tab:blue', FROM_INPUT: 'tab:red'}
LABELS = {
    'batch': 'batch size',
    'resolution': 'side of the images, px',
    'teacher': 'teacher',
    'codebook': 'codes in the codebook',
    'processes': 'processes',
}
Y_LABELS = {'codebook': 'images searched / s', 'processes': 'images / s, all together'}


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw the sweeps that there are.

    Args:
        measured: What ``scaling.py`` writes.
        path: Picture to write.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    names = [name for name in LABELS if name in measured]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), layout='constrained')
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, name, measured[name])
    for axis in axes.flat[len(names) :]:
        axis.axis('off')
    legend = axes.flat[0].get_legend_handles_labels()
    if len(names) < axes.size:
        axes.flat[-1].legend(*legend, loc='center', title='making DAD images', frameon=False, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={'Software': None})
    plt.close(figure)


def _panel(axis: Any, name: str, sweep: dict[str, Any]) -> None:
    """One sweep: the things compared, as lines over what grows."""
    from matplotlib.ticker import LogLocator

    named = isinstance(sweep['x'][0], str)
    places = range(len(sweep['x'])) if named else sweep['x']
    for series, values in sweep['y'].items():
        colour = COLOURS.get(series) or COLOURS[RELEASED if series == 'VectorQuantizer' else FAITHFUL]
        axis.plot(places, values, marker='o', color=colour, label=series)
    axis.set_xlabel(LABELS[name])
    axis.set_ylabel(Y_LABELS.get(name, 'images / s'))
    if named:
        axis.set_xticks(places, [_short(one) for one in sweep['x']], fontsize=8)
    elif name in ('resolution', 'codebook'):
        axis.set_xscale('log', base=2)
        axis.set_yscale('log')
        axis.set_xticks(sweep['x'], [str(one) for one in sweep['x']], fontsize=8, rotation=45)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter('{x:g}')
    else:
        axis.set_xticks(sweep['x'])
        axis.set_ylim(bottom=0)
    if name == 'codebook':
        axis.legend(fontsize=9)
    axis.set_title(_title(name, sweep), fontsize=9)
    axis.grid(alpha=0.3)


def _title(name: str, sweep: dict[str, Any]) -> str:
    """What was held fixed."""
    if name == 'codebook':
        return '28 x 28 codes an image, batch 8, fp32'
    fixed = {
        'resolution': f'{sweep["img_size"]} px',
        'batch': f'batch {sweep["batch_size"]}',
        'teacher': _short(sweep['teacher']),
    }
    return ', '.join([*(value for key, value in fixed.items() if key != name), sweep['precision']])


def _short(teacher: str) -> str:
    """The name of a CLIP tower, shorter."""
    for long, short in (('_clip_224', ''), ('_patch', '/'), ('vit_large', 'ViT-L'), ('vit_base', 'ViT-B')):
        teacher = teacher.replace(long, short)
    return teacher
