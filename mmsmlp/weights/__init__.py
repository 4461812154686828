"""Files of weights: official ones, other people's, other anchors'. Loading them is :mod:`mmsmlp.checkpoint`."""
