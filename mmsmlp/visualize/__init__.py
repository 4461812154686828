"""Look inside a network: axis weights, effective receptive fields and feature maps, in one HTML report."""
