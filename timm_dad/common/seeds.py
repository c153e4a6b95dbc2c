"""One way of seeding: by everything a draw may depend on."""

import random
from typing import Any

import numpy as np
import torch

# What is drawn; part of each key, so that no two kinds of draws share a seed.
RUN, STEP, SAMPLE, ERASING, REINFORCE, MIXTURE = range(6)


def _seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_all(*key: int) -> None:
    """Seed torch (all devices), numpy and random.

    Args:
        *key: Everything the draws depend on, such as seed, kind of draw, epoch and batch; 0 or more each.
    """
    seed = _seed(key)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def seed_sample(*key: int) -> None:
    """Seed the generators that a sample's transform uses: random, numpy and torch's CPU generator.

    Args:
        *key: As in ``seed_all``.
    """
    seed = _seed(key)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_states() -> tuple[Any, Any, torch.Tensor]:
    """Return the states of random, numpy and torch's CPU generator."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    """Restore the states returned by ``random_states``."""
    of_random, of_numpy, of_torch = states
    random.setstate(of_random)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
