"""The embedded demo: emoji pictures of several vendors, a tiny VQGAN and a tiny CLIP."""
