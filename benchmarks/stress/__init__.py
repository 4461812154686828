"""What `python benchmarks/stress` consists of: rows of tries that must not fail, see docs/reliability.md."""
