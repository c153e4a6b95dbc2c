"""``timm-dad vqgan``: train a VQGAN on your own pictures, or distil a tiny one."""
