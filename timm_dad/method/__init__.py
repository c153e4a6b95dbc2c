"""The paper: attack, loss, schedule, DAD views of a batch and the training task (Zhou et al. 2023, arXiv:2311.01441)."""
