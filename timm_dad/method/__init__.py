"""The paper: attack, loss, schedule, DAD views and training task (Zhou et al. 2023, arXiv:2311.01441)."""
