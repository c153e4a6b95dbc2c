"""The trainer's parts: loaders, checkpoints, suites; ``train_dad.py`` assembles them."""
