"""The commands of ``timm-dad``: flags, one call into the package, and what is printed."""
