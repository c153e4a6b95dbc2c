"""Frozen teachers: any timm model, an open_clip zero-shot classifier, a linear head, or an average of several."""
