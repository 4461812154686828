"""What valid areas change: features, cost, predictions, training. See __main__.py."""
