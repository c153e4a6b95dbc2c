"""DAD sets: made once by ``timm-dad generate``, read by any number of trainings, verified at any time."""
