"""Format the report of ``timm-dad info`` as text."""

from collections.abc import Mapping
from typing import Any

_BATCHES = {
    'training': 'a batch',
    'view': 'a batch with its own views',
    'replayed': 'a batch with replayed views',
    'none': 'a batch without views',
}


def format_report(report: Mapping[str, Any]) -> str:
    """Describe the models, the cost of a step and the cost of a training.

    Args:
        report: From ``timm_dad.commands.info.make_report``.

    Returns:
        Text of several lines.
    """
    values, estimate = report['configuration'], report['estimate']
    models = 'teacher and VQGAN' if values['attack'] else 'teacher'
    precision = f', {models} in {values["dad_precision"]}' if values['dad_precision'] else ''
    size = 'x'.join(map(str, values['input_size']))
    lines = [
        f'{values["student"]} at {size}{precision}, {values["images"]} images, on {values["device"]}',
        *(f'{title}: {values[key]}' for title, key in (('VQGAN', 'vqgan'), ('Attack', 'attack')) if values.get(key)),
        '',
        f'{"an image":<15}{"parameters":>13}{"GMACs forward":>16}{"GMACs backward":>16}',
    ]
    for name, part in report['parts'].items():
        forward, backward = (f'{part[way] / 1e9:.4g}' if way in part else '-' for way in ('forward', 'backward'))
        parameters = f'{part["parameters"] / 1e6:.2f} M' if 'parameters' in part else '-'
        lines.append(f'{name:<15}{parameters:>13}{forward:>16}{backward:>16}')
    lines.append('')
    if 'making' in report:
        making = report['making']
        total = _size(making['bytes_per_image'] * values['images'])
        lines.append(
            f'making the DAD views before training: {_duration(making["seconds_per_image"])} an image; '
            f'{total} in the temporary folder of each machine'
        )
    for kind, batch in report['batches'].items():
        share = f' ({100 * batch["share"]:.3g} % of all)' if batch['share'] < 1 else ''
        lines.append(
            f'{_BATCHES[kind]}{share}: {_duration(batch["work"])} of work for '
            f'{values["batch_size"]} images, {_duration(batch["wait"])} of waiting for data'
        )
    bound = ' (largest resident set: an upper bound)' if values['device'] == 'CPU' else ''
    gpus = 'this device' if values['gpus'] == 1 else f'{values["gpus"]} such devices (linear scaling)'
    lines += [
        f'peak memory: {_size(report["peak_memory"])}{bound}',
        f'an epoch on {gpus}: {_duration(estimate["seconds_per_epoch"])}',
        f'{values["epochs"]} epochs: {_duration(estimate["seconds"])}',
    ]
    return '\n'.join(lines)


def _size(count: float) -> str:
    return f'{count / 2**30:.3g} GiB' if count >= 2**28 else f'{count / 2**20:.3g} MiB'


def _duration(seconds: float) -> str:
    if seconds < 0.2:
        return f'{1e3 * seconds:.3g} ms'
    if seconds < 120:
        return f'{seconds:.3g} s'
    return f'{seconds / 60:.3g} min' if seconds < 7200 else f'{seconds / 3600:.3g} h'
