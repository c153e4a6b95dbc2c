"""Preview: images on the way to their DAD view, as numbers, a PNG sheet and an HTML page."""
