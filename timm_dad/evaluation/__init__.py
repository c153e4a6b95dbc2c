"""``timm-dad evaluate``: models on robustness suites, corruptions and attacks, with the figures that papers report."""
