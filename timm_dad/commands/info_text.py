"""The report of ``timm-dad info`` as text."""

from typing import Any

_TITLES = {
    'training': 'training',
    'online': 'online: a DAD view of every batch, in its training step',
    'cached': '--dad-cache: DAD views made once, before training',
}


def format_report(report: dict[str, Any]) -> str:
    """Tables of the models and of each way to train.

    Args:
        report: From ``timm_dad.commands.info.make_report``.

    Returns:
        Text of several lines.
    """
    lines = [*_format_configuration(report['configuration']), '', *_format_parts(report['parts'])]
    for name, mode in report['modes'].items():
        mark = ' (these flags)' if name == report['chosen'] and len(report['modes']) > 1 else ''
        lines += ['', _TITLES[name] + mark]
        lines += _format_mode(mode, report['configuration'])
    return '\n'.join(lines)


def _format_configuration(values: dict[str, Any]) -> list[str]:
    size = 'x'.join(str(side) for side in values['input_size'])
    lines = [f'student  {values["student"]}, {size}, {values["student_precision"]}']
    if 'teacher' in values:
        size = f', {values["teacher_size"]}' if 'teacher_size' in values else ''
        lines.append(f'teacher  {values["teacher"]}{size}')
    if 'vqgan' in values:
        lines.append(f'VQGAN    {values["vqgan"]}, {values["vqgan_codes"]}')
    if values['dad_precision']:
        lines.append(f'         teacher and VQGAN in {values["dad_precision"]}')
    lines.append(
        f'data     {values["data"]}: {values["images"]} training and {values["val_images"]} validation images, '
        f'batches of {values["batch_size"]}'
    )
    lines.append(f'device   {values["device"]}')
    return lines


def _format_parts(parts: dict[str, Any]) -> list[str]:
    lines = [f'{"an image":<18}{"parameters":>13}{"GMACs forward":>15}{"GMACs backward":>16}']
    for name, part in parts.items():
        macs = [f'{part[key] / 1e9:.4g}' if key in part else '-' for key in ('forward', 'backward')]
        lines.append(f'{name:<18}{part["parameters"] / 1e6:>11.2f} M{macs[0]:>15}{macs[1]:>16}')
        if 'encode' in part:
            lines.append(f'{"":<18}(encode {part["encode"] / 1e9:.4g}, decode {part["decode"] / 1e9:.4g})')
    return lines


def _format_mode(mode: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    if 'excluded' in mode:
        return [f'  not with these flags: {mode["excluded"]}']
    lines = []
    if 'making' in mode:
        making = mode['making']
        lines += ['  making, an image', *_format_table(making)]
        lines.append(
            f'  {making["views"]} view(s) of {configuration["images"]} images: {_duration(making["seconds"])}, '
            f'{_gib(making["view_bytes"])} of memory, in every process'
        )
        lines.append('  training, an image')
    lines += _format_table(mode)
    if 'share_of_batches' in mode:
        without = mode['total_without_view']
        lines.append(
            f'  {100 * mode["share_of_batches"]:.0f} % of the batches have a DAD view; without: '
            f'{1e3 * without["seconds"]:.3g} ms'
        )
    kind = 'largest resident set so far: an upper bound' if configuration['device'].startswith('CPU') else 'on the GPU'
    lines.append(f'  peak memory {_gib(mode["peak_memory"])} ({kind})')
    estimate, gpus = mode['estimate'], configuration['gpus']
    scale = 'on this device' if gpus == 1 else f'on {gpus} such devices (linear scaling: an estimate)'
    lines.append(
        f'  epoch {_duration(estimate["seconds_per_epoch"])}: '
        f'training {_duration(estimate["train_seconds_per_epoch"])}, '
        f'validation {_duration(estimate["validation_seconds_per_epoch"])}'
    )
    lines.append(f'  {estimate["epochs"]} epochs {_duration(estimate["seconds"])}, {scale}')
    return lines


def _format_table(table: dict[str, Any]) -> list[str]:
    total = table['total']
    lines = [f'  {"":<18}{"passes":>8}{"GMACs":>10}{"ms":>10}{"%":>6}']
    rows = {**table['per_image'], 'total': {**total, 'passes': 0.0}}
    for name, row in rows.items():
        passes = f'{row["passes"]:g}' if row['passes'] else ''
        macs = f'{row["macs"] / 1e9:.4g}' if row['macs'] else ''
        percent = 100 * row['seconds'] / total['seconds']
        lines.append(f'  {name:<18}{passes:>8}{macs:>10}{1e3 * row["seconds"]:>10.4g}{percent:>6.0f}')
    return lines


def _gib(count: float) -> str:
    return f'{count / 2**30:.3g} GiB'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.3g} s'
    return f'{seconds / 60:.3g} min' if seconds < 7200 else f'{seconds / 3600:.3g} h'
