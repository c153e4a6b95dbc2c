"""Data: timm's data sets and the demo's, their images by name, and pairs of views."""
