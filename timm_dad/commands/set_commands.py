"""Reconstruct the command lines that make a DAD set and train from it, from the set's own records."""

import shlex
from collections.abc import Mapping
from typing import Any

from timm_dad.commands.generate import create_parser
from timm_dad.dad_sets.maker import GenerateConfig
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import Reinforcement, is_reinforced
from timm_dad.dad_sets.summary import CLASS_MAP
from timm_dad.demo.data import PREFIX
from timm_dad.flags.attack import ATTACK_FLAGS
from timm_dad.flags.kwargs import MIXING_FLAGS, TRANSFORM_FLAGS
from timm_dad.flags.moved import without_folder
from timm_dad.flags.rules import written

_TRANSFORM = {**TRANSFORM_FLAGS, 'interpolation': 'train_interpolation'}
_MIXING = {**MIXING_FLAGS, 'cutmix_minmax': 'cutmix_minmax'}


def generate_command(dad_set: DADSet, output: str) -> str:
    """Return the ``timm-dad generate`` that makes a set; its data folder is ``DIR``, models have no folder."""
    settings = dad_set.settings
    attack, logits = settings['attack'], settings['logits'] or {}
    flags = {
        **_data_flags(settings),
        'split': settings['data']['split'],
        **_frame_flags(settings),
        'dad_views': settings['views']['count'],
        'seed': settings['views']['seed'],
        **teacher_flags(settings),
        'dad_vqgan': without_folder(settings['vqgan']['spec']),
        'dad_strict_size': settings['vqgan']['strict_size'],
        'dad_attack': attack.get('space', 'pixels'),
        **{flag: attack.get(flag.removeprefix('dad_')) for flag in ATTACK_FLAGS[1:]},
        'dad_attack_from': settings.get('attack_from', 'reconstruction'),
        'dad_gradient_vqgan': 'SPEC' if 'gradient_vqgan' in settings else None,
        'dad_keep_label': attack['keep_label'],
        'dad_precision': settings['precision'],
        'dad_micro_batch': settings.get('micro_batch', 0),
        'dad_compile': settings.get('compiled', False),
        'batch_size': settings['batch_size'],
        'shard_size': settings['shard_size'],
        'dad_store_logits': logits.get('top_k', 0),
        'dad_temperature': logits.get(
            'temperature', settings['teacher'].get('temperature', GenerateConfig.temperature)
        ),
        **settings['files'],
        **_reinforce_flags(dad_set),
        'output': output,
    }
    defaults = {name: _plain(value) for name, value in vars(create_parser().parse_args(['--output', ''])).items()}
    return _command('generate', {name: value for name, value in flags.items() if _plain(value) != defaults[name]})


def train_command(dad_set: DADSet, dad_dir: str) -> str:
    """Return a ``timm-dad train`` from the set: without a teacher if it is reinforced, else naming model files."""
    settings, replayed = dad_set.settings, _reinforce_flags(dad_set)
    for name in ('reinforce', 'reinforce_top_k'):
        replayed.pop(name, None)
    split, flags = settings['data']['split'], teacher_flags(settings)
    size = {name: value for name, value in _frame_flags(settings).items() if name.endswith('size')}
    own = settings['vqgan']['spec']
    return _command('train', {
        **_data_flags(settings),
        **({'train_split': split} if split != 'train' else {}),
        **({'val_split': ''} if split == '' else {}),  # such data has no splits
        'dad': True,
        'dad_dir': dad_dir,
        **({'dad_stored_logits': True, 'no_prefetcher': bool(replayed['reprob']), **replayed} if replayed else {}),
        **(flags if not replayed and flags != settings['teacher']['flags'] else {}),
        **({'dad_vqgan': without_folder(own)} if own != without_folder(own) and _is_of_codes(settings) else {}),
        'model': 'resnet50',
        **size,
        'num_classes': settings['data']['num_classes'],
    })  # fmt: skip


def _reinforce_flags(dad_set: DADSet) -> dict[str, Any]:
    """Return the flags of the augmentations that a set has answers on; empty if there are none."""
    if not is_reinforced(dad_set.root):
        return {}
    settings = Reinforcement(dad_set).settings
    transform = {_TRANSFORM.get(name, name): value for name, value in settings['transform'].items()}
    del transform['input_size']
    return {
        'reinforce': settings['repeats'],
        'reinforce_top_k': settings['logits']['top_k'],
        'dad_temperature': settings['logits']['temperature'],
        'dad_same_crop': settings['pairs']['same_draws'],
        'dad_view_aug': 'base' if settings['pairs']['base_alone'] else 'full',
        **transform,
        **{_MIXING[name]: value for name, value in settings.get('mixup', {}).items()},
    }


def teacher_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of a set's teacher, with files stripped of the folders of the machine that made it."""
    return {name: without_folder(value) for name, value in settings['teacher']['flags'].items()}


def _is_of_codes(settings: Mapping[str, Any]) -> bool:
    return bool(settings['files']['format'] == 'codes')


def _data_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    data = settings['data']
    own = {} if str(data['dataset']).startswith(PREFIX) else {'data_dir': 'DIR'}
    own = {**own, **{name: data.get(name) for name in ('dataset', 'input_key', 'target_key')}}
    if data.get('class_map'):
        own['class_map'] = CLASS_MAP
    several = data.get('multi_label')
    if several:
        task = {'task': 'multilabel', 'target_format': several['target_format']}
        own = {**own, **task, 'multilabel_threshold': several['threshold']}
    if several or data['class_names'] is None:
        own['num_classes'] = data['num_classes']
    return {**own, 'no_labels': True} if data.get('label_free') else own


def _frame_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    height, width = settings['views']['size']
    size = {'img_size': height} if height == width else {'input_size': [3, height, width]}
    return {**size, **{name: settings['views'][name] for name in ('crop_pct', 'interpolation')}}


def _command(name: str, flags: Mapping[str, Any]) -> str:
    words = [word for flag, value in flags.items() for word in _words(written(flag), value)]
    return shlex.join(['timm-dad', name, *words])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(flag: str, value: Any) -> list[str]:
    if value is None or value is False or (value == '' and not flag.endswith('split')):
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value if isinstance(value, list) else [value])]
