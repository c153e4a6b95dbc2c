"""Preview: the steps from an image to its DAD view, as numbers, a PNG sheet and an HTML page."""
