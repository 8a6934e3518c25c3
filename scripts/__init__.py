"""Thin commands: benchmarks, and drills that hurt runs. They parse, call and print."""
