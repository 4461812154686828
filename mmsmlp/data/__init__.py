"""Data sets on disk, whoever made them; the ones that come with the package are :mod:`mmsmlp.coins` and ``photos``."""
