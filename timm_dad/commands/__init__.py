"""The commands of ``timm-dad``: each has flags, one call into the package, and printed output."""
