"""Benchmarks, each `python -m scripts.bench.<name>`."""
