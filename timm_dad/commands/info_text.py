"""What ``timm-dad info`` says of the flags, and its report as text."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from timm.task import TrainingTask

from timm_dad.flags.teacher import teacher_specs
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.teachers.spec import DEFAULT_TEACHER

Values = Mapping[str, Any]

_STEPS = {
    'training': 'training steps',
    'view': 'training steps with {} views of their own',
    'replayed': 'training steps that see {} views again',
    'none': 'training steps without {} views',
}


def describe(
    args: argparse.Namespace, task: TrainingTask, augment: DADAugment | None, data_config: Values
) -> dict[str, Any]:
    """Describe models, data and device, in the words of the flags.

    Args:
        args: Flags of ``train_dad.py``.
        task: The training task.
        augment: Makes DAD views, if any are made.
        data_config: Of ``timm.data.resolve_data_config``.
    """
    threads = torch.get_num_threads()
    cpu = f'CPU, {threads} thread{"s" * (threads > 1)}'
    values = {
        'student': args.model,
        'student_precision': args.amp_dtype if args.amp else args.model_dtype or 'float32',
        'data': args.dataset or args.data_dir,
        'input_size': list(data_config['input_size']),
        'batch_size': args.batch_size,
        'accum_steps': args.grad_accum_steps,
        'val_interval': args.val_interval,
        'device': torch.cuda.get_device_name(task.device) if task.device.type == 'cuda' else cpu,
    }
    if args.dad or args.kd_model_name:
        values['teacher'] = args.kd_model_name or ' + '.join(teacher_specs(args) or [DEFAULT_TEACHER])
    if isinstance(task, DADTask):
        values.update(dad_view=args.dad_view, views=_views(args))
        if task.teacher is None:
            values['teacher'] = f'stored logits of {args.dad_dir}'
        else:
            values.update(teacher_size=list(task.teacher.input_size), dad_precision=args.dad_precision)
    if augment is not None:
        vqgan = augment.vqgan.config
        values['vqgan'] = args.dad_vqgan
        values['vqgan_codes'] = f'factor {vqgan.factor}, {vqgan.n_embed} codes of {vqgan.embed_dim} channels'
    return values


def _views(args: argparse.Namespace) -> str:
    if args.dad_view == 'random':
        return 'none: their place takes another random view of each image'
    if args.dad_dir:
        return f'from {args.dad_dir}'
    return f'{args.dad_cache} of each image, made before training' if args.dad_cache else 'made in the training step'


def format_report(report: Values) -> str:
    """Lay out the models, what a step takes and what a training will take.

    Args:
        report: From ``timm_dad.commands.info.make_report``.

    Returns:
        Text of several lines.
    """
    values = report['configuration']
    images = values['batch_size'] * values['accum_steps']
    lines = [*_format_configuration(values), '', *_format_parts(report['parts'])]
    if 'making' in report:
        making = report['making']
        lines += ['', 'making the DAD views, before training', *_format_passes(making['per_image'])]
        lines.append(f'  {_duration(making["seconds_per_image"])} an image, measured on {making["images"]}')
        size = _size(making['bytes_per_image'] * values['images'])
        lines.append(f'  {size} in the temporary folder of each machine')
    for kind, step in report['steps'].items():
        title = _STEPS[kind].format('random' if values.get('dad_view') == 'random' else 'DAD')
        share = f', {100 * step["share"]:.3g} % of all' if step['share'] < 1 else ''
        lines += ['', f'{title}{share}', *_format_passes(step['per_image'])]
        lines.append(
            f'  {_duration(step["work"])} of work for {images} images ({_duration(step["work"] / images)} each), and '
            f'{_duration(step["wait"])} of waiting for data'
        )
    return '\n'.join([*lines, '', *_format_estimate(report['estimate'], values, report['peak_memory'])])


def _format_configuration(values: Values) -> list[str]:
    sizes = {name: 'x'.join(map(str, values.get(name, ()))) for name in ('input_size', 'teacher_size')}
    precision, accum = values.get('dad_precision'), values['accum_steps']
    rows = {
        'student': f'{values["student"]}, {sizes["input_size"]}, {values["student_precision"]}',
        'teacher': values.get('teacher', '') + (f', {sizes["teacher_size"]}, {precision}' if precision else ''),
        'VQGAN': f'{values["vqgan"]}, {values["vqgan_codes"]}, {precision}' if 'vqgan' in values else '',
        'DAD views': values.get('views', ''),
        'data': f'{values["data"]}: {values["images"]} training and {values["val_images"]} validation images',
        'batches': f'{values["batch_size"]} images' + (f', {accum} an optimizer step' if accum > 1 else ''),
        'device': values['device'],
    }
    return [f'{name:<11}{text}' for name, text in rows.items() if text]


def _format_parts(parts: Values) -> list[str]:
    lines = [f'{"an image":<18}{"parameters":>13}{"GMACs forward":>15}{"GMACs backward":>16}']
    for name, part in parts.items():
        macs = [f'{part[key] / 1e9:.4g}' if key in part else '-' for key in ('forward', 'backward')]
        lines.append(f'{name:<18}{part["parameters"] / 1e6:>11.2f} M{macs[0]:>15}{macs[1]:>16}')
        if 'encode' in part:
            lines.append(f'{"":<18}(encode {part["encode"] / 1e9:.4g}, decode {part["decode"] / 1e9:.4g})')
    return lines


def _format_passes(rows: Values) -> list[str]:
    total = sum(row['macs'] for row in rows.values())
    lines = [f'  {"an image":<18}{"passes":>8}{"GMACs":>10}{"%":>6}']
    for name, row in rows.items():
        percent = f'{100 * row["macs"] / total:.0f}' if total else ''
        lines.append(f'  {name:<18}{row["passes"]:>8.3g}{row["macs"] / 1e9:>10.4g}{percent:>6}')
    return lines


def _format_estimate(estimate: Values, values: Values, memory: int) -> list[str]:
    kind = 'largest resident set: an upper bound' if values['device'].startswith('CPU') else 'allocated on the GPU'
    gpus = 'on this device' if values['gpus'] == 1 else f'on {values["gpus"]} such devices (linear scaling)'
    making = f', {_duration(estimate["making_seconds"])} of it making the views' if estimate['making_seconds'] else ''
    train, validation = (_duration(estimate[f'{name}_seconds_per_epoch']) for name in ('train', 'validation'))
    every = f' (of one every {values["val_interval"]} epochs)' if values['val_interval'] > 1 else ''
    validation = f', validation {validation}{every}' if values['val_images'] else ''
    return [
        f'peak memory {_size(memory)} ({kind})',
        f'an epoch {_duration(estimate["seconds_per_epoch"])}: training {train}{validation}',
        f'{values["epochs"]} epochs {_duration(estimate["seconds"])} {gpus}{making}',
    ]


def _size(count: float) -> str:
    return f'{count / 2**30:.3g} GiB' if count >= 2**28 else f'{count / 2**20:.3g} MiB'


def _duration(seconds: float) -> str:
    if seconds < 0.2:
        return f'{1e3 * seconds:.3g} ms'
    if seconds < 120:
        return f'{seconds:.3g} s'
    return f'{seconds / 60:.3g} min' if seconds < 7200 else f'{seconds / 3600:.3g} h'
