"""``timm-dad vqgan``: train a VQGAN on own pictures, or distil a tiny one."""
