"""The VQGAN: networks, codebook search, files and presets (Esser et al. 2021, arXiv:2012.09841)."""
