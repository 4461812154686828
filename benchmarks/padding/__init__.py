"""What valid areas change: features, cost, predictions, training. See __main__.py."""

# Of everything measured here; the package's default became 'bounded' later. Valid areas work alike with both.
INTERPOLATION = "exact"
