"""``timm-dad evaluate``: models on robustness suites, corruptions and attacks, and the figures that papers report."""
