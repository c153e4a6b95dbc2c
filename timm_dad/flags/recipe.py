"""``--dad-recipe``: defaults for several flags at once, each of which overrides it."""

import argparse
from collections.abc import Callable, Collection, Mapping
from typing import Any

from timm_dad.flags.rules import written

# `paper`: the loss of the paper, the default; the released code has it (`calculate_kd_loss`) and never runs it.
# `released`: the weights of the released training loop, 0.75 CE + 0.25 T^2 KL of clean and DAD images alike.
# NOTE: which of them made the published numbers is not known (docs/paper.md).
# `latent`: an attack in the latent space, on pictures without further augmentation (benchmarks/evidence).
RECIPES: dict[str, dict[str, Any]] = {
    'paper': {},
    'released': {
        'dad_task_weight': 0.375,
        'dad_extra_task_weight': 0.375,
        'dad_kd_weight': 0.125,
        'dad_weight': 0.125,
    },
    'latent': {'dad_attack': 'latent', 'dad_view_aug': 'base', 'dad_weight': 1.5},
}


def add_recipe_arg(group: Any) -> None:
    """Add the flag to a group of a parser."""
    sets = '; '.join(
        f'{name}: {", ".join(f"{written(flag)} {value}" for flag, value in flags.items())}'
        for name, flags in RECIPES.items()
        if flags
    )
    group.add_argument(
        '--dad-recipe', choices=tuple(RECIPES), default='paper',
        help=f'defaults for the flags below that are not given; {sets}',
    )  # fmt: skip


def apply_recipe(
    args: argparse.Namespace,
    add_args: Callable[[argparse.ArgumentParser], None],
    given: Collection[str],
    configured: Mapping[str, Any],
) -> None:
    """Set the flags of the recipe, except those on the command line and those in the file that names the recipe.

    A recipe of the command line also takes back what a recipe in the file may have set. In a file that holds every flag
    as it was before a recipe was applied, as timm's script writes it, the defaults are no choice of anybody.

    Args:
        args: Flags, which are changed.
        add_args: Adds all these flags to a parser.
        given: Flags from the command line.
        configured: Flags from a config file.

    Raises:
        ValueError: If there is no such recipe.
    """
    if args.dad_recipe not in RECIPES:  # of a config file, which argparse does not check
        raise ValueError(f'--dad-recipe must be one of {", ".join(RECIPES)}, got {args.dad_recipe!r}')
    parser = argparse.ArgumentParser(add_help=False)
    add_args(parser)
    values, kept = RECIPES[args.dad_recipe], {*given, *configured}
    if any(configured.get(name, 0) is None for name in ('dad_eps', 'dad_num_steps')):  # what our checks fill in
        kept = {*given, *(name for name in configured if configured[name] != parser.get_default(name))}
    if 'dad_recipe' in given:
        of_others = {name: parser.get_default(name) for flags in RECIPES.values() for name in flags}
        values, kept = {**of_others, **values}, set(given)
    for name, value in values.items():
        if name not in kept:
            setattr(args, name, value)
