#!/usr/bin/env python3
"""The last results of all benchmarks, and the tables made from them.

``results.json`` holds one entry a figure. Run as a script, this fills the tables of ``benchmarks/README.md`` and
``docs/speed.md`` from it.
"""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from readme_tables import fill, markdown

from timm_dad.common.files import write_file

HERE = Path(__file__).parent
RESULTS = HERE / 'results.json'
README = HERE / 'README.md'
SPEED = HERE.parent / 'docs' / 'speed.md'
PACKAGES = ('torch', 'torchvision', 'timm', 'taming-transformers', 'accelerate', 'timm-dad')


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured ratio.

    Args:
        figure: What was measured.
        against: What it was held against.
        value: The ratio: the median over rounds.
        low: The lowest of them.
        high: The highest of them.
        at_least: What it must reach, if more is better.
        at_most: What it must stay under, if less is better.
        detail: What lies behind the ratio (seconds, bytes, sizes), in words.
        numbers: The same for programs.
    """

    figure: str
    against: str
    value: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ''
    numbers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_ratio(cls, ratio: tuple[float, float, float], **rest: Any) -> 'Figure':
        """A figure of what ``harness.ratio`` gives: median, lowest and highest."""
        value, low, high = ratio
        return cls(value=value, low=low, high=high, **rest)


def write(path: Path | None, key: str, figure: Figure, command: str, machine: dict[str, str]) -> None:
    """Print a figure; put it into a file of results, in place of the last one with this key."""
    entry = {**asdict(figure), 'command': command, 'machine': machine, 'versions': versions()}
    entry['date'] = date.today().isoformat()
    sys.stdout.write(f'{key}: {format_value(entry)} (to reach: {format_target(entry) or "-"}); {figure.detail}\n')
    sys.stdout.flush()
    if path is not None:
        store(path, key, entry)


def store(path: Path, key: str, entry: dict[str, Any]) -> None:
    """Put an entry into a JSON file, in place of the last one with this key."""
    results = read(path)
    results[key] = entry
    write_file(path, json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + '\n')


def read(path: Path) -> dict[str, Any]:
    """Entries of a file; none if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def machine(device: str, threads: int) -> dict[str, str]:
    """What measured: its processor, and its GPU if that did the work."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())
    found = {'cpu': cpu, 'cores': str(os.cpu_count()), 'threads': str(threads)}
    if device.startswith('cuda'):
        import torch

        found['gpu'] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of what the figures depend on."""
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def format_value(entry: dict[str, Any]) -> str:
    """The ratio and its spread."""
    return f'{entry["value"]:.3g} x ({entry["low"]:.3g} to {entry["high"]:.3g})'


def format_target(entry: dict[str, Any]) -> str:
    """What must be reached."""
    if entry['at_least'] is not None:
        return f'>= {entry["at_least"]:.2f} x'
    return f'<= {entry["at_most"]:.2f} x' if entry['at_most'] is not None else ''


def is_met(entry: dict[str, Any]) -> str:
    """Whether it is reached."""
    if entry['at_least'] is not None:
        return 'yes' if entry['value'] >= entry['at_least'] else '**no**'
    if entry['at_most'] is not None:
        return 'yes' if entry['value'] <= entry['at_most'] else '**no**'
    return ''


def generation_table(found: dict[str, Any]) -> str:
    """Images per second by batch, what that is of ``released.py``'s, and peak memory at the largest batch."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for key, entry in found.items():
        if key.startswith('generation, ') and ', batch ' in key:
            way, _, batch = key.removeprefix('generation, ').rpartition(', batch ')
            rows.setdefault(way, {})[int(batch)] = entry
    batches = sorted({batch for row in rows.values() for batch in row})
    lines = []
    for way, row in sorted(rows.items()):
        rates = [format_rate(row[batch]) if batch in row else '' for batch in batches]
        lines.append([way, *rates, format_peak(row[max(row)])])
    header = ['images per second (x released.py)', *(f'batch {batch}' for batch in batches), 'MiB at the peak']
    return markdown(header, lines)


def format_rate(entry: dict[str, Any]) -> str:
    """Ours, and how many times the released one's."""
    return f'{entry["numbers"]["images_per_second"]:.3g} ({entry["value"]:.3g} x)'


def format_peak(entry: dict[str, Any]) -> str:
    """Ours against the released one's, above weights."""
    numbers = entry['numbers']
    return f'{numbers["peak"] / 2**20:.0f} against {numbers["released_peak"] / 2**20:.0f}' if 'peak' in numbers else ''


def figure_table(results: dict[str, Any]) -> str:
    """All figures but those of ``generation_table``."""
    rows = [
        [e['figure'], e['against'], format_target(e), format_value(e), is_met(e), e['detail']]
        for key, e in results.items()
        if ', batch ' not in key
    ]
    return markdown(['figure', 'against', 'to reach', 'median (lowest to highest)', 'reached', 'behind it'], rows)


def attack_table(results: dict[str, Any]) -> str:
    """What a DAD view costs by the space of its attack, of ``attacks.py``."""
    rows = []
    for key, entry in results.items():
        if key.startswith('attacks, '):
            _, precision, *name, device = key.split(', ')
            numbers = entry['numbers']
            rate = f'{numbers["images_per_second"]:.3g}, {device} in {precision}'
            rows.append([', '.join(name), f'{numbers["gmacs"]:.0f}', rate, format_value(entry)])
    header = ['a DAD view, attack on', 'GMACs an image', 'images per second', 'against pixels, from Q(x)']
    return markdown(header, sorted(rows, key=lambda row: float(row[1])))


def update_table(results: dict[str, Any]) -> str:
    """What a training update costs by technique, of ``online_cost.py``; the cheapest first."""
    found = [(key, entry) for key, entry in results.items() if key.startswith('online cost, ')]
    if not found:
        return 'Not measured yet: `python benchmarks/online_cost.py`.'
    rows = []
    for _, entry in sorted(found, key=lambda item: (item[1]['numbers']['where'], item[1]['value'])):
        numbers = entry['numbers']
        middle, low, high = (f'{value:.3g}' for value in numbers['seconds'])
        memory = f'{numbers["weights"] / 2**20:.0f} + {numbers["above"] / 2**20:.0f}'
        seconds = f'{middle} ({low} to {high}), {numbers["where"]}'
        rows.append([numbers['training'], seconds, format_value(entry), memory, format_passes(numbers['passes'])])
    header = ['an update of', 'seconds an image', 'against plain', 'MiB of weights + above', 'passes an image']
    return markdown(header, rows)


def format_passes(passes: dict[str, list[float]]) -> str:
    """Images that go forward (and backward, after a plus) through each network, for one image of the batch."""
    counts = {name: ' + '.join(f'{count:g}' for count in both if count) for name, both in passes.items()}
    return ', '.join(f'{name} {count}' for name, count in counts.items())


def run_table(results: dict[str, Any]) -> str:
    """Commands that made them, where and when."""
    rows = []
    for entry in results.values():
        where = '; '.join(f'{name}: {value}' for name, value in entry['machine'].items())
        what = ', '.join(f'{name} {value}' for name, value in entry['versions'].items())
        row = [f'`{entry["command"]}`', entry['date'], where, what]
        if row not in rows:
            rows.append(row)
    return markdown(['command', 'date', 'machine', 'versions'], rows)


def projection_tables(projection: dict[str, Any]) -> dict[str, str]:
    """The projection for ImageNet, and multiply-adds behind it."""
    if not projection:
        return {}
    macs = projection['gmacs']
    parts = markdown(['part', 'GMACs an image'], [[name, f'{value:.1f}'] for name, value in macs.items()])
    gpus = [str(count) for count in projection['gpus']]
    rows = [[name, *(format_hours(hours[count]) for count in gpus)] for name, hours in projection['hours'].items()]
    header = ['projected', *(f'{count} GPU{"s" if count != "1" else ""}' for count in gpus)]
    return {
        'gmacs': parts,
        'projection': markdown(header, rows),
        'assumed': markdown(['assumed', 'value'], assumptions(projection)),
    }


def assumptions(projection: dict[str, Any]) -> list[tuple[str, str]]:
    """What a projection rests on, and the machine whose share it took."""
    values = {**projection['assumed'], **{f'measured: {name}': rate for name, rate in projection['measured'].items()}}
    rows = [(name, f'{value:.3g}' if isinstance(value, float) else f'{value}') for name, value in values.items()]
    where = '; '.join(f'{name}: {value}' for name, value in projection['machine'].items())
    return [*rows, ('machine of the counts and the measured share', where), ('command', f'`{projection["command"]}`')]


def format_hours(hours: float) -> str:
    """Hours, or minutes if it is less than two."""
    return f'{hours:.1f} h' if hours >= 2 else f'{hours * 60:.1f} min'


def tables() -> dict[Path, dict[str, str]]:
    """Every table, by file and name."""
    results = read(RESULTS)
    return {
        README: {
            'generation': generation_table(results),
            'figures': figure_table(results),
            'runs': run_table(results),
        },
        SPEED: {
            **projection_tables(read(HERE / 'projection.json')),
            'attacks': attack_table(results),
            'updates': update_table(results),
        },
    }


if __name__ == '__main__':
    for file, named_tables in tables().items():
        fill(file, named_tables)
