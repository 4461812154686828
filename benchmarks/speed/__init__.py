"""Speed and memory of sMLPNet beside its peers: ``python benchmarks/speed``."""
