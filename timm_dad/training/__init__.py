"""The trainer's parts: loaders, checkpoints, suites, overlap; ``train_dad.py`` assembles them."""
