"""Thin commands: benchmarks. They parse, call and print."""
