"""Frozen teachers: any timm model, open_clip zero-shot classifier, linear head, or an average of several."""
