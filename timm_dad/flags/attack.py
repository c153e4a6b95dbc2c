"""The flags of the attack: one config for each space in which it may move an image."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from timm_dad.flags.fields import field_kwargs
from timm_dad.flags.recipe import RECIPES
from timm_dad.flags.rules import naming_flag, written
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import AnyAttack
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.pixel_space import ATTACK_FROM

_CONFIGS: dict[str, type[AnyAttack]] = {
    'pixels': AttackConfig,
    'latent': LatentAttackConfig,
    'codes': CodeAttackConfig,
}
DISAGREEMENT = 'disagreement'
_FIELDS = (
    'norm', 'eps', 'step_size', 'num_steps', 'random_start', 'start_size', 'neighbours', 'candidates',
)  # fmt: skip
ATTACK_FLAGS = ('dad_attack', *(f'dad_{name}' for name in _FIELDS), 'dad_attack_from', 'dad_gradient_vqgan')
# Relative radii below this change hardly a code: they are meant as radii of pixels.
_LEAST_RELATIVE = 0.05


def add_attack_args(group: Any) -> None:
    """Add the flags to a group of a parser; defaults that depend on the space are filled in by the checks."""
    group.add_argument(
        '--dad-attack', choices=(*_CONFIGS, DISAGREEMENT), default='pixels',
        help='what the attack moves: pixels (as in the paper), VQGAN latents, or VQGAN codes; disagreement: latents, '
        'towards the largest disagreement of teacher and student (only in the training step)',
    )  # fmt: skip
    for name in _FIELDS:
        owners = {space: field_kwargs(config, name) for space, config in _CONFIGS.items() if name in _names(config)}
        told = [f'{space}: {kwargs["help"]} (default: {kwargs["default"]})' for space, kwargs in owners.items()]
        group.add_argument(
            written(f'dad_{name}'), **{**next(iter(owners.values())), 'default': None, 'help': '; '.join(told)}
        )
    group.add_argument(
        '--dad-attack-from', choices=ATTACK_FROM, default=ATTACK_FROM[0],
        help='attack Q(x), as in the paper, or the input itself, which saves one VQGAN and one teacher pass '
        '(for --dad-attack pixels)',
    )  # fmt: skip
    group.add_argument(
        '--dad-gradient-vqgan', metavar='SPEC',
        help='VQGAN with the same codebook, through whose decoder the gradient flows, such as a tiny one from timm-dad '
        'vqgan distill (for --dad-attack latent, codes and disagreement; default: that of --dad-vqgan)',
    )  # fmt: skip


def _names(config: type[AnyAttack]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def attack_config(args: argparse.Namespace) -> AnyAttack:
    """Return the attack that the flags describe.

    Raises:
        ValueError: If a flag is out of range, or does not apply to this attack; the message names the flag.
    """
    kind = args.dad_attack
    if kind not in (*_CONFIGS, DISAGREEMENT):  # of a config file, which argparse does not check
        raise ValueError(f'--dad-attack must be one of {", ".join((*_CONFIGS, DISAGREEMENT))}, got {kind!r}')
    config = LatentAttackConfig if kind == DISAGREEMENT else _CONFIGS[kind]
    given = {name: f'dad_{name}' for name in _FIELDS if getattr(args, f'dad_{name}') is not None}
    for name, flag in given.items():
        if name not in _names(config):
            spaces = [space for space, other in _CONFIGS.items() if name in _names(other)]
            raise ValueError(f'{written(flag)} is for --dad-attack {" and ".join(spaces)}, got {kind}: leave it out')
    relative = config is LatentAttackConfig
    if relative and args.dad_eps is not None and 0 < args.dad_eps < _LEAST_RELATIVE:
        raise ValueError(
            f'--dad-eps of --dad-attack {kind} is a fraction of the latent length, 0 or from {_LEAST_RELATIVE} to '
            f'2, got {args.dad_eps:g}, which looks like pixel units: try 0.5'
        )
    if kind != 'pixels' and args.dad_attack_from != ATTACK_FROM[0]:
        raise ValueError(f'--dad-attack-from is for --dad-attack pixels, got {kind}: leave it out')
    if kind == 'pixels' and args.dad_gradient_vqgan:
        raise ValueError('--dad-gradient-vqgan is for --dad-attack latent, codes and disagreement: leave it out')
    values: dict[str, Any] = {name: getattr(args, flag) for name, flag in given.items()}
    if kind == DISAGREEMENT:
        values['objective'] = DISAGREEMENT
    with naming_flag({name: f'dad_{name}' for name in _FIELDS}):
        return config(**values)


def of_another_attack(given: Mapping[str, Any], configured: Mapping[str, Any]) -> set[str]:
    """Return the flags of a file that are about another attack than the command line's: radii there have other units.

    Args:
        given: Flags from the command line; they name an attack or a recipe, or the file's attack stays.
        configured: Flags from the config file.
    """
    own = _attack_of(configured)
    wanted = _attack_of(given) if {'dad_attack', 'dad_recipe'} & set(given) else own
    if wanted == own:
        return set()
    names = {*(f'dad_{name}' for name in _FIELDS), 'dad_eps_start', 'dad_attack_from'}
    if wanted == 'pixels':
        names.add('dad_gradient_vqgan')
    return names & set(configured) - set(given)


def _attack_of(flags: Mapping[str, Any]) -> Any:
    recipe = RECIPES.get(str(flags.get('dad_recipe')), {})
    return flags.get('dad_attack', recipe.get('dad_attack', 'pixels'))


def fill_in_attack(args: argparse.Namespace) -> None:
    """Check the flags, and fill in the defaults of the attack they select; ``ValueError`` names the flag."""
    config = attack_config(args)
    for name in _FIELDS:
        if hasattr(config, name):
            setattr(args, f'dad_{name}', getattr(config, name))


def describe_attack(config: AnyAttack) -> dict[str, Any]:
    """Return what a set records about its attack."""
    space = {} if config.space == 'pixels' else {'space': config.space}  # as sets were before there were spaces
    return {**dataclasses.asdict(config), **space}
